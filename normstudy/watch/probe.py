"""Measure each step of a training loop with hooks, which change no bit of the training and never wait for the device.

Gradients are read at the end of the last backward before a step, after accumulation and DDP's reduction, but before
clipping. As in every study, all values in a step's row refer to the parameters before the step's update.
"""

import functools
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim import Optimizer

from normstudy.errors import printable
from normstudy.watch.names import Layout
from normstudy.watch.numbers import Number, Row, has_norm, norms, number
from normstudy.watch.stream import Hook, Stream


class Probe:
    """Hook a model and its optimizers, and collect Rows. A row covers one step of each optimizer."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], layout: Layout, probes: Callable[[int], bool],
        scaler: Any, step: int, collect: Callable[[], None],
    ) -> None:  # fmt: skip
        self.model, self.layout, self.optimizers, self.probes, self.scaler = model, layout, optimizers, probes, scaler
        self.collect = collect  # called once per step
        self.step = step  # the number of the next step
        self.rows: list[Row] = []
        self.seconds = 0.0  # spent in hooks
        self.params: list[Tensor] = [p for _, p in model.named_parameters()]
        self.stream = Stream(len(layout.blocks), next(p.device for p in self.params if p.requires_grad), self)
        self.broken = False  # whether an error has ended the watch
        self._index = {id(p): i for i, p in enumerate(self.params)}
        self._others: set[int] = set()  # ids of optimizers' parameters that are not the model's
        self.logged: dict[str, Number] = {}  # losses for the next row
        self._order = ""  # when the loop logs the training loss: "before the backward", "before the step" or "after"
        self._norms: dict[int, Tensor] = {}  # of the gradients at the end of the last backward
        self._scaled: Any = None  # the scaler's dictionary of optimizers, which its update() replaces
        self._since: set[int] = set()  # ids of the optimizers that have stepped since the scaler's update()
        self._skips = False  # whether the scaler has ever skipped a step
        self._dirty: set[int] = set()  # parameters reached by the running backward
        self._last: set[int] = set()  # parameters reached by the last backward
        self._tasks: dict[int, int] = {}  # running backward -> number of gradients accumulated before it
        self._accumulations = self._backwards = self._at_pre = 0
        self._fresh = False  # whether a backward has run since the last step
        self._running = 0  # stack depth of the running step; 0 if no step is running
        self._current: Optimizer | None = None  # the running step's optimizer
        self._calls = 0  # number of calls of the running step's closure
        self._stepped: set[int] = set()  # ids of the optimizers that have stepped in the current row
        self._before: dict[int, Tensor] = {}
        self._handles: list[Any] = []
        self._unhooked = list(range(len(self.params)))
        self._blocks = [{self._index[id(p)] for p in block.parameters()} for block in layout.blocks]
        self._sample: set[int] = set()  # parameters in one block that the last backward reached; empty after a step
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

    def _attach(self) -> None:
        self._hook_trained()
        for optimizer in self.optimizers:
            self._of(optimizer)
            pre, post = Hook(self._pre_step, self), Hook(self._post_step, self)
            self._handles += [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]
        for i, block in enumerate(self.layout.blocks):
            if i == 0:
                self._handles.append(block.register_forward_pre_hook(Hook(self.stream.enter, self), with_kwargs=True))
            self._handles.append(block.register_forward_hook(Hook(functools.partial(self.stream.leave, i + 1), self)))

    def _hook_trained(self) -> list[int]:
        """Hook trained parameters that have no hook yet, such as unfrozen ones. Return their indices."""
        new = [i for i in self._unhooked if self.params[i].requires_grad]
        for i in new:
            hook = Hook(functools.partial(self._accumulated, i), self)
            self._handles.append(self.params[i].register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
            self._unhooked.remove(i)
        return new

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.stream.close()

    def failed(self, error: Exception) -> None:
        """Print the error and disable the hooks. `detach` removes them later: torch may be iterating over them now."""
        if not self.broken:
            self.broken = True
            print(printable(f"watch: stopped at step {self.step} by {type(error).__name__}: {error}"), file=sys.stderr)

    # ---- gradients ------------------------------------------------------------------------------------

    def probes_soon(self) -> bool:
        """Return whether a forward pass may belong to a probed step: the last, the next, or the one after that."""
        return any(self.probes(self.step + k) for k in (-1, 0, 1))

    def begins(self, task: int) -> None:
        """Arrange to read gradients at the end of a backward that has reached a parameter or the residual stream."""
        if task in self._tasks or not self._handles:
            return
        compiled = sys.modules.get("torch._dynamo.compiled_autograd")
        if compiled is not None and (compiled.compiled_autograd_enabled or compiled.in_compiled_autograd_region):
            raise RuntimeError("compiled autograd is on, which watch does not support: train without it")
        self._tasks[task] = self._accumulations
        # Read gradients after DDP's callback has reduced them. It may be queued later, so queue the reading after it.
        queue, reading = Variable._execution_engine.queue_callback, functools.partial(self._read_gradients, task)
        queue(Hook(functools.partial(queue, Hook(reading, self)), self))
        if self._unhooked:
            self._dirty.update(self._hook_trained())  # this backward may already have reached the new ones
        if self._sample and not (self._running and self._calls > 1):
            # If the loop discarded the gradients of earlier backward passes, discard the stream's sums of these passes.
            found = self._gradient_norms(sorted(self._sample))
            self.stream.drop(unless=torch.stack(list(found.values())).max() if found else None)

    def _accumulated(self, i: int, _: Tensor) -> None:
        self.begins(torch._C._current_graph_task_id())
        self._accumulations += 1
        self._dirty.add(i)

    def _read_gradients(self, task: int) -> None:
        began = time.perf_counter()
        if self._tasks.pop(task, -1) == self._accumulations:  # no gradient: torch.autograd.grad, or a nested backward
            self.stream.end(task, counts=False)
            return
        self._forget_what_was_skipped()
        self._fresh, self._backwards = True, self._backwards + 1
        self._last, self._dirty = self._dirty, set()
        if self._last and all(self.params[i].grad is None for i in self._last):
            raise RuntimeError("all gradients were removed before backward ended: call the optimizer after backward")
        if not self._calls:  # if a step was running, it has raised an error
            self._running = 0
        unfinished = self._running > 0 or 0 < len(self._stepped) < len(self.optimizers)
        probed = (unfinished and self.rows[-1].probed) or (not self._running and self.probes(self.step))
        # L-BFGS calls its closure several times. Only the first call has the parameters before the update.
        probed = probed and not (self._running and self._calls > 1)
        self.stream.end(task, counts=probed)
        if probed:
            # Read all gradients again: the loop may have clipped some. For a nested backward, read only its own.
            self._norms |= self._gradient_norms(sorted(self._last) if self._tasks else range(len(self.params)))
            self._sample = next((block & self._last for block in reversed(self._blocks) if block & self._last), set())
        self.seconds += time.perf_counter() - began

    def _forget_what_was_skipped(self) -> None:
        """If the scaler has skipped a step since the last backward, drop that step's measurements and training loss."""
        scaled = getattr(self.scaler, "_per_optimizer_states", None)
        if scaled is self._scaled:
            return
        if (self._scaled or {}).keys() & {id(one) for one in self.optimizers} - self._since:
            self._skips = True
            self.stream.drop()
            self._norms.clear()
            self._stepped.clear()
            if self._order == "before the step":
                self.logged.pop("train_loss", None)
        self._scaled = scaled
        self._since.clear()

    def _gradient_norms(self, which: Sequence[int]) -> dict[int, Tensor]:
        grads = {i: g for i in which if (g := self.params[i].grad) is not None}
        dense = [g.coalesce().values() if g.is_sparse else g for g in grads.values()]
        return dict(zip(grads, norms(dense), strict=True))

    # ---- steps ----------------------------------------------------------------------------------------

    def _pre_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        began, depth = time.perf_counter(), _depth()
        if 0 < self._running < depth:  # a step within a step, such as super().step()
            return None
        again = self._running and self._current is optimizer and self._backwards == self._at_pre  # its last step raised
        self._running, self._current = depth, optimizer
        if again:
            return None
        mine = self._of(optimizer)
        if not self.rows or id(optimizer) in self._stepped or not self._stepped:
            self._begin_row(optimizer, set(mine))
        row = self.rows[-1]
        self._stepped.add(id(optimizer))
        self._since.add(id(optimizer))
        closure = kwargs.get("closure", args[1] if args[1:] else None)  # args[0] is the optimizer
        counted = self._counted(closure)
        self._calls, self._at_pre = 0, self._backwards
        if counted is closure:
            self._take_stream(row)
        self._take_gradients(row, optimizer, mine, late=counted is closure)
        if row.probed:
            for i in mine:
                if i not in self._before:
                    self._before[i] = torch.empty_like(self.params[i])
            with torch.no_grad():
                torch._foreach_copy_([self._before[i] for i in mine], [self.params[i].detach() for i in mine])
        self.seconds += time.perf_counter() - began
        if counted is closure:
            return None
        return (
            (args, {**kwargs, "closure": counted}) if "closure" in kwargs else ((args[0], counted, *args[2:]), kwargs)
        )

    def _begin_row(self, optimizer: Optimizer, mine: set[int]) -> None:
        self._stepped.clear()
        losses = self.logged.get("train_loss"), self.logged.get("val_loss")
        row = Row(self.step, self.probes(self.step), number(optimizer.param_groups[0].get("lr")), *losses)
        self.rows.append(row)
        self.step, self.logged = self.step + 1, {}
        self.collect()
        if row.probed:  # other parameters may change without a step, e.g. an average of weights
            others = [i for i, p in enumerate(self.params) if i not in mine and has_norm(p)]
            row.params = dict(zip(others, norms([self.params[i] for i in others]), strict=True))

    def _counted(self, closure: Any) -> Any:
        """Wrap a closure to count its calls. Return anything else unchanged."""
        if not callable(closure) or isinstance(closure, nn.Module | Optimizer | type):
            return closure

        @functools.wraps(closure)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            try:
                return closure(*args, **kwargs)
            except BaseException:
                self._running = 0
                raise

        return counted

    def _post_step(self, optimizer: Optimizer, *_: object) -> None:
        began = time.perf_counter()
        if self._running != _depth():
            return
        self._fresh, self._running = False, 0
        row, mine = self.rows[-1], self._of(optimizer)
        self._take_stream(row)
        if self._backwards != self._at_pre:  # the step ran a closure
            for i in mine:
                row.grads.pop(i, None)
                row.clipped.pop(i, None)
            self._take_gradients(row, optimizer, mine, late=True)
            row.repeated = row.repeated or self._calls > 1
        if row.probed:
            before = [self._before[i] for i in mine]
            with torch.no_grad():
                row.params |= dict(zip(mine, norms(before), strict=True))
                torch._foreach_sub_(before, [self.params[i].detach() for i in mine])
                row.updates |= dict(zip(mine, norms(before), strict=True))
            if (scale := getattr(optimizer, "grad_scale", None)) is not None:  # a fused step divides gradients by it
                row.clipped |= {i: row.clipped[i] / scale for i in mine if i in row.clipped}
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):
            row.skipped = found_inf.detach() + (0.0 if row.skipped is None else row.skipped)
        self.seconds += time.perf_counter() - began

    def _take_stream(self, row: Row) -> None:
        """Take the residual stream's sums since the last step. Add them to the row if it is probed."""
        stream = self.stream.take()
        self._tasks.clear()
        self._sample = set()
        if row.probed and stream is not None:
            row.stream = stream if row.stream is None else row.stream + stream

    def _take_gradients(self, row: Row, optimizer: Optimizer, mine: Sequence[int], late: bool) -> None:
        """Move the norms of an optimizer's gradients into a row.

        late: whether to also read gradients that the loop has computed without a backward since the last step.
        """
        kept = {i: self._norms.pop(i) for i in mine if i in self._norms}
        if not row.probed:
            return
        if self.scaler is not None and self.scaler.is_enabled() and self.scaler._scale is not None:
            row.scale = self.scaler._scale.clone()
        clipped = self._gradient_norms(mine)
        row.clipped |= clipped
        for i, norm in clipped.items():
            if i in kept:  # a gradient that the last backward did not reach may be zero now
                row.grads[i] = kept[i] if i in self._last else torch.where(norm == 0, norm, kept[i])
            elif late:
                unscaled = getattr(optimizer, "grad_scale", None) is None  # all are divided by the scale later
                row.grads[i] = norm if row.scale is None or not unscaled else norm * row.scale
                row.late.add(i)

    def _of(self, optimizer: Optimizer) -> list[int]:
        """Return the indices of the model's parameters that an optimizer has."""
        found = []
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            i = self._index.get(id(p))
            if i is not None:
                found.append(i)
            elif id(p) not in self._others:
                if any(p is one for one in self.model.parameters()):
                    raise RuntimeError("a parameter was added to the model during the watch: start another watch")
                self._others.add(id(p))
        return found

    def log(self, values: Mapping[str, object]) -> dict[str, object]:
        """Record losses, and return those that are not numbers.

        A training loss belongs to its iteration's step, a validation loss to the next step.
        """
        found = {name: number(value) for name, value in values.items()}
        kept = {name: value for name, value in found.items() if value is not None}
        if "train_loss" in kept:
            if not self._order:
                self._order = "before the step" if self._fresh else "after" if self.rows else self._before_all(values)
            elif self._order == "before the step" and not self._fresh and self._skips:
                self._order = "after"  # it seemed to be before the step because the scaler had skipped the step
            if self._order == "after":
                loss = kept.pop("train_loss")
                if not self._fresh:  # if fresh, the scaler skipped the step of this loss
                    self.rows[-1].train_loss = loss
        self.logged |= kept
        return {name: value for name, value in values.items() if found[name] is None}

    def _before_all(self, values: Mapping[str, object]) -> str:
        """Return "before the backward" if a training step computed the loss (logged before any backward), else ""."""
        loss = values["train_loss"]
        ran = self.stream.ran() or not self.layout.blocks or (isinstance(loss, Tensor) and loss.requires_grad)
        return "before the backward" if ran else ""


def _depth() -> int:
    """Return the depth of the caller in the stack."""
    return sum(1 for _ in traceback.walk_stack(sys._getframe(1)))

"""Measure a training loop's steps through hooks that do not change its results and never wait for the device.

A gradient is read when the last backward before a step ends: it is accumulated and reduced by DDP, but not yet
clipped. A step's row describes the parameters before the step's update, as in every study.
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
from normstudy.watch.hooks import Hook
from normstudy.watch.names import Layout
from normstudy.watch.numbers import Number, Row, number
from normstudy.watch.stream import Stream
from normstudy.watch.sums import has_norm, norms


class Probe:
    """Add hooks to a model and its optimizers, and collect a Row for each step. All optimizers share a step's row."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], layout: Layout, probes: Callable[[int], bool],
        scaler: Any, step: int, collect: Callable[[], None],
    ) -> None:  # fmt: skip
        self.model, self.layout, self.optimizers, self.probes, self.scaler = model, layout, optimizers, probes, scaler
        self.collect = collect  # called once a step
        self.step = step  # number of the next step
        self.rows: list[Row] = []
        self.seconds = 0.0  # time spent in hooks
        self.params: list[Tensor] = [p for _, p in model.named_parameters()]
        self.device = next(p.device for p in self.params if p.requires_grad)
        self.stream = Stream(len(layout.blocks), self.device, self._begins, self._failed)
        self.broken = False  # whether an error has ended the watch
        self._index = {id(p): i for i, p in enumerate(self.params)}
        self._others: set[int] = set()  # ids of the optimizers' parameters that the model does not have
        self.logged: dict[str, Number] = {}  # losses for the next row
        self._order = ""  # when the loop logs its training loss: "before the backward", "before the step", or "after"
        self._norms: dict[int, Tensor] = {}  # parameter -> its gradient's norm after the last backward that reached it
        self._scaled: Any = None  # the scaler's dictionary of optimizers; the scaler replaces it in each iteration
        self._since: set[int] = set()  # optimizers that have stepped in this iteration of the scaler
        self._skips = False  # whether the scaler has ever skipped a step
        self._dirty: set[int] = set()  # parameters that running backwards have reached
        self._last: set[int] = set()  # parameters that the last backward reached
        self._tasks: dict[int, int] = {}  # running backward -> value of _accumulations when it began
        self._accumulations = self._backwards = self._at_pre = 0
        self._fresh = self._inside = False  # a backward has run since the last step; a step is running
        self._outer = -1  # depth of the stack at the running step
        self._current: Optimizer | None = None  # optimizer of the running step
        self._calls = 0  # how often the running step has called its closure
        self._stepped: set[int] = set()  # optimizers that have stepped in the last row
        self._hooks: list[Hook] = []
        self._before: dict[int, Tensor] = {}
        self._handles: list[Any] = []
        self._unhooked = list(range(len(self.params)))
        self._blocks = [{self._index[id(p)] for p in block.parameters()} for block in layout.blocks]
        self._sample: set[int] = set()  # parameters of the last block that the last probed backward reached
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

    def _hook(self, call: Callable[..., object]) -> Hook:
        self._hooks.append(Hook(call, self._failed))
        return self._hooks[-1]

    def _attach(self) -> None:
        self._hook_trained()
        for optimizer in self.optimizers:
            self._of(optimizer)
            self._handles.append(optimizer.register_step_pre_hook(self._hook(self._pre_step)))
            self._handles.append(optimizer.register_step_post_hook(self._hook(self._post_step)))
        for i, block in enumerate(self.layout.blocks):
            if i == 0:
                self._handles.append(block.register_forward_pre_hook(self._hook(self.stream.enter), with_kwargs=True))
            leave = self._hook(functools.partial(self.stream.leave, i + 1))
            self._handles.append(block.register_forward_hook(leave))

    def _hook_trained(self) -> list[int]:
        """Hook the trained parameters that have no hook yet, because they were frozen before. Return their indices."""
        new = [i for i in self._unhooked if self.params[i].requires_grad]
        for i in new:
            hook = self._hook(functools.partial(self._accumulated, i))
            self._handles.append(self.params[i].register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
            self._unhooked.remove(i)
        return new

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.stream.close()

    def _failed(self, error: Exception) -> None:
        """Print the error that ends the watch, and disable the hooks. Keep them, as torch may iterate over them now."""
        if not self.broken:
            self.broken = True
            for hook in self._hooks:
                hook.call = None
            line = f"watch: stopped at step {self.step} by {type(error).__name__}: {error}"
            print(printable(line), file=sys.stderr)

    # ---- gradients ------------------------------------------------------------------------------------

    def _begins(self, task: int) -> None:
        """Register a running backward, when it reaches its first parameter or point of the residual stream."""
        if task in self._tasks or not self._handles:
            return
        compiled = sys.modules.get("torch._dynamo.compiled_autograd")
        if compiled is not None and (compiled.compiled_autograd_enabled or compiled.in_compiled_autograd_region):
            raise RuntimeError("watch does not support compiled autograd: train without compiled autograd")
        self._tasks[task] = self._accumulations
        end = functools.partial(self._end_of_backward, task)
        Variable._execution_engine.queue_callback(Hook(end, self._failed))
        if self._unhooked:
            self._dirty.update(self._hook_trained())  # this backward may have reached them before
        if self._sample and not (self._inside and self._calls > 1):
            self._forget_what_was_zeroed()

    def _accumulated(self, i: int, _: Tensor) -> None:
        self._begins(torch._C._current_graph_task_id())
        self._accumulations += 1
        self._dirty.add(i)

    def _end_of_backward(self, task: int) -> None:
        # Queue a second callback, which runs after DDP's: DDP's may have been queued after the first.
        Variable._execution_engine.queue_callback(Hook(functools.partial(self._read_gradients, task), self._failed))

    def _read_gradients(self, task: int) -> None:
        began = time.perf_counter()
        if self._tasks.pop(task, -1) == self._accumulations:  # reached no parameter, as in autograd.grad
            self.stream.end(task, counts=False)
            return
        self._forget_what_was_skipped()
        self._fresh, self._backwards = True, self._backwards + 1
        self._last, self._dirty = self._dirty, set()
        if self._last and all(self.params[i].grad is None for i in self._last):
            raise RuntimeError("backward leaves no gradient, as if the optimizer ran inside it: step after backward")
        if self._inside and not self._calls:  # the step before raised an exception
            self._inside, self._outer = False, -1
        unfinished = self._inside or 0 < len(self._stepped) < len(self.optimizers)
        probed = (unfinished and self.rows[-1].probed) or (not self._inside and self.probes(self.step))
        # L-BFGS runs its closure several times. Only in the first call are the parameters those before the update.
        probed = probed and not (self._inside and self._calls > 1)
        self.stream.end(task, counts=probed)
        if probed:
            # Read all gradients: those that this backward did not reach may have been clipped since they were read. In
            # a nested backward (checkpointing runs one for each block) read only the gradients that it reached.
            self._norms |= self._gradient_norms(sorted(self._last) if self._tasks else range(len(self.params)))
            self._sample = next((block & self._last for block in reversed(self._blocks) if block & self._last), set())
        self.seconds += time.perf_counter() - began

    def _forget_what_was_zeroed(self) -> None:
        """Drop the residual stream of earlier backwards if their gradients were set to None or zero without a step."""
        found = self._gradient_norms(sorted(self._sample))
        self.stream.drop(unless=torch.stack(list(found.values())).max() if found else None)

    def _forget_what_was_skipped(self) -> None:
        """Drop the gradients of a step that the scaler has skipped since the last backward."""
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
        if -1 < self._outer < depth:  # a step inside the running one, such as a superclass's
            return None
        again = self._inside and self._current is optimizer and self._backwards == self._at_pre  # after an exception
        self._outer, self._current = depth, optimizer
        if again:
            return None
        mine = self._of(optimizer)
        if not self.rows or id(optimizer) in self._stepped or not self._stepped:
            self._begin_row(optimizer, set(mine))
        row = self.rows[-1]
        self._stepped.add(id(optimizer))
        self._since.add(id(optimizer))
        closure = kwargs.get("closure", args[1] if args[1:] else None)  # args begins with the optimizer
        counted = self._counted(closure)
        self._inside, self._calls, self._at_pre = True, 0, self._backwards
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
        if row.probed:  # parameters outside this optimizer may change without a step, as an average of weights does
            others = [i for i, p in enumerate(self.params) if i not in mine and has_norm(p)]
            row.params = dict(zip(others, norms([self.params[i] for i in others]), strict=True))

    def _counted(self, closure: Any) -> Any:
        """Return a closure that counts its calls; if the argument is not a closure, return the argument."""
        if not callable(closure) or isinstance(closure, nn.Module | Optimizer | type):
            return closure

        @functools.wraps(closure)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            try:
                return closure(*args, **kwargs)
            except BaseException:
                self._inside, self._outer = False, -1
                raise

        return counted

    def _post_step(self, optimizer: Optimizer, *_: object) -> None:
        began = time.perf_counter()
        if self._outer != _depth():
            return
        self._inside, self._fresh, self._outer = False, False, -1
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
        """Move the residual stream's sums since the last step into a row."""
        stream = self.stream.take()
        self._tasks.clear()
        self._sample = set()
        if row.probed and stream is not None:
            row.stream = stream if row.stream is None else row.stream + stream

    def _take_gradients(self, row: Row, optimizer: Optimizer, mine: Sequence[int], late: bool) -> None:
        """Move the norms of an optimizer's gradients into a row.

        late: whether to also record gradients that no backward since the last step has made.
        """
        kept = {i: self._norms.pop(i) for i in mine if i in self._norms}
        if not row.probed:
            return
        if self.scaler is not None and self.scaler.is_enabled() and self.scaler._scale is not None:
            row.scale = self.scaler._scale.clone()
        clipped = self._gradient_norms(mine)
        row.clipped |= clipped
        for i, norm in clipped.items():
            if i in kept:  # a gradient that the last backward did not reach may have been set to zero before it
                row.grads[i] = kept[i] if i in self._last else torch.where(norm == 0, norm, kept[i])
            elif late:
                unscaled = getattr(optimizer, "grad_scale", None) is None  # `_modules` divides all by the scale
                row.grads[i] = norm if row.scale is None or not unscaled else norm * row.scale
                row.late.add(i)

    def _of(self, optimizer: Optimizer) -> list[int]:
        """Return the indices of an optimizer's parameters. Parameters of other models are left out."""
        found = []
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            i = self._index.get(id(p))
            if i is not None:
                found.append(i)
            elif id(p) not in self._others:
                if any(p is one for one in self.model.parameters()):
                    raise RuntimeError("a parameter was added to the model after the start: begin a new watch")
                self._others.add(id(p))
        return found

    def log(self, values: Mapping[str, object]) -> list[str]:
        """Record losses, and return the names of the losses that are not numbers.

        A training loss belongs to the step of its iteration, a validation loss to the next step.
        """
        found = {name: number(value) for name, value in values.items()}
        kept = {name: value for name, value in found.items() if value is not None}
        if "train_loss" in kept:
            if not self._order:
                self._order = "before the step" if self._fresh else "after" if self.rows else self._before_all(values)
            elif self._order == "before the step" and not self._fresh and self._skips:
                self._order = "after"  # the scaler had skipped all steps before
            if self._order == "after":
                loss = kept.pop("train_loss")
                if not self._fresh:  # otherwise the scaler has skipped the loss's step
                    self.rows[-1].train_loss = loss
        self.logged |= kept
        return [name for name, value in found.items() if value is None]

    def _before_all(self, values: Mapping[str, object]) -> str:
        """Return `_order`, given a training loss before the first backward: "" (unknown) if an evaluation logs it."""
        loss = values["train_loss"]
        ran = self.stream.ran() or not self.layout.blocks or (isinstance(loss, Tensor) and loss.requires_grad)
        return "before the backward" if ran else ""


def _depth() -> int:
    """Return the depth of the stack at the caller."""
    return sum(1 for _ in traceback.walk_stack(sys._getframe(1)))

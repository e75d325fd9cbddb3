"""Measure a training loop's steps through hooks that change no bit of it, and never wait for the device.

A gradient is read at the end of the last backward before a step: accumulated, before clipping, and after DDP's
reduction. What a step's row shows belongs to the parameters before its update, as in every study.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim import Optimizer

from normstudy.errors import printable
from normstudy.watch.names import Layout
from normstudy.watch.sums import norms

Number = float | Tensor | None


class Hook:
    """Call a function, and turn its errors into one line. A copy of a hook, as in a model's deepcopy, does nothing."""

    def __init__(self, call: Callable[..., object] | None, failed: Callable[[Exception], None] | None = None) -> None:
        self.call, self.failed = call, failed

    def __call__(self, *args: object) -> Any:
        if self.call is not None:
            try:
                return self.call(*args)
            except Exception as error:
                assert self.failed is not None
                self.failed(error)
        return None

    def __deepcopy__(self, memo: object) -> Hook:
        return Hook(None)

    def __reduce__(self) -> tuple[type[Hook], tuple[None]]:
        return Hook, (None,)


@dataclass
class Row:
    """Hold what is known of one step. Dictionaries are parameter's index -> norm, all on the model's device."""

    step: int
    probed: bool
    lr: Number = None
    train_loss: Number = None
    val_loss: Number = None
    grads: dict[int, Tensor] = field(default_factory=dict)  # before clipping
    clipped: dict[int, Tensor] = field(default_factory=dict)  # what the optimizer used
    params: dict[int, Tensor] = field(default_factory=dict)
    updates: dict[int, Tensor] = field(default_factory=dict)
    stream: Tensor | None = None  # (3, points): sums of mean squares, forward passes, sums of squared gradients
    repeated: bool = False  # whether an optimizer called its closure at several points, as L-BFGS does
    skipped: Number = None  # above 0 if a fused optimizer left the parameters as they were, because of its scaler
    scale: Tensor | None = None  # by which a GradScaler multiplied the loss


class Probe:
    """Hook a model and its optimizers, and collect a Row for each step, of all optimizers together."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], layout: Layout, probes: Callable[[int], bool],
        scaler: Any, step: int, collect: Callable[[], None],
    ) -> None:  # fmt: skip
        self.layout, self.optimizers, self.probes, self.scaler = layout, optimizers, probes, scaler
        self.collect = collect  # called once a step
        self.step = step  # the next one
        self.rows: list[Row] = []
        self.seconds = 0.0  # spent in hooks
        self.params: list[Tensor] = [p for _, p in model.named_parameters()]
        self._index = {id(p): i for i, p in enumerate(self.params)}
        self._logged: dict[str, Number] = {}  # of the next row
        self._order = ""  # whether the loop logs a training loss before its backward, before the step, or after it
        self._norms: dict[int, Tensor] = {}  # of the gradients at the end of the last backward
        self._passes: Tensor | None = None  # the residual stream of the backwards since the last step, as in Row
        self._scaled: Any = None  # the scaler's dictionary of optimizers, which it replaces after each iteration
        self._since: set[int] = set()  # the optimizers that have stepped in this iteration of the scaler
        self._skips = False  # whether the scaler has ever skipped a step
        self._dirty: set[int] = set()
        self._task = -1
        self._backwards = self._at_pre = 0
        self._fresh = self._inside = False  # a backward has run since the last step; an optimizer is at work
        self._calls = 0  # how often the optimizer at work has called its closure
        self._stepped: set[int] = set()  # the optimizers that have stepped in the last row
        self.broken = False  # whether an error has ended the watch
        self._hooks: list[Hook] = []
        self._before: dict[int, Tensor] = {}
        self._handles: list[Any] = []
        self._seen: set[int] = set()  # points of the stream since the last step
        points = len(layout.blocks) + 1 if layout.blocks else 0
        self._stream = torch.zeros(3, points, device=self.params[0].device)
        frozen = [i for i, p in enumerate(self.params) if not p.requires_grad]
        self.frozen = dict(zip(frozen, norms([self.params[i] for i in frozen]), strict=True))
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

    def _attach(self) -> None:
        def hook(call: Callable[..., object]) -> Hook:
            self._hooks.append(Hook(call, self._failed))
            return self._hooks[-1]

        for i, p in enumerate(self.params):
            if p.requires_grad:
                call = hook(functools.partial(self._accumulated, i))
                self._handles.append(p.register_post_accumulate_grad_hook(call))  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            self._handles.append(optimizer.register_step_pre_hook(hook(self._pre_step)))
            self._handles.append(optimizer.register_step_post_hook(hook(self._post_step)))
        if self.layout.blocks:
            self._handles.append(self.layout.blocks[0].register_forward_pre_hook(hook(self._enter), with_kwargs=True))
        for i, block in enumerate(self.layout.blocks):
            self._handles.append(block.register_forward_hook(hook(functools.partial(self._leave, i + 1))))

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _failed(self, error: Exception) -> None:
        """Say what ended the watch, and silence the hooks. They are removed later: torch may iterate over them now."""
        if not self.broken:
            self.broken = True
            for hook in self._hooks:
                hook.call = None
            line = f"watch: stopped at step {self.step} by {type(error).__name__}: {error}"
            print(printable(line), file=sys.stderr)

    # ---- gradients ------------------------------------------------------------------------------------

    def _accumulated(self, i: int, _: Tensor) -> None:
        compiled = sys.modules.get("torch._dynamo.compiled_autograd")
        if compiled is not None and (compiled.compiled_autograd_enabled or compiled.in_compiled_autograd_region):
            raise RuntimeError("compiled autograd, which watch does not support: train without it")
        self._dirty.add(i)
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            Variable._execution_engine.queue_callback(Hook(self._end_of_backward, self._failed))

    def _end_of_backward(self) -> None:
        # Queued once more, it runs after the callbacks of DDP, which may have been queued later than the first one.
        Variable._execution_engine.queue_callback(Hook(self._read_gradients, self._failed))

    def _read_gradients(self) -> None:
        began = time.perf_counter()
        self._forget_what_was_skipped()
        self._task, self._fresh, self._backwards = -1, True, self._backwards + 1
        self._seen.clear()
        dirty, self._dirty = sorted(self._dirty), set()
        if dirty and all(self.params[i].grad is None for i in dirty):
            raise RuntimeError("no gradient is left at the end of backward, as with an optimizer that runs inside it")
        unfinished = self._inside or 0 < len(self._stepped) < len(self.optimizers)
        probed = (unfinished and self.rows[-1].probed) or (not self._inside and self.probes(self.step))
        # A closure may run several times, as in L-BFGS. The first time, the parameters are those before the update.
        if probed and not (self._inside and self._calls > 1):
            self._norms |= self._gradient_norms(dirty)
            self._passes = self._stream.clone() if self._passes is None else self._passes + self._stream
        self._stream.zero_()
        self.seconds += time.perf_counter() - began

    def _forget_what_was_skipped(self) -> None:
        """Drop the gradients of a step that the scaler has skipped since the last backward."""
        scaled = getattr(self.scaler, "_per_optimizer_states", None)
        if scaled is self._scaled:
            return
        if (self._scaled or {}).keys() & {id(one) for one in self.optimizers} - self._since:
            self._skips, self._passes = True, None
            self._norms.clear()
            self._stepped.clear()
            if self._order == "before the step":
                self._logged.pop("train_loss", None)
        self._scaled = scaled
        self._since.clear()

    def _gradient_norms(self, which: Sequence[int]) -> dict[int, Tensor]:
        grads = {i: g for i in which if (g := self.params[i].grad) is not None}
        dense = [g.coalesce().values() if g.is_sparse else g for g in grads.values()]
        return dict(zip(grads, norms(dense), strict=True))

    # ---- steps ----------------------------------------------------------------------------------------

    def _pre_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        began = time.perf_counter()
        if not self.rows or id(optimizer) in self._stepped or not self._stepped:
            self._stepped.clear()
            losses = self._logged.get("train_loss"), self._logged.get("val_loss")
            self.rows.append(Row(self.step, self.probes(self.step), _lr(optimizer), *losses))
            self.step, self._logged = self.step + 1, {}
            self.collect()
        self._take_stream()
        self._stepped.add(id(optimizer))
        self._since.add(id(optimizer))
        self._inside, self._calls, self._at_pre = True, 0, self._backwards
        row = self.rows[-1]
        self._take_gradients(optimizer)
        if row.probed:
            mine = self._of(optimizer)
            for i in mine:
                if i not in self._before:
                    self._before[i] = torch.empty_like(self.params[i])
            with torch.no_grad():
                torch._foreach_copy_([self._before[i] for i in mine], [self.params[i].detach() for i in mine])
            row.clipped |= self._gradient_norms(mine)
        self.seconds += time.perf_counter() - began
        return tuple(map(self._counted, args)), {name: self._counted(value) for name, value in kwargs.items()}

    def _counted(self, value: Any) -> Any:
        """Return an argument of a step; if it is a closure, one that counts its calls."""
        if not callable(value) or isinstance(value, Optimizer):
            return value

        @functools.wraps(value)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            return value(*args, **kwargs)

        return counted

    def _post_step(self, optimizer: Optimizer, *_: object) -> None:
        began = time.perf_counter()
        self._inside = self._fresh = False
        row, mine = self.rows[-1], self._of(optimizer)
        if self._backwards != self._at_pre:  # the step ran a closure
            self._take_stream()
            self._take_gradients(optimizer)
            row.clipped |= self._gradient_norms(mine) if row.probed else {}
            row.repeated = row.repeated or self._calls > 1
        if row.probed:
            before = [self._before[i] for i in mine]
            with torch.no_grad():
                row.params |= dict(zip(mine, norms(before), strict=True))
                torch._foreach_sub_(before, [self.params[i].detach() for i in mine])
                row.updates |= dict(zip(mine, norms(before), strict=True))
            if (scale := getattr(optimizer, "grad_scale", None)) is not None:  # a fused step divides by it
                row.clipped |= {i: row.clipped[i] / scale for i in mine if i in row.clipped}
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):
            row.skipped = found_inf.detach() + (0.0 if row.skipped is None else row.skipped)
        self.seconds += time.perf_counter() - began

    def _take_gradients(self, optimizer: Optimizer) -> None:
        """Move the norms of an optimizer's gradients into the last row; a single optimizer has all of them."""
        row = self.rows[-1]
        mine = set(self._norms if len(self.optimizers) == 1 else self._of(optimizer))
        row.grads |= {i: self._norms.pop(i) for i in sorted(mine & self._norms.keys())}
        if self.scaler is not None and self.scaler.is_enabled() and self.scaler._scale is not None:
            row.scale = self.scaler._scale.clone()

    def _take_stream(self) -> None:
        """Move the residual stream of the backwards so far to the last row."""
        row = self.rows[-1]
        if row.probed and self._passes is not None and self._stream.numel():
            row.stream = self._passes if row.stream is None else row.stream + self._passes
            self._passes = None
        self._stream.zero_()
        self._seen.clear()

    def _of(self, optimizer: Optimizer) -> list[int]:
        every = (self._index.get(id(p)) for group in optimizer.param_groups for p in group["params"])
        return [i for i in every if i is not None]

    def log(self, values: Mapping[str, Number]) -> None:
        """Record losses. A training loss belongs to its iteration's step, a validation loss to the next step."""
        kept = {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in values.items()}
        if "train_loss" in kept:
            if not self._order:
                self._order = "before the step" if self._fresh else "after" if self.rows else self._before_all(values)
            elif self._order == "before the step" and not self._fresh and self._skips:
                self._order = "after"  # the steps so far were skipped by the scaler
            if self._order == "after":
                loss = kept.pop("train_loss")
                if not self._fresh:  # otherwise it is the loss of a step that the scaler has skipped
                    self.rows[-1].train_loss = loss
        self._logged |= kept

    def _before_all(self, values: Mapping[str, Number]) -> str:
        """Return the order of a loop that logs a loss before its first backward, unless it is one of an evaluation."""
        loss = values["train_loss"]
        ran = self._seen or not self.layout.blocks or (isinstance(loss, Tensor) and loss.requires_grad)
        return "before the backward" if ran else ""

    def left(self) -> dict[str, Number]:
        """Return what was logged after the last step."""
        return self._logged

    # ---- residual stream ------------------------------------------------------------------------------

    def _enter(self, _: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        found = _tensor(args)
        self._tap(0, _tensor((kwargs.get("hidden_states"), *kwargs.values())) if found is None else found)

    def _leave(self, point: int, _: nn.Module, __: object, output: object) -> None:
        self._tap(point, _tensor(output if isinstance(output, tuple | list) else (output,)))

    def _tap(self, point: int, x: Tensor | None) -> None:
        if x is None or not torch.is_grad_enabled():
            return
        if not torch.compiler.is_compiling():
            # Checkpointing runs a block again inside the backward; one that ran before with gradients counts once.
            if torch._C._current_graph_task_id() != -1 and point in self._seen:
                return
            self._seen.add(point)
        with torch.no_grad():
            self._stream[0, point] += x.detach().float().square().mean()
            self._stream[1, point] += 1
        if x.requires_grad:
            hook = Hook(functools.partial(self._stream_gradient, point), self._failed)
            x.register_hook(hook)  # type: ignore[no-untyped-call]

    def _stream_gradient(self, point: int, grad: Tensor) -> None:
        self._stream[2, point] += grad.detach().float().square().sum()


def _tensor(values: Sequence[object]) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def _lr(optimizer: Optimizer) -> Number:
    lr = optimizer.param_groups[0].get("lr")
    return lr.detach().clone() if isinstance(lr, Tensor) else lr

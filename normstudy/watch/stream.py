"""Measure the residual stream at a model's blocks: its mean square, and the loss's gradient with respect to it."""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from normstudy.watch.hooks import Hook
from normstudy.watch.sums import sum_of_squares, wide

_KEYS = itertools.count()
STREAMS: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()  # by the keys in compiled graphs


class Pass:
    """The mean square of the stream at one point of one forward pass."""

    def __init__(self, square: Tensor, task: int = -1) -> None:
        self.square = square
        self.task = task  # the last backward that reached this point


class Stream:
    """Sum the measurements at the points of the stream: 0 is the first block's input, i the output of block i.

    A forward pass counts if a backward runs through it, and a backward counts if it reaches parameters. So evaluations
    and calls of torch.autograd.grad do not count.
    """

    def __init__(
        self, n_blocks: int, device: torch.device, begins: Callable[[int], None], failed: Callable[[Exception], None]
    ) -> None:
        """Start without sums. begins: called with a backward's number (torch's graph task) when it reaches a point."""
        self.points = n_blocks + 1 if n_blocks else 0
        self.repeats = False  # whether blocks run again on their own output, so that a point has several values
        self._begins, self._failed = begins, failed
        self._sums: Tensor | None = None  # (3, points): sum of mean squares, number of passes, sum of squared gradients
        self._summed: set[int] = set()  # backwards whose measurements are in the sums
        self._found: dict[
            int, list[tuple[int, Tensor, Tensor]]
        ] = {}  # backward -> point, mean square, squared gradient
        self._kept = -1  # the last backward through compiled blocks with retain_graph, so that another may follow
        self._zero, self._one = (torch.full((), k, dtype=wide(device), device=device) for k in (0.0, 1.0))
        # The last forward pass's mean squares at points without a gradient. Separate tensors keep graphs independent.
        self._squares = [self._zero.clone() for _ in range(self.points)]
        self._settled = [x._version for x in self._squares]
        self._key = next(_KEYS)
        STREAMS[self._key] = self
        self._seen: set[int] = set()  # points of forward passes since the last backward; -1: compiled blocks ran
        self._outputs: dict[int, weakref.ref[Tensor]] = {}  # point -> the block's last output

    def enter(self, _: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """Measure the first block's input."""
        x = _tensor(args)
        x = _tensor((kwargs.get("hidden_states"), *kwargs.values())) if x is None else x
        if x is None or not torch.is_grad_enabled():
            return
        self._compare(x, self.points - 1)
        self._tap(0, x)

    def _compare(self, x: Tensor | None, point: int) -> None:
        if not torch.compiler.is_compiling() and x is not None and point in self._outputs:
            self.repeats = self.repeats or self._outputs[point]() is x

    def leave(self, point: int, _: nn.Module, args: tuple[object, ...], output: object) -> None:
        """Measure a block's output."""
        x = _tensor(output if isinstance(output, tuple | list) else (output,))
        if x is None or not torch.is_grad_enabled():
            return
        self._compare(_tensor(args), point)
        if not torch.compiler.is_compiling():
            self._outputs[point] = weakref.ref(x)
        self._tap(point, x)

    def _tap(self, point: int, x: Tensor) -> None:
        if torch.compiler.is_compiling():
            self._tap_compiled(point, x)
            return
        # Checkpointing runs a block again inside the backward: skip this pass if the first one had gradients too.
        inside = torch._C._current_graph_task_id() != -1
        if (inside and point in self._seen) or torch._C._functorch.is_functorch_wrapped_tensor(x):
            return
        self._seen.add(point)
        square = mean_square(x)
        if not x.requires_grad or (x.is_leaf and not inside):  # a leaf outlives the pass, and so would its hook
            self._squares[point].copy_(square)
            return
        x.register_hook(Hook(functools.partial(self._gradient, point, Pass(square)), self._failed))  # type: ignore[no-untyped-call]

    def _tap_compiled(self, point: int, x: Tensor) -> None:
        """Measure a tensor while torch.compile traces its block, where only operations on tensors are allowed."""
        if x.requires_grad and not x.is_leaf:
            # The first block's input may come from outside a checkpoint: its hook cannot use a tensor from inside.
            source = torch.ops.normstudy.mean_square(x.detach(), self._key) if point else x
            x.register_hook(functools.partial(_copied, source, self._key, point))  # type: ignore[no-untyped-call]
        else:
            self._squares[point].copy_(mean_square(x))

    def _gradient(self, point: int, one: Pass, grad: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        self._begins(task)
        square = sum_of_squares(grad)
        if (
            one.task != task and one.task in self._summed
        ):  # gradients of several backwards add up before they are squared
            square = square * torch.nan
        one.task = task
        self._found.setdefault(task, []).append((point, one.square, square))

    def mark(self) -> None:
        """Note that compiled blocks have run. A custom operator in their graph calls this."""
        self._seen.add(-1)

    def take_gradient(self, point: int, source: Tensor, grad: Tensor) -> None:
        """Measure a gradient in a compiled block. source: the stream at this point, or the stream's mean square."""
        Hook(functools.partial(self._compiled_gradient, point, source), self._failed)(grad)

    def _compiled_gradient(self, point: int, source: Tensor, grad: Tensor) -> None:
        if grad.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a CUDA graph runs no hooks of watch: compile without mode='reduce-overhead'")
        # Copy the mean square, because the graph may reuse its memory.
        one = Pass(mean_square(source) if source.ndim else source.clone(), self._kept)
        if torch._C._autograd._get_current_graph_task_keep_graph():
            self._kept = torch._C._current_graph_task_id()
        self._gradient(point, one, grad)

    def close(self) -> None:
        """Ignore compiled graphs from now on; they outlive a watch."""
        STREAMS.pop(self._key, None)

    def ran(self) -> bool:
        """Return whether blocks have run with gradients since the last backward or step."""
        return bool(self._seen) or self._settled != [x._version for x in self._squares]

    def _settle(self) -> None:
        self._seen.clear()
        self._settled = [x._version for x in self._squares]

    def end(self, task: int, counts: bool) -> None:
        """Add the measurements of a backward, and of backwards inside it (reentrant checkpointing runs these)."""
        self._seen.clear()
        if not counts or not self.points:  # the backward around this one may count
            return
        found = [one for at in [t for t in self._found if t >= task] for one in self._found.pop(at)]
        reached = {point for point, *_ in found}
        changed = [i for i, x in enumerate(self._squares) if x._version != self._settled[i] and i not in reached]
        once = {i: self._squares[i]._version == self._settled[i] + 1 for i in changed}  # or else the RMS is unknown
        found += [(i, self._squares[i] if once[i] else self._zero - math.inf, self._zero) for i in changed]
        columns: list[list[Tensor]] = [[self._zero] * self.points for _ in range(3)]
        for point, *values in found:
            for column, value in zip(columns, (values[0], self._one, values[1]), strict=True):
                column[point] = column[point] + value.to(self._zero)
        part = torch.stack([value for column in columns for value in column]).view(3, -1)
        self._settle()
        self._sums = part if self._sums is None else self._sums + part
        self._summed.add(task)

    def drop(self, unless: Tensor | None = None) -> None:
        """Delete the sums. unless: a number on the device; if it is not 0, keep the sums."""
        if unless is None:
            self._sums = None
            self._summed.clear()
        elif self._sums is not None:
            self._sums = torch.where(unless != 0, self._sums, 0.0)

    def take(self) -> Tensor | None:
        """Return the sums since the last step, or None if there are none, and delete them."""
        sums = None if self.repeats else self._sums
        self.drop()
        self._found.clear()
        self._settle()
        return sums


def _tensor(values: Sequence[object]) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def mean_square(x: Tensor) -> Tensor:
    return sum_of_squares(x) / x.numel()


def _copied(source: Tensor, key: int, point: int, grad: Tensor) -> Tensor:
    copy: Tensor = torch.ops.normstudy.take_gradient(grad, source, key, point)
    return copy


def _mean_square(x: Tensor, key: int) -> Tensor:
    if key in STREAMS:
        STREAMS[key].mark()
    return mean_square(x)


def _take_gradient(grad: Tensor, source: Tensor, key: int, point: int) -> Tensor:
    """Pass a compiled block's gradient to its stream. The graph runs this operator only because it uses the result."""
    if key in STREAMS:
        STREAMS[key].take_gradient(point, source, grad)
    return grad.clone()


torch.library.custom_op(
    "normstudy::mean_square", _mean_square, mutates_args=(), schema="(Tensor x, int key) -> Tensor"
).register_fake(lambda x, _: x.new_empty((), dtype=wide(x.device)))
torch.library.custom_op(
    "normstudy::take_gradient", _take_gradient, mutates_args=(),
    schema="(Tensor grad, Tensor source, int key, int point) -> Tensor",
).register_fake(lambda grad, *_: torch.empty_like(grad))  # fmt: skip

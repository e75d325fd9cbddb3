"""Measure the residual stream at a model's blocks: its size, and the gradient of the loss along it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normstudy.watch.numbers import sum_of_squares, wide

_KEYS = itertools.count()
STREAMS: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()  # key -> stream, for compiled graphs


class Hook:
    """Call a function, but raise none of its errors. After the first error, all hooks of the watch do nothing."""

    def __init__(self, call: Callable[..., object], probe: Any) -> None:
        self.call, self.probe = call, probe

    def __call__(self, *args: object) -> Any:
        try:
            return None if self.probe.broken else self.call(*args)
        except Exception as error:
            self.probe.failed(error)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle a hook as a standard-library function that does nothing. Loading it needs no normstudy."""
        return getattr, (contextlib.nullcontext(), "__exit__")


class Pass:
    """Store the stream's mean square at one point in one forward pass."""

    def __init__(self, square: Tensor, task: int = -1) -> None:
        self.square = square
        self.task = task  # the last backward through this point, or -1


class Stream:
    """Sum squares of the stream and its gradients at points: 0 is the first block's input, i is block i's output.

    A forward pass counts if a backward runs through it, and a backward counts if it reaches parameters. So an
    evaluation or a call of torch.autograd.grad adds nothing.
    """

    def __init__(self, n_blocks: int, device: torch.device, probe: Any) -> None:
        """Start with empty sums. At each point, a backward calls `probe.begins` with its graph task's number."""
        self.points = n_blocks + 1 if n_blocks else 0
        self.repeats = False  # whether blocks run again on their own output, so that a point has several inputs
        self._probe = probe
        self._sums: Tensor | None = None  # (3, points): sums of mean squares, passes, sums of squared gradients
        self._summed: set[int] = set()  # backward passes in the sums
        self._found: dict[int, list[tuple[int, Tensor, Tensor]]] = {}  # backward -> (point, mean square, gradient's)
        self._kept = -1  # the last backward through compiled blocks that kept its graph for another backward
        self._zero, self._one = (torch.full((), k, dtype=wide(device), device=device) for k in (0.0, 1.0))
        # Mean squares of the stream in the last forward pass, at points that get no gradient. Each has its own tensor.
        self._squares = [self._zero.clone() for _ in range(self.points)]
        self._settled = [x._version for x in self._squares]
        self._key = next(_KEYS)
        STREAMS[self._key] = self
        self._seen: set[int] = set()  # points passed since the last backward; -1: compiled blocks ran
        self._outputs: dict[int, weakref.ref[Tensor]] = {}  # each block's last output

    def enter(self, _: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """Measure the first block's input."""
        x = _tensor((*args, kwargs.get("hidden_states"), *kwargs.values()))
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
        # Activation checkpointing computes a block again in the backward. Skip that if the block was measured before.
        inside = torch._C._current_graph_task_id() != -1
        if (inside and point in self._seen) or torch._C._functorch.is_functorch_wrapped_tensor(x):
            return
        self._seen.add(point)
        if not self._probe.probes_soon():
            return
        square = mean_square(x)
        if not x.requires_grad or (x.is_leaf and not inside):  # a hook on the loop's leaf would outlive the watch
            self._squares[point].copy_(square)
            return
        x.register_hook(Hook(functools.partial(self._gradient, point, Pass(square)), self._probe))  # type: ignore[no-untyped-call]

    def _tap_compiled(self, point: int, x: Tensor) -> None:
        """Measure a tensor while torch.compile traces its block, which allows only tensor operations."""
        if x.requires_grad and not x.is_leaf:
            # At point 0, x may lie outside an activation checkpoint: its hook gets x, as tensors from inside are lost.
            source = torch.ops.normstudy.mean_square(x.detach(), self._key) if point else x
            x.register_hook(functools.partial(torch.ops.normstudy.take_gradient, source, self._key, point))  # type: ignore[no-untyped-call]
        else:
            self._squares[point].copy_(mean_square(x))

    def _gradient(self, point: int, one: Pass, grad: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        self._probe.begins(task)
        square = sum_of_squares(grad)
        if one.task != task and one.task in self._summed:  # unknown: both gradients must be added before squaring
            square = square * torch.nan
        one.task = task
        self._found.setdefault(task, []).append((point, one.square, square))

    def _compiled_gradient(self, point: int, source: Tensor, grad: Tensor) -> None:
        """Measure a gradient in a compiled block. source: the stream at point 0; elsewhere its mean square."""
        if grad.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a CUDA graph runs no hooks when replayed: compile without mode='reduce-overhead'")
        # Copy the mean square, because the compiled graph may reuse the memory of `source`.
        one = Pass(mean_square(source) if source.ndim else source.clone(), self._kept)
        if torch._C._autograd._get_current_graph_task_keep_graph():
            self._kept = torch._C._current_graph_task_id()
        self._gradient(point, one, grad)

    def close(self) -> None:
        """Ignore compiled graphs from now on: they outlive the watch."""
        STREAMS.pop(self._key, None)

    def ran(self) -> bool:
        """Return whether blocks have run with gradients since the last backward or step."""
        return bool(self._seen) or self._settled != [x._version for x in self._squares]

    def _settle(self) -> None:
        self._seen.clear()
        self._settled = [x._version for x in self._squares]

    def end(self, task: int, counts: bool) -> None:
        """If `counts`, add what a backward and those nested in it (started by reentrant checkpointing) have found."""
        self._seen.clear()
        if not counts or not self.points:  # it may be nested in a backward that counts
            return
        found = [one for at in [t for t in self._found if t >= task] for one in self._found.pop(at)]
        reached = {point for point, *_ in found}
        changed = [i for i, x in enumerate(self._squares) if x._version != self._settled[i] and i not in reached]
        once = {i: self._squares[i]._version == self._settled[i] + 1 for i in changed}  # those with a known RMS
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
        """Reset the sums. unless: a number on the device; if it is not zero, keep the sums."""
        if unless is None:
            self._sums = None
            self._summed.clear()
        elif self._sums is not None:
            self._sums = torch.where(unless != 0, self._sums, 0.0)

    def take(self) -> Tensor | None:
        """Take the sums since the last step. Return None if no backward counted or blocks ran on their own output."""
        sums = None if self.repeats else self._sums
        self.drop()
        self._found.clear()
        self._settle()
        return sums


def _tensor(values: Sequence[object]) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def mean_square(x: Tensor) -> Tensor:
    return sum_of_squares(x) / x.numel()


def _mean_square(x: Tensor, key: int) -> Tensor:
    if key in STREAMS:
        STREAMS[key]._seen.add(-1)
    return mean_square(x)


def _take_gradient(source: Tensor, key: int, point: int, grad: Tensor) -> Tensor:
    """Pass a gradient to its stream. Return a copy, because torch.compile removes operators that return nothing."""
    if stream := STREAMS.get(key):
        Hook(functools.partial(stream._compiled_gradient, point, source), stream._probe)(grad)
    return grad.clone()


torch.library.custom_op(
    "normstudy::mean_square", _mean_square, mutates_args=(), schema="(Tensor x, int key) -> Tensor"
).register_fake(lambda x, _: x.new_empty((), dtype=wide(x.device)))
torch.library.custom_op(
    "normstudy::take_gradient", _take_gradient, mutates_args=(),
    schema="(Tensor source, int key, int point, Tensor grad) -> Tensor",
).register_fake(lambda *given: torch.empty_like(given[-1]))  # fmt: skip

"""The operations of a run-step, as they run in the step and each alone: what a step could be that does nothing else.

In the step: the time of every call of torch's and of every product of NumPy's, through a whole period of the probes.
Their sum is a run-step that costs no Python and no call.

Alone: each is repeated on the same arguments, which then lie in a cache; its median counts. Their sum is a run-step
whose data never leave the cache besides. To be faster than that it would have to make fewer passes over its numbers,
so fuse operations, as a compiler does.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from normstudy.bench.children import Work
from normstudy.bench.products import typical_seconds
from normstudy.bench.subjects import WARM_UP, start_normstudy
from normstudy.config import RunConfig
from normstudy.model import kernels
from normstudy.training.layout import ALIGN


class Seconds(NamedTuple):
    """Of all operations of a run-step, on one core."""

    in_step: float
    alone: float


class Call(NamedTuple):
    """An operation and arguments that nobody else changes. mutates: it writes into some of them."""

    function: Callable[..., object]
    args: Sequence[object]
    kwargs: Mapping[str, object]
    mutates: bool


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts and times each operation, views excepted, by what it is and the layout of its arguments.

    The first call of each kind is kept with copies of its arguments.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[Hashable, Call] = {}
        self.count: Counter[Hashable] = Counter()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        given = args, kwargs or {}
        if func.is_view:
            return func(*given[0], **given[1])
        mutates = bool(func._schema.is_mutable)
        return self.record(Call(func, *given, mutates), str(func))

    def record(self, call: Call, name: str) -> object:
        """Make a call, and note it."""
        kind = name, *map(_layout, tree_leaves((call.args, call.kwargs)))
        if kind not in self.calls:
            args, kwargs = tree_map(_copy, (call.args, call.kwargs))
            self.calls[kind] = call._replace(args=args, kwargs=kwargs)
        started = time.perf_counter()
        out = call.function(*call.args, **call.kwargs)
        self.seconds += time.perf_counter() - started
        self.count[kind] += 1
        return out

    def forget_times(self) -> None:
        """Count from here on; calls that are kept stay."""
        self.count.clear()
        self.seconds = 0.0


def _layout(x: object) -> Hashable:
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype
    return float if isinstance(x, float) else str(x)


def _copy(x: object) -> object:
    """A tensor's own memory and layout with its values: also where several of its elements are one number.

    What lies between its runs is left out: a few parameters of each are columns of a matrix of all.
    """
    if not isinstance(x, Tensor) or x.numel() == 0:
        return x
    strides = list(x.stride())
    within = _span(x.shape[1:], strides[1:])
    if x.dim() > 1 and strides[0] > within:
        strides[0] = min(strides[0], math.ceil(within / ALIGN) * ALIGN)
    copy = torch.empty(_span(x.shape, strides), dtype=x.dtype, device=x.device).as_strided(x.shape, strides)
    if _is_plain(x):
        return copy.copy_(x.detach())
    return x.detach().as_strided((_span(x.shape, x.stride()),), (1,)).clone().as_strided(x.shape, x.stride())


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last, both counted."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


@contextlib.contextmanager
def recorded(recorder: Recorder) -> Iterator[None]:
    """Operations inside are recorded. NumPy's products pass torch by: they are caught where kernels.py makes them."""
    by_numpy = kernels._by_numpy

    def caught(a: Tensor, b: Tensor, out: Tensor) -> None:
        recorder.record(Call(by_numpy, (a, b, out), {}, False), "product")

    kernels._by_numpy = caught
    try:
        with recorder:
            yield
    finally:
        kernels._by_numpy = by_numpy


def seconds_alone(call: Call, at_least: float) -> float:
    """The median time of a call that is repeated for so long, with the values of its arguments as they were."""
    if not call.mutates:
        return typical_seconds(lambda: call.function(*call.args, **call.kwargs), at_least)
    written = [x for x in tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor) and _is_plain(x)]
    kept = [x.clone() for x in written]
    taken = 0.0

    def once() -> None:
        nonlocal taken
        # Without this a factor below 1 would soon make the numbers subnormal, which are slow.
        for x, before in zip(written, kept, strict=True):
            x.copy_(before)
        started = time.perf_counter()
        call.function(*call.args, **call.kwargs)
        taken += time.perf_counter() - started

    return typical_seconds(once, at_least, clock=lambda: taken)


def _is_plain(x: Tensor) -> bool:
    """Whether each element has memory of its own."""
    return all(stride > 0 for n, stride in zip(x.shape, x.stride(), strict=True) if n > 1)


def start(job: tuple[list[RunConfig], Path]) -> Work[Seconds]:
    """The runs of a batch, trained and written as normstudy does, whose operations are measured.

    Its work is given in milliseconds: for so long each operation is repeated alone.
    """
    configs, _ = job
    steps, period = start_normstudy(job), configs[0].probe.every
    run_steps = period * len(configs)
    recorder = Recorder()
    steps(WARM_UP)
    with recorded(recorder):
        steps(period)  # which meets every kind: copies of arguments would disturb the times

    def work(milliseconds: int) -> Seconds:
        recorder.forget_times()
        with recorded(recorder):
            steps(period)
        in_step = recorder.seconds
        with torch.no_grad():
            alone = sum(
                n * seconds_alone(recorder.calls[kind], milliseconds / 1e3) for kind, n in recorder.count.items()
            )
        return Seconds(in_step / run_steps, alone / run_steps)

    return work

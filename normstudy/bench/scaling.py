"""Measure row e of the benchmark: how CPU time grows with depth, width, sequence length, batch size and runs.

In theory, the time of a training step is proportional to the number of floating-point operations in its matrix
products. Each part of a block is timed alone, forward and backward, while `n` = seq_len or `d` = d_model varies. POWERS
gives the exponents of n and d in each part's theoretical time. The part `attention` excludes the projections.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from normstudy.bench.products import pieces, typical_seconds
from normstudy.bench.rows import THEORY, Goal, Sample, Scope
from normstudy.bench.subjects import D64_L6, D_HEAD, NORMSTUDY, Case, cpu_seconds, in_worker, run_config
from normstudy.config import ProbeConfig

NORM, PROJECTIONS, ALL_MAPS, ATTENTION = "norm", "projections", "projections and MLP", "attention"
POWERS = {NORM: (1, 1), PROJECTIONS: (1, 2), ALL_MAPS: (1, 2), ATTENTION: (2, 1)}  # part -> exponents of `n` and `d`
CROSSOVERS = {PROJECTIONS: 2, ALL_MAPS: 6}  # part -> `n / d` at which attention needs as many operations
AXES = {
    "n_layers": (2, 4, 6, 12), "d_model": (32, 64, 128, 256), "seq_len": (32, 64, 128, 256),
    "batch_size": (4, 8, 16, 32), "runs_per_batch": (1, 2, 4, 8, 16, 32),
}  # fmt: skip


class Ranges(NamedTuple):
    """The sizes for row `e` of the benchmark. `base` and `runs` give the sizes that do not vary."""

    base: Case = D64_L6
    runs: int = 4
    axes: dict[str, tuple[int, ...]] = AXES  # size -> the values at which whole training steps are timed
    n: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)  # values of seq_len for the parts of a block
    d: tuple[int, ...] = (32, 64, 128, 256)  # values of d_model for the parts of a block
    batch_size: int = 4  # sequences per batch when the parts of a block are timed
    rounds: int = 9


FULL = Ranges()
QUICK = Ranges(axes={k: v[:3] for k, v in AXES.items()}, n=FULL.n[:6], d=FULL.d[:3], batch_size=2, rounds=3)
SLOPES = {"slope": "over all sizes", "slope_at_end": "between the two largest sizes"}
GOALS = [
    *(
        Goal("e", f"{name} vs {axis}", f"exponent of {axis} in the CPU time of {name}, {where}", metric,
             NORMSTUDY if name == "run-step" else name)
        for name, axes in (("run-step", AXES), *((part, ("seq_len", "d_model")) for part in POWERS))
        for axis in axes
        for metric, where in SLOPES.items()
    ),
    *(
        Goal("e", f"attention = {part}", f"seq_len at which attention takes as long as {part} (in theory {n} d_model)",
             "crossover_seq_len", ATTENTION)
        for part, n in CROSSOVERS.items()
    ),
]  # fmt: skip


def measure(scope: Scope) -> Iterator[Sample]:
    """Measure row e of the benchmark: the CPU time of whole training steps, and the CPU time of a block's parts."""
    for kind in (whole_steps, parts):
        yield from in_worker(kind, QUICK if scope.quick else FULL)


def slopes(case: str, subject: str, number: int, x: Sequence[float], y: Sequence[float]) -> Iterator[Sample]:
    """Yield the slope of log y against log x over all points, and the slope between the two points of largest x."""
    for metric, first in (("slope", 0), ("slope_at_end", -2)):
        slope, _ = np.polyfit(np.log(x[first:]), np.log(y[first:]), 1)
        yield Sample("e", case, subject, metric, "1", number, float(slope))


def crossing(n: Sequence[int], a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the seq_len at which cost `a` first reaches cost `b`, interpolated on log axes. None: `a` stays below."""
    over = np.log(np.divide(a, b))
    for i in range(len(n) - 1):
        if over[i] < 0 <= over[i + 1]:
            return float(np.exp(np.interp(0, over[i : i + 2], np.log(n[i : i + 2]))))
    return None


def whole_steps(sizes: Ranges) -> Iterator[Sample]:
    """Measure, in this process, the CPU time of whole training steps while one size after another varies."""
    from normstudy.data import texts
    from normstudy.training import batch

    text = texts.load(run_config(sizes.base).data)
    middle = sizes.base._asdict() | {"runs_per_batch": sizes.runs}
    along = {axis: [tuple((middle | {axis: v}).values()) for v in values] for axis, values in sizes.axes.items()}
    batches, flops = {}, {}
    for point in sorted(set().union(*along.values())):
        *shape, runs = point
        configs = [run_config(Case(*shape), r, probe=ProbeConfig(every=1)) for r in range(runs)]
        batches[point] = batch.train_batch(configs, text)
        flops[point] = float(sum(p.flops for p in pieces(configs[0], text.vocab_size)))
    for records in batches.values():
        cpu_seconds(records.__next__, 3)  # untimed warm-up
    for number in range(sizes.rounds):
        cost = {point: 1e3 * cpu_seconds(records.__next__, 2) / (2 * point[-1]) for point, records in batches.items()}
        for axis, points in along.items():
            values = sizes.axes[axis]
            for value, point in zip(values, points, strict=True):
                yield Sample("e", f"{axis}={value}", NORMSTUDY, "ms_per_run_step", "ms", number, cost[point])
            for subject, of in ((NORMSTUDY, cost), (THEORY, flops)):
                yield from slopes(f"run-step vs {axis}", subject, number, values, [of[point] for point in points])


def part_call(part: str, sizes: Ranges, n: int, d: int) -> Callable[[], object]:
    """Return a function that computes one part of the default model and its gradients for a batch of runs."""
    import torch
    from torch import Tensor

    from normstudy.model import kernels, norms

    # Shapes (n_out, n_in) of the matrices. The first three compute q, k and v from x.
    maps = {PROJECTIONS: [(d, d)] * 4, ALL_MAPS: [(d, d)] * 4 + [(4 * d, d), (d, 4 * d)]}.get(part, [])
    shapes = [(d,), (d,)] if part == NORM else [*maps, *((out,) for out, _ in maps)]

    def of_run(x: Tensor, params: list[Tensor]) -> list[Tensor]:
        if part == NORM:
            return [norms.layer_norm(x, *params)]
        if part == ATTENTION:
            heads = x.view(*x.shape[:-1], d // D_HEAD, D_HEAD)
            return [kernels.causal_attention(heads, heads, heads).flatten(-2)]
        weights, biases = params[: len(maps)], params[len(maps) :]
        q, k, v = kernels.linears(x, weights[:3], biases[:3])
        for w, b in zip(weights[3:], biases[3:], strict=True):
            (q,) = kernels.linears(q, [w], [b])
        return [q, k, v]

    params = [torch.randn(sizes.runs, *shape).mul_(d**-0.5).requires_grad_() for shape in shapes]
    x = torch.randn(sizes.runs, sizes.batch_size, n, d).requires_grad_()
    gradient, over_runs = torch.randn_like(x), torch.func.vmap(of_run)
    n_outputs = len(over_runs(x, params))
    return lambda: torch.autograd.grad(over_runs(x, params), [x, *params], [gradient] * n_outputs)


def parts(sizes: Ranges) -> Iterator[Sample]:
    """Measure, in this process, the CPU time of a block's parts while n (seq_len) or d (d_model) varies."""
    base = sizes.base
    along = {"seq_len": [(n, base.d_model) for n in sizes.n], "d_model": [(base.seq_len, d) for d in sizes.d]}
    points = sorted({point for axis in along.values() for point in axis})
    calls = {(part, point): part_call(part, sizes, *point) for part in POWERS for point in points}
    for number in range(sizes.rounds):
        seconds = {key: typical_seconds(call, 0.005, time.process_time) for key, call in calls.items()}
        for part, powers in POWERS.items():
            for (axis, at), power in zip(along.items(), powers, strict=True):
                values = sizes.n if axis == "seq_len" else sizes.d
                costs = [1e3 * seconds[part, point] / sizes.runs for point in at]
                for value, ms in zip(values, costs, strict=True):
                    yield Sample("e", f"{part}, {axis}={value}", part, "ms_per_part", "ms", number, ms)
                yield from slopes(f"{part} vs {axis}", part, number, values, costs)
                yield from slopes(f"{part} vs {axis}", THEORY, number, values, [float(v) ** power for v in values])
        for maps, ratio in CROSSOVERS.items():
            case = f"attention = {maps}"
            ours, theirs = ([seconds[part, point] for point in along["seq_len"]] for part in (ATTENTION, maps))
            if (n := crossing(sizes.n, ours, theirs)) is not None:
                yield Sample("e", case, ATTENTION, "crossover_seq_len", "tokens", number, n)
            yield Sample("e", case, THEORY, "crossover_seq_len", "tokens", number, ratio * base.d_model)

"""Row e: slopes and crossovers of known curves, the theory of known shapes, and every number that the row shows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from normstudy.bench import scaling
from normstudy.bench.rows import THEORY, Sample
from normstudy.bench.scaling import ALL_MAPS, ATTENTION, NORM, PROJECTIONS, Ranges
from normstudy.bench.subjects import NORMSTUDY, Case

torch.set_num_threads(1)

TINY = Ranges(
    base=Case(d_model=16, n_layers=2, batch_size=1, seq_len=8),
    runs=2,
    axes={
        "n_layers": (1, 2),
        "d_model": (16, 32),
        "seq_len": (8, 16),
        "batch_size": (1, 2),
        "runs_per_batch": (1, 2, 3),
    },
    n=(8, 16, 32),
    d=(16, 32),
    batch_size=1,
    rounds=2,
)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    return next(scaling.slopes("case", "subject", 0, x, y)).value


def test_slopes_of_powers() -> None:
    x = [2.0, 4.0, 16.0, 128.0]
    assert slope(x, [7 * v**1.5 for v in x]) == pytest.approx(1.5)
    # Least squares by hand: log2 x = 1, 2, 3 and log2 y = 0, 0, 3, so (2 * 3) / (1 + 0 + 1) / 2.
    assert slope([2, 4, 8], [1, 1, 8]) == pytest.approx(1.5)


def test_the_crossing_lies_where_the_curves_meet() -> None:
    n = [16, 32, 64, 128]
    # n^2 / 40 and n meet at 40, between two of them: both are straight in log-log, so it is found exactly.
    assert scaling.crossing(n, [v**2 / 40 for v in n], [float(v) for v in n]) == pytest.approx(40)
    assert scaling.crossing(n, [v**2 / 64 for v in n], [float(v) for v in n]) == pytest.approx(64)
    assert scaling.crossing(n, [1.0] * 4, [2.0] * 4) is None
    assert scaling.crossing(n, [2.0] * 4, [1.0] * 4) is None  # dearer from the first: it was crossed before


def by_case(samples: list[Sample]) -> dict[tuple[str, str, str, int], float]:
    """(case, subject, metric, round) -> value."""
    out = {(s.case, s.subject, s.metric, s.round): s.value for s in samples}
    assert len(out) == len(samples)
    assert all(math.isfinite(v) for v in out.values())
    return out


def test_run_steps_along_every_axis() -> None:
    found = by_case(list(scaling.whole_steps(TINY)))
    for axis, values in TINY.axes.items():
        case = f"run-step vs {axis}"
        for number in range(TINY.rounds):
            costs = [found[f"{axis}={v}", NORMSTUDY, "ms_per_run_step", number] for v in values]
            assert min(costs) > 0
            assert found[case, NORMSTUDY, "slope", number] == pytest.approx(slope(values, costs))
    # The whole is one step's products: twice the batch twice the flops, and none for another run.
    theory = {axis: found[f"run-step vs {axis}", THEORY, "slope", 0] for axis in TINY.axes}
    assert theory["batch_size"] == pytest.approx(1)
    assert theory["runs_per_batch"] == pytest.approx(0)
    # Per token: 2 (12 d^2 + 2 n d) a layer, 2 d V outside, V = 256.
    outside, layer = 16 * 256, 12 * 16**2 + 2 * 8 * 16
    assert theory["n_layers"] == pytest.approx(math.log2((outside + 2 * layer) / (outside + layer)))
    longer = 12 * 16**2 + 2 * 16 * 16
    assert theory["seq_len"] == pytest.approx(1 + math.log2((outside + 2 * longer) / (outside + 2 * layer)))
    wider = 12 * 32**2 + 2 * 8 * 32
    assert theory["d_model"] == pytest.approx(math.log2((2 * outside + 2 * wider) / (outside + 2 * layer)))


def test_the_parts_have_the_theorys_slopes_beside_theirs() -> None:
    found = by_case(list(scaling.parts(TINY)))
    powers = {(NORM, "seq_len"): 1, (NORM, "d_model"): 1, (PROJECTIONS, "seq_len"): 1, (PROJECTIONS, "d_model"): 2,
              (ALL_MAPS, "seq_len"): 1, (ALL_MAPS, "d_model"): 2,
              (ATTENTION, "seq_len"): 2, (ATTENTION, "d_model"): 1}  # fmt: skip
    for (part, axis), power in powers.items():
        values = TINY.n if axis == "seq_len" else TINY.d
        costs = [found[f"{part}, {axis}={v}", part, "ms_per_part", 1] for v in values]
        assert found[f"{part} vs {axis}", part, "slope", 1] == pytest.approx(slope(values, costs))
        assert found[f"{part} vs {axis}", THEORY, "slope", 1] == pytest.approx(power)
    assert found[f"attention = {PROJECTIONS}", THEORY, "crossover_seq_len", 1] == 2 * 16
    assert found[f"attention = {ALL_MAPS}", THEORY, "crossover_seq_len", 1] == 6 * 16


def test_attention_alone_is_attention_without_its_projections() -> None:
    """Its gradient by x is that of softmax(x x^T / sqrt K) x, head by head."""
    torch.manual_seed(0)
    call = scaling.part_call(ATTENTION, TINY, 8, 32)
    torch.manual_seed(0)
    x = torch.randn(TINY.runs, TINY.batch_size, 8, 32).requires_grad_()
    gradient = torch.randn(x.shape)
    heads = x.unflatten(-1, (2, 16)).transpose(-2, -3)
    mixed = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    (expected,) = torch.autograd.grad(mixed.transpose(-2, -3).flatten(-2), [x], gradient)
    (found,) = call()  # type: ignore[misc]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("part", [NORM, PROJECTIONS, ALL_MAPS, ATTENTION])
def test_a_part_has_its_parameters_gradients(part: str) -> None:
    sizes = {NORM: 2 * 16, PROJECTIONS: 4 * (16 + 1) * 16, ALL_MAPS: (12 * 16 + 4 + 5) * 16, ATTENTION: 0}
    x, *params = scaling.part_call(part, TINY, 8, 16)()  # type: ignore[misc]
    assert x.shape == (2, 1, 8, 16)
    assert sum(p.numel() for p in params) == 2 * sizes[part]


def test_every_line_of_the_table_is_measured() -> None:
    cheap = TINY._replace(n=(8, 16), rounds=1)
    measured = {(s.case, s.subject, s.metric) for s in [*scaling.whole_steps(cheap), *scaling.parts(cheap)]}
    # Where the curves do not meet within the measured lengths there is no crossover to tell.
    shown = {
        (g.case, g.subject, g.metric)
        for g in scaling.GOALS
        if (g.subject, g.metric) != (ATTENTION, "crossover_seq_len")
    }
    assert shown <= measured
    for sizes in (scaling.FULL, scaling.QUICK):
        assert sizes.axes.keys() == scaling.AXES.keys()
        assert sizes.n[0] < 2 * sizes.base.d_model
        assert sizes.n[-1] > 6 * sizes.base.d_model
        assert sizes.base.seq_len in sizes.n
        assert sizes.base.d_model in sizes.d

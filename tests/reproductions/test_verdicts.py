"""The rule of the verdict, the estimates and the printed numbers, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from normstudy.reproductions import verdicts
from normstudy.reproductions.verdicts import INCONCLUSIVE, MEASURED, NOT_SUPPORTED, SUPPORTED, Band, around, judge

BAND = Band(-0.6, -0.4)


@pytest.mark.parametrize(
    ("band", "low", "high", "expected"),
    [
        (BAND, -0.55, -0.45, SUPPORTED),
        (BAND, -0.6, -0.4, SUPPORTED),  # both ends belong to the band
        (BAND, -0.61, -0.45, INCONCLUSIVE),
        (BAND, -0.55, -0.39, INCONCLUSIVE),
        (BAND, -0.7, -0.3, INCONCLUSIVE),  # the band lies in the interval
        (BAND, -0.39, -0.3, NOT_SUPPORTED),
        (BAND, -0.9, -0.61, NOT_SUPPORTED),
        (Band(high=0.6), -9.0, 0.5, SUPPORTED),
        (Band(high=0.6), 0.5, 0.7, INCONCLUSIVE),
        (Band(high=0.6), 0.61, 0.7, NOT_SUPPORTED),
        (Band(low=2.0), 2.1, 9.0, SUPPORTED),
        (None, 0.0, 1.0, MEASURED),
    ],
)
def test_where_the_interval_lies(band: Band | None, low: float, high: float, expected: str) -> None:
    assert verdicts.verdict(band, (low + high) / 2, low, high) == expected


def test_what_has_no_interval_or_no_value() -> None:
    assert judge("x", np.array([-0.5]), BAND).verdict == INCONCLUSIVE  # one seed
    assert judge("x", np.array([-0.5, np.nan]), BAND).verdict == NOT_SUPPORTED
    assert judge("x", np.array([-np.inf, -0.5]), BAND).verdict == NOT_SUPPORTED


def test_the_interval_is_the_t_interval_over_seeds() -> None:
    """1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653."""
    found = judge("x", np.array([1.0, 2.0, 3.0]), Band(0, 1))
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.value, found.seeds) == (2, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))


def test_logarithms_are_shown_exponentiated() -> None:
    found = judge("x", np.log([1.0, 100.0]), None, logs=True)
    assert found.value == pytest.approx(10)
    assert found.low * found.high == pytest.approx(100)


def test_slopes_per_seed() -> None:
    x = np.array([8.0, 16.0, 32.0, 64.0])
    y = np.stack([3 * x**-0.5, 0.1 * x**2, np.full(4, 7.0)], 1)
    assert verdicts.exponent(x, y) == pytest.approx([-0.5, 2, 0])
    assert verdicts.slope(x, y) == pytest.approx([np.polyfit(x, column, 1)[0] for column in y.T])
    assert np.isnan(verdicts.exponent(x, np.array([[1.0], [0.0], [1.0], [np.nan]]))).all()


def test_for_all_places() -> None:
    """Supported when every place is, not supported when one place is wholly outside, else inconclusive."""
    tight = np.array([-0.01, 0.0, 0.01])
    places = np.array([1.0, 2.0, 3.0])

    def verdict(*centers: float, widths: tuple[float, float, float] = (1, 1, 1)) -> tuple[str, str]:
        estimates = np.stack([c + w * tight for c, w in zip(centers, widths, strict=True)])
        found = verdicts.judge_all("growth", "l =", places, estimates, Band(0.5, 1.5))
        return found.verdict, found.quantity

    assert verdict(1, 1.2, 0.6) == (SUPPORTED, "growth, worst l = 3")
    assert verdict(1, 1.49, 0.6) == (INCONCLUSIVE, "growth, worst l = 2")
    assert verdict(1, 1.7, 0.6) == (NOT_SUPPORTED, "growth, worst l = 2")
    # a wide interval that leaves the band by more does not hide one that lies wholly outside
    assert verdict(1, 1.7, 1, widths=(100, 1, 1)) == (NOT_SUPPORTED, "growth, worst l = 2")
    assert verdict(1, math.nan, 1) == (NOT_SUPPORTED, "growth, worst l = 2")


def test_exact_numbers() -> None:
    expected = np.array([2.0, 4.0])
    assert verdicts.judge_exact("a", expected * (1 + 5e-7), expected, 1e-6, 1).verdict == SUPPORTED
    assert verdicts.judge_exact("a", expected * [1, 1 - 2e-6], expected, 1e-6, 1).verdict == NOT_SUPPORTED
    assert verdicts.judge_exact("a", expected * [1, np.nan], expected, 1e-6, 1).verdict == NOT_SUPPORTED
    assert verdicts.judge_exact("a", expected[:0], expected[:0], 1e-6, 1).verdict == NOT_SUPPORTED  # nothing measured
    found = verdicts.judge_exact("a", expected, expected, 1e-6, 1)
    assert (found.band_text, found.value_text) == ("exact", "deviation 0")


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (-0.5416, -0.56806, -0.51515, "-0.542 [-0.568, -0.515]"),
        (2.2e5, 6.8e4, 7.1e5, "2.2e+05 [6.8e+04, 7.1e+05]"),
        (12.3456, -30.0, 55.0, "12 [-30, 55]"),
        (-0.00684, -0.0093, -0.0044, "-0.007 [-0.009, -0.004]"),
        (0.0088, -0.0002, 0.0178, "0.009 [0.000, 0.018]"),
        (1.5, math.nan, math.nan, "1.5"),
        (2.0, 2.0, 2.0, "2.000 [2.000, 2.000]"),
    ],
)
def test_printed_numbers(value: float, low: float, high: float, text: str) -> None:
    assert verdicts.Finding("x", value, low, high, 5, None, MEASURED).value_text == text


def test_printed_bands() -> None:
    assert [str(b) for b in (around(-0.5, 0.1), Band(high=0.6), around(0.0, 0.05))] == [
        "[-0.6, -0.4]", "<= 0.6", "[-0.05, 0.05]",
    ]  # fmt: skip


def test_arrays_come_from_the_rows_asked_for() -> None:
    rows = [
        (q, v, "pre", depth, layer, seed, float(1000 * depth + 10 * layer + seed))
        for q in ("mlp_out_grad", "mean_square")
        for v in ("pre", "post")
        for depth in (2, 3)
        for layer in range(depth)
        for seed in (0, 1)
    ]
    columns = ["quantity", "variant", "placement", "depth", "layer", "seed", "value"]
    table = pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=0)
    table["value"] += 1e6 * (table["variant"] == "post") + 1e7 * (table["quantity"] == "mean_square")
    blocks, values = verdicts.by_block(table, "mlp_out_grad", "pre")
    assert blocks.tolist() == [1, 2, 3]
    assert values.tolist() == [[3000, 3001], [3010, 3011], [3020, 3021]]
    stream, _ = verdicts.by_block(table, "mean_square", "pre", 2)
    assert stream.tolist() == [0, 1]
    depths, values = verdicts.by_depth(table, "mlp_out_grad", "pre")
    assert depths.tolist() == [2, 3]
    assert values.tolist() == [[2010, 2011], [3020, 3021]]
    whole = table[(table["layer"] == 0)].assign(layer=np.nan)
    assert verdicts.by_depth(whole, "mlp_out_grad", "post")[1].tolist() == [[1002000, 1002001], [1003000, 1003001]]
    assert verdicts.first_to_last(table, "pre")[1].tolist() == [[2000 / 2010, 2001 / 2011], [3000 / 3020, 3001 / 3021]]
    assert verdicts.deepest(table, "pre") == 3

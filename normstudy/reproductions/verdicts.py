"""Judge a prediction: compare the 95 % t interval of the mean over seeds with the band that the source predicts.

A prediction is `supported` if the whole interval lies in the band, `not supported` if the whole interval lies outside,
and `inconclusive` otherwise. A quantity for which the source gives no number is `measured`, without a verdict.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from normstudy.analysis.grid import interval_text
from normstudy.analysis.inference import paired_t_interval

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Table = pd.DataFrame  # the readings for one prediction, with the columns of tables.SCHEMA
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE, MEASURED = "supported", "not supported", "inconclusive", "measured"


class Band(NamedTuple):
    """The range of values that agrees with a prediction. The ends, `low` and `high`, belong to the range."""

    low: float = -math.inf
    high: float = math.inf
    source: str = ""  # the source's words; a range that differs from them is this project's tolerance

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        return f"<= {self.high:g}" if math.isinf(self.low) else f"[{self.low:g}, {self.high:g}]"


def around(value: float, by: float) -> Band:
    """Return the band from `value - by` to `value + by`. value: the number that the source gives."""
    return Band(round(value - by, 12), round(value + by, 12), f"{value:g}")


class Finding(NamedTuple):
    """The verdict on a quantity. The properties format the finding for the printed table."""

    quantity: str
    value: float  # the quantity's mean over seeds
    low: float  # the low end of the mean's 95 % t interval, or NaN without an interval
    high: float
    seeds: int
    band: Band | None  # None if the source gives no number
    verdict: str
    exact: bool = False  # True: `value` is the largest relative deviation from the source's exact numbers

    @property
    def band_text(self) -> str:
        return "exact" if self.exact else "none" if self.band is None else str(self.band)

    @property
    def source_text(self) -> str:
        return "exact" if self.exact else "" if self.band is None else self.band.source

    @property
    def value_text(self) -> str:
        """Return the value and its interval, such as `-0.542 [-0.568, -0.515]`, with at most three decimals."""
        if self.exact:
            return f"deviation {self.value:.0e}" if self.value else "deviation 0"
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return f"{self.value:.3g}"
        if abs(self.value) >= 1e4:
            return interval_text(self.value, self.low, self.high, ".2g")
        half = (self.high - self.low) / 2
        digits = min(3, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3
        value, low, high = (round(x, digits) + 0.0 for x in (self.value, self.low, self.high))  # -0.0 + 0.0 is 0.0
        return interval_text(value, low, high, f".{digits}f")


def deepest(table: Table, variant: str) -> int:
    """Return the largest depth at which a variant was measured."""
    return int(table.loc[table["variant"] == variant, "depth"].max())


def by_block(table: Table, quantity: str, variant: str, depth: int | None = None) -> tuple[Floats, Floats]:
    """Return block numbers (n,) and a quantity's values (n, seeds) at one depth, by default the largest.

    Blocks are numbered from 1. The quantity `mean_square` also has values for block 0, the embeddings.
    """
    depth = deepest(table, variant) if depth is None else depth
    rows = table[(table["quantity"] == quantity) & (table["variant"] == variant) & (table["depth"] == depth)]
    wide = rows.pivot_table(index="layer", columns="seed", values="value", dropna=False)
    return wide.index.to_numpy(np.float64) + (quantity != "mean_square"), wide.to_numpy(np.float64)


def by_depth(table: Table, quantity: str, variant: str, block: str = "last") -> tuple[Floats, Floats]:
    """Return the depths (n,), and a quantity's values (n, seeds) in the entire model, or in its first or last block."""
    rows = table[(table["quantity"] == quantity) & (table["variant"] == variant)]
    rows = rows[rows["layer"].isna() | (rows["layer"] == (0 if block == "first" else rows["depth"] - 1))]
    wide = rows.pivot_table(index="depth", columns="seed", values="value", dropna=False)
    return wide.index.to_numpy(np.float64), wide.to_numpy(np.float64)


def first_to_last(table: Table, variant: str) -> tuple[Floats, Floats]:
    """Return the depths (n,) and the ratios (n, seeds) of the first block's gradient norm to the last block's."""
    depths, first = by_depth(table, "mlp_out_grad", variant, "first")
    return depths, first / by_depth(table, "mlp_out_grad", variant)[1]


def log(x: Floats) -> Floats:
    """Compute the natural logarithm, without a warning where `x` is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(x))


def slope(x: Floats, y: Floats) -> Floats:
    """Compute the least-squares slopes (seeds,) of the columns of `y` (n, seeds) against `x` (n,)."""
    centered = x - x.mean()
    with np.errstate(invalid="ignore"):  # a matrix product's last bits would depend on threads
        return np.asarray((centered[:, None] * y).sum(0) / (centered**2).sum())


def exponent(x: Floats, y: Floats) -> Floats:
    """Fit a power of `x` to each column of `y`. Return the exponents (seeds,), the slopes of ln y against ln x."""
    return slope(log(x), log(y))


def judge(quantity: str, estimates: Floats, band: Band | None, *, logs: bool = False) -> Finding:
    """Judge a quantity from one estimate per seed. logs: whether the estimates are the quantity's logarithms."""
    mean, low, high = paired_t_interval(estimates) if np.isfinite(estimates).all() else (math.nan,) * 3
    if logs:
        mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
    return Finding(quantity, mean, low, high, len(estimates), band, verdict(band, mean, low, high))


def verdict(band: Band | None, mean: float, low: float, high: float) -> str:
    """Return the verdict on a mean and its interval. low, high: the interval's ends, or NaN for a single seed."""
    if band is None:
        return MEASURED
    if not math.isfinite(mean):
        return NOT_SUPPORTED
    if math.isnan(low):
        return INCONCLUSIVE
    if band.low <= low and high <= band.high:
        return SUPPORTED
    return NOT_SUPPORTED if high < band.low or band.high < low else INCONCLUSIVE


def judge_all(quantity: str, at: str, places: Floats, estimates: Floats, band: Band) -> Finding:
    """Judge a prediction that must be true at several places, such as in all blocks. Return the worst place's finding.

    The verdict is `supported` if the verdict at every place is `supported`, and `not supported` if the verdict at one
    place or more is `not supported`. More places make a wrong `not supported` likelier, but not a wrong `supported`.
    at: the word before a place's number in the finding's text, such as `block`. places: numbers of the places (n,).
    estimates: (n, seeds).
    """
    found = [judge(f"{quantity}, worst {at} {p:g}", row, band) for p, row in zip(places, estimates, strict=True)]
    outside = [f for f in found if f.verdict == NOT_SUPPORTED] or found
    # Return the finding whose interval reaches farthest outside the band. A mean that is not finite is the worst.
    return max(outside, key=lambda f: max(band.low - f.low, f.high - band.high) if np.isfinite(f.value) else math.inf)


def judge_exact(quantity: str, found: Floats, expected: Floats, tolerance: float, seeds: int) -> Finding:
    """Judge numbers that the source predicts exactly: the largest relative deviation must not exceed the tolerance."""
    worst = float(np.max(np.abs(found / expected - 1))) if len(found) else math.nan
    verdict = SUPPORTED if worst <= tolerance else NOT_SUPPORTED
    return Finding(quantity, worst, math.nan, math.nan, seeds, Band(high=tolerance), verdict, exact=True)

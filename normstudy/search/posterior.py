"""Estimate the position at which half of the runs fail: a Bayesian logistic regression on a grid.

The share of runs that fail at position `x` is l + (1 - 2 l) / (1 + exp(-(x - t) / s)). The threshold `t` has a uniform
prior from PAD below the searched range to PAD above it. The width `s` has a uniform prior over WIDTHS, and the lapse
`l` has a uniform prior over LAPSES. Terms are added in the order of the positions, so the runs' order does not matter.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from normstudy.analysis.outcomes import Floats
from normstudy.search.settings import DECADE

WIDTHS = (0.03, 0.06, 0.12, 0.24, 0.48)  # decades
LAPSES = (0.01, 0.05)  # share of runs that fail far below the threshold, or do not fail far above it
PAD = 60  # positions by which thresholds may lie outside the range
CONFIDENCE = 0.95


@functools.cache
def _log_shares(reach: int) -> tuple[Floats, Floats]:
    """Return ln p and ln (1 - p) at x - t = -reach ... reach, (2 reach + 1, widths x lapses). p: share that fails."""
    distance = np.arange(-reach, reach + 1)[:, None, None] / DECADE
    widths, lapses = np.array(WIDTHS)[:, None], np.array(LAPSES)
    logistic = 0.5 * (1 + np.tanh(0.5 * distance / widths))
    share = (lapses + (1 - 2 * lapses) * logistic).reshape(2 * reach + 1, -1)
    return np.log(share), np.log1p(-share)


class Posterior(NamedTuple):
    """The threshold's distribution, given the runs."""

    low: int  # ends of the range
    high: int
    weights: Floats  # weight of each threshold and pair (width, lapse); the sum is 1
    cumulative: Floats  # cumulative probability of the thresholds
    below: float  # probability of a threshold below the range
    above: float

    def quantile(self, q: float) -> int:
        """Return the lowest threshold whose cumulative probability is at least `q`, as a position."""
        return self.low - PAD + int(np.searchsorted(self.cumulative, min(q, float(self.cumulative[-1]))))

    @property
    def interval(self) -> tuple[int, int]:
        return self.quantile((1 - CONFIDENCE) / 2), self.quantile((1 + CONFIDENCE) / 2)

    def share(self, position: int) -> float:
        """Return the expected share of runs that fail at a position."""
        return float(np.sum(self.weights * np.exp(_log_shares_at(self.low, self.high, position)[0])))


def _log_shares_at(low: int, high: int, position: int) -> tuple[Floats, Floats]:
    """Return ln p and ln (1 - p) at `position` for every threshold of the prior, each (thresholds, widths x lapses)."""
    thresholds = high - low + 2 * PAD + 1
    # A run more than PAD outside the range is treated as if it were PAD outside.
    first = thresholds + min(max(position, low - PAD), high + PAD) - (low - PAD)
    failed, other = _log_shares(thresholds)
    return failed[first : first - thresholds : -1], other[first : first - thresholds : -1]


def posterior(counts: Mapping[int, tuple[int, int]], low: int, high: int) -> Posterior:
    """Return the threshold's posterior. counts: position -> (failed runs, all other runs)."""
    total = np.zeros((high - low + 2 * PAD + 1, len(WIDTHS) * len(LAPSES)))
    for position, (n_failed, n_other) in sorted(counts.items()):
        failed, other = _log_shares_at(low, high, position)
        total += n_failed * failed + n_other * other
    weights = np.exp(total - total.max())
    weights /= weights.sum()
    cumulative = np.cumsum(weights.sum(axis=1))
    return Posterior(low, high, weights, cumulative, float(cumulative[PAD - 1]), float(1 - cumulative[-PAD - 1]))

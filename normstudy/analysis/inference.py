"""Compute intervals and tests for shares of failed runs and for differences of losses; see docs/statistics.md.

Importing scipy.stats takes longer than a comparison, so this module uses only the distributions of scipy.special. The
tests compare this module's results with scipy.stats.
"""

import bisect
import math
from collections.abc import Sequence

import numpy as np

from normstudy.analysis.outcomes import Floats

ALPHA = 0.05  # level of a test; intervals have the confidence 1 - ALPHA


def share_interval(k: int, n: int) -> tuple[float, float]:
    """Return the exact 95 % interval (Clopper and Pearson, 1934) of the share `k` / `n`, or NaN if `n` is 0."""
    if n == 0:
        return math.nan, math.nan
    from scipy.special import betaincinv  # this import takes 0.25 s, and most figures do not need it

    low = float(betaincinv(k, n - k + 1, ALPHA / 2)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - ALPHA / 2)) if k < n else 1.0
    return low, high


def share_test(k: int, n: int, base_k: int, base_n: int) -> float:
    """Return the two-sided p of Fisher's exact test that two true shares are equal, or NaN if no test is possible."""
    total = k + base_k
    if not (n and base_n and 0 < total < n + base_n):  # only one result is possible (Tarone, 1990)
        return math.nan
    tables = [math.comb(n, i) * math.comb(base_n, total - i) for i in range(total + 1)]  # exact integer weights
    return sum(w for w in tables if w <= tables[k]) / sum(tables)


def paired_t_interval(differences: Floats) -> tuple[float, float, float]:
    """Return the mean difference and the bounds of its 95 % t interval. For fewer than two pairs, bounds are NaN."""
    mean = float(np.mean(differences)) if len(differences) else np.nan
    half = t_quantile(len(differences) - 1) * _error(differences) if len(differences) > 1 else np.nan
    return mean, mean - half, mean + half


def t_quantile(degrees: int) -> float:
    """Return half the width of a 95 % t interval, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - ALPHA / 2))


def paired_t_test(differences: Floats) -> float:
    """Return the two-sided p of the t test that the mean difference is 0. Fewer than two pairs give NaN."""
    return min(1.0, 2 * _t_below(-abs(differences.mean()), differences)) if len(differences) > 1 else math.nan


def equivalence_test(differences: Floats, margin: float) -> float:
    """Return the p of two one-sided t tests (Schuirmann, 1987) against |mean| >= margin. Below two pairs: NaN."""
    return _t_below(abs(differences.mean()) - margin, differences) if len(differences) > 1 else math.nan


def _error(differences: Floats) -> float:
    """Return the standard error of the mean."""
    # The standard error of equal numbers must be 0, but rounding can make the numbers differ from their mean.
    return float(np.std(differences, ddof=1) / np.sqrt(len(differences))) if np.ptp(differences) else 0.0


def _t_below(distance: float, differences: Floats) -> float:
    """Return the probability that a t variable is below `distance` / (standard error of the mean difference)."""
    from scipy.special import stdtr

    error = _error(differences)
    if error == 0:  # all differences are equal
        return 0.5 if distance == 0 else float(distance > 0)
    return float(stdtr(len(differences) - 1, distance / error))


def holm(p: Sequence[float]) -> list[float]:
    """Adjust the p values of a family of tests (Holm, 1979). A test that was not made has p NaN and stays NaN."""
    made = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    out, least = [math.nan] * len(p), 0.0
    for rank, (value, i) in enumerate(made):
        out[i] = least = max(least, min(1.0, (len(made) - rank) * value))
    return out


def reachable(p: Sequence[float], best: float) -> bool:
    """Return whether a test of the family `p` could be significant. best: the smallest p that the test can have."""
    made = sorted(value for value in p if not math.isnan(value))
    before = bisect.bisect_left(made, best)  # number of tests that Holm's method makes first
    return all((len(made) - rank) * value <= ALPHA for rank, value in enumerate([*made[:before], best]))

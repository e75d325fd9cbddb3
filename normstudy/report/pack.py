"""Pack numbers of three significant digits into text, and choose the steps of which a page shows numbers.

A number is a little-endian uint16: one of SPECIAL, or (decade - LOWEST) * 900 + the three digits - 100 + len(SPECIAL).
page.js has the inverse. Text is base64 without compression, because builds of zlib write different bytes.
"""

from __future__ import annotations

import base64
import functools
import math

import numpy as np

from normstudy.analysis.outcomes import Floats
from normstudy.study.parquet import Ints

SPECIAL = (math.nan, 0.0, math.inf, 1e-36)  # codes 0 to 3; the last stands for every smaller positive number
LOWEST, MOST = -36, 9.995e35  # the least decade, and the least number that counts as infinite
TIE = 1e-6  # so near to a half, the error of a division could decide how a number is rounded
LOSSES = 85  # steps of a loss curve, on a logarithmic grid
LADDER = (80, 60, 40, 30, 24, 16, 12, 8)  # probed steps of a run, if all of them make a page too large


def pack(values: Floats) -> str:
    """Return numbers as text. Negative numbers count as missing, like NaN, and 1e36 and more as infinite."""
    values = np.asarray(values, np.float64)
    plain = np.isfinite(values) & (values >= SPECIAL[3]) & (values < MOST)
    out = np.select([values == 0, values >= MOST, (values > 0) & (values < SPECIAL[3])], [1, 2, 3], 0)
    if plain.any():
        decade = np.floor(np.log10(values[plain])).astype(np.int64)
        scaled = values[plain] / 10.0 ** (decade - 2)
        digits = np.rint(scaled).astype(np.int64)
        for i in np.flatnonzero(np.abs(scaled % 1 - 0.5) < TIE):
            digits[i] = round(float(f"{values[plain][i]:.2e}") / 10.0 ** (decade[i] - 2))  # as f"{x:.3g}" rounds
        decade += digits == 1000
        out[plain] = np.where(digits == 1000, 0, digits - 100) + 900 * (decade - LOWEST) + len(SPECIAL)
    return base64.b64encode(out.astype("<u2").tobytes()).decode()


@functools.cache  # most runs of a study have the same steps
def loss_steps(last: int) -> Ints:
    """Return at most LOSSES steps from 0 to `last`, evenly spaced in the logarithm of step + 1."""
    return np.unique(np.rint(np.geomspace(1, last + 1, LOSSES)).astype(np.int64)) - 1


@functools.cache
def thinned(every: tuple[int, ...], limit: int) -> Ints:
    """Return at most `limit` of the steps, with the first and the last, evenly spaced in the logarithm of step + 1."""
    steps = np.array(every, np.int64)
    if len(steps) <= limit:
        return steps
    kept = steps[[0, -1]]
    for points in range(limit, 10 * limit):  # several points of a grid have the same nearest step
        wanted = np.geomspace(1, steps[-1] + 1, points) - 1
        near = np.unique(np.abs(steps[None] - wanted[:, None]).argmin(axis=1))
        if len(near) > limit:
            break
        kept = steps[near]
    return np.asarray(kept)

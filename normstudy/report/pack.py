"""Pack the numbers behind a page's charts into text: each run's losses and norms, at as many steps as fit.

A number is rounded to digits * 10^(decade - 2), with digits from 100 to 999, and becomes the little-endian uint16
(decade - LOWEST) * 900 + digits - 100 + len(SPECIAL). A number in SPECIAL becomes its index in SPECIAL. page.js decodes
the integers from base64 text. The text is not compressed, because different builds of zlib write different bytes.
"""

import base64
import functools
import math
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from normstudy.analysis.outcomes import Floats
from normstudy.figures.series import last_tenth
from normstudy.report.read import Bundle
from normstudy.study.parquet import Ints
from normstudy.study.schema import MODULES

QUANTITIES = ("grad_norm", "update_ratio")  # columns of `modules` that a page shows
BYTES, MANY, BYTES_OF_A_RUN = 1_250_000, 700, 6_300  # limit of text: of a page, or of a run on a page of > MANY runs
SPECIAL = (math.nan, 0.0, math.inf, 1e-36)  # codes 0 to 3; every positive number below 1e-36 gets code 3
LOWEST, MOST = -36, 9.995e35  # the lowest decade, and the smallest number that counts as infinite
TIE = 1e-6  # a division's error could change how digits are rounded that are this close to a half
LOSSES = 85  # steps of a loss curve, on a logarithmic grid
LADDER = (80, 60, 40, 30, 24, 16, 12, 8)  # if all probed steps are too many, these limits per run are tried in order

Known = defaultdict[tuple[Any, ...], int]  # list -> its index; a new list gets the next index


class Numbers(NamedTuple):
    """What page.js reads.

    grids: lists of steps. layouts: lists of (module, layer or None). runs: a run's key -> its strings from `pack`, and
    its indices into `grids` and `layouts`. probes: the maximum number of probed steps per run, or None for all.
    """

    grids: list[tuple[int, ...]]
    layouts: list[tuple[tuple[str, int | None], ...]]
    runs: dict[str, dict[str, Any]]
    probes: int | None
    quantities: tuple[str, ...]


def collect(bundle: Bundle) -> Numbers:
    """Pack the numbers of all runs, with as many probed steps as `_choose` allows."""
    grids: Known = defaultdict(lambda: len(grids))
    layouts: Known = defaultdict(lambda: len(layouts))
    runs: dict[str, dict[str, Any]] = {str(key): {} for key in bundle.runs["key"]}
    finals = dict(zip(bundle.runs["key"], bundle.runs[["n_steps", "final_val_loss"]].to_numpy(float), strict=True))
    for key, rows in bundle.steps.sort_values("step").groupby("key"):
        runs[str(key)] |= _losses(rows, finals[key], grids)
    which, names = pd.factorize(bundle.modules["module"])
    order = np.array([MODULES.index(name) if name in MODULES else len(MODULES) for name in names], int)
    parts = dict(iter(bundle.modules.assign(order=order[which]).sort_values(["step", "order", "layer"]).groupby("key")))
    paths = dict(iter(bundle.residual.sort_values(["step", "layer"]).groupby("key")))
    sizes = [(rows["step"].nunique(), len(rows), len(paths.get(key, ()))) for key, rows in parts.items()]
    probes, quantities = _choose(sizes, BYTES_OF_A_RUN * len(runs) if len(runs) > MANY else BYTES)
    for key, rows in parts.items():
        every = tuple(rows["step"].unique().tolist())
        steps = thinned(every, probes or len(every))
        first, shown = rows[rows["step"] == every[0]], rows[rows["step"].isin(steps)]
        layers = [None if pd.isna(layer) else int(layer) for layer in first["layer"]]
        run = runs[str(key)]
        run["probes"] = grids[tuple(steps.tolist())]
        run["layout"] = layouts[tuple(zip(first["module"].astype(str), layers, strict=True))]
        run |= {name: pack(shown[name].to_numpy()) for name in quantities}
        path = paths.get(key, bundle.residual[:0])
        run["residual"] = pack(path.loc[path["step"].isin(steps), "grad_norm"].to_numpy())
    return Numbers(list(grids), list(layouts), runs, probes, quantities)


def _losses(rows: pd.DataFrame, final: np.ndarray[Any, Any], grids: Known) -> dict[str, Any]:
    """Pack a run's smoothed training losses and its validation losses. final: the run's n_steps and final_val_loss."""
    out: dict[str, Any] = {}
    good = rows[np.isfinite(rows["train_loss"])]
    if len(good):
        smooth = last_tenth(good.assign(value=good["train_loss"]))["value"].to_numpy()
        at = loss_steps(len(good) - 1)
        out |= {"train_steps": grids[tuple(good["step"].to_numpy()[at].tolist())], "train": pack(smooth[at])}
    seen = rows[np.isfinite(rows["val_loss"])]
    steps, values = seen["step"].tolist(), seen["val_loss"].tolist()
    if np.isfinite(final[1]):
        steps, values = [*steps, int(final[0])], [*values, final[1]]
    return out | {"val_steps": grids[tuple(steps)], "val": pack(np.array(values))}


def _choose(sizes: list[tuple[int, int, int]], limit: int) -> tuple[int | None, tuple[str, ...]]:
    """Choose how many probed steps per run and which quantities fit into a text of `limit` bytes.

    sizes: for each run, the numbers of probed steps, of rows of `modules`, and of rows of `residual`.
    """
    for quantities in (QUANTITIES, QUANTITIES[:1]):
        for probes in (None, *LADDER):
            numbers = sum((len(quantities) * m + p) * min(probes or n, n) // n for n, m, p in sizes)
            if numbers * 8 / 3 <= limit:  # a number has two bytes, and base64 turns three bytes into four
                return probes, quantities
    return LADDER[-1], QUANTITIES[:1]


def pack(values: Floats) -> str:
    """Return numbers as text. Negative numbers become NaN, and numbers that round to 1e36 or more become infinite."""
    values = np.asarray(values, np.float64)
    plain = np.isfinite(values) & (values >= SPECIAL[3]) & (values < MOST)
    out = np.select([values == 0, values >= MOST, (values > 0) & (values < SPECIAL[3])], [1, 2, 3], 0)
    if plain.any():
        decade = np.floor(np.log10(values[plain])).astype(np.int64)
        scaled = values[plain] / 10.0 ** (decade - 2)
        digits = np.rint(scaled).astype(np.int64)
        for i in np.flatnonzero(np.abs(scaled % 1 - 0.5) < TIE):
            digits[i] = round(float(f"{values[plain][i]:.2e}") / 10.0 ** (decade[i] - 2))  # round as f"{x:.3g}" does
        decade += digits == 1000
        out[plain] = np.where(digits == 1000, 0, digits - 100) + 900 * (decade - LOWEST) + len(SPECIAL)
    return base64.b64encode(out.astype("<u2").tobytes()).decode()


@functools.cache  # most runs of a study have the same steps
def loss_steps(last: int) -> Ints:
    """Return at most LOSSES steps from 0 to `last`, evenly spaced in the logarithm of step + 1."""
    return np.unique(np.rint(np.geomspace(1, last + 1, LOSSES)).astype(np.int64)) - 1


@functools.cache
def thinned(every: tuple[int, ...], limit: int) -> Ints:
    """Return at most `limit` steps of `every`, evenly spaced in the logarithm of step + 1. Include both ends."""
    steps = np.array(every, np.int64)
    if len(steps) <= limit:
        return steps
    kept = steps[[0, -1]]
    for points in range(limit, 10 * limit):  # more points than steps: two points can have one nearest step
        wanted = np.geomspace(1, steps[-1] + 1, points) - 1
        near = np.unique(np.abs(steps[None] - wanted[:, None]).argmin(axis=1))
        if len(near) > limit:
            break
        kept = steps[near]
    return np.asarray(kept)

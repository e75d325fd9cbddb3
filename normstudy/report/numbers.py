"""Collect the numbers behind a page's charts: each run's losses and norms, at few enough steps for a small file."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from normstudy.figures.series import last_tenth
from normstudy.report.pack import LADDER, loss_steps, pack, thinned
from normstudy.report.read import Bundle
from normstudy.study.parquet import Ints
from normstudy.study.schema import MODULES

QUANTITIES = ("grad_norm", "update_ratio")  # columns of `modules` that a page has
BYTES, MANY, BYTES_OF_A_RUN = 1_250_000, 700, 6_300  # of packed text: in a page, or in each of more than MANY runs


@dataclass(frozen=True)
class Numbers:
    """Hold what page.js reads.

    grids: lists of steps; layouts: lists of (module, layer or None). runs: run's key -> its texts from `pack`, each
    beside the index of its grid or layout. probes: at most so many probed steps of a run are shown, or None for all.
    """

    grids: list[list[int]]
    layouts: list[list[tuple[str, int | None]]]
    runs: dict[str, dict[str, Any]]
    probes: int | None
    quantities: tuple[str, ...]


class _Once:
    """Give each distinct value the number at which it stands in `values`."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._found: dict[Hashable, int] = {}

    def __call__(self, value: Sequence[Any]) -> int:
        key = tuple(value)
        if key not in self._found:
            self._found[key] = len(self.values)
            self.values.append(list(value))
        return self._found[key]


def collect(bundle: Bundle) -> Numbers:
    """Pack the numbers of all runs. The first limit of LADDER with which they fit says how many probed steps remain."""
    grids, layouts = _Once(), _Once()
    runs: dict[str, dict[str, Any]] = {str(key): {} for key in bundle.runs["key"]}
    finals = dict(zip(bundle.runs["key"], bundle.runs[["n_steps", "final_val_loss"]].to_numpy(float), strict=True))
    for key, rows in bundle.steps.sort_values("step").groupby("key"):
        runs[str(key)] |= _losses(rows, finals[key], grids)
    which, names = pd.factorize(bundle.modules["module"])
    modules = bundle.modules.assign(
        order=np.array([MODULES.index(name) if name in MODULES else len(MODULES) for name in names], int)[which]
    )
    parts = _by_run(modules, ["order", "layer"])
    paths = _by_run(bundle.residual, ["layer"])
    probes, quantities = _choose(parts, paths, BYTES_OF_A_RUN * len(runs) if len(runs) > MANY else BYTES)
    for key, part in parts.items():
        first = part.rows.iloc[: part.width]
        layers = [None if pd.isna(layer) else int(layer) for layer in first["layer"]]
        steps = thinned(tuple(part.steps.tolist()), probes or len(part.steps))
        shown = np.isin(part.steps, steps)
        layout = layouts(list(zip(first["module"].astype(str), layers, strict=True)))
        runs[key] |= {"probes": grids(steps.tolist()), "layout": layout}
        runs[key] |= {name: part.packed(name, shown) for name in quantities}
        runs[key]["residual"] = paths[key].packed("grad_norm", shown) if key in paths else ""
    return Numbers(grids.values, layouts.values, runs, probes, quantities)


@dataclass(frozen=True)
class _Part:
    """Hold one run's rows of `modules` or `residual`, of which each of its steps has `width`."""

    rows: pd.DataFrame
    steps: Ints

    @property
    def width(self) -> int:
        return len(self.rows) // len(self.steps)

    def packed(self, column: str, shown: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
        """Return a column as text, of the steps that are `shown`."""
        return pack(self.rows[column].to_numpy().reshape(len(self.steps), -1)[shown])


def _by_run(rows: pd.DataFrame, order: list[str]) -> dict[str, _Part]:
    """Return run's key -> its rows, sorted by step and `order`."""
    rows = rows.sort_values(["key", "step", *order], kind="stable", ignore_index=True)
    keys, steps = rows["key"].to_numpy(), rows["step"].to_numpy(np.int64)
    ends = [0, *(np.flatnonzero(keys[1:] != keys[:-1]) + 1), len(rows)]
    return {str(keys[a]): _Part(rows.iloc[a:b], np.unique(steps[a:b])) for a, b in itertools.pairwise(ends) if b > a}


def _losses(rows: pd.DataFrame, final: np.ndarray[Any, Any], grids: _Once) -> dict[str, Any]:
    """Return a run's training losses, as trailing means, and its validation losses. final: n_steps, final_val_loss."""
    out: dict[str, Any] = {}
    good = rows[np.isfinite(rows["train_loss"])]
    if len(good):
        smooth = last_tenth(good.assign(value=good["train_loss"]))["value"].to_numpy()
        at: Ints = loss_steps(len(good) - 1)
        out |= {"train_steps": grids(good["step"].to_numpy()[at].tolist()), "train": pack(smooth[at])}
    seen = rows[np.isfinite(rows["val_loss"])]
    steps, values = seen["step"].tolist(), seen["val_loss"].tolist()
    if np.isfinite(final[1]):
        steps, values = [*steps, int(final[0])], [*values, final[1]]
    return out | {"val_steps": grids(steps), "val": pack(np.array(values))}


def _choose(parts: dict[str, _Part], paths: dict[str, _Part], limit: int) -> tuple[int | None, tuple[str, ...]]:
    """Return how many probed steps of each run are shown, and which quantities, so that the text has `limit` bytes."""
    sizes = [(len(p.steps), p.width, paths[key].width if key in paths else 0) for key, p in parts.items()]
    for quantities in (QUANTITIES, QUANTITIES[:1]):
        for probes in (None, *LADDER):
            numbers = sum((len(quantities) * m + p) * min(probes or n, n) for n, m, p in sizes)
            if numbers * 8 / 3 <= limit:  # two bytes a number, four letters for three bytes
                return probes, quantities
    return LADDER[-1], QUANTITIES[:1]

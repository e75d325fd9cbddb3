"""Measure how well a run's first steps predict that the run ends stuck. See docs/early_warning.md for the method.

Every outcome except `stuck` counts as not stuck, including unfinished, collapsed and diverged.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from normstudy.analysis import load
from normstudy.analysis.grid import interval_text, markdown_table, three_digits
from normstudy.analysis.outcomes import RUN_COLUMNS, UNJUDGED, Floats, outcomes
from normstudy.study import tables, whole

STUDIES = {  # kind -> committed studies; each kind is measured and reported separately
    "grids": ("warmup", "depth", "peak_lr", "placements", "rmsnorm", "boundary", "shallow", "best"),
    "searches": ("critical_lr", "critical_warmup"),  # their runs are near a critical value
}
# Quantity -> -1 if stuck runs have smaller values of the quantity than other runs, 1 if larger values.
QUANTITIES = {"gradient_ratio": -1, "update_rms": -1, "train_loss": 1}
STEPS = (0, 24, 50, 100, 200)
FIRST = 24  # the warning uses a run's first probed step that is at least FIRST and comes after the warmup
ALL = "all"  # stands for all placements
RESAMPLES, SEED = 2000, 0  # number and seed of the bootstrap's resamples
TINY = float(np.finfo(np.float32).tiny)  # replaces values below TINY, such as a gradient of 0

Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def observations(study_dir: Path) -> pd.DataFrame:
    """Return one row for each probed step of each finished run that has two or more layers and a known outcome.

    losses: hash of the run's training losses. cell: placement and n_layers. gradient_ratio: grad_norm of `mlp_out` in
    the first layer, divided by grad_norm of `mlp_out` in the last layer. update_rms: see `load.update_rms`.
    """
    asked = {"placement", "seed", "warmup_steps", "n_params", *RUN_COLUMNS, *whole.COLUMNS}
    runs = tables.read(study_dir, "runs", sorted(asked))
    runs = runs[(runs["status"] == "done") & (runs["n_layers"] > 1)]
    steps = whole.read(study_dir, "steps", runs, ["run_id", "step", "train_loss", "val_loss", "lr", "update_norm"])
    norms = whole.read(study_dir, "modules", runs, ["run_id", "step", "layer", "grad_norm"], "mlp_out")
    losses = steps.groupby("run_id")["train_loss"]
    same = {name: hashlib.sha256(values.to_numpy().tobytes()).hexdigest() for name, values in losses}
    outcome = runs["run_id"].map(outcomes(runs, steps))
    runs = runs.assign(study=study_dir.name, losses=runs["run_id"].map(same), stuck=outcome == "stuck")
    runs["cell"] = runs["placement"] + "-L" + runs["n_layers"].astype(str)
    rows = norms.merge(runs[outcome != UNJUDGED], on="run_id")
    first, last = rows[rows["layer"] == 0], rows[rows["layer"] == rows["n_layers"] - 1]
    rows = last.merge(first[["run_id", "step", "grad_norm"]], on=["run_id", "step"], suffixes=("", "_first"))
    rows = rows.merge(steps, on=["run_id", "step"])
    ratio, rms = rows["grad_norm_first"] / rows["grad_norm"], load.update_rms(rows, rows["n_params"])
    ids = ["study", "run_id", "losses", "placement", "cell", "seed", "warmup_steps"]
    return rows.assign(gradient_ratio=ratio, update_rms=rms.astype(float))[[*ids, "stuck", "step", *QUANTITIES]]


def distinct(rows: pd.DataFrame) -> pd.DataFrame:
    """Drop rows in which a quantity is not finite. Of runs with equal training losses, keep one row for each step.

    Such runs are copies. A step is kept if any copy was probed at it. The order of `rows` does not affect the result.
    """
    rows = rows.loc[np.isfinite(rows[[*QUANTITIES]].to_numpy()).all(axis=1)]
    rows = rows.sort_values(["cell", "seed", "losses", "step", "study", "run_id"])
    return rows.drop_duplicates(["losses", "step"], ignore_index=True)


def at_step(rows: pd.DataFrame, step: int | None) -> pd.DataFrame:
    """Drop steps during warmup. Return the rows at `step`, or if None, each run's first row with a step >= FIRST."""
    rows = rows[rows["step"] >= rows["warmup_steps"]]
    if step is None:
        rows = rows[rows["step"] >= FIRST]
        return rows[rows["step"] == rows.groupby("losses")["step"].transform("min")]
    return rows[rows["step"] == step]


def suspicion(rows: pd.DataFrame, quantity: str) -> Floats:
    """Return a quantity's logarithm, with a minus sign if stuck runs are expected to have smaller values."""
    return np.asarray(QUANTITIES[quantity] * np.log(np.maximum(rows[quantity].to_numpy(float), TINY)))


def auc(stuck: Bools, score: Floats, weights: Floats) -> Floats:
    """Return the AUC: the share of pairs (stuck run, run that is not stuck) with the larger score for the stuck run.

    The AUC is the area under the ROC curve (Hanley and McNeil, 1982). A tie counts half. stuck, score: (runs,).
    weights: (k, runs), how often each run counts. Returns (k,), NaN where there is no pair.
    """
    order = np.argsort(score, kind="stable")
    starts = np.unique(score[order], return_index=True)[1]
    yes, no = (np.add.reduceat(weights[:, order] * part, starts, axis=1) for part in (stuck[order], ~stuck[order]))
    below = np.cumsum(no, axis=1) - no / 2
    pairs = yes.sum(axis=1) * no.sum(axis=1)
    return np.asarray(np.divide((yes * below).sum(axis=1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))


def auc_interval(stuck: Bools, score: Floats, cells: Sequence[str]) -> tuple[float, float, float]:
    """Return the AUC and its 95 % interval by a bootstrap over cells: NaN if no run is stuck, or every run is."""
    if stuck.all() or not stuck.any():
        return math.nan, math.nan, math.nan
    names, codes = np.unique(cells, return_inverse=True)
    drawn = np.random.default_rng(SEED).multinomial(len(names), [1 / len(names)] * len(names), size=RESAMPLES)
    # The AUC of a resample is NaN if it has no stuck run, or only stuck runs.
    low, high = np.nanquantile(auc(stuck, score, drawn[:, codes].astype(float)), (0.025, 0.975))
    return float(auc(stuck, score, np.ones((1, len(score))))[0]), float(low), float(high)


def threshold(stuck: Bools, score: Floats) -> float:
    """Return the least score at which a run is flagged. It maximizes (true positive rate) - (false positive rate)."""
    if stuck.all() or not stuck.any():
        return math.inf
    levels = np.unique(score)
    at = np.searchsorted(levels, score)
    yes, no = (np.bincount(at[part], minlength=len(levels))[::-1].cumsum() / part.sum() for part in (stuck, ~stuck))
    best = int(np.argmax(yes - no))  # the first of equal maxima, which flags the fewest runs
    return float(levels[::-1][best : best + 2].mean()) if yes[best] > no[best] else math.inf


def flagged(rows: pd.DataFrame, score: Floats) -> Bools:
    """Return which runs are flagged. A run's threshold is learned from runs with another seed and another cell."""
    found = np.zeros(len(rows), bool)
    stuck, seed, cell = rows["stuck"].to_numpy(bool), rows["seed"].to_numpy(), rows["cell"].to_numpy()
    for a_cell, a_seed in set(zip(cell, seed, strict=True)):
        here, others = (cell == a_cell) & (seed == a_seed), (cell != a_cell) & (seed != a_seed)
        found[here] = score[here] >= threshold(stuck[others], score[others])
    return found


def measure(studies: Mapping[str, Sequence[Path]]) -> pd.DataFrame:
    """Measure how well each quantity predicts stuck runs. results/README.md defines the returned columns."""
    found: list[dict[str, object]] = []
    for kind, folders in studies.items():
        every = distinct(pd.concat([observations(folder) for folder in folders]))
        for step, quantity in itertools.product((*STEPS, None), QUANTITIES):
            place = {"kind": kind, "step": step, "quantity": quantity}
            found += (place | row for row in _rows(at_step(every, step), quantity))
    return pd.DataFrame(found).astype({"step": "Int64"}).assign(seed=SEED)


def _rows(rows: pd.DataFrame, quantity: str) -> Iterator[dict[str, object]]:
    """Yield a row about all placements, then one for each placement that has a stuck or flagged run."""
    score, stuck = suspicion(rows, quantity), rows["stuck"].to_numpy(bool)
    flags, cells = flagged(rows, score), rows["cell"].to_numpy()
    value, low, high = auc_interval(stuck, score, list(cells))
    limit = math.exp(QUANTITIES[quantity] * threshold(stuck, score))
    for placement in (ALL, *sorted(rows.loc[stuck | flags, "placement"].unique())):
        here = (rows["placement"] == placement).to_numpy() | (placement == ALL)
        yield {
            "placement": placement, "runs": int(here.sum()), "cells": len(set(cells[here])),
            "stuck": int((stuck & here).sum()), "stuck_cells": len(set(cells[stuck & here])),
            "caught": int((stuck & flags & here).sum()), "false": int((~stuck & flags & here).sum()),
        } | ({"auc": value, "low": low, "high": high, "threshold": limit} if placement == ALL else {})  # fmt: skip


def rule_of(table: pd.DataFrame) -> dict[str, float]:
    """Return the fields of `likely_stuck.Rule`. Runs are counted by thresholds that were learned from other runs."""
    where = 'kind == "grids" and step.isna() and quantity == "gradient_ratio" and placement == @ALL'
    (r,) = table.query(where).to_dict("records")
    return {"step": FIRST, "threshold": r["threshold"], "looked": r["caught"] + r["false"], "stuck": r["caught"]}


def markdown(table: pd.DataFrame, missed: bool) -> str:
    """Format `table` as Markdown: all quantities. missed: whether to show each placement's gradient ratio instead."""
    one, by, rows = table["placement"] != ALL, "placement" if missed else "quantity", list[list[str]]()
    for r in table[one & (table["quantity"] == "gradient_ratio") if missed else ~one].to_dict("records"):
        step = f"first from {FIRST}" if pd.isna(r["step"]) else str(r["step"])
        value = interval_text(r["auc"], r["low"], r["high"], ".3f")
        limit = three_digits(r["threshold"]) if 0 < r["threshold"] < math.inf else "none"
        about = [] if missed else [f"{r['stuck_cells']} of {r['cells']}", value, limit]
        counts = [f"{r['caught']} of {r['stuck']}", f"{r['false']} of {r['runs'] - r['stuck']}"]
        rows.append([r["kind"], step, f"`{r[by]}`", *about, *counts])
    about = [] if missed else ["cells with stuck runs", "AUC [95 % interval]", "threshold"]
    return "\n".join(markdown_table(["studies", "step", by, *about, "caught", "false"], rows, compact=True)) + "\n"

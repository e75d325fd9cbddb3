"""Compare runs that differ in one column only, by the share of failed runs and by the losses of pairs of runs.

Losses are final validation losses in nats per token. docs/statistics.md explains the method.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from normstudy import config as cfg
from normstudy.analysis import inference
from normstudy.analysis.grid import Value
from normstudy.analysis.outcomes import counts_text, failed_of, outcomes
from normstudy.analysis.select import check_column, native, own_columns, parse_value, values_of, values_text
from normstudy.errors import ConfigError, nearest

MIN_PAIRS = 5  # fewer pairs are not tested: so few seeds say little about the spread of losses
PAIRED = ["seed", "data_seed"]  # two seed columns that have equal values in both runs of a pair
RESULTS = (
    "by", "arm", "baseline", "outcomes", "baseline_outcomes", "crashed", "baseline_crashed",
    "runs", "failed", "failed_low", "failed_high",
    "baseline_runs", "baseline_failed", "baseline_failed_low", "baseline_failed_high",
    "failed_p", "failed_holm", "failed_verdict",
    "pairs", "unpaired", "compared", "loss", "baseline_loss", "difference", "ci_low", "ci_high",
    "loss_p", "loss_holm", "margin", "equivalent_p", "equivalent_holm", "loss_verdict", "family",
)  # fmt: skip


def cell_columns(by: str) -> list[str]:
    """Return the columns in which the runs of a cell are equal: data_sha256 and all `treatments` except `by`."""
    return [c for c in (*treatments(), "data_sha256") if c != by]


def treatments() -> list[str]:
    """Return the config columns, besides seeds, that affect training."""
    return [c for c in comparable_columns() if not c.startswith(tuple(f"{section}_" for section in cfg.PREFIXED))]


def comparable_columns() -> list[str]:
    """Return the columns that `--by` accepts: all config columns that identify a run, except seeds."""
    return [c for c in cfg.asked_types() if c not in (*cfg.NOT_IDENTITY, *PAIRED)]


def compare_pairs(
    runs: pd.DataFrame, steps: pd.DataFrame, by: str, baseline: str | None = None, margin: float | None = None
) -> pd.DataFrame:
    """Compare each value of `by` (an arm) with one value, the baseline. Return a row for each cell and arm.

    Runs with equal values in the `cell_columns` form a cell. The returned table has a column for each of the
    `cell_columns` that varies, and then the columns RESULTS (see results/README.md). `default_baseline`
    chooses the baseline if none is given. Each seed counts once, even if it was trained again with other probes.
    A pair is a finished run of the arm and a finished run of the baseline with the same cell, seeds and eval_windows.
    margin: largest difference in nats that counts as equivalent, or None for no test of equivalence.

    Raises ConfigError if `by` is not a comparable column or does not vary, if runs on the same text do not differ in
    `by`, and if `baseline` is not a value of `by`.
    """
    own = own_columns(runs)
    check_column(by, [*comparable_columns(), *own], "--by")
    runs = runs[runs["status"].isin(["done", "failed"])].copy()
    values = values_of(runs, by)
    if len(values) < 2:
        raise ConfigError(f"--by {by} does not vary: every run has {values_text(values)}; choose a column that varies")
    if runs.groupby("data_sha256")[by].nunique(dropna=False).max() < 2:
        raise ConfigError(
            f"--by {by}: all runs that differ in it are on different texts, so their losses cannot be compared: choose "
            "a column that varies among runs on the same text"
        )
    base = default_baseline(values) if baseline is None else _chosen(runs, by, baseline, values)
    runs = runs.assign(outcome=runs["run_id"].map(outcomes(runs, steps)))
    runs = runs.sort_values(["eval_windows", "run_id"], ascending=[False, True], kind="stable", ignore_index=True)
    cells = varying(runs, [*cell_columns(by), *(c for c in own if c != by)])
    value_of, windows, *seeds = ([native(c, v) for v in runs[c]] for c in (by, "eval_windows", *PAIRED))
    rest = (runs[c] for c in ("status", "outcome", "final_val_loss"))
    every_run = [_Run(*found) for found in zip(zip(*seeds, strict=True), windows, *rest, strict=True)]
    rows, arms = [], [v for v in values if v != base]
    for place, cell in cells_of(runs[cells], cells):
        found: dict[Value, list[_Run]] = {}
        for i in cell.index:
            found.setdefault(value_of[i], []).append(every_run[i])
        for arm in [v for v in arms if v in found] or arms:
            row = _compare(found.get(arm, []), found.get(base, []), margin)
            rows.append({**place, "by": by, "arm": arm, "baseline": base, **row})
    _judge(rows)
    # The columns arm and baseline hold objects because pandas would otherwise turn None into NaN and ints into floats.
    exact = {c: pd.Series([row[c] for row in rows], dtype=object) for c in ("arm", "baseline")}
    return pd.DataFrame(rows, columns=[*cells, *RESULTS]).assign(**exact)


def varying(runs: pd.DataFrame, columns: list[str]) -> list[str]:
    """Return the `columns` that vary in `runs`, but not data_sha256 if other columns distinguish the texts."""
    found = [c for c in columns if len(values_of(runs, c)) > 1]
    if "data_sha256" in found:
        rest = [c for c in found if c != "data_sha256"]
        if not rest or runs.groupby(rest, dropna=False)["data_sha256"].nunique().max() < 2:
            return rest or found
    return found


def cells_of(runs: pd.DataFrame, cells: list[str]) -> Iterator[tuple[dict[str, Value], pd.DataFrame]]:
    """For each cell, yield the cell's values in the columns `cells`, and the cell's runs."""
    for _, part in runs.groupby(cells, dropna=False) if cells else [((), runs)] * (len(runs) > 0):
        yield {c: native(c, part[c].iloc[0]) for c in cells}, part


def default_baseline(values: list[Value]) -> Value:
    """Return the first of pre, null, none and 0 that is in `values`, otherwise the first value."""
    return next((v for usual in ("pre", None, "none", 0) for v in values if v == usual), values[0])


def _chosen(runs: pd.DataFrame, by: str, baseline: str, values: list[Value]) -> Value:
    value = parse_value(runs, by, baseline, "--baseline")
    if value not in values:
        hint = nearest(baseline, [str(v) for v in values])
        raise ConfigError(f"--baseline {baseline} is not a value of {by}: choose one of {values_text(values)}.{hint}")
    return values[values.index(value)]


Seeds = tuple[Value, ...]  # a run's values in the columns PAIRED


class _Run(NamedTuple):
    """One run's values. Runs are compared in small groups, and for small groups tuples are faster than pandas."""

    seeds: Seeds
    windows: Value
    status: str
    outcome: str
    loss: float


def _compare(arm: list[_Run], base: list[_Run], margin: float | None) -> dict[str, object]:
    """Compare an arm with the baseline in one cell. Return column -> value, without the columns that `_judge` adds."""
    arms, bases = _finished_by_seeds(arm), _finished_by_seeds(base)
    pairs: dict[Seeds, tuple[_Run, _Run]] = {}
    for seeds, runs in arms.items():  # `runs` is sorted: most windows first
        same = [(a, b) for a in runs for b in bases.get(seeds, []) if a.windows == b.windows]
        pairs |= {seeds: same[0]} if same else {}
    compared = [pair for pair in pairs.values() if failed_of(run.outcome for run in pair) == (0, 2)]
    loss = np.array([[run.loss for run in pair] for pair in compared], np.float64).reshape(-1, 2)
    difference = loss[:, 0] - loss[:, 1]
    tested = len(compared) >= MIN_PAIRS
    mean, low, high = inference.paired_t_interval(difference)
    out = {**_share(arm, arms), **{f"baseline_{name}": value for name, value in _share(base, bases).items()}}
    return out | {
        "failed_p": inference.share_test(*(out[c] for c in ("failed", "runs", "baseline_failed", "baseline_runs"))),
        "pairs": len(pairs), "unpaired": len(arms) + len(bases) - 2 * len(pairs), "compared": len(compared),
        "loss": float(loss[:, 0].mean()) if compared else math.nan,
        "baseline_loss": float(loss[:, 1].mean()) if compared else math.nan,
        "difference": mean, "ci_low": low, "ci_high": high, "margin": margin,
        "loss_p": inference.paired_t_test(difference) if tested else math.nan,
        "equivalent_p": inference.equivalence_test(difference, margin) if tested and margin else math.nan,
    }  # fmt: skip


def _share(runs: list[_Run], by_seeds: dict[Seeds, list[_Run]]) -> dict[str, Any]:
    """Return the columns on outcomes and on the share of failed runs, for an arm or for the baseline."""
    found = [same[0].outcome for same in by_seeds.values()]
    failed, known = failed_of(found)
    low, high = inference.share_interval(failed, known)
    return {
        "outcomes": counts_text(found), "crashed": sum(run.status == "failed" for run in runs),
        "runs": known, "failed": failed, "failed_low": low, "failed_high": high,
    }  # fmt: skip


def _judge(rows: list[dict[str, Any]]) -> None:
    """Add Holm's p and the verdicts to the rows of a comparison. All tests of all rows are one family."""
    keys = [(row, name) for row in rows for name in ("failed", "loss", "equivalent")]
    p = [row[f"{name}_p"] for row, name in keys]
    family = sum(not math.isnan(value) for value in p)
    for (row, name), adjusted in zip(keys, inference.holm(p), strict=True):
        row[f"{name}_holm"] = adjusted
    bests = [inference.share_test(row["runs"], row["runs"], 0, row["baseline_runs"]) for row in rows]
    reachable = {best: inference.reachable(p, best) for best in set(bests)}
    for row, best in zip(rows, bests, strict=True):
        row["family"] = family
        row["failed_verdict"] = _share_verdict(row, reachable[best])
        row["loss_verdict"] = _loss_verdict(row)


def _share_verdict(row: dict[str, Any], reachable: bool) -> str:
    """Return a verdict on the shares of failed runs. reachable: whether the runs suffice for a significant test."""
    if math.isnan(row["failed_p"]):
        none = "all failed" if row["failed"] else "none failed"
        return none if row["runs"] and row["baseline_runs"] else "no runs"
    if row["failed_holm"] <= inference.ALPHA:
        more = row["failed"] * row["baseline_runs"] > row["baseline_failed"] * row["runs"]
        return "fails more often" if more else "fails less often"
    return "no difference shown" if reachable else f"too few seeds for a family of {row['family']}"


def _loss_verdict(row: dict[str, Any]) -> str:
    """Return a verdict on the losses, such as "lower", or the reason why there is no verdict."""
    if row["compared"] and row["failed_holm"] <= inference.ALPHA:
        return "the shares differ"
    if row["compared"] < MIN_PAIRS:
        return "few pairs" if row["compared"] else "no pairs"
    differs = row["loss_holm"] <= inference.ALPHA
    found = ("lower" if row["difference"] < 0 else "higher") if differs else "no difference shown"
    return found + (f", equivalent within {row['margin']:g}" if row["equivalent_holm"] <= inference.ALPHA else "")


def _finished_by_seeds(runs: list[_Run]) -> dict[Seeds, list[_Run]]:
    found: dict[Seeds, list[_Run]] = {}
    for run in runs:
        if run.status == "done":
            found.setdefault(run.seeds, []).append(run)
    return found

"""Compare the final validation losses, in nats per token, of pairs of runs that differ in one column only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from normstudy import config as cfg
from normstudy.analysis.grid import Value
from normstudy.analysis.outcomes import Floats, counts_text, outcomes
from normstudy.analysis.select import check_column, native, parse_value, values_of, values_text
from normstudy.errors import ConfigError, nearest

CONFIDENCE = 0.95
MIN_PAIRS = 5  # fewer pairs give no verdict, because few seeds say little about the spread of losses

PAIRED = ["seed", "data_seed"]  # seed columns, whose values are equal in both runs of a pair
NOT_IN_CELL = (*cfg.NOT_IDENTITY, *PAIRED)  # columns that do not define a cell, and that `--by` refuses
RESULTS = (
    "by", "arm", "baseline", "outcomes", "baseline_outcomes", "loss", "baseline_loss", "difference", "ci_low",
    "ci_high", "pairs", "unpaired", "failed", "verdict",
)  # fmt: skip


def cell_columns(by: str) -> list[str]:
    """Return the columns, besides seeds, whose values must be equal in both runs of a pair.

    These are all `treatments` except `by`, and the text's sha256, since losses on different texts cannot be compared.
    """
    return [c for c in (*treatments(), "data_sha256") if c != by]


def treatments() -> list[str]:
    """Return the config columns, besides seeds, that affect training."""
    return [c for c in comparable_columns() if not c.startswith(tuple(f"{section}_" for section in cfg.PREFIXED))]


def comparable_columns() -> list[str]:
    """Return the columns that `--by` accepts: all config columns that identify a run, except its seeds."""
    return [c for c in cfg.asked_types() if c not in NOT_IN_CELL]


def paired_t_interval(differences: Floats) -> tuple[float, float, float]:
    """Return the mean difference and the bounds of its 95 % t interval, which are NaN for fewer than two pairs."""
    n = len(differences)
    mean = float(np.mean(differences)) if n else np.nan
    if n < 2:
        return mean, np.nan, np.nan
    from scipy.special import stdtrit  # this import takes 0.25 s, and most figures do not need it

    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2) * np.std(differences, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def verdict(pairs: int, low: float, high: float) -> str:
    """Return a verdict, such as "lower", from the number of pairs and the ends of the difference's interval."""
    if pairs == 0:
        return "no pairs"
    if pairs < MIN_PAIRS:
        return "few seeds"
    if high < 0:
        return "lower"
    return "higher" if low > 0 else "no difference shown"


def counted_loss(runs: pd.DataFrame, steps: pd.DataFrame) -> Floats:
    """Return each run's final validation loss, or a substitute if that loss is not finite.

    The substitute lets a diverged run count in a mean. It is the run's validation loss at step 0. If the loss at step 0
    is missing or not finite too, the substitute is ln(vocab), the loss of uniform prediction.
    """
    at_init = steps[steps["step"] == 0].set_index("run_id")["val_loss"]
    loss = runs["final_val_loss"].to_numpy(np.float64)
    for stand_in in (runs["run_id"].map(at_init), runs["ln_vocab"]):
        loss = np.where(np.isfinite(loss), loss, stand_in.to_numpy(np.float64))
    return loss


def compare_pairs(runs: pd.DataFrame, steps: pd.DataFrame, by: str, baseline: str | None = None) -> pd.DataFrame:
    """Compare each value of `by` (an arm) with one value, the baseline. Return a row for each cell and arm.

    Runs with equal values in the `cell_columns` form a cell. The returned table has a column for each of the
    `cell_columns` that varies, then the columns RESULTS. The default baseline is null if it occurs, else the smallest
    number or the alphabetically first text. A pair is two finished runs of a cell with equal seeds: one of the arm and
    one of the baseline.

    loss, baseline_loss and difference (loss - baseline_loss) are means over pairs. outcomes counts all finished runs,
    unpaired counts finished runs without a partner, and failed counts runs that ended in an error. If runs were
    repeated with other probe or eval settings, each seed still gives one pair. Pairs whose runs have equal eval_windows
    are preferred, then pairs with more windows.

    Raises ConfigError if `by` is not a comparable column or does not vary, if runs on the same text do not differ in
    `by`, and if `baseline` is not a value of `by`.
    """
    check_column(by, comparable_columns(), "--by")
    runs = runs[runs["status"].isin(["done", "failed"])].copy()
    values = values_of(runs, by)
    if len(values) < 2:
        raise ConfigError(f"--by {by} does not vary: every run has {values_text(values)}; choose a column that varies")
    if runs.groupby("data_sha256")[by].nunique(dropna=False).max() < 2:
        raise ConfigError(
            f"--by {by} would compare losses on different texts, which have no common scale: choose a column "
            "that varies among runs on the same text"
        )
    base = values[0] if baseline is None else _chosen(runs, by, baseline, values)
    runs = runs.assign(outcome=runs["run_id"].map(outcomes(runs, steps)), loss=counted_loss(runs, steps))
    runs = runs.sort_values(["eval_windows", "run_id"], ascending=[False, True], kind="stable", ignore_index=True)
    cells = varying(runs, cell_columns(by))
    every_run, value_of = _as_runs(runs), [native(by, v) for v in runs[by]]
    rows = []
    parts = [part for _, part in runs[cells].groupby(cells, dropna=False)] if cells else [runs]
    for cell in parts:
        found: dict[Value, list[_Run]] = {}
        for i in cell.index:
            found.setdefault(value_of[i], []).append(every_run[i])
        arms = [v for v in values if v != base]
        for arm in [v for v in arms if v in found] or arms:
            row = _compare(found.get(arm, []), found.get(base, []))
            place = {c: native(c, cell[c].iloc[0]) for c in cells}
            rows.append({**place, "by": by, "arm": arm, "baseline": base, **row})
    result = pd.DataFrame(rows, columns=[*cells, *RESULTS])
    # The columns arm and baseline hold objects because pandas would otherwise turn None into NaN and ints into floats.
    return result.assign(**{c: pd.Series([r[c] for r in rows], dtype=object) for c in ("arm", "baseline")})


def varying(runs: pd.DataFrame, columns: list[str]) -> list[str]:
    """Return those of `columns` that have several values in `runs`.

    Leave out data_sha256 if the other returned columns suffice to distinguish the texts.
    """
    found = [c for c in columns if len(values_of(runs, c)) > 1]
    if "data_sha256" in found:
        rest = [c for c in found if c != "data_sha256"]
        if not rest or runs.groupby(rest, dropna=False)["data_sha256"].nunique().max() < 2:
            return rest or found
    return found


def _chosen(runs: pd.DataFrame, by: str, baseline: str, values: list[Value]) -> Value:
    value = parse_value(runs, by, baseline, "--baseline")
    if value not in values:
        hint = nearest(baseline, [str(v) for v in values])
        raise ConfigError(f"--baseline {baseline} is not a value of {by}: choose one of {values_text(values)}.{hint}")
    return values[values.index(value)]


Seeds = tuple[Value, ...]  # a run's values in the columns PAIRED


class _Run(NamedTuple):
    """Hold one run's values. Runs are compared in small groups, for which tuples are faster than pandas."""

    seeds: Seeds
    run_id: str
    status: str
    windows: int
    outcome: str
    loss: float


def _as_runs(runs: pd.DataFrame) -> list[_Run]:
    seeds = zip(*([native(c, v) for v in runs[c]] for c in PAIRED), strict=True)
    columns = (runs[c] for c in ("run_id", "status", "eval_windows", "outcome", "loss"))
    return [_Run(*found) for found in zip(seeds, *columns, strict=True)]


def _compare(arm: list[_Run], base: list[_Run]) -> dict[str, object]:
    """Compare an arm with the baseline in one cell. Return column -> value for RESULTS from `outcomes` on."""
    arms, bases = _finished_by_seeds(arm), _finished_by_seeds(base)
    candidates = [(a, b) for seeds, runs in arms.items() for a in runs for b in bases.get(seeds, [])]
    pairs: dict[Seeds, tuple[_Run, _Run]] = {}
    for a, b in sorted(candidates, key=_preference):
        pairs.setdefault(a.seeds, (a, b))
    n = len(pairs)
    loss = np.array([a.loss for a, _ in pairs.values()], np.float64)
    base_loss = np.array([b.loss for _, b in pairs.values()], np.float64)
    mean, low, high = paired_t_interval(loss - base_loss)
    return {
        "outcomes": counts_text(runs[0].outcome for runs in arms.values()),
        "baseline_outcomes": counts_text(runs[0].outcome for runs in bases.values()),
        "loss": float(loss.mean()) if n else np.nan,
        "baseline_loss": float(base_loss.mean()) if n else np.nan,
        "difference": mean,
        "ci_low": low,
        "ci_high": high,
        "pairs": n,
        "unpaired": len(arms) + len(bases) - 2 * n,
        "failed": sum(run.status == "failed" for run in (*arm, *base)),
        "verdict": verdict(n, low, high),
    }


def _finished_by_seeds(runs: list[_Run]) -> dict[Seeds, list[_Run]]:
    found: dict[Seeds, list[_Run]] = {}
    for run in runs:
        if run.status == "done":
            found.setdefault(run.seeds, []).append(run)
    return found


def _preference(pair: tuple[_Run, _Run]) -> tuple[bool, int, int, str, str]:
    """Return a sort key. Pairs with equal eval_windows come first, then pairs with more windows. run_id breaks ties."""
    a, b = pair
    return a.windows != b.windows, -a.windows, -b.windows, a.run_id, b.run_id

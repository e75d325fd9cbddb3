"""Compute how sensitive the final loss is to the learning rate, for `normstudy sensitivity`.

Wortsman et al. (arXiv 2309.14322) define the measure. All losses are in nats per token.
"""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normstudy.analysis.compare import FORMATS, WIDTH, cell_text, table_lines, values_as_text
from normstudy.analysis.grid import interval_text, typed_number
from normstudy.analysis.inference import paired_t_interval
from normstudy.analysis.pairs import PAIRED, cell_columns, cells_of, varying
from normstudy.analysis.select import Where, select, tell_sources_apart, values_of
from normstudy.config import one_of
from normstudy.errors import ConfigError
from normstudy.study import tables, whole

RESULTS = (
    "rates", "lowest_lr", "highest_lr", "seeds", "left_out", "sensitivity", "ci_low", "ci_high", "best_lr", "note",
)  # fmt: skip
HEAD = (
    "Learning-rate sensitivity (nats per token): the mean over the grid of peak_lr of min(final validation loss, loss "
    "at initialization), minus the grid's best. Brackets: 95 % t intervals over the seeds that have every rate. The "
    "value depends on the grid. Do not trust it if the best rate is at an edge."
)


def sensitivity_study(study_dir: Path | str, where: Where = ()) -> tuple[pd.DataFrame, list[str]]:
    """Return a table with a row for each cell that has several learning rates, and descriptions of the other cells.

    The runs of a cell differ only in peak_lr, seeds, probes and evaluations. The cell's grid consists of the learning
    rates of its finished and crashed runs. results/README.md describes the columns. where: see `select`. If rows of a
    run are missing, a warning names the run, and the run's loss counts as unknown. Raises ConfigError like `select`,
    and if the folder is not a study or no cell has two rates.
    """
    runs = select(tell_sources_apart(tables.read(study_dir, "runs")), where)
    runs = runs[runs["status"].isin(["done", "failed"])]
    if not (runs["status"] == "done").any():
        raise ConfigError(f"{study_dir} has no finished run to measure: start or resume its sweep")
    steps = whole.read(study_dir, "steps", runs[runs["status"] == "done"], ["run_id", "step", "val_loss"])
    start = runs["run_id"].map(steps[steps["step"] == 0].set_index("run_id")["val_loss"]).astype(float)
    final = runs["final_val_loss"].astype(float)
    loss = final.where(final < start, start)  # NaN for a run that crashed or lacks rows
    runs = runs.assign(loss=loss.fillna(np.inf), learns=loss < start)
    cells = varying(runs, cell_columns("peak_lr"))
    rows, alone = [], []
    for place, part in cells_of(runs, cells):
        if len(values_of(part, "peak_lr")) > 1:
            rows.append({**place, **_of_cell(part)})
        else:
            alone.append(", ".join(f"{c}={cell_text(c, value)}" for c, value in place.items()))
    if not rows:
        raise ConfigError(f"no runs of {study_dir} differ in peak_lr alone (seeds aside): use two learning rates")
    return pd.DataFrame(rows, columns=[*cells, *RESULTS]), alone


def _of_cell(part: pd.DataFrame) -> dict[str, Any]:
    """Return the values of RESULTS for a cell. part: the cell's runs. Its column loss is inf if the loss is unknown."""
    table = part.pivot_table("loss", [*PAIRED, "eval_windows"], "peak_lr", aggfunc="min")
    # Keep rows with a loss at every rate. Of several such rows of a seed, keep the one with most validation windows.
    complete = table[np.isfinite(table).all(axis=1)].groupby(level=PAIRED).last()
    losses, rates = complete.to_numpy(np.float64), [float(rate) for rate in table.columns]
    mean, low, high = paired_t_interval(losses.mean(axis=1) - losses.min(axis=1))
    best = int(losses.mean(axis=0).argmin()) if len(losses) else None
    edges = {0: "best at the grid's lower edge", len(rates) - 1: "best at the grid's upper edge"}
    note = "no seed has every rate" if best is None else edges.get(best, "")
    return {
        "rates": len(rates), "lowest_lr": rates[0], "highest_lr": rates[-1],
        "seeds": len(complete), "left_out": part.groupby(PAIRED).ngroups - len(complete),
        "sensitivity": mean, "ci_low": low, "ci_high": high, "best_lr": np.nan if best is None else rates[best],
        "note": note if best is None or part["learns"].any() else "no run ends below its loss at initialization",
    }  # fmt: skip


def render(found: pd.DataFrame, fmt: str) -> str:
    """Format the table of `sensitivity_study` as text, without a final newline. fmt: table, csv, json or markdown."""
    one_of("--format", fmt, FORMATS)
    if fmt in ("csv", "json"):
        return values_as_text(found, fmt)
    cells = [str(c) for c in found if c not in RESULTS]
    rows = []
    for row in found.to_dict("records"):
        low, high, best = (typed_number(row[c]) if row[c] > 0 else "" for c in ("lowest_lr", "highest_lr", "best_lr"))
        seeds = f"{row['seeds']}\n{row['left_out']} left out" if row["left_out"] else str(row["seeds"])
        value = interval_text(row["sensitivity"], row["ci_low"], row["ci_high"], ".3f")
        texts = [str(row["rates"]), low, high, seeds, value, best, row["note"]]
        rows.append(([cell_text(c, row[c]) for c in cells], texts))
    header = ["rates", "lowest", "highest", "seeds", "sensitivity [95 %]", "best", "note"]
    return "\n".join([*textwrap.wrap(HEAD, WIDTH), "", *table_lines(cells, header, rows, fmt)])

"""Compare a study's runs in pairs for `normstudy compare`, and format the comparison in one of four formats."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from normstudy.analysis.grid import Value, interval_text, markdown_table, plain_table, value_text
from normstudy.analysis.pairs import MIN_PAIRS, RESULTS, compare_pairs
from normstudy.analysis.select import KINDS, native, select, tell_sources_apart
from normstudy.config import one_of
from normstudy.errors import ConfigError
from normstudy.study import tables

FORMATS = ("table", "csv", "json", "markdown")
WIDTH = 100  # characters; a wider table is narrowed by breaking the verdict "no difference shown" into two lines
SHA_DIGITS = 10  # printed digits of a text's sha256, enough to distinguish texts


def compare_study(
    study_dir: Path | str, *, by: str, baseline: str | None = None, where: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Compare a study's runs by the column `by`, and return the table that `pairs.compare_pairs` describes.

    where: column -> value; only runs with these values are compared. Raises ConfigError if the folder is not a study
    or has no finished run, and also in the cases that `select` and `compare_pairs` list.
    """
    runs = select(tell_sources_apart(tables.read(study_dir, "runs")), where)
    done = runs.loc[runs["status"] == "done", "run_id"].tolist()
    if not done:
        raise ConfigError(f"{study_dir} has no finished run to compare: start or resume its sweep")
    steps = tables.read(study_dir, "steps", ["run_id", "step", "train_loss", "val_loss"], done, text=False)
    return compare_pairs(runs, steps, by, baseline)


def render(comparison: pd.DataFrame, fmt: str) -> str:
    """Format a comparison as text, without a final newline. fmt: table, csv, json or markdown."""
    one_of("--format", fmt, FORMATS)
    if fmt == "csv":
        return _as_values(comparison).to_csv(index=False, lineterminator="\n").rstrip("\n")
    if fmt == "json":
        return json.dumps(_as_values(comparison).to_dict("records"), indent=1, allow_nan=False)
    return _markdown(comparison) if fmt == "markdown" else _table(comparison)


def head(comparison: pd.DataFrame) -> str:
    """Return a paragraph to print above the table. The text names the compared column and defines the difference."""
    by = comparison["by"].iloc[0]
    base = value_text(comparison["baseline"].iloc[0])
    text = (
        f"Final validation loss (nats per token) by {by}, compared with the baseline {by}={base}. The two runs of a "
        f"pair differ only in {by}. The difference is a run's loss minus the baseline's, averaged over pairs "
        "(negative: lower than the baseline). Brackets are 95 % paired t intervals over seeds. Fewer than "
        f"{MIN_PAIRS} pairs give no verdict."
    )
    if not comparison[["unpaired", "failed"]].to_numpy().any():
        text += " Every run is in a pair, and none failed."
    return text


def _as_values(comparison: pd.DataFrame) -> pd.DataFrame:
    """Use `native` to convert every value in a comparison's table to a plain Python value."""
    return pd.DataFrame({c: pd.Series([native(c, v) for v in comparison[c]], dtype=object) for c in comparison.columns})


def _cell_columns(comparison: pd.DataFrame) -> list[str]:
    """Return the config columns of a comparison's table. Rows with equal values in these columns form a cell."""
    return [c for c in comparison.columns if c not in RESULTS]


def _cell_text(column: str, value: object) -> str:
    text = value_text(native(column, value))
    return text[:SHA_DIGITS] if column == "data_sha256" else text


def _loss(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def _markdown(comparison: pd.DataFrame) -> str:
    cells = _cell_columns(comparison)
    header = [
        *cells, comparison["by"].iloc[0], "baseline", "outcomes", "baseline's outcomes", "loss", "baseline's loss",
        "difference [95 %]", "pairs", "unpaired", "failed", "verdict",
    ]  # fmt: skip
    rows = [
        [
            *(_cell_text(c, row[c]) for c in cells),
            value_text(row["arm"]), value_text(row["baseline"]),
            row["outcomes"], row["baseline_outcomes"],
            _loss(row["loss"]), _loss(row["baseline_loss"]),
            interval_text(row["difference"], row["ci_low"], row["ci_high"], "+.3f"),
            str(row["pairs"]), str(row["unpaired"]), str(row["failed"]), row["verdict"],
        ]
        for row in comparison.to_dict("records")
    ]  # fmt: skip
    numbers = range(len(header) - 7, len(header) - 1)
    return "\n".join([head(comparison), "", *markdown_table(header, rows, numbers)])


def _table(comparison: pd.DataFrame) -> str:
    """Format a comparison as a text table. A baseline's row is above the rows that are compared with the baseline."""
    cells = _cell_columns(comparison)
    by = comparison["by"].iloc[0]
    header = [*cells, by, "outcomes", "loss", "difference [95 %]", "pairs", "verdict"]
    rows: list[list[str]] = []
    above: list[str] = []
    for row in comparison.to_dict("records"):
        place = [_cell_text(c, row[c]) for c in cells]
        base = [*place, *_arm(row["baseline"], row["baseline_outcomes"], row["baseline_loss"])]
        if base != above:
            rows.append([*base, "", "", ""])
        above = base
        arm = _arm(row["arm"], row["outcomes"], row["loss"])
        difference = interval_text(row["difference"], row["ci_low"], row["ci_high"], "+.3f")
        left_out = [f"{row[c]} {c}" for c in ("unpaired", "failed") if row[c]]
        verdict = "\n".join([row["verdict"], *left_out])
        rows.append([*[""] * len(cells), *arm, difference, str(row["pairs"]), verdict])
    numeric = {c for c in (*cells, by) if KINDS.get(c) in (int, float)} | {"loss", "pairs"}
    right = {i for i, name in enumerate(header) if name in numeric}
    titles = [_title(name, column) for name, column in zip(header, zip(*rows, strict=True), strict=True)]
    lines = plain_table(titles, rows, right)
    if max(map(len, lines)) > WIDTH:
        rows = [[*row[:-1], row[-1].replace("difference ", "difference\n")] for row in rows]
        lines = plain_table(titles, rows, right)
    return "\n".join([*textwrap.wrap(head(comparison), WIDTH), "", *lines])


def _arm(value: Value, outcomes: str, loss: float) -> list[str]:
    """Format three entries of a row: a value of the compared column, the outcomes (one per line) and the mean loss."""
    words = outcomes.split()
    by_class = [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    return [value_text(value), "\n".join(by_class) or "none", _loss(loss)]


def _title(name: str, cells: Iterable[str]) -> str:
    """Break a column's name at spaces and underscores. A part that is wider than the column's cells stays unbroken."""
    width = max(len(line) for cell in cells for line in cell.split("\n"))
    if not width:
        return name
    lines = textwrap.wrap(name.replace("_", "_ "), width + 1, break_long_words=False)
    return "\n".join(lines).replace("_ ", "_")

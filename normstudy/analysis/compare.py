"""`normstudy compare`: the paired comparison of a study, and its four printed forms."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from normstudy.analysis.pairs import MIN_PAIRS, RESULTS, compare_pairs
from normstudy.analysis.select import KINDS, Value, native, select, tell_sources_apart, value_text
from normstudy.config import ConfigError, one_of
from normstudy.study import tables

FORMATS = ("table", "csv", "json", "markdown")
WIDTH = 100  # characters of a line of the table, where it can be
VERDICT_WIDTH = 13  # characters of the longest half of a verdict: "no difference"
GAP = "  "
SHA_DIGITS = 10  # of a text's sha256, enough to tell texts apart

Lines = list[str]  # of one cell of the table


def compare_study(
    study_dir: Path | str, *, by: str, baseline: str | None = None, where: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The paired comparison of a study by one column, as `pairs.compare_pairs` defines it.

    where: column -> value, the runs that take part. Raises ConfigError for a folder that is no study or has no
    finished run, and for what `select` and `compare_pairs` refuse.
    """
    runs = select(tell_sources_apart(tables.read(study_dir, "runs")), where)
    done = runs.loc[runs["status"] == "done", "run_id"].tolist()
    if not done:
        raise ConfigError(f"{study_dir} has no finished run to compare: start or resume its sweep")
    steps = tables.read(study_dir, "steps", ["run_id", "step", "train_loss", "val_loss"], done, text=False)
    return compare_pairs(runs, steps, by, baseline)


def render(comparison: pd.DataFrame, fmt: str) -> str:
    """The comparison as text, without a newline at its end. fmt: table, csv, json or markdown."""
    one_of("--format", fmt, FORMATS)
    if fmt == "csv":
        return _as_values(comparison).to_csv(index=False, lineterminator="\n").rstrip("\n")
    if fmt == "json":
        return json.dumps(_as_values(comparison).to_dict("records"), indent=1, allow_nan=False)
    return _markdown(comparison) if fmt == "markdown" else _table(comparison)


def head(comparison: pd.DataFrame) -> str:
    """What was compared, the sign of the difference, and what the interval is."""
    by = comparison["by"].iloc[0]
    base = value_text(comparison["baseline"].iloc[0])
    text = (
        f"Final validation loss (nats per token) by {by}, baseline {base}. difference = loss - baseline's loss over "
        f"pairs of runs that differ in {by} only (negative: lower than the baseline), with its 95 % paired t "
        f"interval over seeds. Fewer than {MIN_PAIRS} pairs give no verdict."
    )
    if not comparison[["unpaired", "failed"]].to_numpy().any():
        text += " No run is unpaired, none failed."
    return text


def _as_values(comparison: pd.DataFrame) -> pd.DataFrame:
    """The same cells as plain Python values: None where there is none, ints as ints."""
    return pd.DataFrame({c: pd.Series([native(c, v) for v in comparison[c]], dtype=object) for c in comparison.columns})


def _cell_text(comparison: pd.DataFrame, column: str, row: int) -> str:
    text = value_text(native(column, comparison[column].iloc[row]))
    return text[:SHA_DIGITS] if column == "data_sha256" else text


def _number(value: float, form: str = ".3f") -> str:
    return "" if pd.isna(value) else format(value, form)


def _difference(row: pd.Series) -> str:
    mean, low, high = (_number(row[c], "+.3f") for c in ("difference", "ci_low", "ci_high"))
    return f"{mean} [{low}, {high}]" if low else mean


def _markdown(comparison: pd.DataFrame) -> str:
    cells = [c for c in comparison.columns if c not in RESULTS]
    by = comparison["by"].iloc[0]
    columns = [
        *cells, by, "baseline", "outcomes", "baseline's outcomes", "loss", "baseline's loss",
        "difference [95 %]", "pairs", "unpaired", "failed", "verdict",
    ]  # fmt: skip
    numbers = {"loss", "baseline's loss", "difference [95 %]", "pairs", "unpaired", "failed"}
    lines = [head(comparison), "", _bar(columns), _bar(["---:" if c in numbers else "---" for c in columns])]
    for i in range(len(comparison)):
        row = comparison.iloc[i]
        lines.append(
            _bar(
                [
                    *(_cell_text(comparison, c, i) for c in cells),
                    value_text(row["arm"]), value_text(row["baseline"]),
                    row["outcomes"], row["baseline_outcomes"],
                    _number(row["loss"]), _number(row["baseline_loss"]), _difference(row),
                    str(row["pairs"]), str(row["unpaired"]), str(row["failed"]), row["verdict"],
                ]
            )
        )  # fmt: skip
    return "\n".join(lines)


def _bar(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(comparison: pd.DataFrame) -> str:
    """Two rows a comparison, the baseline above the arm; a baseline that is the row above's is not repeated."""
    cells = [c for c in comparison.columns if c not in RESULTS]
    by = comparison["by"].iloc[0]
    header = [*cells, by, "outcomes", "loss", "difference [95 %]", "pairs", "verdict"]
    body: list[list[Lines]] = []
    above: list[Lines] = []
    for i in range(len(comparison)):
        row = comparison.iloc[i]
        place = [[_cell_text(comparison, c, i)] for c in cells]
        base = _arm(place, row["baseline"], row["baseline_outcomes"], row["baseline_loss"])
        if base != above:
            body.append([*base, [], [], []])
        above = base
        arm = _arm([[] for _ in cells], row["arm"], row["outcomes"], row["loss"])
        left_out = [f"{row[c]} {c}" for c in ("unpaired", "failed") if row[c]]
        body.append([*arm, [_difference(row)], [str(row["pairs"])], [row["verdict"], *left_out]])
    right = {c for c in (*cells, by) if KINDS.get(c) in (int, float)} | {"loss", "pairs"}
    return "\n".join([*textwrap.wrap(head(comparison), WIDTH), "", *_align(header, body, right)])


def _arm(place: list[Lines], value: Value, outcomes: str, loss: float) -> list[Lines]:
    words = outcomes.split()
    by_class = [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    return [*place, [value_text(value)], by_class or ["none"], [_number(loss)]]


def _align(header: list[str], rows: list[list[Lines]], right: set[str]) -> Lines:
    """The lines of a plain table: names break at underscores, verdicts where the table would be too wide."""
    widths = [_width(column) for column in zip(*rows, strict=True)]
    titles = [_title_lines(name, width) for name, width in zip(header, widths, strict=True)]
    widths = [max(width, _width([title])) for width, title in zip(widths, titles, strict=True)]
    if sum(widths) + len(GAP) * (len(widths) - 1) > WIDTH:
        widths[-1] = VERDICT_WIDTH
        rows = [[*row[:-1], [line for t in row[-1] for line in textwrap.wrap(t, VERDICT_WIDTH)]] for row in rows]
    lines = []
    for row in [titles, *rows]:
        for parts in itertools.zip_longest(*row, fillvalue=""):
            cells = [
                text.rjust(width) if name in right else text.ljust(width)
                for name, text, width in zip(header, parts, widths, strict=True)
            ]
            lines.append(GAP.join(cells).rstrip())
    return lines


def _width(cells: Iterable[Lines]) -> int:
    return max((len(line) for cell in cells for line in cell), default=0)


def _title_lines(name: str, width: int) -> Lines:
    """A column's name in lines no wider than its cells, where its words allow that."""
    lines = textwrap.wrap(name.replace("_", "_ "), width + 1, break_long_words=False) if width else [name]
    return [line.replace("_ ", "_") for line in lines]

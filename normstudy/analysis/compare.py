"""Compare a study's runs for `normstudy compare`, and format the comparison in one of four formats."""

import itertools
import json
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from normstudy.analysis import grid
from normstudy.analysis.grid import count_text, interval_text, share_text, value_text
from normstudy.analysis.outcomes import FAILED
from normstudy.analysis.pairs import MIN_PAIRS, RESULTS, compare_pairs
from normstudy.analysis.select import KINDS, Where, native, select, tell_sources_apart
from normstudy.config import finite, one_of
from normstudy.errors import ConfigError, short
from normstudy.study import tables, whole

FORMATS = ("table", "csv", "json", "markdown")
WIDTH = 100  # in characters. A wider table wraps its verdicts. If still wider, it shows a cell's values above its rows
NUMBERS = {"loss", "baseline's", "p", "Holm's p", "rates", "lowest", "highest", "best"}  # columns aligned right


def compare_study(
    study_dir: Path | str, *, by: str, baseline: str | None = None, margin: float | None = None, where: Where = ()
) -> pd.DataFrame:
    """Compare runs of a study, and return the table that `pairs.compare_pairs` describes. where: see `select`.

    Raises ConfigError like `select` and `compare_pairs`, and if the folder is not a study with a finished run.
    """
    finite("--margin", margin, 0, strict=True)
    runs = select(tell_sources_apart(tables.read(study_dir, "runs")), where)
    done = runs[runs["status"] == "done"]
    if done.empty:
        raise ConfigError(f"{study_dir} has no finished run to compare: start or resume its sweep")
    steps = whole.read(study_dir, "steps", done, ["run_id", "step", "train_loss", "val_loss"], text=False)
    return compare_pairs(runs, steps, by, baseline, margin)


def render(comparison: pd.DataFrame, fmt: str) -> str:
    """Format a comparison as text, without a final newline. fmt: table, csv, json or markdown."""
    one_of("--format", fmt, FORMATS)
    if fmt in ("csv", "json"):
        return values_as_text(comparison, fmt)
    cells = [c for c in comparison.columns if c not in RESULTS]
    rows = comparison.to_dict("records")
    places = [[cell_text(str(c), row[c]) for c in cells] for row in rows]
    share, loss = heads(comparison)
    lines = [*share, "", *table_lines(cells, *_share_rows(rows, places), fmt)]
    return "\n".join([*lines, "", *loss, "", *table_lines(cells, *_loss_rows(rows, places), fmt)])


def heads(comparison: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return two lists of lines: an explanation of the table of shares, and one of the table of losses."""
    by, family = comparison["by"].iloc[0], comparison["family"].iloc[0]
    base = f"{by}={value_text(comparison['baseline'].iloc[0])}"
    margin = comparison["margin"].iloc[0]
    share = (
        f"Share of runs that failed ({', '.join(FAILED[:-1])} or {FAILED[-1]}) by {by}, compared with the baseline "
        f"{base}. Brackets: exact 95 % intervals, not adjusted. p: Fisher's exact test. Verdicts use Holm's "
        f"p, adjusted for {count_text(family, 'test')} (all tests in this table and the next)."
    )
    loss = (
        f"Final validation loss (nats per token). Each run is paired with the run that has {base} and is otherwise the "
        "same. The losses are means over the pairs in which neither run failed, and the difference is the run's loss "
        "minus the baseline's. Brackets: 95 % paired t intervals over seeds, not adjusted. Fewer than "
        f"{MIN_PAIRS} pairs are not tested."
    )
    if margin is not None:
        loss += f" The second p is of two one-sided tests that the difference lies within {margin:g}."
    return textwrap.wrap(share, WIDTH), textwrap.wrap(loss, WIDTH)


def values_as_text(found: pd.DataFrame, fmt: str) -> str:
    """Format a table as csv or json."""
    values = pd.DataFrame({c: pd.Series([native(c, v) for v in found[c]], dtype=object) for c in found.columns})
    if fmt == "json":
        return json.dumps(values.to_dict("records"), indent=1, allow_nan=False)
    shown = values.map(lambda v: re.sub(grid.FORMULA, r"'\1", short(v)) if isinstance(v, str) else v)
    return shown.to_csv(index=False, lineterminator="\n").rstrip("\n")


def cell_text(column: str, value: object) -> str:
    """Format a config value for a table. A text's sha256 is cut to ten digits, which suffice to tell texts apart."""
    text = value_text(native(column, value))
    return text[:10] if column == "data_sha256" else text


Row = tuple[list[str], list[str]]  # texts of the cell columns, texts of all other columns


def _share_rows(rows: list[dict[Any, Any]], places: list[list[str]]) -> tuple[list[str], list[Row]]:
    """Return the header and the rows of the table of shares. A baseline's row is above the rows compared with it."""

    def texts(row: dict[Any, Any], arm: str, prefix: str) -> list[str]:
        counts = re.findall(r"\d+ \w+", row[f"{prefix}outcomes"])
        counts += [f"{row[f'{prefix}crashed']} crashed"] if row[f"{prefix}crashed"] else []
        share = share_text(*(row[f"{prefix}{name}"] for name in ("failed", "runs", "failed_low", "failed_high")))
        return [value_text(row[arm]), "\n".join(counts) or "none", share]

    found: list[Row] = []
    for row, place in zip(rows, places, strict=True):
        if not found or found[-1][0] != place:
            found.append((place, [*texts(row, "baseline", "baseline_"), "", "", ""]))
        tests = [p_text(row["failed_p"]), p_text(row["failed_holm"]), row["failed_verdict"]]
        found.append((place, [*texts(row, "arm", ""), *tests]))
    return [rows[0]["by"], "outcomes", "failed [95 %]", "p", "Holm's p", "verdict"], found


def _loss_rows(rows: list[dict[Any, Any]], places: list[list[str]]) -> tuple[list[str], list[Row]]:
    """Return the header and the rows of the table of losses."""
    header = [rows[0]["by"], "loss", "baseline's", "difference [95 %]", "pairs", "p", "Holm's p", "verdict"]
    texts = [
        [
            value_text(row["arm"]),
            *("" if math.isnan(row[c]) else f"{row[c]:.3f}" for c in ("loss", "baseline_loss")),
            interval_text(row["difference"], row["ci_low"], row["ci_high"], "+.3f"),
            f"{row['compared']} of {row['pairs']}" + (f"\n{row['unpaired']} unpaired" if row["unpaired"] else ""),
            *("\n".join(p_text(row[f"{t}_{kind}"]) for t in ("loss", "equivalent")).strip() for kind in ("p", "holm")),
            row["loss_verdict"],
        ]
        for row in rows
    ]
    return header, list(zip(places, texts, strict=True))


def p_text(value: float) -> str:
    """Format a p value, or return "" for a test that was not made."""
    return "" if math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.2g}"


def table_lines(cells: list[str], header: list[str], parts: list[Row], fmt: str) -> list[str]:
    """Return a table's lines. A text table shows the values of the columns `cells` only where they change."""
    header = [*cells, *header]
    numeric = {c for c in header if KINDS.get(c) in (int, float)} | NUMBERS
    right = {i for i, name in enumerate(header) if name in numeric}
    if fmt == "markdown":
        rows = [[cell.replace("\n", " ") for cell in (*place, *texts)] for place, texts in parts]
        return grid.markdown_table(header, rows, right)
    first = [i == 0 or parts[i - 1][0] != place for i, (place, _) in enumerate(parts)]  # first row of its cell?
    rows = [[*(place if top else [""] * len(place)), *texts] for top, (place, texts) in zip(first, parts, strict=True)]
    narrow = [[*row[:-1], "\n".join(textwrap.wrap(row[-1], 16))] for row in rows]
    for tried in (rows, narrow):
        lines = _text_table(header, tried, right)
        if max(map(len, lines)) <= WIDTH:
            return lines
    n = len(header) - len(parts[0][1])  # number of cell columns. Their values get separate lines
    lines = _text_table(header[n:], [row[n:] for row in narrow], {i - n for i in right})
    heights = [max(cell.count("\n") for cell in row) + 1 for row in narrow]
    body = iter(lines)
    out = [*itertools.islice(body, len(lines) - sum(heights))]  # the header
    for top, (place, _), height in zip(first, parts, heights, strict=True):
        out += [" ".join(f"{c}={v}" for c, v in zip(header, place, strict=False))] if top else []
        out += itertools.islice(body, height)
    return out


def _text_table(header: list[str], rows: list[list[str]], right: set[int]) -> list[str]:
    """Return a table's lines. Wrap a column's name at spaces and underscores if it is wider than every value."""
    titles = []
    for name, cells in zip(header, zip(*rows, strict=True), strict=True):
        width = max(len(line) for cell in cells for line in cell.split("\n"))
        parts = textwrap.wrap(name.replace("_", "_ "), width + 1, break_long_words=False) if width else [name]
        titles.append("\n".join(parts).replace("_ ", "_"))
    return grid.plain_table(titles, rows, right)

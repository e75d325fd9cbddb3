"""Estimate the values at which half of a cell's runs fail, and at which half do not learn: the critical values."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from normstudy.analysis.compare import WIDTH
from normstudy.analysis.grid import plain_table, typed_number, value_text
from normstudy.analysis.outcomes import counts_text, outcomes
from normstudy.analysis.pairs import cell_columns, cells_of, varying
from normstudy.analysis.select import Where, native, select, tell_sources_apart
from normstudy.errors import ConfigError
from normstudy.search import rounds
from normstudy.search import settings as kept
from normstudy.search.posterior import WIDTHS
from normstudy.search.rounds import COUNTS_AS, CRASHED, UNKNOWN, Progress, Run, count, decision, replay, summary_of
from normstudy.search.settings import DECADE, Settings
from normstudy.study import tables, whole

# Columns of the answer, after the columns that define a cell. value: median of the posterior; low, high: ends of its
# 95 % interval; bound: "above" or "below" if the edge lies beyond an end of the range; width: the interval's width in
# decades; unfinished: number of unfinished runs in the interval; decided: why the edge's search ended, or "no".
COLUMNS = (
    "of", "edge", "value", "low", "high", "bound", "width", "runs", "crashed", "unfinished", "outcomes",
    "decided", "contradicted", "n_steps",
)  # fmt: skip
BOUNDS = {"above": ">", "below": "<"}


def critical_values(
    study_dir: Path | str, where: Where | None = None, settings: Settings | None = None
) -> tuple[pd.DataFrame, Settings]:
    """Return a table with a row for each cell and edge ("half fail", "half do not learn"), and the search's settings.

    The runs of a cell train alike, except for the searched key and the seeds. settings: used instead of the settings
    stored with the study. Raises ConfigError if the folder is not a study or has no search.
    """
    settings = settings or kept.read(Path(study_dir))
    runs = select(tell_sources_apart(tables.read(study_dir, "runs")), where)
    if settings is None:
        raise ConfigError(f"{study_dir} has no search for critical values: start one with normstudy critical")
    return answer(with_outcomes(study_dir, runs), settings), settings


def with_outcomes(study_dir: Path | str, runs: pd.DataFrame) -> pd.DataFrame:
    """Add the column outcome to finished and crashed runs, and leave out all other runs."""
    runs = runs[runs["status"].isin(["done", "failed"])]
    steps = whole.read(study_dir, "steps", runs[runs["status"] == "done"], ["run_id", "step", "train_loss", "val_loss"])
    return runs.assign(outcome=runs["run_id"].map(outcomes(runs, steps)).fillna(CRASHED))


def answer(runs: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Return the table of `critical_values`. runs: finished and crashed runs, with their outcomes."""
    cells = varying(runs, cell_columns(settings.of))
    rows = [place | row for place, part in cells_of(runs, cells) for row in edges(part, settings)]
    return pd.DataFrame(rows, columns=[*dict.fromkeys((*cells, *COLUMNS))])


def counted(runs: pd.DataFrame, settings: Settings) -> tuple[Progress, list[tuple[int, str]]]:
    """Return the progress of a cell's search, and (position, outcome) of each run that enters the estimate.

    A search continued with a smaller width or more runs must give the same answer as one that never stopped. So a
    sentinel's repeats (rounds.REPEATS) enter only if a search with these `settings` requests them. Other runs enter.
    """
    # If runs differ only in evaluation or probing, count only the run that the search requested.
    own, columns = pd.Series(True, runs.index), kept.shared_keys()
    for key, value in (settings.alike or {}).items():
        own &= runs[columns[key]] == (runs["seed"] if value is None else value)
    runs = runs.assign(own=own).sort_values(["own", "run_id"])
    runs = runs.drop_duplicates([settings.of, "seed", "data_seed"], keep="last")
    every = map(Run, runs[settings.of].astype(float), runs["seed"].astype(int))
    found = list(zip(every, map(str, runs["outcome"]), runs["own"], strict=True))
    progress = replay(settings, {run: outcome for run, outcome, own in found if own}.get)
    repeats, position = rounds.repeat_seeds(settings), settings.axis.position
    found = [one for one in found if one[0] in progress.outcomes or one[0].seed not in repeats]
    return progress, [(position(run.value), outcome) for run, outcome, _ in found]


def edges(runs: pd.DataFrame, settings: Settings) -> list[dict[str, Any]]:
    """Return the values of COLUMNS for each edge of a cell. runs: the cell's runs, with their outcomes."""
    axis, (progress, pairs) = settings.axis, counted(runs, settings)
    rows = []
    for edge in COUNTS_AS:
        counts = tuple(count(edge, pairs).items())
        found = summary_of(counts, settings.ends)
        low, high = sorted(axis.value(position) for position in (found.low, found.high))
        why = decision(found, settings)
        bound = why if why in BOUNDS else ""
        if bound and axis.sign < 0:  # the largest position has the smallest value
            bound = {"above": "below", "below": "above"}[bound]
        rows.append({
            "of": settings.of, "edge": edge, "value": axis.value(found.median), "low": low, "high": high,
            "bound": bound, "width": (found.high - found.low) / DECADE, "runs": sum(sum(n) for _, n in counts),
            "crashed": sum(o in UNKNOWN for _, o in pairs),
            "unfinished": sum(o == "unfinished" and found.low <= p <= found.high for p, o in pairs),
            "outcomes": counts_text(o for _, o in pairs),
            "decided": "no" if progress.wanted else progress.decided.get(edge, "no"),
            "contradicted": ", ".join(typed_number(v) for v in progress.contradicted.get(edge, [])),
            "n_steps": int(runs["n_steps"].iloc[0]),
        })  # fmt: skip
    return rows


def edge_text(row: Mapping[str, Any], settings: Settings) -> str:
    """Format an edge with its interval, `1.88e-3 [1.64e-3, 2.23e-3]`, or a bound, `> 1`."""
    if row["bound"]:
        end = settings.high if row["bound"] == "above" else settings.low
        return f"{BOUNDS[row['bound']]} {typed_number(end)}"
    return f"{typed_number(row['value'])} [{typed_number(row['low'])}, {typed_number(row['high'])}]"


def render(found: pd.DataFrame, settings: Settings) -> str:
    """Format the answer as a table for a terminal, below lines that explain the columns."""
    if found.empty:
        return "No run of the search for critical values is finished yet."
    lengths = sorted({int(n) for n in found["n_steps"]})
    cells = [str(c) for c in found if c not in COLUMNS or (c == "n_steps" and len(lengths) > 1)]
    header = [*cells, *(f"{settings.of}: {edge}" for edge in COUNTS_AS), "runs", "unfinished", ""]
    rows = [{str(key): value for key, value in row.items()} for row in found.to_dict("records")]
    lines = []
    for i in range(0, len(rows), len(COUNTS_AS)):
        part = rows[i : i + len(COUNTS_AS)]
        place = [value_text(native(c, part[0][c]), typed_number) for c in cells]
        unfinished = "/".join(str(row["unfinished"]) for row in part)
        edges = [edge_text(row, settings) for row in part]
        lines.append([*place, *edges, str(part[0]["runs"]), unfinished, _remark(part)])
    head = (
        f"The {settings.of} at which half of the runs of {', '.join(map(str, lengths))} steps fail (stuck, collapsed "
        "or diverged), and at which half do not learn (these, or partial). Brackets: 95 % intervals; prior: uniform "
        f"threshold, widths of {WIDTHS[0]:g} to {WIDTHS[-1]:g} decades. unfinished: runs inside the two intervals that "
        "were still falling, which count as not failed."
    )
    return "\n".join([*textwrap.wrap(head, WIDTH), "", *plain_table(header, lines)])


def _remark(part: list[Any]) -> str:
    decided = {row["decided"] for row in part}
    said = [
        "not decided yet" if "no" in decided else "",
        "wide: search.max_runs reached" if "max_runs" in decided else "",
        f"{part[0]['crashed']} crashed" if part[0]["crashed"] else "",
    ]
    contradicted = "no single threshold: runs at {contradicted} contradict it ({edge})"
    return "; ".join(filter(None, [*said, *(contradicted.format(**row) for row in part if row["contradicted"])]))

"""Summarize stored samples in a plain or Markdown table, with the median, range and verdict of each result."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from normstudy.analysis.grid import markdown_table, plain_table, three_digits
from normstudy.bench.rows import THEORY, Goal, load

HEADER = ("row", "case", "what", "median [smallest, largest]", "rounds", "goal", "verdict")
WIDTH, MOST_WIDTH = 120, (3, 22, 32, 26, 6, 17, 8)  # largest widths, in characters: of notes, of the columns
LEGEND = (
    "A ratio compares two subjects that were measured one after the other in one round. The table shows the median "
    "over rounds, with the smallest and the largest in brackets. A goal is met if the median meets it."
)


class Result(NamedTuple):
    """The numbers measured for a goal, one per round."""

    goal: Goal
    unit: str  # "" for a ratio
    numbers: tuple[float, ...]
    theory: float | None = None  # the value that a formula predicts

    @property
    def median(self) -> float:
        return float(np.median(self.numbers))

    @property
    def verdict(self) -> str:
        sense, limit = self.goal.sense, self.goal.limit
        if limit is None:
            return "no goal"
        return "met" if (self.median >= limit if sense == "at least" else self.median <= limit) else "not met"


def results(stored: pd.DataFrame) -> list[Result]:
    """Return a Result for each goal that has samples, ordered by row, then goal. stored: columns of tables.SCHEMA."""
    found = []
    for row, part in stored.groupby("row", sort=False):
        for goal in load(str(row))[0]:
            samples = part[(part["case"] == goal.case) & (part["metric"] == goal.metric)]
            units = sorted(samples["unit"].unique())
            if len(units) > 1:
                raise ValueError(f"samples have several units ({', '.join(units)}): use one unit for {goal}")
            subjects = [name for name in (goal.subject, goal.opponent, THEORY) if name is not None]
            wide = samples.pivot_table(index="round", columns="subject", values="value").reindex(columns=subjects)
            numbers = wide[goal.subject] if goal.opponent is None else wide[goal.subject] / wide[goal.opponent]
            if numbers.notna().any():
                unit = "" if goal.opponent is not None or units == ["1"] else units[0]
                theory = None if wide[THEORY].isna().all() else float(wide[THEORY].median())
                found.append(Result(goal, unit, tuple(numbers.dropna()), theory))
    return found


def missing(stored: pd.DataFrame) -> list[Goal]:
    """Return the goals that have no samples, although their row of the benchmark has been measured and stored."""
    measured = [result.goal for result in results(stored)]
    return [goal for row in stored["row"].unique() for goal in load(str(row))[0] if goal not in measured]


def machine_lines(stored: pd.DataFrame) -> list[str]:
    """Describe each row's mode, machine, versions and date. Rows whose descriptions are equal share one line."""
    alike: dict[str, list[str]] = {}
    for row, part in stored.groupby("row", sort=False):
        at = part.iloc[0]
        device = "" if at["device"] == "cpu" else f" and {at['device']}"
        name, dash, dirty = (at["git_commit"] or "").partition("-")
        made = (
            f"--{at['mode']} on {at['cpu']}, {at['n_cores']} core{'s' if at['n_cores'] > 1 else ''}, "
            f"{at['cpu_capability']}{device}, Python {at['python']}, torch {at['torch']}, {at['blas']}, "
            f"{f'commit {name[:10]}{dash}{dirty}' if name else 'outside a checkout'}, {at['started_at']:%Y-%m-%d}."
        )
        alike.setdefault(made, []).append(str(row))
    return [f"Row{'s' if len(of) > 1 else ''} {', '.join(of)}: {made}" for made, of in alike.items()]


def cells(result: Result) -> tuple[str, ...]:
    """Format the cells of a result, such as `2.31 [2.2, 2.45]` for the value and `at least 2.4` for the goal."""
    goal, low, high = result.goal, three_digits(min(result.numbers)), three_digits(max(result.numbers))
    value = three_digits(result.median) + (f" [{low}, {high}]" if len(result.numbers) > 1 else "")
    asked = "none" if result.theory is None else f"theory {three_digits(result.theory)}"
    if goal.limit is not None:
        asked = f"{goal.sense} {three_digits(goal.limit)} {result.unit}".rstrip()
    rounds = str(len(result.numbers))
    return goal.row, goal.case, goal.title, f"{value} {result.unit}".rstrip(), rounds, asked, result.verdict


def render(stored: pd.DataFrame, fmt: str = "table") -> str:
    """Format the results of stored samples, without a final newline. fmt: table or markdown."""
    lines = [cells(r) for r in results(stored)]
    notes = [LEGEND, *machine_lines(stored)]
    if fmt == "markdown":
        return "\n".join([*markdown_table(HEADER, lines), "", *notes])
    cases = set(zip(stored["row"], stored["case"], strict=True))
    left_out = [f"{g.row} {g.case}{f': {g.title}' if (g.row, g.case) in cases else ''}" for g in missing(stored)]
    if left_out:
        notes.append(f"Not measured: {'; '.join(dict.fromkeys(left_out))}.")
    return "\n".join([*_table(lines), "", *(part for note in notes for part in textwrap.wrap(note, WIDTH))])


def _table(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Lay out a plain table. Leave row and case blank where they repeat the line above. Wrap long texts."""
    shown: list[tuple[str, ...]] = [HEADER]
    for (row, case, *rest), above in zip(lines, [HEADER, *lines], strict=False):
        shown.append(("" if row == above[0] else row, "" if (row, case) == above[:2] else case, *rest))
    widths = [min(most, max(map(len, column))) for most, *column in zip(MOST_WIDTH, *shown, strict=True)]
    header, *rows = [
        [textwrap.fill(text, w, break_on_hyphens=False) for text, w in zip(line, widths, strict=True)] for line in shown
    ]
    return plain_table(header, rows)

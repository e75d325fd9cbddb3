"""What stored samples say: each goal's median over rounds with its range, met or not; as text and as Markdown."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from normstudy.bench.rows import THEORY, Goal, load
from normstudy.config import one_of

HEADER = ("row", "case", "what", "median [smallest, largest]", "rounds", "goal", "verdict")
WIDTH, MOST_WIDTH = 120, (3, 22, 32, 26, 6, 17, 8)  # characters of a note, and at most of each column
LEGEND = (
    "A ratio is taken round by round, between subjects that were measured one after the other; shown is its median "
    "over rounds with the smallest and the largest, and the goal is held against the median."
)


class Result(NamedTuple):
    """What was measured of a goal, a number a round. unit: empty for a ratio; theory: what a formula gives, if any."""

    goal: Goal
    unit: str
    numbers: tuple[float, ...]
    theory: float | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.numbers))

    @property
    def verdict(self) -> str:
        """`met`, `not met`, or `no goal`."""
        sense, limit = self.goal.sense, self.goal.limit
        if limit is None:
            return "no goal"
        return "met" if (self.median >= limit if sense == "at least" else self.median <= limit) else "not met"


def results(stored: pd.DataFrame) -> list[Result]:
    """The goals of which `stored` (columns of tables.SCHEMA) has samples, in the order of rows and their goals."""
    found = []
    for row, part in stored.groupby("row", sort=False):
        for goal in load(str(row))[0]:
            mine, unit = _by_round(part, goal, goal.subject)
            if goal.opponent is not None:
                theirs, other = _by_round(part, goal, goal.opponent)
                if len(mine) and len(theirs) and unit != other:
                    raise ValueError(f"a ratio of {unit!r} to {other!r}: {goal}")
                mine, unit = (mine / theirs).dropna(), ""
            theory, _ = _by_round(part, goal, THEORY)
            beside = None if goal.subject == THEORY or theory.empty else float(theory.median())
            if len(mine):
                found.append(Result(goal, "" if unit == "1" else unit, tuple(map(float, mine)), beside))
    return found


def missing(stored: pd.DataFrame) -> list[Goal]:
    """The goals of the stored rows of which there is no sample."""
    measured = [result.goal for result in results(stored)]
    return [goal for row in stored["row"].unique() for goal in load(str(row))[0] if goal not in measured]


def _by_round(part: pd.DataFrame, goal: Goal, subject: str) -> tuple[pd.Series, str]:
    """A subject's value of each round, indexed by round, and their unit."""
    of = part[(part["case"] == goal.case) & (part["metric"] == goal.metric) & (part["subject"] == subject)]
    units = sorted(of["unit"].unique())
    if len(units) > 1:
        raise ValueError(f"{subject} has several units, {', '.join(units)}: {goal}")
    return of.set_index("round")["value"].sort_index(), units[0] if units else ""


def number(value: float) -> str:
    """Three digits, or all those before the point: 0.0213, 1.05, 98.2, 1530."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def machine_lines(stored: pd.DataFrame) -> list[str]:
    """How, where, by what and when the rows were measured: a line for all of them, or one for each group alike."""
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
    """A line of the table; its value as `2.31 [2.2, 2.45]`, its goal as `at least 2.4`, `theory 2` or `none`."""
    goal, low, high = result.goal, number(min(result.numbers)), number(max(result.numbers))
    value = number(result.median) + (f" [{low}, {high}]" if len(result.numbers) > 1 else "")
    asked = "none" if result.theory is None else f"theory {number(result.theory)}"
    if goal.limit is not None:
        asked = f"{goal.sense} {number(goal.limit)} {result.unit}".rstrip()
    rounds = str(len(result.numbers))
    return goal.row, goal.case, goal.title, f"{value} {result.unit}".rstrip(), rounds, asked, result.verdict


def render(stored: pd.DataFrame, fmt: str = "table") -> str:
    """The results of stored samples as text, without a newline at its end. fmt: table or markdown."""
    one_of("--format", fmt, ("table", "markdown"))
    lines = [cells(r) for r in results(stored) if r.goal.subject != THEORY]  # it stands beside what was measured
    notes = [LEGEND, *machine_lines(stored)]
    if fmt == "markdown":
        shown = [[text.replace("|", r"\|") for text in line] for line in (HEADER, ["---"] * len(HEADER), *lines)]
        return "\n".join([*("| " + " | ".join(line) + " |" for line in shown), "", *notes])
    cases = set(zip(stored["row"], stored["case"], strict=True))
    left_out = [f"{g.row} {g.case}{f': {g.title}' if (g.row, g.case) in cases else ''}" for g in missing(stored)]
    if left_out:
        notes.append(f"Not measured: {'; '.join(dict.fromkeys(left_out))}.")
    return "\n".join([*_table(lines), "", *(part for note in notes for part in textwrap.wrap(note, WIDTH))])


def _table(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """The lines of a plain table; what is the same as in the line above is left blank, long texts are broken."""
    out: list[str] = []
    shown: list[tuple[str, ...]] = [HEADER]
    for (row, case, *rest), above in zip(lines, [HEADER, *lines], strict=False):
        shown.append(("" if row == above[0] else row, "" if (row, case) == above[:2] else case, *rest))
    widths = [min(most, max(map(len, column))) for most, *column in zip(MOST_WIDTH, *shown, strict=True)]
    for line in shown:
        wrapped = [textwrap.wrap(text, w, break_on_hyphens=False) for text, w in zip(line, widths, strict=True)]
        for parts in itertools.zip_longest(*wrapped, fillvalue=""):
            out.append("  ".join(part.ljust(w) for part, w in zip(parts, widths, strict=True)).rstrip())
    return out

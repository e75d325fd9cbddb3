"""What stored samples come to: each goal's median over rounds with its range, met or not; as text and as Markdown.

Computed from the tables alone, without torch. A ratio is taken round by round and the median is over those ratios: what
slows the machine for some minutes slows both subjects of a round.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from normstudy.bench import rows
from normstudy.bench.samples import SENSES, THEORY, Goal
from normstudy.config import one_of

FORMATS = ("table", "markdown")
HEADER = ("row", "case", "what", "median [smallest, largest]", "rounds", "goal", "verdict")
WIDTH = 120  # characters of a line of the table, where it can be
CASE_WIDTH, LEAST_WIDTH = 26, 24  # of a case at most, of what was measured at least
GAP = "  "
LEGEND = (
    "A ratio is taken round by round, between subjects that were measured one after the other; shown is its median "
    "over rounds with the smallest and the largest, and the goal is held against the median."
)


@dataclass(frozen=True)
class Result:
    """What was measured of a goal: one number a round.

    unit: empty for a ratio to an opponent and for a share; theory: what a formula gives, where there is one.
    """

    goal: Goal
    unit: str
    numbers: tuple[float, ...]
    theory: float | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.numbers))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.numbers, (0.25, 0.75))
        return float(low), float(high)

    @property
    def verdict(self) -> str:
        """`met`, `not met`, or `no goal`."""
        goal = self.goal
        if goal.limit is None:
            return "no goal"
        met = self.median >= goal.limit if goal.sense == "at least" else self.median <= goal.limit
        return "met" if met else "not met"


def results(stored: pd.DataFrame) -> list[Result]:
    """The goals of which `stored` (columns of tables.SCHEMA) has samples, in the order of rows and their goals."""
    found = []
    for row, part in stored.groupby("row", sort=False):
        for goal in rows.load(str(row)).GOALS:
            result = _result(goal, part)
            if result is not None:
                found.append(result)
    return found


def missing(stored: pd.DataFrame) -> list[Goal]:
    """The goals of the stored rows of which there is no sample."""
    goals = [goal for row in stored["row"].unique() for goal in rows.load(str(row)).GOALS]
    measured = [result.goal for result in results(stored)]
    return [goal for goal in goals if goal not in measured]


def _result(goal: Goal, part: pd.DataFrame) -> Result | None:
    if (goal.limit is None) != (goal.sense is None) or (goal.sense is not None and goal.sense not in SENSES):
        raise ValueError(f"a goal has both a sense ({', '.join(SENSES)}) and a limit, or neither: {goal}")
    mine, unit = _by_round(part, goal, goal.subject)
    if goal.opponent is not None:
        theirs, other = _by_round(part, goal, goal.opponent)
        if mine.empty or theirs.empty:
            return None
        if unit != other:
            raise ValueError(f"a ratio of {unit!r} to {other!r}: {goal}")
        mine, unit = (mine / theirs).dropna(), ""
    if mine.empty:
        return None
    theory, _ = _by_round(part, goal, THEORY)
    beside = float(theory.median()) if goal.subject != THEORY and not theory.empty else None
    return Result(goal, "" if unit == "1" else unit, tuple(float(v) for v in mine), beside)


def _by_round(part: pd.DataFrame, goal: Goal, subject: str) -> tuple[pd.Series, str]:
    """A subject's value of each round, indexed by round, and their unit."""
    of = part[(part["case"] == goal.case) & (part["metric"] == goal.metric) & (part["subject"] == subject)]
    units = sorted(of["unit"].unique())
    if len(units) > 1:
        raise ValueError(f"{subject} has several units, {', '.join(units)}: {goal}")
    return of.set_index("round")["value"].sort_index(), units[0] if units else ""


# ---- words ----------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits, or all those before the point: 0.0213, 1.05, 98.2, 1530."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def value_text(result: Result) -> str:
    """`2.31 [2.2, 2.45]`, and the unit where there is one."""
    low, high = number(min(result.numbers)), number(max(result.numbers))
    text = number(result.median) if len(result.numbers) == 1 else f"{number(result.median)} [{low}, {high}]"
    return f"{text} {result.unit}".rstrip()


def goal_text(result: Result) -> str:
    """`at least 2.4`, `at most 0.1 s`, `theory 2`, `none`."""
    goal = result.goal
    if goal.limit is not None:
        return f"{goal.sense} {number(goal.limit)} {result.unit}".rstrip()
    return "none" if result.theory is None else f"theory {number(result.theory)}"


def machine_lines(stored: pd.DataFrame) -> list[str]:
    """How, where, by what and when the rows were measured: a line for all of them, or one for each group alike."""
    told: dict[str, list[str]] = {}
    for row, part in stored.groupby("row", sort=False):
        told.setdefault(_made(part.iloc[0]), []).append(str(row))
    return [f"Row{'s' if len(of) > 1 else ''} {', '.join(of)}: {made}" for made, of in told.items()]


def _made(first: pd.Series) -> str:
    device = "" if first["device"] == "cpu" else f" and {first['device']}"
    cores = f"{first['n_cores']} core{'s' if first['n_cores'] > 1 else ''}"
    commit = "outside a checkout" if first["git_commit"] is None else f"commit {_short(first['git_commit'])}"
    return (
        f"--{first['mode']} on {first['cpu']}, {cores}, {first['cpu_capability']}{device}, Python {first['python']}, "
        f"torch {first['torch']}, {first['blas']}, {commit}, {first['started_at']:%Y-%m-%d}."
    )


def _short(commit: str) -> str:
    name, dash, dirty = commit.partition("-")
    return f"{name[:10]}{dash}{dirty}"


# ---- the table ------------------------------------------------------------------------------------------


def render(stored: pd.DataFrame, fmt: str = "table") -> str:
    """The results of stored samples as text, without a newline at its end. fmt: table or markdown."""
    one_of("--format", fmt, FORMATS)
    lines = [
        (r.goal.row, r.goal.case, r.goal.title, value_text(r), str(len(r.numbers)), goal_text(r), r.verdict)
        for r in results(stored)
        if r.goal.subject != THEORY  # it stands beside what was measured
    ]
    notes = [LEGEND, *machine_lines(stored)]
    if fmt == "markdown":
        return "\n".join([*_markdown(lines), "", *notes])
    left_out = dict.fromkeys(_left_out(goal, stored) for goal in missing(stored))
    if left_out:
        notes.append(f"Not measured: {'; '.join(left_out)}.")
    return "\n".join([*_table(lines), "", *(part for note in notes for part in textwrap.wrap(note, WIDTH))])


def _left_out(goal: Goal, stored: pd.DataFrame) -> str:
    """The case where none of it was measured, else the one line."""
    cases = set(stored.loc[stored["row"] == goal.row, "case"])
    return f"{goal.row} {goal.case}: {goal.title}" if goal.case in cases else f"{goal.row} {goal.case}"


def _markdown(lines: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [[text.replace("|", r"\|") for text in line] for line in lines]
    return ["| " + " | ".join(row) + " |" for row in (HEADER, ["---"] * len(HEADER), *cells)]


def _table(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """The lines of a plain table; what is the same as in the line above is left blank, long texts are broken."""
    above = [("", "", ""), *(line[:3] for line in lines)]
    shown = [HEADER, *(_without(line, before) for line, before in zip(lines, above, strict=False))]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    case, what = HEADER.index("case"), HEADER.index("what")
    widths[case] = min(widths[case], CASE_WIDTH)
    rest = WIDTH - sum(widths) + widths[what] - len(GAP) * (len(widths) - 1)
    widths[what] = min(widths[what], max(rest, LEAST_WIDTH))
    out = []
    for line in shown:
        cells = [
            textwrap.wrap(text, width, break_on_hyphens=False) or [""] for text, width in zip(line, widths, strict=True)
        ]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            out.append(GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
    return out


def _without(line: tuple[str, ...], before: tuple[str, ...]) -> tuple[str, ...]:
    if line[0] != before[0]:
        return line
    return ("", "" if line[1] == before[1] else line[1], *line[2:])

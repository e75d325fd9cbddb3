"""List the benchmark's rows, and define the classes that they share. CONTRIBUTING.md says how to add a row."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from normstudy.config import one_of

THEORY = "theory"  # subject of the samples that a formula predicts; the table shows them in the column `goal`


class Scope(NamedTuple):
    """Hold whether a row's function measures only a few cases (`quick`), and the temporary folder for its files."""

    quick: bool
    folder: Path


@dataclass(frozen=True)
class Sample:
    """Hold a measured number. No two numbers of a row have the same case, subject, metric and round."""

    row: str
    case: str
    subject: str
    metric: str
    unit: str
    round: int
    value: float


@dataclass(frozen=True)
class Goal:
    """Describe a line of the printed table. The line shows the median over rounds of `metric`, measured for `subject`.

    opponent: if not None, the subject's number is divided by the opponent's in each round. sense, limit: the goal, such
    as 'at least' 1.3 or 'at most' 1.05; both are None for a line without a goal.
    """

    row: str
    case: str
    title: str
    metric: str
    subject: str
    opponent: str | None = None
    sense: str | None = None
    limit: float | None = None


class Row(NamedTuple):
    """Describe a row of the benchmark. `module` defines the row's GOALS, and the `function` that yields its samples."""

    module: str
    function: str
    title: str
    device: str = "cpu"  # or cuda


ROWS: dict[str, Row] = {
    "a": Row("normstudy.bench.speed", "plain_loops", "run-steps per second against plain loops"),
    "b": Row("normstudy.bench.speed", "probing", "how much recording gradient norms slows training"),
    "c": Row("normstudy.bench.commands", "sweeps", "time and memory outside training"),
    "d": Row("normstudy.bench.commands", "starts", "time to start"),
    "e": Row("normstudy.bench.scaling", "measure", "time of a run-step at different model, sequence and batch sizes"),
    "f": Row("normstudy.bench.commands", "large_study", "time and memory to plot, compare and read a large study"),
    "g": Row("normstudy.bench.speed", "on_gpu", "run-steps per second on one GPU", "cuda"),
    "i": Row("normstudy.bench.speed", "recording_loops", "run-steps per second against plain loops that record too"),
}


def load(row: str) -> tuple[list[Goal], Callable[[Scope], Iterator[Sample]]]:
    """Import a row's module; return the row's goals, and the function that measures the row."""
    module = importlib.import_module(ROWS[row].module)
    return [goal for goal in module.GOALS if goal.row == row], getattr(module, ROWS[row].function)


def check_rows(given: Sequence[str]) -> list[str]:
    """Return the given rows once each, in the order of ROWS. Raises ConfigError for an unknown row."""
    for row in given:
        one_of("--rows", row, tuple(ROWS))
    return [row for row in ROWS if row in given]

"""The rows of the benchmark, and what one measures: samples, taken in rounds, so that noise hits all subjects alike.

A row is one line of ROWS, its lines of the table are in GOALS of its module, and a function there yields its samples.
Subjects that are compared are measured one after the other within each round. Their ratio is taken round by round, and
the table shows its median over rounds with its range. Importing a row's module imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from normstudy.config import one_of

THEORY = "theory"  # the subject of what a formula gives for a case and metric: shown beside what was measured of them


class Scope(NamedTuple):
    """How much to measure. folder: an empty one for whatever a row has to write; it is removed afterwards."""

    quick: bool
    device: str
    folder: Path


@dataclass(frozen=True)
class Sample:
    """One number. (case, subject, metric, round) is its name within the row: each is measured once."""

    row: str
    case: str
    subject: str
    metric: str
    unit: str
    round: int
    value: float


@dataclass(frozen=True)
class Goal:
    """A line of the table: the median over rounds of a metric, of `subject` or of its ratio to `opponent`.

    sense: 'at least' or 'at most', and limit; None for a number that is shown without a goal.
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
    """module and function: where GOALS are, and what measures; device: what it measures, cpu or cuda."""

    module: str
    function: str
    title: str
    device: str = "cpu"


ROWS: dict[str, Row] = {
    "a": Row("normstudy.bench.speed", "plain_loops", "run-steps per second against plain loops"),
    "b": Row("normstudy.bench.speed", "probing", "cost of the probes"),
    "c": Row("normstudy.bench.commands", "sweeps", "time and memory outside training"),
    "d": Row("normstudy.bench.commands", "starts", "time to start"),
    "e": Row("normstudy.bench.scaling", "measure", "cost against depth, width, length, batch and runs"),
    "f": Row("normstudy.bench.commands", "large_study", "figures and tables of a large study"),
    "g": Row("normstudy.bench.speed", "on_gpu", "run-steps per second on one GPU", "cuda"),
    "i": Row("normstudy.bench.speed", "recording_loops", "the same against loops that record as much"),
}


def load(row: str) -> tuple[list[Goal], Callable[[Scope], Iterator[Sample]]]:
    """The lines of a row's table, and the function that measures it."""
    module = importlib.import_module(ROWS[row].module)
    return [goal for goal in module.GOALS if goal.row == row], getattr(module, ROWS[row].function)


def check_rows(given: Sequence[str]) -> list[str]:
    """The rows that were asked for, each once, in the order of ROWS. Raises ConfigError for an unknown one."""
    for row in given:
        one_of("--rows", row, tuple(ROWS))
    return [row for row in ROWS if row in given]

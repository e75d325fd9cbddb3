"""The registry of benchmark rows, and the data classes that they share.

To add a row, add a line to ROWS, table lines to GOALS in the row's module, and a function there that yields samples.
Compared subjects are measured one after the other in each round, so that noise affects them equally. The table shows
the median and the range over rounds of each round's ratio. Importing a row's module must not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from normstudy.config import one_of

THEORY = "theory"  # the subject of samples that a formula predicts; the table shows them beside the measured values


class Scope(NamedTuple):
    """How much to measure and on which device. folder: an empty folder for the row's files, removed afterwards."""

    quick: bool
    device: str
    folder: Path


@dataclass(frozen=True)
class Sample:
    """One measured number, identified within its row by (case, subject, metric, round)."""

    row: str
    case: str
    subject: str
    metric: str
    unit: str
    round: int
    value: float


@dataclass(frozen=True)
class Goal:
    """A table line: the median over rounds of a metric of `subject`, or of its ratio to `opponent`.

    The goal is `sense` ('at least' or 'at most') `limit`; both are None for a number without a goal.
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
    """A benchmark row. module: holds GOALS and `function`, which yields samples. device: cpu or cuda."""

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
    """Import a row's module; return the row's table lines and the function that measures the row."""
    module = importlib.import_module(ROWS[row].module)
    return [goal for goal in module.GOALS if goal.row == row], getattr(module, ROWS[row].function)


def check_rows(given: Sequence[str]) -> list[str]:
    """Return the given rows without duplicates, in the order of ROWS. Raises ConfigError for an unknown row."""
    for row in given:
        one_of("--rows", row, tuple(ROWS))
    return [row for row in ROWS if row in given]

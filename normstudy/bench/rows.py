"""List the benchmark's rows, and define the classes that all rows use. CONTRIBUTING.md says how to add a row."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from normstudy.config import one_of

THEORY = "theory"  # subject of samples that a formula predicts, which the table shows in the column `goal`


class Scope(NamedTuple):
    """The settings that each measuring function receives."""

    quick: bool  # whether to measure only a few cases
    folder: Path  # a temporary folder


@dataclass(frozen=True)
class Sample:
    """One measured number, identified by the fields `row`, `case`, `subject`, `metric` and `round` together."""

    row: str
    case: str
    subject: str
    metric: str
    unit: str
    round: int
    value: float


@dataclass(frozen=True)
class Goal:
    """A line of the printed table: the median of the metric `metric` over all rounds, measured for `subject`."""

    row: str
    case: str
    title: str
    metric: str
    subject: str
    opponent: str | None = None  # in each round, the subject's number is divided by the opponent's
    sense: str | None = None  # `at least`, `at most`, or None for a line without a goal
    limit: float | None = None


class Row(NamedTuple):
    """A row of the benchmark. `module` defines the row's GOALS, and the `function` that yields the row's samples."""

    module: str
    function: str
    title: str
    library: str = ""  # the package without which the row is skipped
    extra: str = ""  # the extra of normstudy that installs the library
    device: str = "cpu"  # cpu or cuda


ROWS: dict[str, Row] = {
    "a": Row("normstudy.bench.speed", "plain_loops", "training speed against plain loops that record nothing"),
    "b": Row("normstudy.bench.speed", "probing", "how much recording gradient norms slows training"),
    "c": Row("normstudy.bench.commands", "sweeps", "time and memory that a sweep needs besides training"),
    "d": Row("normstudy.bench.commands", "starts", "time to start"),
    "e": Row("normstudy.bench.scaling", "measure", "time of a step at different model, sequence and batch sizes"),
    "f": Row("normstudy.bench.commands", "large_study", "time and memory to plot, compare and read a large study"),
    "g": Row("normstudy.bench.speed", "on_gpu", "training speed on one GPU", device="cuda"),
    "i": Row("normstudy.bench.speed", "recording_loops", "training speed against plain loops that record gradients"),
    "j": Row("normstudy.bench.speed", "searching", "time of a search for critical values against the time of a grid"),
    "k": Row("normstudy.bench.commands", "reports", "time, memory and size of a study's page", "altair", "report"),
    "l": Row(
        "normstudy.bench.speed", "watching", "how much normstudy.watch slows a training loop", "lightning", "packages"
    ),
}


def load(row: str) -> tuple[list[Goal], Callable[[Scope], Iterator[Sample]]]:
    """Import the module of a benchmark row. Return the row's goals, and the function that measures the row."""
    module = importlib.import_module(ROWS[row].module)
    return [goal for goal in module.GOALS if goal.row == row], getattr(module, ROWS[row].function)


def check_rows(given: Sequence[str]) -> list[str]:
    """Return the given rows without repeats, in the order of ROWS. Raises ConfigError for an unknown row."""
    for row in given:
        one_of("--rows", row, tuple(ROWS))
    return [row for row in ROWS if row in given]

"""The rows of the benchmark: one line each, and its module is imported when the row is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from normstudy.bench.samples import Goal, Sample, Scope
from normstudy.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """module: where GOALS and measure are; device: what it measures, cpu or cuda.

    seconds: what it takes on two cores, with --quick and with --full. Only the time left that is shown depends on it.
    """

    module: str
    title: str
    device: str
    seconds: tuple[float, float]


class RowModule(Protocol):
    """What a row's module has."""

    GOALS: list[Goal]
    measure: Callable[[Scope], Iterator[Sample]]


ROWS: dict[str, Row] = {
    "a": Row("normstudy.bench.speed", "run-steps per second against plain loops", "cpu", (60, 760)),
    "b": Row("normstudy.bench.probing", "cost of the probes", "cpu", (13, 122)),
    "c": Row("normstudy.bench.overhead", "time and memory outside training", "cpu", (12, 121)),
    "d": Row("normstudy.bench.start", "time to start", "cpu", (22, 78)),
    "e": Row("normstudy.bench.scaling", "cost against depth, width, length, batch and runs", "cpu", (4, 85)),
    "f": Row("normstudy.bench.study", "figures and tables of a large study", "cpu", (18, 260)),
    "g": Row("normstudy.bench.gpu", "run-steps per second on one GPU", "cuda", (30, 180)),
    "h": Row("normstudy.bench.divergence", "runs that diverged leave their batch", "cpu", (6, 30)),
}


def load(row: str) -> RowModule:
    """The module of a row."""
    return cast(RowModule, importlib.import_module(ROWS[row].module))


def check_rows(given: Sequence[str]) -> list[str]:
    """The rows that were asked for, each once, in the order of ROWS. Raises ConfigError for one that there is not."""
    for row in given:
        if row not in ROWS:
            raise ConfigError(f"--rows {row!r} is not one of {', '.join(ROWS)}")
    return [row for row in ROWS if row in given]

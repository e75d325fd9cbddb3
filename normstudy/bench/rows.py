"""The rows of the benchmark: one line each. A row's module is imported when the row is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, cast

from normstudy.bench.samples import Goal, Sample, Scope
from normstudy.config import one_of


class Row(NamedTuple):
    """module: where GOALS and measure are; device: what it measures, cpu or cuda."""

    module: str
    title: str
    device: str


class RowModule(Protocol):
    """What a row's module has."""

    GOALS: list[Goal]
    measure: Callable[[Scope], Iterator[Sample]]


ROWS: dict[str, Row] = {
    "a": Row("normstudy.bench.speed", "run-steps per second against plain loops", "cpu"),
    "b": Row("normstudy.bench.probing", "cost of the probes", "cpu"),
    "c": Row("normstudy.bench.overhead", "time and memory outside training", "cpu"),
    "d": Row("normstudy.bench.start", "time to start", "cpu"),
    "e": Row("normstudy.bench.scaling", "cost against depth, width, length, batch and runs", "cpu"),
    "f": Row("normstudy.bench.study", "figures and tables of a large study", "cpu"),
    "g": Row("normstudy.bench.gpu", "run-steps per second on one GPU", "cuda"),
    "i": Row("normstudy.bench.equal", "the same against loops that record as much", "cpu"),
}


def load(row: str) -> RowModule:
    """The module of a row."""
    return cast(RowModule, importlib.import_module(ROWS[row].module))


def check_rows(given: Sequence[str]) -> list[str]:
    """The rows that were asked for, each once, in the order of ROWS. Raises ConfigError for an unknown one."""
    for row in given:
        one_of("--rows", row, tuple(ROWS))
    return [row for row in ROWS if row in given]

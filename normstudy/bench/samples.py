"""What a row of the benchmark measures: samples, taken in rounds, so that a noisy machine hits all subjects alike.

A row is a module of this package, one line in rows.py, with

    GOALS: list[Goal]                           the lines of its table
    measure(scope: Scope) -> Iterator[Sample]   yields each sample as soon as it is there

Subjects that are compared are measured one after the other within each round. Their ratio is taken round by round, and
the table shows its median over rounds with its range. Importing a row imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SENSES = ("at least", "at most")
THEORY = "theory"  # the subject of what a formula gives for a case and metric: shown beside what was measured of them


@dataclass(frozen=True)
class Scope:
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

    sense: 'at least' or 'at most', and limit; None for a number that is shown without a goal. title: what the number
    is, in the table's words. A case without samples, such as one that is too long for --quick, is left out.
    """

    row: str
    case: str
    title: str
    metric: str
    subject: str
    opponent: str | None = None
    sense: str | None = None
    limit: float | None = None

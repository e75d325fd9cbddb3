"""A row of a benchmark for the tests, real and small: it times sorting; and samples made by hand."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from normstudy.bench import tables
from normstudy.bench.rows import Goal, Row, Sample, Scope

ROW = Row("measured", "measure", "sorting")  # for monkeypatch.setitem(ROWS, "a", ROW)
SIZES = (1_000, 10_000)
ROUNDS = {"quick": 2, "full": 5}
GOALS = [
    Goal("a", "10000", "sorted, against reversed", "per_s", "sorted", "reversed", "at least", 1e-6),
    Goal("a", "10000", "the same | unreachable", "per_s", "sorted", "reversed", "at least", 1e6),
    Goal("a", "1000", "time to sort", "seconds", "sorted", None, "at most", 60.0),
    Goal("a", "1000", "time to sort the reversed", "seconds", "reversed"),
    Goal("a", "1000000", "never measured", "seconds", "sorted", None, "at most", 60.0),
]


def measure(scope: Scope) -> Iterator[Sample]:
    for number in range(ROUNDS["quick" if scope.quick else "full"]):
        for size in SIZES:
            for subject, numbers in (("sorted", list(range(size))), ("reversed", list(range(size, 0, -1)))):
                began = time.perf_counter()
                sorted(numbers)
                seconds = time.perf_counter() - began
                yield Sample("a", str(size), subject, "seconds", "s", number, seconds)
                yield Sample("a", str(size), subject, "per_s", "1/s", number, 1 / seconds)


MACHINE = {
    "python": "3.11.7", "torch": "2.13.0+cpu", "cpu": "AMD EPYC", "n_cores": 2, "cpu_capability": "AVX2",
    "blas": "openblas 0.3.31 Haswell", "device": "cpu", "git_commit": "0123456789abcdef",
}  # fmt: skip
AT = datetime.datetime(2026, 11, 24, 12, 30, tzinfo=datetime.UTC)


def by_hand(
    values: dict[str, Sequence[float]], *, row: str = "a", case: str = "1000", metric: str = "seconds", unit: str = "s"
) -> list[Sample]:
    """Samples of one metric: subject -> its value in each round."""
    return [Sample(row, case, s, metric, unit, i, v) for s, of in values.items() for i, v in enumerate(of)]


def write(out: Path, samples: Sequence[Sample], machine: Mapping[str, object] = MACHINE, mode: str = "full") -> None:
    """The table of the row that the samples belong to."""
    tables.write(out, samples[0].row, samples, {**machine, "mode": mode, "started_at": AT})


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

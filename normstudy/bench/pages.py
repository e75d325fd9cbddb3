"""Measure row `k` of the benchmark: the time, the memory and the size of `normstudy report`, on generated studies."""

from __future__ import annotations

from collections.abc import Iterator

from normstudy.bench.commands import NORMSTUDY, QUICK, peak
from normstudy.bench.generated import Size, write_study
from normstudy.bench.rows import Goal, Sample, Scope

ROUNDS = (3, 1)  # with --full, and with --quick
# Study -> the most seconds and the most megabytes of its page: one as large as a shipped study, and 1,000 runs.
LIMITS = {Size(seeds=5, n_steps=600, n_layers=6): (10.0, 3.0), Size(seeds=20, n_steps=600, n_layers=12): (None, 8.0)}
METRICS = {"seconds": "time", "gigabytes": "peak memory", "megabytes": "size of the page"}

GOALS = [
    Goal("k", str(size), title, metric, "report", None, *(("at most", most) if most else ()))
    for size, (seconds, megabytes) in {QUICK: (None, None), **LIMITS}.items()
    for (metric, title), most in zip(METRICS.items(), (seconds, None, megabytes), strict=True)
]


def reports(scope: Scope) -> Iterator[Sample]:
    """Measure row `k`."""
    for size in (QUICK,) if scope.quick else LIMITS:
        study = scope.folder / f"study-{size.seeds}"
        write_study(study, size)
        for n in range(ROUNDS[scope.quick]):
            seconds, gigabytes = peak([*NORMSTUDY, "report", str(study)])
            yield Sample("k", str(size), "report", "seconds", "s", n, seconds)
            yield Sample("k", str(size), "report", "gigabytes", "GB", n, gigabytes)
            megabytes = (study / "report.html").stat().st_size / 1e6
            yield Sample("k", str(size), "report", "megabytes", "MB", n, megabytes)

"""Row f: what a large study costs that is already there: its figures, `compare`, and one column of `steps`.

The study is written by `generated` and not trained, in both forms. Every command runs in a process of its own, from a
cold start to its end, with the files in the page cache.

"Peak memory" is the sum of the peaks of all the processes that a command has: `plot` draws with two.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from normstudy.bench import memory
from normstudy.bench.generated import FORMS, Size, write_study
from normstudy.bench.samples import Goal, Sample, Scope

FULL = Size(seeds=20, n_steps=2000, n_layers=12)
QUICK = Size(seeds=1, n_steps=400, n_layers=6)
ROUNDS = 3
SAMPLE_SECONDS = 0.02  # between two looks at a command's memory

COMMANDS = {"plot": ["plot"], "compare": ["compare", "--by", "warmup_steps"]}
# One column of every step, in one call of a reader that is already imported; {0} is the folder of `steps`.
READERS = {
    "pandas": "pandas.read_parquet('{0}', columns=['train_loss'])",
    "polars": "polars.read_parquet('{0}', columns=['train_loss'])",
    "duckdb": "duckdb.sql(\"select train_loss from '{0}/*.parquet'\").fetchnumpy()",
}

Columns = dict[str, list[str] | None]  # of each table; None for all
# What pyarrow alone takes to read what a command needs: the subject, what it is the limit of, and its columns, as
# normstudy.figures and normstudy.analysis ask for them.
_COMPARED: Columns = {"runs": None, "steps": ["run_id", "step", "train_loss", "val_loss"]}
_DRAWN: Columns = {
    "modules": ["run_id", "step", "layer", "module", "grad_norm"],
    "residual": ["run_id", "step", "layer", "grad_norm"],
}
READINGS: dict[str, tuple[str, Columns]] = {
    "pyarrow, figures": ("all figures", _COMPARED | _DRAWN),
    "pyarrow": ("compare", _COMPARED),
    "pyarrow, a column": ("one column of steps", {"steps": ["train_loss"]}),
}
READ_ALL = """
import os, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pyarrow.parquet as pq

def read(path):
    pq.ParquetFile(path).read(columns[path.parent.name], use_threads=False)

columns = {columns}
start = time.perf_counter()
files = [path for table in columns for path in Path({tables!r}, table).glob("*.parquet")]
with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
    list(threads.map(read, files))
print(time.perf_counter() - start)
"""

WRITING = "matplotlib"
# The figures of a study, {0}, are drawn first; what is timed is that they become pictures.
WRITE_ALL = """
import io, time
from pathlib import Path
import matplotlib
from normstudy.figures import style
from normstudy.figures.draw import FIGURES
from normstudy.figures.study import Lacks, load

study, seconds = load(Path({0!r})), 0.0
with matplotlib.rc_context(style.rc()):
    for draw in FIGURES.values():
        try:
            figure = draw(study)
        except Lacks:
            continue
        start = time.perf_counter()
        figure.savefig(io.BytesIO(), format="png")
        seconds += time.perf_counter() - start
print(seconds)
"""


def _goals(size: Size, *, judged: bool) -> list[Goal]:
    """The lines of one size; only the full study has limits, since a smaller one would keep them by its size."""
    limits = [
        ("plot", "all figures", "seconds", 20.0),
        ("plot", "all figures, peak memory", "gigabytes", 1.5),
        ("compare", "compare", "seconds", 3.0),
        ("compare", "compare, peak memory", "gigabytes", None),
        *((reader, f"one column of steps, {reader}", "seconds", 1.0) for reader in READERS),
        (WRITING, "all figures, limit: matplotlib making pictures of them on one core, nothing else", "seconds", None),
        *(
            (reading, f"{what}, limit: its files read by pyarrow on all cores, nothing else", "seconds", None)
            for reading, (what, _) in READINGS.items()
        ),
    ]
    return [
        Goal("f", f"{size}, {form}", title, metric, subject, None, *(("at most", limit) if judged and limit else ()))
        for form in FORMS
        for subject, title, metric, limit in limits
    ]


GOALS = [*_goals(FULL, judged=True), *_goals(QUICK, judged=False)]


def measure(scope: Scope) -> Iterator[Sample]:
    """Seconds and peak memory (10^9 bytes) of each command, and seconds of each reader that is installed."""
    yield from measure_size(QUICK if scope.quick else FULL, scope.folder, 1 if scope.quick else ROUNDS)


def measure_size(size: Size, folder: Path, rounds: int) -> Iterator[Sample]:
    """Write the study in both forms into `folder`, and measure the two round by round."""
    studies = {form: folder / form.replace(" ", "-") for form in FORMS}
    for form, study in studies.items():
        write_study(study, size, form)
    readers = [reader for reader in READERS if find_spec(reader)]
    for n in range(rounds):
        for form, study in studies.items():
            case = f"{size}, {form}"
            for command, words in COMMANDS.items():
                seconds, gigabytes = timed([sys.executable, "-m", "normstudy", words[0], str(study), *words[1:]])
                yield Sample("f", case, command, "seconds", "s", n, seconds)
                yield Sample("f", case, command, "gigabytes", "GB", n, gigabytes)
            for reader in readers:
                yield Sample("f", case, reader, "seconds", "s", n, timed_read(reader, study))
            yield Sample("f", case, WRITING, "seconds", "s", n, printed(WRITE_ALL.format(str(study))))
            for reading, (_, columns) in READINGS.items():
                code = READ_ALL.format(columns=columns, tables=str(study / "tables"))
                yield Sample("f", case, reading, "seconds", "s", n, printed(code))


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds from start to end of a command, and its peak memory in 10^9 bytes. Raises where it fails.

    The memory is the sum of the peaks of all its processes, as seen at looks SAMPLE_SECONDS apart; the peaks need not
    have come at once.
    """
    peaks: dict[int, int] = {}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while process.returncode is None:
            for pid, (_, peak) in memory.of_family(process.pid).items():
                peaks[pid] = max(peak, peaks.get(pid, 0))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_SECONDS)
        seconds = time.perf_counter() - start
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, sum(peaks.values()) * 1024 / 1e9


def timed_read(reader: str, study: Path) -> float:
    """Seconds in which a reader gives one column of `steps`, in a fresh process after its import."""
    call = READERS[reader].format(study / "tables" / "steps")
    return printed(f"import time, {reader}; start = time.perf_counter(); {call}; print(time.perf_counter() - start)")


def printed(code: str) -> float:
    """The number that a fresh process prints."""
    return float(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout)

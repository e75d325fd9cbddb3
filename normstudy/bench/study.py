"""Row f: what a large study costs that is already there: its figures, `compare`, and one column of `steps`.

The study is generated and not trained, as its sweep would leave it, and a copy is compacted by `normstudy compact`.
Every command runs in a process of its own, from a cold start to its end, with the files in the page cache.

"Peak memory" is the sum of the peaks of all the processes that a command has: `plot` draws with two.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from normstudy.bench.commands import NORMSTUDY, peak, timed
from normstudy.bench.generated import Size, write_study
from normstudy.bench.samples import Goal, Sample, Scope

FULL = Size(seeds=20, n_steps=2000, n_layers=12)
QUICK = Size(seeds=1, n_steps=400, n_layers=6)
ROUNDS = 3
FORMS = ("one file a table", "as swept")
COMMANDS = {"plot": [], "compare": ["--by", "warmup_steps"]}
# One column of every step, in one call of a reader that is already imported; {0} is the folder of `steps`.
READERS = {
    "pandas": "pandas.read_parquet('{0}', columns=['train_loss'])",
    "polars": "polars.read_parquet('{0}', columns=['train_loss'])",
    "duckdb": "duckdb.sql(\"select train_loss from '{0}/*.parquet'\").fetchnumpy()",
}
LINES = [  # subject, title, metric, goal
    ("plot", "all figures", "seconds", 20.0),
    ("plot", "all figures, peak memory", "gigabytes", 1.5),
    ("compare", "compare", "seconds", 3.0),
    ("compare", "compare, peak memory", "gigabytes", None),
    *((reader, f"one column of steps, {reader}", "seconds", 1.0) for reader in READERS),
]
GOALS = [  # only the full study has goals: a smaller one would meet them by its size
    Goal("f", f"{size}, {form}", title, metric, subject, None, *(("at most", g) if size == FULL and g else ()))
    for size in (FULL, QUICK)
    for form in FORMS
    for subject, title, metric, g in LINES
]


def measure(scope: Scope) -> Iterator[Sample]:
    """Seconds and peak memory (10^9 bytes) of each command, and seconds of each reader that is installed."""
    yield from measure_size(QUICK if scope.quick else FULL, scope.folder, 1 if scope.quick else ROUNDS)


def measure_size(size: Size, folder: Path, rounds: int) -> Iterator[Sample]:
    """Write the study in both forms into `folder`, and measure the two round by round."""
    studies = {form: folder / form.replace(" ", "-") for form in FORMS}
    compacted, swept = studies.values()
    write_study(swept, size)
    timed([*NORMSTUDY, "compact", str(shutil.copytree(swept, compacted))])
    for n in range(rounds):
        for form, study in studies.items():
            case = f"{size}, {form}"
            for name, words in COMMANDS.items():
                seconds, gigabytes = peak([*NORMSTUDY, name, str(study), *words], folder / "printed.txt")
                yield Sample("f", case, name, "seconds", "s", n, seconds)
                yield Sample("f", case, name, "gigabytes", "GB", n, gigabytes)
            for reader in filter(find_spec, READERS):
                call = READERS[reader].format(study / "tables" / "steps")
                code = f"import time, {reader}; start = time.perf_counter(); {call}; print(time.perf_counter() - start)"
                said = timed([sys.executable, "-c", code])[1]
                yield Sample("f", case, reader, "seconds", "s", n, float(said.split()[0]))

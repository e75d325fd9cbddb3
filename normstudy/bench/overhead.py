"""Row c: what a sweep costs outside its training, in time and in the parent's memory, and whether its estimate holds.

Everything is measured from outside, on the command as a user types it; nothing of normstudy is instrumented.

planning: wall time of `sweep --dry-run` less that of a dry run of two runs, a run. It holds all that grows with the
    runs: expanding, composing, checking, hashing, grouping. 10,000 runs are shown as a whole, start-up included.
to finished tables: wall time from the command to the last write into tables/, a run. Nothing is subtracted from it:
    start-up, planning, the workers' import of torch and the training of 3 steps a run are in it, so it is an upper
    bound of what the goal is about. Figures and comparison come after the tables: `whole command` has them too.
memory: what the resident memory of the parent (the command's own process, without those that it starts) grows by a run
    from a sweep of 100 to one of 1,000, when the tables are finished; and its peak, with figures and comparison.
estimate: the time that `sweep --dry-run` prints, over what the whole command then takes, for runs of the default model.

All but the last train runs as small as they can be, so that the rest is most of the time: one layer, d_model 8, one
window of 8 tokens, on the CPU. With --quick a sweep has 50 runs; they share a start-up meant for 1,000: no goal.
"""

from __future__ import annotations

import functools
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from normstudy.bench.commands import NORMSTUDY, timed, watched
from normstudy.bench.samples import Goal, Sample, Scope

TINY = (
    "data=synthetic", "data.seq_len=8", "data.batch_size=1", "model.n_layers=1", "model.d_model=8", "model.n_heads=2",
    "eval.windows=4", "execution.device=cpu", "schedule.n_steps=3",
)  # fmt: skip
DEFAULT = ("data=pydoc", "schedule.n_steps=300", "seed=range(0,16)", "execution.device=cpu")
FEW, MANY, MOST, QUICK_RUNS = 100, 1000, 10_000, 50  # runs
ROUNDS, QUICK_ROUNDS = 3, 1
CHOICES = ("model=default,tiny", "optimizer=adam,adamw,sgd", "schedule=constant,inverse_sqrt,linear,cosine")
N_CHOICES = 2 * 3 * 4
ONE_GROUP, MANY_GROUPS = "1,000 runs, one choice of groups", "1,000 runs, 24 choices of groups"
ESTIMATED, ESTIMATE, TAKEN = "16 runs of the default model, 300 steps", "dry run's estimate", "sweep"
RATIO = "time that a dry run estimates, over the time that the sweep takes"
GOALS = [
    Goal("c", ONE_GROUP, "planning, a run", "planning", "normstudy", None, "at most", 2.0),
    Goal("c", MANY_GROUPS, "planning, a run", "planning", "normstudy", None, "at most", 2.0),
    Goal("c", "10,000 runs", "planning, start-up too", "dry_run", "normstudy", None, "at most", 20.0),
    Goal("c", "1,000 runs", "to finished tables, a run", "to_tables", "normstudy", None, "at most", 20.0),
    Goal("c", "1,000 runs", "whole command, a run", "whole", "normstudy"),
    Goal("c", "1,000 runs", "parent's memory, a run", "memory", "normstudy", None, "at most", 5.0),
    Goal("c", "1,000 runs", "its peak, figures too, a run", "peak_memory", "normstudy"),
    Goal("c", ESTIMATED, RATIO, "seconds", ESTIMATE, TAKEN, "at least", 0.7),
    Goal("c", ESTIMATED, RATIO, "seconds", ESTIMATE, TAKEN, "at most", 1.3),
    Goal("c", "50 runs", "to finished tables, a run", "to_tables", "normstudy"),
    Goal("c", "50 runs", "whole command, a run", "whole", "normstudy"),
]


class Swept(NamedTuple):
    """One sweep: seconds to the last write into tables/ and to the end, the parent's memory then and its peak in kB."""

    to_tables: float
    whole: float
    memory: int
    peak: int


def measure(scope: Scope) -> Iterator[Sample]:
    """The samples of row c."""
    for r in range(QUICK_ROUNDS if scope.quick else ROUNDS):
        for case, metric, unit, value in measure_round(scope.folder, quick=scope.quick):
            yield Sample("c", case, "normstudy", metric, unit, r, value)
        if not scope.quick:
            command = [*NORMSTUDY, "sweep", *DEFAULT, f"results_dir={scope.folder}", "study=estimated"]
            said = timed([*command, "--dry-run"])[1]
            yield Sample("c", ESTIMATED, ESTIMATE, "seconds", "s", r, estimated(said))
            yield Sample("c", ESTIMATED, TAKEN, "seconds", "s", r, timed(command)[0])
            shutil.rmtree(scope.folder / "estimated")


def measure_round(folder: Path, *, quick: bool) -> Iterator[tuple[str, str, str, float]]:
    """Case, metric, unit and value of each number about tiny runs."""
    start, seeds = dry_run(folder, "seed=range(0,2)"), MANY // N_CHOICES + 1
    yield ONE_GROUP, "planning", "ms", 1e3 * (dry_run(folder, f"seed=range(0,{MANY})") - start) / MANY
    groups = dry_run(folder, *CHOICES, f"seed=range(0,{seeds})")
    yield MANY_GROUPS, "planning", "ms", 1e3 * (groups - start) / (N_CHOICES * seeds)
    if not quick:
        yield "10,000 runs", "dry_run", "s", dry_run(folder, f"seed=range(0,{MOST})")
    runs = QUICK_RUNS if quick else MANY
    many = sweep(folder, runs)
    yield f"{runs:,} runs", "to_tables", "ms", 1e3 * many.to_tables / runs
    yield f"{runs:,} runs", "whole", "ms", 1e3 * many.whole / runs
    if not quick:
        few = sweep(folder, FEW)
        yield "1,000 runs", "memory", "kB", (many.memory - few.memory) / (MANY - FEW)
        yield "1,000 runs", "peak_memory", "kB", (many.peak - few.peak) / (MANY - FEW)


def dry_run(folder: Path, *words: str) -> float:
    """Seconds of planning a sweep of tiny runs by the command, start-up included."""
    return timed([*NORMSTUDY, "sweep", *TINY, f"results_dir={folder}", *words, "--dry-run"])[0]


def estimated(said: str) -> float:
    """Seconds of `about 45 s`, `about 12:30` or `about 3:05:00` in what a dry run prints."""
    found = re.search(r", about ([\d:]+)", said)
    if found is None:
        raise RuntimeError(f"a dry run estimated nothing: {said}")
    return functools.reduce(lambda total, part: 60 * total + float(part), found[1].split(":"), 0.0)


def sweep(folder: Path, runs: int, *words: str) -> Swept:
    """Train as many tiny runs by the command, in a study that is removed again."""
    study, began = folder / "overhead", time.time()  # the clock of the files' times
    command = [*NORMSTUDY, "sweep", *TINY, f"results_dir={folder}", f"seed=range(0,{runs})", "study=overhead", *words]
    pid, whole, looks = watched(command, folder / "overhead.txt")
    to_tables = max(path.stat().st_mtime for path in (study / "tables").glob("*/*.parquet")) - began
    shutil.rmtree(study)
    own = [(at, *sizes[pid]) for at, sizes in looks if pid in sizes]  # seconds, resident memory, its peak
    return Swept(to_tables, whole, max(look for look in own if look[0] <= to_tables)[1], own[-1][2])

"""Row c: what a sweep costs outside its training, in time and in the parent's memory.

Everything is measured from outside, on the command as a user types it; nothing of normstudy is instrumented.

planning: wall time of `sweep --dry-run` less that of a dry run of two runs, a run. It holds all that grows with the
    runs: expanding, composing, checking, hashing, grouping. 10,000 runs are told as a whole, start-up included.
to finished tables: wall time from the command to the last write into tables/, a run. Nothing is subtracted from it:
    start-up, planning, the workers' import of torch and the training of 3 steps a run are in it, so that it is an upper
    bound of what the goal is about. Figures and comparison come after the tables: `whole command` has them too.
outside training: `to finished tables` less 3 times what a step costs, which is the slope between sweeps of 3 and of
    13 steps a run. A step's recording counts as training here; it is shown, and judges nothing.
memory: what the resident memory of the parent (the command's own process, without those that it starts) grows by a run
    from a sweep of 100 to one of 1,000, when the tables are finished; and its peak, with figures and comparison.

The runs are as small as they can be, so that the rest is most of the time: one layer, d_model 8, one window of 8
tokens, on the CPU. With --quick a sweep has 50 runs; they share a start-up meant for 1,000, and meet no goal.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from normstudy.bench import memory
from normstudy.bench.samples import Goal, Sample, Scope

TINY = (
    "data=synthetic", "data.seq_len=8", "data.batch_size=1", "model.n_layers=1", "model.d_model=8", "model.n_heads=2",
    "eval.windows=4", "execution.device=cpu",
)  # fmt: skip
STEPS, MORE_STEPS = 3, 13
FEW, MANY, MOST = 100, 1000, 10_000  # runs
QUICK_RUNS = 50
ROUNDS, QUICK_ROUNDS = 3, 1
CHOICES = ("model=default,tiny", "optimizer=adam,adamw,sgd", "schedule=constant,inverse_sqrt,linear,cosine")
N_CHOICES = 2 * 3 * 4
HYDRA = "Hydra alone"
# The seconds that Hydra takes to compose the configs of argv[2:], words joined by spaces, of the files in argv[1].
COMPOSE = """
import sys, time, hydra
from hydra.core.config_store import ConfigStore
from normstudy.config import RunConfig

ConfigStore.instance().store(name="normstudy_schema", node=RunConfig)
with hydra.initialize_config_dir(sys.argv[1], version_base="1.3"):
    hydra.compose("config")  # imports
    start = time.perf_counter()
    for words in sys.argv[2:]:
        hydra.compose("config", words.split())
    print(time.perf_counter() - start)
"""
SAMPLE_SECONDS = 0.02  # between two looks at the parent's memory

ONE_GROUP, MANY_GROUPS = "1,000 runs, one choice of groups", "1,000 runs, 24 choices of groups"

GOALS = [
    Goal("c", ONE_GROUP, "planning, a run", "planning", "normstudy", sense="at most", limit=2.0),
    Goal("c", MANY_GROUPS, "planning, a run", "planning", "normstudy", sense="at most", limit=2.0),
    Goal("c", MANY_GROUPS, "planning, limit: Hydra composing the 24 choices, nothing else", "planning", HYDRA),
    Goal("c", "10,000 runs", "planning, start-up too", "dry_run", "normstudy", sense="at most", limit=20.0),
    Goal("c", "1,000 runs", "to finished tables, a run", "to_tables", "normstudy", sense="at most", limit=20.0),
    Goal("c", "1,000 runs", "whole command, a run", "whole", "normstudy"),
    Goal("c", "1,000 runs", "outside training, a run", "outside_training", "normstudy"),
    Goal("c", "1,000 runs", "parent's memory, a run", "memory", "normstudy", sense="at most", limit=5.0),
    Goal("c", "1,000 runs", "its peak, figures too, a run", "peak_memory", "normstudy"),
    Goal("c", "50 runs", "to finished tables, a run", "to_tables", "normstudy"),
    Goal("c", "50 runs", "whole command, a run", "whole", "normstudy"),
]


@dataclass(frozen=True)
class Swept:
    """One sweep: seconds to the last write into tables/ and to the end, the parent's memory then and its peak in kB."""

    to_tables: float
    whole: float
    memory: int
    peak: int


def measure(scope: Scope) -> Iterator[Sample]:
    """The samples of row c."""
    for r in range(QUICK_ROUNDS if scope.quick else ROUNDS):
        start = dry_run(scope.folder, "seed=range(0,2)")
        one = dry_run(scope.folder, f"seed=range(0,{MANY})")
        yield _sample(ONE_GROUP, "planning", "ms", r, 1e3 * (one - start) / MANY)
        seeds = MANY // N_CHOICES + 1
        groups = dry_run(scope.folder, *CHOICES, f"seed=range(0,{seeds})")
        yield _sample(MANY_GROUPS, "planning", "ms", r, 1e3 * (groups - start) / (N_CHOICES * seeds))
        hydra = 1e3 * composing() / (N_CHOICES * seeds)
        yield Sample("c", MANY_GROUPS, HYDRA, "planning", "ms", r, hydra)
        if scope.quick:
            few = sweep(scope.folder, QUICK_RUNS, STEPS)
            yield _sample("50 runs", "to_tables", "ms", r, 1e3 * few.to_tables / QUICK_RUNS)
            yield _sample("50 runs", "whole", "ms", r, 1e3 * few.whole / QUICK_RUNS)
            continue
        yield _sample("10,000 runs", "dry_run", "s", r, dry_run(scope.folder, f"seed=range(0,{MOST})"))
        many = sweep(scope.folder, MANY, STEPS)
        longer = sweep(scope.folder, MANY, MORE_STEPS)
        few = sweep(scope.folder, FEW, STEPS)
        step = (longer.to_tables - many.to_tables) / (MORE_STEPS - STEPS)
        yield _sample("1,000 runs", "to_tables", "ms", r, 1e3 * many.to_tables / MANY)
        yield _sample("1,000 runs", "whole", "ms", r, 1e3 * many.whole / MANY)
        yield _sample("1,000 runs", "outside_training", "ms", r, 1e3 * (many.to_tables - STEPS * step) / MANY)
        yield _sample("1,000 runs", "memory", "kB", r, (many.memory - few.memory) / (MANY - FEW))
        yield _sample("1,000 runs", "peak_memory", "kB", r, (many.peak - few.peak) / (MANY - FEW))


def _sample(case: str, metric: str, unit: str, r: int, value: float) -> Sample:
    return Sample("c", case, "normstudy", metric, unit, r, value)


def dry_run(folder: Path, *words: str) -> float:
    """Seconds of planning a sweep by the command, start-up included."""
    began = time.perf_counter()
    subprocess.run(_command(folder, STEPS, *words, "--dry-run"), check=True, capture_output=True)
    return time.perf_counter() - began


def composing() -> float:
    """Seconds in which Hydra composes a config of each choice of groups."""
    from normstudy.app.compose import conf_dir

    axes = [[f"{axis.split('=')[0]}={value}" for value in axis.split("=")[1].split(",")] for axis in CHOICES]
    chosen = [" ".join(words) for words in itertools.product(*axes)]
    command = [sys.executable, "-c", COMPOSE, str(conf_dir()), *chosen]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def sweep(folder: Path, runs: int, n_steps: int) -> Swept:
    """Train as many tiny runs by the command, in a study that is removed again."""
    study = folder / "overhead"
    command = _command(folder, n_steps, f"seed=range(0,{runs})", f"study={study.name}")
    looks: list[tuple[float, int, int]] = []  # time, resident kB, its peak
    with open(folder / "overhead.txt", "w+b") as said:
        began = time.time()  # the clock of the files' times
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if (sizes := memory.of_process(process.pid)) is not None:
                looks.append((time.time(), *sizes))
            time.sleep(SAMPLE_SECONDS)
        whole = time.time() - began
        said.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{said.read().decode()}")
    tables = [path.stat() for path in (study / "tables").glob("*/*.parquet")]
    shutil.rmtree(study)
    finished = max(stat.st_mtime for stat in tables)
    then = max(look for look in looks if look[0] <= finished)
    return Swept(finished - began, whole, memory=then[1], peak=looks[-1][2])


def _command(folder: Path, n_steps: int, *words: str) -> list[str]:
    own = (f"results_dir={folder}", f"schedule.n_steps={n_steps}")
    return [sys.executable, "-m", "normstudy", "sweep", *TINY, *own, *words]

"""Measure rows `c`, `d`, `f` and `k` of the benchmark: the time and memory of commands that train little or nothing.

Row c sweeps tiny runs. The planning time of 1,000 runs is the time of their dry run minus the time of a dry run of two
runs. Rows f and k read generated studies, and sum peak memory over all processes of a command. Row f reads one study in
two forms: as a sweep writes it, and as `normstudy compact` writes it.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from normstudy.bench.generated import Size, write_study
from normstudy.bench.rows import Goal, Sample, Scope

NORMSTUDY = (sys.executable, "-P", "-m", "normstudy")
ROUNDS = {"c": (3, 1), "d": (15, 3), "f": (3, 1), "k": (3, 1)}  # row -> rounds with --full, rounds with --quick
Memory = dict[int, tuple[int, int]]  # process id -> (memory, peak memory) in kB
SMALL = ("data=synthetic", "data.seq_len=8", "data.batch_size=1", "model.d_model=8", "model.n_heads=2",
         "eval.windows=4", "execution.device=cpu")  # fmt: skip
TINY = (*SMALL, "model.n_layers=1", "schedule.n_steps=3")
DEFAULT = ("data=pydoc", "schedule.n_steps=300", "seed=range(0,16)", "execution.device=cpu")
FEW, MANY, MOST = 100, 1000, 10_000  # numbers of runs in the sweeps of row c
CHOICES = ("model=default,tiny", "optimizer=adam,adamw,sgd", "schedule=constant,inverse_sqrt,linear,cosine")
ONE_GROUP, MANY_GROUPS = "1,000 runs, one choice of groups", "1,000 runs, 24 choices of groups"
ESTIMATED, ESTIMATE, TAKEN = "16 runs of the default model, 300 steps", "dry run's estimate", "sweep"
RATIO = "time that a dry run estimates / time that the sweep takes"
# Arguments of a sweep that row d runs first, so that the commands `compare` and `plot` have a study to read.
STUDY = (*SMALL, "model.n_layers=2", "schedule.n_steps=20", "model.placement=pre,post", "schedule.warmup_steps=0,10")
STARTS = {  # case -> (arguments of the command, expected exit code, goal in seconds); {0} is a temporary folder
    "help": ("--help", 0, 0.1),
    "help of run": ("run --help", 0, 0.1),
    "unknown command": ("trian", 2, 0.1),
    "run --cfg job": ("run --cfg job", 0, 0.5),
    "bad override": ("run model.n_layer=3", 2, 0.6),
    "compare": ("compare {0}/start --by warmup_steps", 0, 1.0),
    "first figure of plot": ("plot {0}/start --only headline --out {0}/figures", 0, 1.5),
}

LARGE, QUICK = Size(seeds=20, n_steps=2000, n_layers=12), Size(seeds=1, n_steps=400, n_layers=6)
FORMS = ("one file a table", "as swept")
LOOKS = {"plot": (), "compare": ("--by", "warmup_steps")}
# Library -> a call that reads a column of the table `steps`, whose folder is {0}. Importing the library is not timed.
READERS = {
    "pandas": "pandas.read_parquet('{0}', columns=['train_loss'])",
    "polars": "polars.read_parquet('{0}', columns=['train_loss'])",
    "duckdb": "duckdb.sql(\"select train_loss from '{0}/*.parquet'\").fetchnumpy()",
}
LINES = [  # (subject, title, metric, goal) of each line that row f has in the printed table
    ("plot", "time of plot, all figures", "seconds", 20.0),
    ("plot", "peak memory of plot, all figures", "gigabytes", 1.5),
    ("compare", "time of compare", "seconds", 3.0),
    ("compare", "peak memory of compare", "gigabytes", None),
    *((reader, f"time to read a column of `steps` with {reader}", "seconds", 1.0) for reader in READERS),
]
PAGE = {"seconds": "time", "gigabytes": "peak memory", "megabytes": "size of the page"}
# Row k measures two studies: one as large as a shipped study, and one of 1,000 runs. Each has goals for the three
# quantities of PAGE; None means no goal.
PAGES = {Size(5, n_steps=600, n_layers=6): (10.0, None, 3.0), Size(20, n_steps=600, n_layers=12): (None, None, 8.0)}
GOALS = [
    Goal("c", ONE_GROUP, "planning time per run", "planning", "normstudy", None, "at most", 2.0),
    Goal("c", MANY_GROUPS, "planning time per run", "planning", "normstudy", None, "at most", 2.0),
    Goal("c", "10,000 runs", "planning time, including start-up", "dry_run", "normstudy", None, "at most", 20.0),
    Goal("c", "1,000 runs", "time per run until tables are finished", "to_tables", "normstudy", None, "at most", 20.0),
    Goal("c", "1,000 runs", "time per run until the command ends", "whole", "normstudy"),
    Goal("c", "1,000 runs", "parent process's memory per run, no figures", "memory", "normstudy", None, "at most", 5.0),
    Goal("c", "1,000 runs", "parent process's peak memory per run, with figures", "peak_memory", "normstudy"),
    Goal("c", ESTIMATED, RATIO, "seconds", ESTIMATE, TAKEN, "at least", 0.7),
    Goal("c", ESTIMATED, RATIO, "seconds", ESTIMATE, TAKEN, "at most", 1.3),
    *(Goal("d", case, case, "seconds", "normstudy", None, "at most", most) for case, (_, _, most) in STARTS.items()),
    *(  # only the large study has goals, since a small study would meet them easily
        Goal("f", f"{size}, {form}", title, metric, subject, None, *(("at most", g) if size == LARGE and g else ()))
        for size in (LARGE, QUICK)
        for form in FORMS
        for subject, title, metric, g in LINES
    ),
    *(
        Goal("k", str(size), title, metric, "report", None, *(("at most", most) if most else ()))
        for size, limits in {QUICK: (None, None, None), **PAGES}.items()
        for (metric, title), most in zip(PAGE.items(), limits, strict=True)
    ),
]


def timed(command: Sequence[str], code: int = 0) -> tuple[float, str]:
    """Run a command. Return its time in seconds and its output. Raises RuntimeError if the exit code is not `code`."""
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True)
    took, said = time.perf_counter() - began, ended.stdout + ended.stderr
    if ended.returncode != code:  # otherwise a crash would count as a fast command
        raise RuntimeError(f"exit code {ended.returncode} instead of {code}: {shlex.join(command[1:])}\n{said[-2000:]}")
    return took, said


def peak(command: Sequence[str]) -> tuple[float, float]:
    """Run a command. Return its time in seconds, and its peak memory in 10^9 bytes, summed over all its processes."""
    _, seconds, reads = watched(command)
    peaks = {pid: most for _, memory in reads for pid, (_, most) in memory.items()}  # a process's last reading is kept
    return seconds, sum(peaks.values()) * 1024 / 1e9


def watched(command: Sequence[str]) -> tuple[int, float, list[tuple[float, Memory]]]:
    """Run a command, which must succeed. Return its process id, its seconds, and a list of (seconds so far, memory)."""
    reads, began = [], time.perf_counter()
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(process.kill)
        while process.returncode is None:
            reads.append((time.perf_counter() - began, memory_of(process.pid)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)  # seconds between two readings
    took = time.perf_counter() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return process.pid, took, reads


def memory_of(pid: int) -> Memory:
    """Return the memory and peak memory (kB) of a process and of each of its descendants, by process id."""
    found: Memory = {}
    with contextlib.suppress(OSError, KeyError):  # a process that has just ended is left out
        said = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        found[pid] = int(said["VmRSS"].split()[0]), int(said["VmHWM"].split()[0])
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                found |= memory_of(int(child))
    return found


def sweeps(scope: Scope) -> Iterator[Sample]:
    """Measure row c of the benchmark: a sweep's overhead in time and memory, and a dry run's estimate of the time."""
    folder, seeds = scope.folder, MANY // 24 + 1
    for r in range(ROUNDS["c"][scope.quick]):
        start = dry_run(folder, "seed=range(0,2)")
        one = dry_run(folder, f"seed=range(0,{MANY})") - start
        yield Sample("c", ONE_GROUP, "normstudy", "planning", "ms", r, 1e3 * one / MANY)
        groups = dry_run(folder, *CHOICES, f"seed=range(0,{seeds})") - start
        yield Sample("c", MANY_GROUPS, "normstudy", "planning", "ms", r, 1e3 * groups / (24 * seeds))
        if scope.quick:
            continue
        yield Sample("c", "10,000 runs", "normstudy", "dry_run", "s", r, dry_run(folder, f"seed=range(0,{MOST})"))
        (to_tables, whole, memory, most), (_, _, less, least) = sweep(folder, MANY), sweep(folder, FEW)
        yield Sample("c", "1,000 runs", "normstudy", "to_tables", "ms", r, 1e3 * to_tables / MANY)
        yield Sample("c", "1,000 runs", "normstudy", "whole", "ms", r, 1e3 * whole / MANY)
        yield Sample("c", "1,000 runs", "normstudy", "memory", "kB", r, (memory - less) / (MANY - FEW))
        yield Sample("c", "1,000 runs", "normstudy", "peak_memory", "kB", r, (most - least) / (MANY - FEW))
        command = [*NORMSTUDY, "sweep", *DEFAULT, f"results_dir={folder}", "study=estimated"]
        yield Sample("c", ESTIMATED, ESTIMATE, "seconds", "s", r, estimated(timed([*command, "--dry-run"])[1]))
        yield Sample("c", ESTIMATED, TAKEN, "seconds", "s", r, timed(command)[0])
        shutil.rmtree(folder / "estimated")


def dry_run(folder: Path, *words: str) -> float:
    """Return the seconds that `sweep --dry-run` of tiny runs takes. words: more arguments, such as `seed=0,1`."""
    return timed([*NORMSTUDY, "sweep", *TINY, f"results_dir={folder}", *words, "--dry-run"])[0]


def estimated(said: str) -> float:
    """Return the estimated time in seconds. said: a dry run's output, which gives it as `45 s` or `12:30` (min:s)."""
    parts = re.findall(r", estimated time ([\d:]+)", said)[0].split(":")
    return sum(60.0**i * int(part) for i, part in enumerate(reversed(parts)))


def sweep(folder: Path, runs: int) -> tuple[float, float, int, int]:
    """Sweep tiny runs, then remove their study. Returns two times in seconds, and two sizes in kB.

    The first time ends at the last write into tables/, the second at the end of the command. The first size is the
    parent process's memory at the last write into tables/, the second its peak memory.
    """
    study, began = folder / "overhead", time.time()  # the clock of files' modification times
    words = [f"results_dir={folder}", f"seed=range(0,{runs})", "study=overhead"]
    pid, whole, reads = watched([*NORMSTUDY, "sweep", *TINY, *words])
    to_tables = max(path.stat().st_mtime for path in (study / "tables").glob("*/*.parquet")) - began
    shutil.rmtree(study)
    own = [(at, *memory[pid]) for at, memory in reads if pid in memory]  # (seconds, memory, peak memory) of the parent
    return to_tables, whole, max(read for read in own if read[0] <= to_tables)[1], own[-1][2]


def starts(scope: Scope) -> Iterator[Sample]:
    """Measure row d of the benchmark: the time of commands that train nothing."""
    timed([*NORMSTUDY, "sweep", *STUDY, f"results_dir={scope.folder}", "study=start", "seed=range(0,6)"])
    commands = {case: (words.format(scope.folder).split(), code) for case, (words, code, _) in STARTS.items()}
    for words, code in commands.values():
        timed([*NORMSTUDY, *words], code)  # untimed: loads the command's files into the page cache
    for r in range(ROUNDS["d"][scope.quick]):
        for case, (words, code) in commands.items():
            yield Sample("d", case, "normstudy", "seconds", "s", r, timed([*NORMSTUDY, *words], code)[0])


def large_study(scope: Scope, size: Size | None = None) -> Iterator[Sample]:
    """Measure row f of the benchmark: commands' time and memory for a large study, and libraries' time to read it."""
    size = size or (QUICK if scope.quick else LARGE)
    compacted, swept = studies = [scope.folder / form.replace(" ", "-") for form in FORMS]
    write_study(swept, size)
    timed([*NORMSTUDY, "compact", str(shutil.copytree(swept, compacted))])
    for n in range(ROUNDS["f"][scope.quick]):
        for form, study in zip(FORMS, studies, strict=True):
            case = f"{size}, {form}"
            for name, words in LOOKS.items():
                seconds, gigabytes = peak([*NORMSTUDY, name, str(study), *words])
                yield Sample("f", case, name, "seconds", "s", n, seconds)
                yield Sample("f", case, name, "gigabytes", "GB", n, gigabytes)
            for reader in filter(find_spec, READERS):
                call = READERS[reader].format(study / "tables" / "steps")
                code = f"import time, {reader}; start = time.perf_counter(); {call}; print(time.perf_counter() - start)"
                said = timed([sys.executable, "-P", "-c", code])[1]
                yield Sample("f", case, reader, "seconds", "s", n, float(said.split()[0]))


def reports(scope: Scope) -> Iterator[Sample]:
    """Measure row k of the benchmark: the time, the memory and the size of `normstudy report`."""
    for size in (QUICK,) if scope.quick else PAGES:
        study = scope.folder / f"study-{size.seeds}"
        write_study(study, size)
        for n in range(ROUNDS["k"][scope.quick]):
            seconds, gigabytes = peak([*NORMSTUDY, "report", str(study)])
            yield Sample("k", str(size), "report", "seconds", "s", n, seconds)
            yield Sample("k", str(size), "report", "gigabytes", "GB", n, gigabytes)
            megabytes = (study / "report.html").stat().st_size / 1e6
            yield Sample("k", str(size), "report", "megabytes", "MB", n, megabytes)

"""Row d: how long a command takes that trains nothing: wall times of real processes, one after the other in each round.

No such command may import torch, which takes a second by itself: each is run once with Python's own record of what is
imported (-X importtime), and the modules of torch in it are counted. That run also warms the system's file cache.
The study that `compare` and `plot` read is trained here: 2 placements, 2 warmups, 6 seeds, 20 steps.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from normstudy.bench.samples import Goal, Sample, Scope

STUDY_WORDS = (
    "data=synthetic", "data.seq_len=8", "data.batch_size=1", "model.n_layers=2", "model.d_model=8", "model.n_heads=2",
    "eval.windows=4", "schedule.n_steps=20", "execution.device=cpu", "model.placement=pre,post",
    "schedule.warmup_steps=0,10",
)  # fmt: skip
FLOOR = "imports alone"  # the subject of `floors`
SEEDS = 6
ROUNDS, QUICK_ROUNDS = 15, 3
TORCH = re.compile(r"\|\s+(torch(?:\.\S+)?)$", re.MULTILINE)  # a line of -X importtime
_HYDRA = """
import sys, hydra
from hydra.core.config_store import ConfigStore
from normstudy.config import RunConfig

ConfigStore.instance().store(name="normstudy_schema", node=RunConfig)
hydra.main(config_path=sys.argv.pop(1), config_name="config", version_base="1.3")(lambda _: None)()
"""


@dataclass(frozen=True)
class Start:
    """A command line, the exit code that it must have, and the most seconds that it may take."""

    case: str
    words: tuple[str, ...]
    code: int
    limit: float


def starts(folder: Path) -> list[Start]:
    """The commands that are measured; `folder` holds the study, and takes the figure."""
    study = str(folder / "start")
    return [
        Start("help", ("--help",), 0, 0.1),
        Start("help of run", ("run", "--help"), 0, 0.1),
        Start("unknown command", ("trian",), 2, 0.1),
        Start("run --cfg job", ("run", "--cfg", "job"), 0, 0.5),
        Start("bad override", ("run", "model.n_layer=3"), 2, 0.6),
        Start("compare", ("compare", study, "--by", "warmup_steps"), 0, 1.0),
        Start("first figure of plot", ("plot", study, "--only", "headline", "--out", str(folder / "figures")), 0, 1.5),
    ]


@dataclass(frozen=True)
class Floor:
    """What other packages take for their part of a command: the words of a Python process, and its exit code."""

    case: str
    what: str
    words: tuple[str, ...]
    code: int = 0


def floors(folder: Path, conf: Path) -> list[Floor]:
    """Of each command that is slow to start; `folder` holds the study, `conf` Hydra's files."""
    read = [f"pandas.read_parquet({str(folder / 'start' / 'tables' / table)!r})" for table in ("runs", "steps")]
    drawing = "import pandas, pyarrow.parquet, matplotlib.figure, matplotlib.backends.backend_agg"
    hydra = "Hydra alone, of the same files and schema"
    compared = "pandas and scipy alone, reading its tables"  # scipy has the quantile of Student's t
    return [
        Floor("run --cfg job", hydra, ("-c", _HYDRA, str(conf), "--cfg", "job")),
        Floor("bad override", hydra, ("-c", _HYDRA, str(conf), "model.n_layer=3"), 1),
        Floor("compare", compared, ("-c", f"import pandas, scipy.special; {'; '.join(read)}")),
        Floor("first figure of plot", "its imports alone", ("-c", drawing)),
    ]


def _goals() -> list[Goal]:
    goals = []
    for one in starts(Path()):
        goals.append(Goal("d", one.case, one.case, "seconds", "normstudy", sense="at most", limit=one.limit))
    for floor in floors(Path(), Path()):
        goals.append(Goal("d", floor.case, f"{floor.case}, limit: {floor.what}", "seconds", FLOOR))
    for one in starts(Path()):
        title = f"{one.case}: modules of torch"
        goals.append(Goal("d", one.case, title, "torch_modules", "normstudy", sense="at most", limit=0.0))
    return goals


GOALS = _goals()


def measure(scope: Scope) -> Iterator[Sample]:
    """The samples of row d."""
    from normstudy.app.compose import conf_dir

    train_study(scope.folder, SEEDS)
    measured = starts(scope.folder)
    for one in measured:
        yield Sample("d", one.case, "normstudy", "torch_modules", "", 0, len(torch_modules(one)))
    for r in range(QUICK_ROUNDS if scope.quick else ROUNDS):
        for one in measured:
            yield Sample("d", one.case, "normstudy", "seconds", "s", r, seconds(one))
        for floor in floors(scope.folder, conf_dir()):
            took = _timed([sys.executable, *floor.words], floor.code)
            yield Sample("d", floor.case, FLOOR, "seconds", "s", r, took)


def train_study(folder: Path, seeds: int) -> None:
    """Train the small study `folder / start`."""
    own = (f"results_dir={folder}", "study=start", f"seed=range(0,{seeds})")
    subprocess.run([*_python(), "sweep", *STUDY_WORDS, *own], check=True, capture_output=True)


def seconds(start: Start) -> float:
    """Wall time of one process."""
    return _timed([*_python(), *start.words], start.code)


def torch_modules(start: Start) -> list[str]:
    """The modules of torch that a command imports."""
    command = [*_python("-X", "importtime"), *start.words]
    ended = subprocess.run(command, capture_output=True, text=True)
    _check(command, ended, start.code)
    return TORCH.findall(ended.stderr)


def _timed(command: list[str], code: int) -> float:
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - began
    _check(command, ended, code)
    return took


def _check(command: list[str], ended: subprocess.CompletedProcess[str], code: int) -> None:
    """A crash must not be taken for a fast answer."""
    if ended.returncode != code:
        said = (ended.stdout + ended.stderr)[-2000:]
        raise RuntimeError(f"{shlex.join(command[1:])} ended with {ended.returncode}, not {code}\n{said}")


def _python(*flags: str) -> list[str]:
    return [sys.executable, *flags, "-m", "normstudy"]

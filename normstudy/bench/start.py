"""Row d: how long a command takes that trains nothing: wall times of real processes, one after the other in each round.

No such command may import torch, which takes a second by itself: each is run once with Python's own record of what is
imported (-X importtime), and the modules of torch in it are counted. That run also warms the system's file cache.
The study that `compare` and `plot` read is trained here: 2 placements, 2 warmups, 6 seeds, 20 steps.
"""

from __future__ import annotations

import re
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
SEEDS = 6
ROUNDS, QUICK_ROUNDS = 15, 3
TORCH = re.compile(r"\|\s+(torch(?:\.\S+)?)$", re.MULTILINE)  # a line of -X importtime
IMPORTS = {  # what a command cannot do without, of other packages
    "run --cfg job": "import hydra.main, hydra._internal.hydra, omegaconf",
    "bad override": "import hydra.main, hydra._internal.hydra, omegaconf",
    "compare": "import pandas, pyarrow.parquet",
    "first figure of plot": "import pandas, pyarrow.parquet, matplotlib.figure, matplotlib.backends.backend_agg",
}


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


def _goals() -> list[Goal]:
    goals = []
    for one in starts(Path()):
        goals.append(Goal("d", one.case, one.case, "seconds", "normstudy", sense="at most", limit=one.limit))
    for case in IMPORTS:
        goals.append(Goal("d", case, f"{case}, limit: its imports alone", "seconds", "imports alone"))
    for one in starts(Path()):
        title = f"{one.case}: modules of torch"
        goals.append(Goal("d", one.case, title, "torch_modules", "normstudy", sense="at most", limit=0.0))
    return goals


GOALS = _goals()


def measure(scope: Scope) -> Iterator[Sample]:
    """The samples of row d."""
    train_study(scope.folder, SEEDS)
    measured = starts(scope.folder)
    for one in measured:
        yield Sample("d", one.case, "normstudy", "torch_modules", "", 0, len(torch_modules(one)))
    for r in range(QUICK_ROUNDS if scope.quick else ROUNDS):
        for one in measured:
            yield Sample("d", one.case, "normstudy", "seconds", "s", r, seconds(one))
        for case, code in IMPORTS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            yield Sample("d", case, "imports alone", "seconds", "s", r, time.perf_counter() - began)


def train_study(folder: Path, seeds: int) -> None:
    """Train the small study `folder / start`."""
    own = (f"results_dir={folder}", "study=start", f"seed=range(0,{seeds})")
    subprocess.run([*_python(), "sweep", *STUDY_WORDS, *own], check=True, capture_output=True)


def seconds(start: Start) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    ended = subprocess.run([*_python(), *start.words], capture_output=True, text=True)
    took = time.perf_counter() - began
    _check(start, ended)
    return took


def torch_modules(start: Start) -> list[str]:
    """The modules of torch that a command imports."""
    ended = subprocess.run([*_python("-X", "importtime"), *start.words], capture_output=True, text=True)
    _check(start, ended)
    return TORCH.findall(ended.stderr)


def _check(start: Start, ended: subprocess.CompletedProcess[str]) -> None:
    """A crash must not be taken for a fast answer."""
    if ended.returncode != start.code:
        said = (ended.stdout + ended.stderr)[-2000:]
        raise RuntimeError(f"normstudy {' '.join(start.words)} ended with {ended.returncode}, not {start.code}\n{said}")


def _python(*flags: str) -> list[str]:
    return [sys.executable, *flags, "-m", "normstudy"]

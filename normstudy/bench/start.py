"""Row d: how long a command takes that trains nothing: wall times of real processes, one after the other in each round.

No such command may import torch, which takes a second by itself: each is run once with Python's own record of what is
imported (-X importtime), and the modules of torch in it are counted. That run also warms the system's file cache.
The study that `compare` and `plot` read is trained here: 2 placements, 2 warmups, 6 seeds, 20 steps.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from normstudy.bench.commands import NORMSTUDY, timed
from normstudy.bench.samples import Goal, Sample, Scope

STUDY_WORDS = (
    "data=synthetic", "data.seq_len=8", "data.batch_size=1", "model.n_layers=2", "model.d_model=8", "model.n_heads=2",
    "eval.windows=4", "schedule.n_steps=20", "execution.device=cpu", "model.placement=pre,post",
    "schedule.warmup_steps=0,10",
)  # fmt: skip
SEEDS = 6
ROUNDS, QUICK_ROUNDS = 15, 3
TORCH = re.compile(r"\|\s+(torch(?:\.\S+)?)$", re.MULTILINE)  # a line of -X importtime


class Start(NamedTuple):
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


GOALS = [
    Goal("d", s.case, s.case + words, metric, "normstudy", None, "at most", s.limit if metric == "seconds" else 0.0)
    for metric, words in (("seconds", ""), ("torch_modules", ": modules of torch"))
    for s in starts(Path())
]


def measure(scope: Scope) -> Iterator[Sample]:
    """The samples of row d."""
    timed([*NORMSTUDY, "sweep", *STUDY_WORDS, f"results_dir={scope.folder}", "study=start", f"seed=range(0,{SEEDS})"])
    measured = starts(scope.folder)
    for one in measured:
        yield Sample("d", one.case, "normstudy", "torch_modules", "", 0, len(torch_modules(one)))
    for r in range(QUICK_ROUNDS if scope.quick else ROUNDS):
        for one in measured:
            yield Sample("d", one.case, "normstudy", "seconds", "s", r, timed([*NORMSTUDY, *one.words], one.code)[0])


def torch_modules(start: Start) -> list[str]:
    """The modules of torch that a command imports."""
    command = [sys.executable, "-X", "importtime", "-m", "normstudy", *start.words]
    return TORCH.findall(timed(command, start.code)[1])

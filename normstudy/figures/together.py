"""A study's figures drawn by two processes: no figure depends on another, and matplotlib keeps one core busy.

Both know the same list and go through it from its two ends until as many were begun as it has. Never imports torch.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from normstudy.figures.draw import PlotResult

# Those that need no gradients first, those of the modules' last: each process then reads little that the other reads.
ORDER = (
    "training_loss", "loss_curves", "final_grid", "ranking", "residual_path", "headline", "gradient_profile",
    "heatmap", "gradient_ratio",
)  # fmt: skip
# As many figures, or tables of as many bytes, are drawn before a second process has imported what it needs.
FEW_FIGURES, FEW_BYTES = 2, 250_000


class Drawing(TypedDict):
    """What both processes give to `figures.plot_study`."""

    where: dict[str, str] | None
    fmt: str
    out: Path | None


def plot(
    study_dir: Path,
    *,
    where: dict[str, str] | None = None,
    fmt: str = "png",
    out: Path | None = None,
    only: list[str] | None = None,
) -> PlotResult:
    """`figures.plot_study`, with a second process where there is a core for it and enough to draw.

    For commands alone: a program that calls it must be one whose main module can be imported, as spawning asks. Of a
    study that is being trained the two may see different moments. Raises ConfigError, as `figures.plot_study` does.
    """
    names = _ordered(ORDER if only is None else only)
    drawing: Drawing = {"where": where, "fmt": fmt, "out": out}
    helper = None
    if len(names) > FEW_FIGURES and len(os.sched_getaffinity(0)) > 1 and _is_large(study_dir):
        with contextlib.suppress(OSError):  # no room for another process: then without
            helper = Helper(study_dir, names[::-1], drawing)
    try:
        result = _draw(study_dir, names, drawing, helper.claim if helper else None)
        if helper and len(result.found) < len(names):
            result.found |= helper.found()
    finally:
        if helper:
            helper.end()
    if missing := [name for name in names if name not in result.found]:  # the helper failed or was killed
        result.found |= _draw(study_dir, missing, drawing).found
    return _in_order(result, only)


def _ordered(names: tuple[str, ...] | list[str]) -> list[str]:
    """The names as in ORDER; those that are no figure, which drawing refuses, first."""
    return sorted(dict.fromkeys(names), key=lambda name: ORDER.index(name) if name in ORDER else -1)


def _in_order(result: PlotResult, only: list[str] | None) -> PlotResult:
    """The same, figures in the order in which they were asked for."""
    from normstudy.figures.draw import FIGURES

    result.found = {name: result.found[name] for name in only or FIGURES}
    return result


def _is_large(study_dir: Path) -> bool:
    """Whether a study's tables have more than FEW_BYTES."""
    size = 0
    with contextlib.suppress(OSError):  # a file that a sweep or a compaction has just replaced
        for path in (study_dir / "tables").rglob("*.parquet"):
            size += path.stat().st_size
            if size > FEW_BYTES:
                return True
    return False


def _draw(study_dir: Path, names: list[str], drawing: Drawing, claim: Callable[[], bool] | None = None) -> PlotResult:
    from normstudy.figures.draw import plot_study

    return plot_study(study_dir, only=names, claim=claim, **drawing)


class Helper:
    """The second process, which begins at once and never outlives this one. Raises OSError where there is no room."""

    def __init__(self, study_dir: Path, names: list[str], drawing: Drawing) -> None:
        context = multiprocessing.get_context("spawn")
        self.left, full = context.Pipe(duplex=False)  # a byte for each figure: whoever reads one draws one
        os.write(full.fileno(), bytes(len(names)))
        full.close()
        self.pipe, theirs = context.Pipe(duplex=False)
        arguments = (theirs, self.left, study_dir, names, drawing)
        self.process: SpawnProcess = context.Process(target=_help, args=arguments, daemon=True)
        resource_tracker.ensure_running()
        # The helper inherits the mask: Ctrl-C, which both get, must not end it with a traceback while it imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def claim(self) -> bool:
        """Whether a figure is left, which then is the caller's."""
        return _claim(self.left)

    def found(self) -> dict[str, Path | str]:
        """Wait for what it drew; nothing where it failed or was killed."""
        try:
            found: dict[str, Path | str] = self.pipe.recv()
        except EOFError:
            return {}
        return found

    def end(self) -> None:
        """End the process, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.left.close()


def _claim(left: Connection) -> bool:
    return len(os.read(left.fileno(), 1)) == 1


def _help(pipe: Connection, left: Connection, study_dir: Path, names: list[str], drawing: Drawing) -> None:
    """Draw, and send what came out; nothing after an error, which the parent will meet itself, and can tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    from normstudy.processes import die_with_parent

    threading.Thread(target=die_with_parent, daemon=True).start()
    gc.disable()  # as the commands do
    with contextlib.suppress(Exception):
        pipe.send(_draw(study_dir, names, drawing, partial(_claim, left)).found)

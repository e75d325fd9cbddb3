"""A study's figures drawn by two processes: no figure depends on another, and matplotlib keeps one core busy.

Both know the same list and go through it from its two ends until as many were begun as it has. Never imports torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normstudy.figures import PlotResult

# Those that need no gradients first, those of the modules' last: each process then reads little that the other reads.
ORDER = (
    "training_loss", "loss_curves", "final_grid", "ranking", "residual_path", "headline", "gradient_profile",
    "heatmap", "gradient_ratio",
)  # fmt: skip
# As many figures, or tables of as many bytes, are drawn before a second process has imported what it needs.
FEW_FIGURES, FEW_BYTES = 2, 250_000


def plot(
    study_dir: Path,
    *,
    where: dict[str, str] | None = None,
    fmt: str = "png",
    out: Path | None = None,
    only: list[str] | None = None,
) -> PlotResult:
    """`figures.plot_study`, with a second process where there is a core for it and enough to draw.

    For commands alone: a program that calls it must be one whose main module can be imported, as spawning asks.
    Raises ConfigError, as `figures.plot_study` does.
    """
    names = _ordered(ORDER if only is None else only)
    drawing: dict[str, object] = {"where": where, "fmt": fmt, "out": out}
    if len(names) <= FEW_FIGURES or len(os.sched_getaffinity(0)) < 2 or _size(study_dir) < FEW_BYTES:
        return _in_order(_draw(study_dir, names, drawing), only)
    helper = Helper(study_dir, names[::-1], drawing)
    try:
        result = _draw(study_dir, names, drawing, helper.claim)
        if missing := [name for name in names if name not in result.found]:
            # None where the second process was killed: what it had begun is drawn here
            result.found |= (helper.result() or _draw(study_dir, missing, drawing)).found
    finally:
        helper.end()
    return _in_order(result, only)


def _ordered(names: tuple[str, ...] | list[str]) -> list[str]:
    """The names as in ORDER; those that are no figure, which drawing refuses, first."""
    return sorted(dict.fromkeys(names), key=lambda name: ORDER.index(name) if name in ORDER else -1)


def _in_order(result: PlotResult, only: list[str] | None) -> PlotResult:
    """The same, figures in the order in which they were asked for."""
    from normstudy.figures import FIGURES

    result.found = {name: result.found[name] for name in only or FIGURES}
    return result


def _size(study_dir: Path) -> int:
    """Bytes of a study's tables."""
    return sum(entry.stat().st_size for entry in (study_dir / "tables").rglob("*.parquet"))


def _draw(
    study_dir: Path, names: list[str], drawing: dict[str, object], claim: Callable[[], bool] | None = None
) -> PlotResult:
    from normstudy.figures import plot_study

    return plot_study(study_dir, only=names, claim=claim, **drawing)  # type: ignore[arg-type]


class Helper:
    """The second process, which begins at once."""

    def __init__(self, study_dir: Path, names: list[str], drawing: dict[str, object]) -> None:
        context = multiprocessing.get_context("spawn")
        self.left, full = context.Pipe(duplex=False)  # a byte for each figure: whoever reads one draws one
        os.write(full.fileno(), bytes(len(names)))
        full.close()
        self.pipe, theirs = context.Pipe(duplex=False)
        arguments = (theirs, self.left, study_dir, names, drawing)
        self.process: SpawnProcess = context.Process(target=_help, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def claim(self) -> bool:
        """Whether a figure is left, which then is the caller's."""
        return _claim(self.left)

    def result(self) -> PlotResult | None:
        """Wait for what it drew; None where it was killed. Raises ConfigError where drawing does."""
        try:
            result: PlotResult | Exception = self.pipe.recv()
        except EOFError:
            return None
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        """End the process, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.left.close()


def _claim(left: Connection) -> bool:
    return len(os.read(left.fileno(), 1)) == 1


def _help(pipe: Connection, left: Connection, study_dir: Path, names: list[str], drawing: dict[str, object]) -> None:
    """Draw while the parent lives, and send what came out."""
    import gc

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent ends this process
    gc.disable()  # as the commands do
    parent = multiprocessing.parent_process()
    assert parent is not None
    result: PlotResult | Exception
    try:
        result = _draw(study_dir, names, drawing, lambda: parent.is_alive() and _claim(left))
    except Exception as error:  # whatever it is, it is the parent's to raise
        result = error
    with contextlib.suppress(BrokenPipeError):  # nobody is left to read it
        pipe.send(result)

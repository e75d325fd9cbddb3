"""Draw a study's figures in two processes: no figure depends on another, and matplotlib uses only one core."""

from __future__ import annotations

import contextlib
import gc
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from normstudy.processes import Child

if TYPE_CHECKING:
    from normstudy.figures.draw import PlotResult

# The first half of these figures does not need the table `modules`, so the processes read mostly different tables.
ORDER = (
    "training_loss", "loss_curves", "final_grid", "ranking", "residual_path", "headline", "gradient_profile",
    "heatmap", "gradient_ratio",
)  # fmt: skip
# Up to this many figures, or bytes of tables, one process is done before a second one would finish its imports.
FEW_FIGURES, FEW_BYTES = 2, 250_000


def plot(
    study_dir: Path,
    *,
    where: dict[str, str] | None = None,
    fmt: str = "png",
    out: Path | None = None,
    only: list[str] | None = None,
) -> PlotResult:
    """Draw as `draw.plot_study` does, but with a second process if there are two cores and much to draw.

    If the study is being trained, the two processes may read different states. Raises ConfigError as `plot_study` does.
    """
    names = sorted(dict.fromkeys(only or ORDER), key=lambda name: ORDER.index(name) if name in ORDER else -1)
    mine, child = names, None
    if len(names) > FEW_FIGURES and len(os.sched_getaffinity(0)) > 1 and _is_large(study_dir):
        half = (len(names) + 1) // 2
        with contextlib.suppress(OSError):  # if a second process cannot start, this one draws all figures
            child = Child(_draw, study_dir, names[half:], where, fmt, out)
            mine = names[:half]
    try:
        from normstudy.figures.draw import FIGURES, plot_study

        result = plot_study(study_dir, where=where, fmt=fmt, out=out, only=mine)
        if child is not None:
            with contextlib.suppress(EOFError, OSError):
                result.found |= child.pipe.recv()
    finally:
        if child is not None:
            child.close()
    if missing := [name for name in names if name not in result.found]:  # the second process failed or was killed
        result.found |= plot_study(study_dir, where=where, fmt=fmt, out=out, only=missing).found
    result.found = {name: result.found[name] for name in only or FIGURES}
    return result


def _is_large(study_dir: Path) -> bool:
    """Whether a study's tables have more than FEW_BYTES."""
    with contextlib.suppress(OSError):  # a sweep or a compaction may have just replaced a file
        return sum(path.stat().st_size for path in (study_dir / "tables").rglob("*.parquet")) > FEW_BYTES
    return False


def _draw(
    pipe: Connection, study_dir: Path, names: list[str], where: dict[str, str] | None, fmt: str, out: Path | None
) -> None:
    """Draw figures and send `found`, or nothing after an error: the parent then draws them and reports the error."""
    gc.disable()  # for speed: a short process has little garbage
    with contextlib.suppress(Exception):
        from normstudy.figures.draw import plot_study

        pipe.send(plot_study(study_dir, where=where, fmt=fmt, out=out, only=names).found)

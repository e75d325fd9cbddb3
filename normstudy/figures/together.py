"""Draw a study's figures in two processes, because matplotlib uses only one core."""

import contextlib
import gc
import os
import sys
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normstudy.errors import MissingRows, warn
from normstudy.processes import Child
from normstudy.search.settings import FILE

if TYPE_CHECKING:
    from normstudy.figures.draw import PlotResult

# Each process draws one half of these figures. The last three exist only in a search. Without them, only the first half
# reads the table `residual` and only the second half reads `modules`, so that no process reads both tables.
ORDER = (
    "training_loss", "loss_curves", "final_grid", "ranking", "residual_path", "headline", "gradient_profile",
    "heatmap", "gradient_ratio", "update_rms", "critical_depth", "critical_curve", "phase_map",
)  # fmt: skip
# One process draws everything if it is to draw at most FEW_FIGURES figures or if the study's tables have at most
# FEW_BYTES bytes, because starting a second process would take longer.
FEW_FIGURES, FEW_BYTES = 2, 250_000


def plot(study_dir: Path, *, only: list[str] | None = None, **options: Any) -> "PlotResult":
    """Draw figures as `draw.plot_study` does. Start a second process if there are two cores and much to draw.

    While a sweep writes the study, the two processes may read different numbers of runs. options: see `plot_study`.
    """
    every = ORDER if Path(study_dir, FILE).exists() else ORDER[:-3]  # the last three are figures of a search
    names = sorted(dict.fromkeys(only or every), key=lambda name: ORDER.index(name) if name in ORDER else -1)
    mine, child = names, None
    if len(names) > FEW_FIGURES and len(os.sched_getaffinity(0)) > 1 and _is_large(study_dir):
        half = (len(names) + 1) // 2
        with contextlib.suppress(OSError):  # if no second process can start, this process draws all figures
            child = Child(_draw, study_dir, names[half:], options)
            mine = names[:half]
    try:
        from normstudy.figures.draw import FIGURES, plot_study

        result = plot_study(study_dir, only=mine, **options)
        if child is not None:
            with contextlib.suppress(EOFError, OSError):
                drawn, warned = child.pipe.recv()
                result.add(drawn)
                for line in warned:
                    warn(line)
    except KeyboardInterrupt:
        print(f"interrupted: some figures are not drawn; to draw them: normstudy plot {study_dir}", file=sys.stderr)
        raise
    finally:
        if child is not None:
            child.close()
    if missing := [name for name in names if name not in result.found]:  # the second process failed or was killed
        result.add(plot_study(study_dir, only=missing, **options))
    result.found = {name: result.found[name] for name in only or FIGURES if name in result.found}
    return result


def _is_large(study_dir: Path) -> bool:
    """Return whether a study's tables have more than FEW_BYTES bytes."""
    with contextlib.suppress(OSError):  # if a file was just replaced, count the study as small
        return sum(path.stat().st_size for path in (study_dir / "tables").rglob("*.parquet")) > FEW_BYTES
    return False


def _draw(pipe: Connection, study_dir: Path, names: list[str], options: dict[str, Any]) -> None:
    """Draw figures in the second process, and send PlotResult and warnings to the first. On failure, send nothing."""
    gc.disable()  # garbage collection would cost time, and a short process has little garbage
    with contextlib.suppress(Exception), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", MissingRows)
        from normstudy.figures.draw import plot_study

        drawn = plot_study(study_dir, only=names, **options)
        pipe.send((drawn, [str(one.message) for one in warned if one.category is MissingRows]))

"""Helpers that read a figure back: its panels, lines, points and words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from normstudy.figures.draw import FIGURES, OF_SEARCH
from normstudy.study import tables

EVERY_STUDY = {name: make for name, make in FIGURES.items() if name not in OF_SEARCH}  # also those without a search


def panel(fig: Figure, title: str) -> Axes:
    """The one panel with this title."""
    found = [ax for ax in fig.axes if title in (ax.get_title(), ax.get_title(loc="left"))]
    assert len(found) == 1, [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes]
    return found[0]


def titles(fig: Figure) -> list[str]:
    return [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes if ax.get_label() != "<colorbar>"]


def drawn(ax: Axes, prefix: str) -> dict[str, Line2D]:
    """Rest of the id -> line, for the lines of a panel whose id begins with `prefix`."""
    return {
        str(line.get_gid())[len(prefix) :]: line for line in ax.get_lines() if str(line.get_gid()).startswith(prefix)
    }


def points(line: Line2D) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)  # type: ignore[arg-type]
    ]


def same(line: Line2D, x: Iterable[object], y: Iterable[object]) -> None:
    """Assert that a line goes through these points, to the precision of float32, in which tables are stored."""
    np.testing.assert_allclose(points(line), list(zip(x, y, strict=True)), rtol=1e-6)


def words(fig: Figure) -> str:
    return str(fig.get_suptitle()).replace("\n", " ")


def runs_of(folder: Path, **values: object) -> pd.DataFrame:
    """The finished runs with these values, read from the table `runs`."""
    runs = tables.read(folder, "runs")
    return having(runs[runs["status"] == "done"], **values)


def having(runs: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The runs with these values."""
    for column, value in values.items():
        runs = runs[runs[column] == value]
    return runs

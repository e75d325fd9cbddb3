"""Study how the placement of normalization layers affects the gradients and the training of a transformer."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure, SubFigure

    from normstudy.analysis.load import Tables
    from normstudy.analysis.select import Where
    from normstudy.report.make import Report

__version__ = "0.1.0"


def load(study_dir: Path | str, *, join: bool = False, where: Where = ()) -> Tables:
    """Read the four tables of a study as DataFrames. `normstudy.analysis.load.load` documents the arguments."""
    from normstudy.analysis.load import load as load_tables  # imported here to keep `import normstudy` fast

    return load_tables(study_dir, join=join, where=where)


def plot(
    study_dir: Path | str,
    figure: str = "headline",
    *,
    where: Where = (),
    width: float = 7.0,
    title: bool = True,
    module: str = "mlp_out",
    quantity: str = "grad_norm",
    into: Figure | SubFigure | None = None,
) -> Figure:
    """Draw a figure of a study, which a notebook shows and `savefig` writes. docs/figures.md lists the figures.

    width: inches. module, quantity: what figures of gradients show. into: a figure, or a part of one, to draw into.
    """
    from normstudy.figures import draw, paper

    return draw.drawn(study_dir, figure, where, paper.Paper(width, title, module, quantity, into))


def report(*study_dirs: Path | str, where: Where = ()) -> Report:
    """Make the page of one study or more, which a notebook shows and `save` writes. See `normstudy report --help`."""
    from normstudy.report.make import report as make_report

    return make_report(study_dirs, where)


def __getattr__(name: str) -> ModuleType:
    """Import `kernels` or `norms`, which need torch, only when a user's module asks for them."""
    if name in ("kernels", "norms"):
        return import_module(f"normstudy.model.{name}")
    raise AttributeError(f"module 'normstudy' has no attribute {name!r}")


class _Package(ModuleType):
    """Keep the function `report`, which the import of the room normstudy/report/ would replace by that module."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "report" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

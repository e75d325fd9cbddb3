"""Study how the placement of normalization layers affects the gradients and the training of a transformer."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from normstudy.analysis.load import Tables
    from normstudy.analysis.select import Where

__version__ = "0.1.0"


def load(study_dir: Path | str, *, join: bool = False, where: Where = ()) -> Tables:
    """Read the four tables of a study as DataFrames. `normstudy.analysis.load.load` documents the arguments."""
    from normstudy.analysis.load import load as load_tables  # imported here to keep `import normstudy` fast

    return load_tables(study_dir, join=join, where=where)


def __getattr__(name: str) -> ModuleType:
    """Import `kernels` or `norms`, which need torch, only when a user's module asks for them."""
    if name in ("kernels", "norms"):
        return import_module(f"normstudy.model.{name}")
    raise AttributeError(f"module 'normstudy' has no attribute {name!r}")

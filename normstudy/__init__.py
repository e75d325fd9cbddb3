"""Study how the placement of normalization layers affects the gradients and the training of a transformer.

    study = normstudy.sweep("quickstart", study="mine", seed=[0, 1])   # as `normstudy sweep` does
    study.tables.runs, study.plot("headline"), study.compare("warmup_steps"), study.report().save()

`normstudy.Study("results/warmup")` is a study that exists. docs/python.md explains the rest.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normstudy.analysis.load import load
    from normstudy.app.api import Study, compare, critical, plot, report, run, status, sweep
    from normstudy.config import RunConfig
    from normstudy.errors import ConfigError
    from normstudy.watch.watcher import Watch as watch

__version__ = "0.1.0"
__all__ = (
    "ConfigError", "RunConfig", "Study", "compare", "critical", "load", "plot", "report", "run", "status", "sweep",
    "watch",
)  # fmt: skip
_HOMES = {  # name -> module and name there; the others are in app.api
    "ConfigError": ("errors", "ConfigError"), "RunConfig": ("config", "RunConfig"), "load": ("analysis.load", "load"),
    "watch": ("watch.watcher", "Watch"),
}  # fmt: skip


def __getattr__(name: str) -> object:
    """Import what a program uses when it uses it: `kernels` and `norms`, which need torch, for a user's own blocks."""
    if name in ("kernels", "norms"):
        return import_module(f"normstudy.model.{name}")
    if name in __all__:
        module, there = _HOMES.get(name, ("app.api", name))
        return getattr(import_module(f"normstudy.{module}"), there)
    raise AttributeError(f"module 'normstudy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__", "kernels", "norms"]


class _Package(ModuleType):
    """Keep the functions `report` and `sweep` from being replaced by the modules of these names, once imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in __all__ or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

"""Study how the placement of normalization layers affects the gradients and the training of a transformer.

    study = normstudy.sweep("quickstart", study="mine", seed=[0, 1])   # as `normstudy sweep` does
    study.tables.runs, study.plot("headline"), study.compare("warmup_steps"), study.report().save()

    run(**keys)  sweep(experiment, ...)  critical(...)     train runs and return their Study
    Study(folder)  load(folder)                            open an existing study; read its tables
    status  compare  plot  report                          evaluate the study in a folder
    watch(model, optimizer, study="mine")                  record your own training loop
    RunConfig  ConfigError                                 a run's configuration; the error for a bad request

For details, see help(normstudy.sweep) etc., docs/python.md and docs/watch.md.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normstudy.analysis.load import load as load
    from normstudy.app.api import Study as Study
    from normstudy.app.api import compare as compare
    from normstudy.app.api import critical as critical
    from normstudy.app.api import plot as plot
    from normstudy.app.api import report as report
    from normstudy.app.api import run as run
    from normstudy.app.api import status as status
    from normstudy.app.api import sweep as sweep
    from normstudy.config import RunConfig as RunConfig
    from normstudy.errors import ConfigError as ConfigError
    from normstudy.watch.watcher import Watch as watch  # noqa: F401

__version__ = "0.1.0"
_API = ("Study", "compare", "critical", "plot", "report", "run", "status", "sweep")
_HOMES = {name: ("app.api", name) for name in _API} | {  # no __all__: help(normstudy) would then print whole classes
    "ConfigError": ("errors", "ConfigError"), "RunConfig": ("config", "RunConfig"), "load": ("analysis.load", "load"),
    "watch": ("watch.watcher", "Watch"),
}  # fmt: skip


def __getattr__(name: str) -> object:
    """Import a public name on first use. `kernels` and `norms` are modules for your own blocks; both need torch."""
    if name in ("kernels", "norms"):
        return import_module(f"normstudy.model.{name}")
    if name in _HOMES:
        module, there = _HOMES[name]
        return getattr(import_module(f"normstudy.{module}"), there)
    raise AttributeError(f"module 'normstudy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_HOMES, "__version__", "kernels", "norms"]


class _Package(ModuleType):
    """Keep the functions `report` and `sweep`. Importing the subpackages of the same names must not replace them."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

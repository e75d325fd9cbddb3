"""Define the Hydra plugins `hydra/launcher=normstudy` and `hydra/sweeper=normstudy`.

This file is installed as `hydra_plugins.normstudy`. An editable install copies the file, and the copy does not follow
later changes. All logic is therefore in `normstudy.app.jobs`.
"""

# No `from __future__ import annotations` here: Hydra cannot resolve string annotations of a dataclass.
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LauncherConf:
    _target_: str = "hydra_plugins.normstudy.NormstudyLauncher"


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.normstudy.NormstudySweeper"
    params: dict[str, str] | None = None  # dotted key -> values in command-line syntax


ConfigStore.instance().store(group="hydra/launcher", name="normstudy", node=LauncherConf, provider="normstudy")
ConfigStore.instance().store(group="hydra/sweeper", name="normstudy", node=SweeperConf, provider="normstudy")


class NormstudyLauncher(Launcher):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.parts = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from normstudy.app.jobs import launch

        return launch(*self.parts, job_overrides, initial_job_idx)


class NormstudySweeper(Sweeper):
    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.parts = hydra_context, task_function, config, launcher

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        from normstudy.app.jobs import sweep

        return sweep(*self.parts, self.params, arguments)

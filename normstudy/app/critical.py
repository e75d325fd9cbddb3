"""Run `normstudy critical`: for each Hydra job, search for the value of one key at which half of the runs fail."""

from collections.abc import Callable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from normstudy.app.plan import Planner
from normstudy.config import short_float
from normstudy.errors import ConfigError
from normstudy.search import settings as kept
from normstudy.search.settings import Settings, find
from normstudy.study import locks
from normstudy.study.records import Request
from normstudy.sweep import critical, planning
from normstudy.sweep.critical import Asked
from normstudy.sweep.execute import execute
from normstudy.sweep.on_slurm import execute_on_slurm
from normstudy.sweep.planning import Plan

Launch = Callable[[Sequence[Sequence[str]]], object]  # trains jobs, each a list of overrides


def search(
    planner: Planner, cells: Sequence[Sequence[str]], launch: Launch | None, request: Request, *, dry_run: bool
) -> None:
    """Search the critical values of all cells (lists of overrides). launch: another launcher (None: normstudy's)."""
    configs = planner.plan(cells)
    axis = find(configs[0].search.of)
    group, _, name = axis.key.partition(".")
    for given in OverridesParser.create().parse_overrides(list({word for cell in cells for word in cell})):
        value = given.value()
        inside = given.key_or_group == group and isinstance(value, dict) and name in value
        if inside or given.key_or_group == axis.key:
            raise ConfigError(f"{axis.key} is set, but the search chooses its values: leave out {axis.key}")
    rest = [[word for word in cell if word.partition("=")[0] != "seed"] for cell in cells]

    def words(asked: Asked) -> list[str]:
        value = str(int(asked.run.value)) if axis.whole else short_float(asked.run.value)
        return [*rest[asked.cell], f"{axis.key}={value}", f"seed={asked.run.seed}"]

    def train(planned: Plan, asked: Sequence[Asked], settings: Settings | None, about: str) -> None:
        if launch is not None:
            planning.refuse_slurm(planned)
            if settings is not None:
                with locks.hold_study(planned.study_dir, str(request["command"]), shared=True):
                    kept.keep(planned.study_dir, settings)
            missing = {*planned.missing} - {*planned.given_up}
            launch([words(one) for one, i in zip(asked, planned.ids, strict=True) if i in missing])
        elif planned.on_slurm:
            execute_on_slurm(planned, {**request, "search": settings}, detach=False)
        else:
            execute(planned, {**request, "search": settings}, about=about)

    critical.run_search(configs, lambda asked: planner.plan([*map(words, asked)]), train, dry_run=dry_run)

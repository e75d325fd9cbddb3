"""Search critical values: train round after round, until every cell is decided, and print the answer.

Each round is an ordinary sweep. The outcomes in the study's tables determine which runs the undecided cells need next.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from normstudy.config import RunConfig
from normstudy.errors import ConfigError, say
from normstudy.search import settings as kept
from normstudy.search import simulate
from normstudy.search.answer import critical_values, render
from normstudy.search.rounds import COUNTS_AS, CRASHED, Progress, Run, repeat_seeds, replay
from normstudy.search.settings import Settings
from normstudy.study import locks
from normstudy.sweep import planning
from normstudy.sweep.execute import RunsFailed
from normstudy.sweep.planning import Plan
from normstudy.sweep.run import draw
from normstudy.workers import progress


class Asked(NamedTuple):
    """A run that a cell needs. cell: index of the cell."""

    cell: int
    run: Run


Compose = Callable[[Sequence[Asked]], list[RunConfig]]  # returns the configuration of each run
# Trains a round, and first stores the search's settings unless they are None. The str is shown before the progress.
Train = Callable[[Plan, Sequence[Asked], Settings | None, str], None]


class Search:
    """The cells of a search, and the outcomes known so far. settings: the search's settings, which all cells share."""

    def __init__(self, cells: Sequence[RunConfig], compose: Compose) -> None:
        asked = kept.settings_of(cells)
        self.study_dir = Path(cells[0].results_dir) / cells[0].study
        self.n_cells, self.compose = len(cells), compose
        self.outcomes = [dict[Run, str]() for _ in cells]
        # Check two runs: lowest value and first seed, highest value and last seed. If both are valid, all runs are.
        ends = Run(asked.low, asked.seed), Run(asked.high, repeat_seeds(asked)[-1])
        runs = [config for run in ends for config in compose([Asked(i, run) for i in range(self.n_cells)])]
        self.settings = asked._replace(alike=kept.alike(runs))

    def progress(self) -> list[Progress]:
        return [replay(self.settings, known.get) for known in self.outcomes]

    def wanted(self) -> list[Asked]:
        return [Asked(i, run) for i, cell in enumerate(self.progress()) for run in cell.wanted]

    def plan(self, asked: Sequence[Asked]) -> Plan:
        planned = planning.plan(self.compose(asked))
        if len(planned.runs) < len(asked):
            raise ConfigError("two cells of the search are the same: give every key distinct values")
        return planned

    def note(self, planned: Plan, asked: Sequence[Asked]) -> None:
        """Read the outcomes of a plan's runs from the tables into `outcomes`."""
        found = progress.outcomes_of(planned.study_dir, list(planned.ids))
        found |= dict.fromkeys(planned.given_up, CRASHED)
        for one, i in zip(asked, planned.ids, strict=True):
            self.outcomes[one.cell] |= {one.run: found[i]} if i in found else {}

    def n_known(self) -> int:
        return sum(map(len, self.outcomes))

    def decided(self) -> str:
        cells = self.progress()
        n = sum(set(cell.decided) == set(COUNTS_AS) for cell in cells)
        return f"{n} of {self.n_cells} cells decided"


def run_search(cells: Sequence[RunConfig], compose: Compose, train: Train, *, dry_run: bool) -> None:
    """Search the critical values of all cells. Raises RunsFailed if runs crash, after the last round.

    cells: one configuration per cell. Its seed is the search's first seed. Its value of the searched key is ignored.
    """
    search = Search(cells, compose)
    settings, study_dir = search.settings, search.study_dir
    kept.check_same(study_dir, settings)
    asked = search.wanted()
    planned = search.plan(asked)
    if dry_run:
        _print_expected(search, planned)
        return
    failure: RunsFailed | None = None
    trained, in_vain = 0, 0
    while asked:
        known = search.n_known()
        if planned.missing and not planned.is_sealed:
            try:
                train(planned, asked, None if trained else settings, search.decided())
            except RunsFailed as error:
                failure = error
            trained += sum(i not in planned.given_up for i in planned.missing)
            planned = search.plan(asked)
        search.note(planned, asked)
        in_vain = 0 if search.n_known() > known else in_vain + 1
        if in_vain >= planned.execution.max_tries:
            left = len(planned.missing)
            raise failure or RunsFailed(f"{left} runs of {study_dir} are not finished: rerun the command")
        if asked := search.wanted():
            planned = search.plan(asked)
    if kept.read(study_dir) is None and not planned.is_sealed:  # the file was removed, and no round wrote it again
        with locks.hold_study(study_dir, "normstudy critical", shared=True):
            kept.keep(study_dir, settings)
    _print_answer(search, trained)
    if failure is not None:
        raise failure


def _print_expected(search: Search, planned: Plan) -> None:
    settings, n = search.settings, search.n_cells
    expected = simulate.expected(settings)
    say(
        f"{search.study_dir.name}: {n} cells, {settings.of} from {settings.low:g} to {settings.high:g}; the first "
        f"round has {len(planned.runs)} runs, of which {len(planned.runs) - len(planned.missing)} are finished"
    )
    say(
        f"expected: about {round(n * expected.runs)} runs ({expected.runs:.0f} per cell) until the intervals are "
        f"narrower than {settings.width:g} decades; for the same expected error ({expected.error:.2g} decades), a "
        f"grid with {simulate.GRID_SEEDS} seeds per value needs about {round(n * expected.grid_runs)} runs "
        f"({expected.grid_runs:.0f} per cell)"
    )


def _print_answer(search: Search, new: int) -> None:
    settings = search.settings
    say(render(*critical_values(search.study_dir, settings=settings)))
    used, expected = search.n_known(), simulate.expected(settings)
    say(
        f"{used} runs, of which this command trained {new}; for the same expected error ({expected.error:.2g} "
        f"decades), a grid with {simulate.GRID_SEEDS} seeds per value needs about "
        f"{round(search.n_cells * expected.grid_runs)} runs"
    )
    if new and (damaged := draw(search.study_dir)) is not None:
        raise damaged
    say(f"tables, figures: {search.study_dir}    for one HTML page: normstudy report {search.study_dir}")

"""Row i: run-steps per second against plain loops that record as much as normstudy does at every step.

Row a's plain loop measures nothing. Here it takes at every step what normstudy records (recorded.py): the norms of
gradient, parameters and update of each module, of each x_l and of each dLoss/dx_l, and the loss. normstudy probes at
every step too, and writes its tables; the loop keeps its numbers in memory. Beside it stands the loop with one hook per
parameter as wandb.watch has, which records histograms of the gradients alone.

Each trains as in row a: normstudy in a batch per core, the loops in one single-threaded process per core. The goal is
this project's own: whoever records everything should lose no speed by normstudy at any shape, so at least 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from normstudy.bench.samples import Goal, Sample, Scope
from normstudy.bench.speed import CASES, Amount, Race, cases
from normstudy.bench.subjects import NORMSTUDY, Case, run_config, start_loop
from normstudy.config import ProbeConfig

EQUAL, HOOKS = "plain, equal information", "plain, hooks as wandb.watch has"
LINES = {
    EQUAL: ("recorded", "run-steps against one plain process per core that records the same numbers"),
    HOOKS: ("watched", "run-steps against one plain process per core with a hook per parameter, as wandb.watch has"),
}
GOALS = [
    Goal("i", case.name, title, "run_steps_per_s", NORMSTUDY, who, *(("at least", 1.0) if who == EQUAL else ()))
    for who, (_, title) in LINES.items()
    for case in CASES
]


def measure(scope: Scope) -> Iterator[Sample]:
    """Row i, on the CPU whatever the scope's device."""
    for case, amount, n in cases(scope):
        yield from measure_case(case, amount, n, scope)


def measure_case(case: Case, amount: Amount, n: int, scope: Scope) -> Iterator[Sample]:
    """All subjects at one shape, in rounds, on n cores."""
    with contextlib.ExitStack() as stack:
        race = Race("i", case, n, amount, stack)
        race.add_normstudy(ProbeConfig(every=1), scope)
        for subject, (loop, _) in LINES.items():
            race.add(subject, start_loop, [(loop, run_config(case, core)) for core in range(n)])
        for number in range(amount.rounds):
            yield from race.round(number)

"""Row a: run-steps per second on all cores, against the two habits of people who sweep, and against matrix products.

a1, a2: normstudy trains on one single-threaded worker per core, in the workers' environment, batches of as many runs as
a sweep of many runs puts in one (`runs_per_batch`; a small sweep has less of the gain), all norms at every step, probes
at the default density, and the tables written in the windows of a run of 600 steps. Its opponents train the loop of
plain.py, which measures nothing: in one process with all cores as its threads, one run after the other (what
`hydra -m` does), and in one single-threaded process per core (what a joblib launcher does). No subject evaluates.

Each subject's processes wait while the others are timed. In every round each subject has all cores for itself, for a
fixed number of steps that takes about as long for all. Its time is the wall's, from the common start until its last
process has finished. normstudy's spans are whole periods of its probes, and it begins beyond the dense first steps.
`busy_cores` is the processes' CPU time over that time: below the number of cores, something else used the machine.

a3: the time that the matrix products of a run-step need, each in the fastest way that this machine has (products.py),
over the time that a run-step takes.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from normstudy import config as cfg
from normstudy.bench.children import Answer, Child, Job, Work, together
from normstudy.bench.products import start_products
from normstudy.bench.samples import Goal, Sample, Scope
from normstudy.bench.subjects import (
    D32_L4, D64_L6, NORMSTUDY, WARM_UP, Case, run_config, runs_per_batch, start_loop, start_normstudy,
)  # fmt: skip

ALL_THREADS = "plain, all threads, one run after the other"
PER_CORE = "plain, one process per core"
PAUSE_SECONDS = 0.3  # between two spans: threads of a pool spin for up to 0.2 s after their last work

CASES = {  # and the goals of a1 and a2
    D32_L4: (4.5, 2.2), Case(64, 2, 8, 64): (2.5, 1.4), D64_L6: (2.4, 1.2), Case(64, 12, 8, 64): (2.0, 1.15),
    Case(128, 6, 16, 64): (1.3, 1.0),
}  # fmt: skip
TITLES = {
    ALL_THREADS: "a1 run-steps against the plain loop with all threads, one run after the other",
    PER_CORE: "a2 run-steps against one plain single-thread process per core",
}
A3 = "a3 share of the machine's matrix-product limit at the same shapes"
GOALS = [
    *(
        Goal("a", case.name, title, "run_steps_per_s", NORMSTUDY, opponent, "at least", least[i])
        for i, (opponent, title) in enumerate(TITLES.items())
        for case, least in CASES.items()
    ),
    Goal("a", D64_L6.name, A3, "share_of_limit", NORMSTUDY, None, "at least", 0.6),
]


class Amount(NamedTuple):
    """How long to measure: rounds, seconds of a subject's span in each, milliseconds of each product.

    most_runs: of a batch, as a span of normstudy's is a whole period of its probes for all of them.
    """

    rounds: int
    seconds: float
    product_ms: int
    most_runs: int = cfg.INT_MAX


def cases(scope: Scope) -> Iterator[tuple[Case, Amount, int]]:
    """The shapes of a measurement, how long each is measured, and the cores."""
    for case in (D32_L4, D64_L6) if scope.quick else CASES:
        yield case, Amount(2, 1.0, 3, most_runs=16) if scope.quick else Amount(5, 3.0, 15), len(os.sched_getaffinity(0))


def measure(scope: Scope) -> Iterator[Sample]:
    """Row a, on the CPU whatever the scope's device."""
    for case, amount, n in cases(scope):
        yield from measure_case(case, amount, n, scope)


def measure_case(case: Case, amount: Amount, n: int, scope: Scope) -> Iterator[Sample]:
    """All subjects at one shape, in rounds, on n cores."""
    with contextlib.ExitStack() as stack:
        race, singles = Race("a", case, n, amount, stack), [("plain", run_config(case, core)) for core in range(n)]
        race.add_normstudy(cfg.ProbeConfig(dense_steps=0), scope)
        race.add(ALL_THREADS, start_loop, singles[:1], threads=n)
        race.add(PER_CORE, start_loop, singles)
        job = run_config(case), race.runs
        makers = [race.crew(start_products, [job] * n, like_worker=w) for w in (True, False) if case == D64_L6]
        for number in range(amount.rounds):
            rates = yield from race.round(number)
            if makers:
                by_core = [together(crew, amount.product_ms)[1] for crew in makers]
                means = [{name: statistics.fmean(s[name] for s in cores) for name in cores[0]} for cores in by_core]
                best = sum(min(seconds[name] for seconds in means) for name in means[0])
                share = best * rates[NORMSTUDY] / n
                yield Sample("a", case.name, NORMSTUDY, "share_of_limit", "1", number, share)


class Race:
    """Subjects at one shape, of which each in its turn has all n cores. Their processes end with the stack."""

    def __init__(self, row: str, case: Case, n: int, amount: Amount, stack: contextlib.ExitStack) -> None:
        self.row, self.case, self.n, self.seconds, self.stack = row, case, n, amount.seconds, stack
        self.runs = min(runs_per_batch(case), amount.most_runs)  # of a batch of normstudy's
        self.subjects: dict[str, tuple[list[Child[float]], int]] = {}  # processes, and the steps of a span

    def crew(
        self, start: Callable[[Job], Work[Answer]], jobs: Sequence[Job], *, like_worker: bool, threads: int = 1
    ) -> list[Child[Answer]]:
        """A process for each job."""
        crew = [Child(start, job, like_worker=like_worker, threads=threads) for job in jobs]
        for child in crew:
            self.stack.callback(child.close)
        return crew

    def add(
        self, subject: str, start: Callable[[Job], Work[float]], jobs: Sequence[Job], *, like_worker: bool = False,
        threads: int = 1, period: int = 1,
    ) -> None:  # fmt: skip
        """Start a subject, a process for each job, and choose the steps of its spans: whole periods."""
        crew = self.crew(start, jobs, like_worker=like_worker, threads=threads)
        together(crew, WARM_UP)
        taken, _ = together(crew, WARM_UP)
        self.subjects[subject] = crew, period * max(1, round(self.seconds * WARM_UP / taken / period))

    def add_normstudy(self, probe: cfg.ProbeConfig, scope: Scope) -> None:
        """Start normstudy with a batch per core, whose tables go to the scope's folder."""
        jobs = []
        for core in range(self.n):
            batch = [run_config(self.case, core * self.runs + r, probe=probe) for r in range(self.runs)]
            jobs.append((batch, scope.folder / self.case.name / str(core)))
        self.add(NORMSTUDY, start_normstudy, jobs, like_worker=True, period=probe.every)

    def round(self, number: int) -> Generator[Sample, None, dict[str, float]]:
        """Time every subject once, in every second round in the other order; run-steps per second of each."""
        yield Sample(self.row, self.case.name, NORMSTUDY, "runs_per_batch", "1", number, self.runs)
        rates = {}
        for subject in self.subjects if number % 2 == 0 else reversed(self.subjects):
            crew, steps = self.subjects[subject]
            time.sleep(PAUSE_SECONDS)
            span, cpu = together(crew, steps)
            rates[subject] = steps * len(crew) * (self.runs if subject == NORMSTUDY else 1) / span
            yield Sample(self.row, self.case.name, subject, "run_steps_per_s", "1/s", number, rates[subject])
            yield Sample(self.row, self.case.name, subject, "busy_cores", "1", number, sum(cpu) / span)
        return rates

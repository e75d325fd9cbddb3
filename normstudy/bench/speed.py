"""Row a: run-steps per second on all cores, against the two habits of people who sweep and the machine's limit.

a1, a2: normstudy trains on one single-threaded worker per core, in the workers' environment, batches of as many runs as
a sweep of many runs puts in one (`runs_per_batch`; a small sweep has less of the gain), all norms at every step, probes
at the default density, and the tables written in the windows of a run of 600 steps. Its opponents train the loop of
plain.py, which measures nothing: in one process with all cores as its threads, one run after the other (what
`hydra -m` does), and in one single-threaded process per core (what a joblib launcher does). Nobody evaluates.

Each subject's processes wait while the others are timed. In every round each subject has all cores for itself, for a
fixed number of steps that takes about as long for all; its time is the wall's, from the common start until its last
process is through. normstudy's spans are whole periods of its probes, and it begins beyond the dense first steps.
`busy_cores`, their CPU time over that time, tells whether they had the machine: anything below all cores is another's.

a3: the time that the matrix products of a run-step need at the best rate that this machine reaches at just these
shapes (products.py), over the time that a run-step takes. On AMD OpenBLAS and oneDNN are up to twice as fast as the
MKL behind torch.bmm, so the share of torch.bmm's own rate stands beside a3, without a goal.

Limits, of a loop that would do nothing but: the products, each in its fastest way; all operations of the step, each
alone with its numbers in a cache; all operations as they run in the step, without the Python around them
(operations.py). Each is measured in every round, on all cores at once, like the subjects.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normstudy import config as cfg
from normstudy.bench.children import Answer, Child, Job, Work, together
from normstudy.bench.products import BMM, fastest, pieces, start_products
from normstudy.bench.samples import Goal, Sample, Scope
from normstudy.bench.subjects import (  # fmt: skip
    D32_L4,
    D64_L6,
    NORMSTUDY,
    WARM_UP,
    Case,
    cores,
    run_config,
    runs_per_batch,
    start_normstudy,
    start_plain,
)
from normstudy.config import RunConfig

if TYPE_CHECKING:
    from normstudy.bench.operations import Seconds

ALL_THREADS = "plain, all threads, one run after the other"
PER_CORE = "plain, one process per core"
PAUSE_SECONDS = 0.3  # between two spans: threads of a pool spin for up to 0.2 s after their last work
BEST, ALONE, IN_STEP = "best products", "operations alone", "operations in the step"

# Case, and the goals of a1 and a2.
GOALS_OF_CASES = [
    (D32_L4, 4.5, 2.2),
    (Case(64, 2, 8, 64), 2.5, 1.4),
    (D64_L6, 2.4, 1.2),
    (Case(64, 12, 8, 64), 2.0, 1.15),
    (Case(128, 6, 16, 64), 1.3, 1.0),
]
LIMITS = [
    ("a1", ALL_THREADS, IN_STEP, "the step's operations without its Python"),
    ("a1", ALL_THREADS, ALONE, "the step's operations, each alone in a cache"),
    ("a2", PER_CORE, IN_STEP, "the step's operations without its Python"),
    ("a2", PER_CORE, ALONE, "the step's operations, each alone in a cache"),
    ("a2", PER_CORE, BEST, "the matrix products, each at this machine's best rate"),
]
GOALS = [
    *(
        Goal("a", case.name, "a1 run-steps against the plain loop with all threads, one run after the other",
             "run_steps_per_s", NORMSTUDY, ALL_THREADS, "at least", least)
        for case, least, _ in GOALS_OF_CASES
    ),
    *(
        Goal("a", case.name, "a2 run-steps against one plain single-thread process per core",
             "run_steps_per_s", NORMSTUDY, PER_CORE, "at least", least)
        for case, _, least in GOALS_OF_CASES
    ),
    *(
        Goal("a", case.name, f"{part} limit: {what}", "run_steps_per_s", subject, opponent)
        for part, opponent, subject, what in LIMITS
        for case, _, _ in GOALS_OF_CASES
    ),
    Goal("a", D64_L6.name, "a3 share of the machine's matrix-product limit at the same shapes",
         "share_of_limit", NORMSTUDY, None, "at least", 0.6),
    Goal("a", D64_L6.name, "a3 limit: that share for the step's operations without its Python",
         "share_of_limit", IN_STEP),
    Goal("a", D64_L6.name, "a3 limit: that share for the step's operations, each alone in a cache",
         "share_of_limit", ALONE),
    Goal("a", D64_L6.name, "a3 share of torch.bmm's rate at the same shapes", "share_of_torch_bmm", NORMSTUDY),
]  # fmt: skip


# ---- the row ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amount:
    """How long to measure: rounds, seconds of a subject's span in each, milliseconds of each product and operation.

    operation_ms: None leaves the operations out.

    most_runs: of a batch, as a span of normstudy's is a whole period of its probes for all of them.
    """

    rounds: int
    seconds: float
    product_ms: int
    operation_ms: int | None = None
    most_runs: int = cfg.INT_MAX


def measure(scope: Scope) -> Iterator[Sample]:
    """Row a, on the CPU whatever the scope's device."""
    if scope.quick:
        cases, amount = [D32_L4, D64_L6], Amount(rounds=2, seconds=1, product_ms=3, most_runs=16)
    else:
        cases, amount = (
            [case for case, _, _ in GOALS_OF_CASES],
            Amount(rounds=5, seconds=3, product_ms=15, operation_ms=3),
        )
    for case in cases:
        with_products = not scope.quick or case == D64_L6
        yield from measure_case(case, amount, cores(), scope.folder / case.name, with_products=with_products)


def measure_case(case: Case, amount: Amount, n: int, folder: Path, *, with_products: bool) -> Iterator[Sample]:
    """All subjects at one shape, in rounds, on n cores; normstudy's tables go to a folder."""
    config = run_config(case)
    runs = min(runs_per_batch(config), amount.most_runs)
    with contextlib.ExitStack() as stack:

        def crew(
            start: Callable[[Job], Work[Answer]], jobs: Sequence[Job], *, like_worker: bool, threads: int = 1
        ) -> list[Child[Answer]]:
            children = [Child(start, job, like_worker=like_worker, threads=threads) for job in jobs]
            for child in children:
                stack.callback(child.close)
            return children

        batches = [
            ([run_config(case, seed=core * runs + r) for r in range(runs)], folder / str(core)) for core in range(n)
        ]
        singles = [run_config(case, seed=core) for core in range(n)]
        crews = {
            NORMSTUDY: crew(start_normstudy, batches, like_worker=True),
            ALL_THREADS: crew(start_plain, singles[:1], like_worker=False, threads=n),
            PER_CORE: crew(start_plain, singles, like_worker=False),
        }
        makers = [
            crew(start_products, [(config, runs)] * n, like_worker=like_worker)
            for like_worker in (True, False)
            if with_products
        ]
        operators: list[Child[Seconds]] = []
        if amount.operation_ms is not None:
            operators = crew(start_operations, [(c, f / "operations") for c, f in batches], like_worker=True)

        for children in crews.values():
            together(children, WARM_UP)
        for products_of in makers:
            together(products_of, 1)
        if operators:
            together(operators, 1)
        steps = {subject: steps_of_span(children, amount.seconds) for subject, children in crews.items()}
        steps[NORMSTUDY] = config.probe.every * max(1, round(steps[NORMSTUDY] / config.probe.every))
        run_steps = {NORMSTUDY: runs * n, ALL_THREADS: 1, PER_CORE: n}  # of a step of the whole crew
        for number in range(amount.rounds):
            yield Sample("a", case.name, NORMSTUDY, "runs_per_batch", "1", number, runs)
            spans = {}
            for subject in crews if number % 2 == 0 else reversed(crews):
                time.sleep(PAUSE_SECONDS)
                spans[subject], cpu = together(crews[subject], steps[subject])
                rate = steps[subject] * run_steps[subject] / spans[subject]
                yield Sample("a", case.name, subject, "run_steps_per_s", "1/s", number, rate)
                yield Sample("a", case.name, subject, "busy_cores", "1", number, sum(cpu) / spans[subject])
            run_step = spans[NORMSTUDY] / (steps[NORMSTUDY] * runs)  # seconds of one core
            best = None
            if makers:
                timed = [mean_over_cores(together(children, amount.product_ms)[1]) for children in makers]
                best, bmm = fastest(timed)
                yield Sample("a", case.name, BEST, "run_steps_per_s", "1/s", number, n / best)
                yield from shares(config, case.name, number, run_step, best, bmm)
            if amount.operation_ms is not None:
                seconds = together(operators, amount.operation_ms)[1]
                in_step, alone = (statistics.fmean(of) for of in zip(*seconds, strict=True))
                yield Sample("a", case.name, IN_STEP, "run_steps_per_s", "1/s", number, n / in_step)
                yield Sample("a", case.name, ALONE, "run_steps_per_s", "1/s", number, n / alone)
                if best is not None:
                    yield Sample("a", case.name, IN_STEP, "share_of_limit", "1", number, best / in_step)
                    yield Sample("a", case.name, ALONE, "share_of_limit", "1", number, best / alone)


def start_operations(job: tuple[list[RunConfig], Path]) -> Work[Seconds]:
    """operations.start, which the parent does not import: it imports torch."""
    from normstudy.bench import operations

    return operations.start(job)


def steps_of_span(children: Sequence[Child[Answer]], seconds: float) -> int:
    """How many steps take about so long."""
    time.sleep(PAUSE_SECONDS)
    taken, _ = together(children, WARM_UP)
    return max(1, round(seconds * WARM_UP / taken))


def mean_over_cores(timed: Sequence[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Of what each core took while all were at it."""
    return {key: statistics.fmean(seconds[key] for seconds in timed) for key in timed[0]}


def shares(config: RunConfig, case: str, number: int, run_step: float, best: float, bmm: float) -> Iterator[Sample]:
    """Rates and shares of a round, from the seconds of a run-step and of its products."""
    from normstudy.data import texts

    flops = sum(piece.flops for piece in pieces(config, texts.load(config.data).vocab_size))
    for subject, seconds in ((NORMSTUDY, run_step), (BEST, best), (BMM, bmm)):
        yield Sample("a", case, subject, "product_gflop_per_s_core", "GFLOP/s", number, flops / seconds / 1e9)
    yield Sample("a", case, NORMSTUDY, "share_of_limit", "1", number, best / run_step)
    yield Sample("a", case, NORMSTUDY, "share_of_torch_bmm", "1", number, bmm / run_step)

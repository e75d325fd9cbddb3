"""Row b: what measuring costs. A step of a batch with all norms and probes, against the same step with none.

On: the probes at every step, and at the default density (the norms that they are made of are taken at every step
either way). Off: train_batch(probing=False), which takes no norm at all and gives the losses alone. All three train the
same runs in one process like a sweep's workers, step by step in turn, by its CPU time. A round is one whole period
of the default density.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from normstudy.bench.children import in_worker
from normstudy.bench.samples import Goal, Sample, Scope
from normstudy.bench.subjects import D32_L4, D64_L6, WARM_UP, Case, cpu_seconds, run_config, runs_per_batch
from normstudy.config import ProbeConfig, RunConfig

if TYPE_CHECKING:
    from normstudy.training.batch import Event

OFF, EVERY_STEP, DEFAULT = "all probes off", "all probes on, every step", "all probes on, default density"
CASES = (D32_L4, D64_L6)
GOALS = [
    Goal("b", case.name, f"{title} against all off", "ms_per_run_step", subject, OFF, "at most", 1.05)
    for case in CASES
    for subject, title in ((EVERY_STEP, "all probes on at every step"), (DEFAULT, "all probes on at default density"))
]


def measure(scope: Scope) -> Iterator[Sample]:
    """Row b, on the CPU whatever the scope's device."""
    for case, rounds in ((D32_L4, 2),) if scope.quick else ((D32_L4, 9), (D64_L6, 7)):
        yield from in_worker(measure_case, (case, runs_per_batch(run_config(case)), rounds))


def subjects(case: Case, runs: int) -> dict[str, Iterator[Event]]:
    """The same runs three times: nothing measured, all at every step, all at the default density."""
    from normstudy.data import texts
    from normstudy.training import batch as train

    text = texts.load(run_config(case).data)

    def batch(probe: ProbeConfig) -> list[RunConfig]:
        return [run_config(case, r, probe=probe) for r in range(runs)]

    every, default = batch(ProbeConfig(every=1)), batch(ProbeConfig(dense_steps=0))
    return {
        OFF: train.train_batch(default, text, probing=False),
        EVERY_STEP: train.train_batch(every, text),
        DEFAULT: train.train_batch(default, text),
    }


def measure_case(job: tuple[Case, int, int]) -> Iterator[Sample]:
    """(shape, runs, rounds), in this process."""
    case, runs, rounds = job
    batches = subjects(case, runs)
    for records in batches.values():
        for _ in range(WARM_UP):
            next(records)
    period = ProbeConfig().every
    for number in range(rounds):
        spent = dict.fromkeys(batches, 0.0)
        for step in range(period):
            for name in batches if step % 2 == 0 else reversed(batches):
                spent[name] += cpu_seconds(lambda records=batches[name]: next(records), 1)  # type: ignore[misc]
        for name, seconds in spent.items():
            yield Sample("b", case.name, name, "ms_per_run_step", "ms", number, 1e3 * seconds / (period * runs))

"""Row h: runs that diverged leave their batch, the others speed up, and their records are not touched.

Half the runs of a batch without norms get a peak rate of 0.2, two hundred times the others': nothing is injected, they
train until float32 overflows. Measured in a process like a sweep's workers, all probes on at every step:

- for how many steps a run stays after its first non-finite number, and at which step that came;
- the CPU time of a step before the first of them overflows and after the last has left, beside the time of a batch
  of the survivors alone, stepped in turn with it. In theory it falls as the number of runs;
- whether every number that the survivors record is bitwise the one of the same run trained alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from normstudy.bench.children import in_worker
from normstudy.bench.samples import THEORY, Goal, Sample, Scope
from normstudy.bench.subjects import D32_L4, D64_L6, NORMSTUDY, WARM_UP, Case, run_config
from normstudy.config import ProbeConfig, RunConfig

if TYPE_CHECKING:
    from normstudy.training.batch import End, Event, Record
    from normstudy.training.probes import Array

RUNS = 8  # of a batch; half of them diverge
ABSURD_LR = 0.2
WARMUP_STEPS = 40  # so that the absurd rate is reached late enough to time the steps before
AFTER = 16  # steps that are timed after the last diverged run has left
PATIENCE = 200  # steps after which a batch that nobody leaves is given up

BEFORE, LATER, ALONE = "before they leave", "after they left", "the survivors alone"
GOALS = [
    goal
    for case in (D32_L4, D64_L6)
    for goal in (
        Goal("h", case.name, "steps in the batch after a run's first non-finite number", "steps_until_left", NORMSTUDY,
             None, "at most", 100),
        Goal("h", case.name, "step of that number", "nonfinite_step", NORMSTUDY),
        Goal("h", case.name, "speed-up of a step once they have left", "speed_up", NORMSTUDY),
        Goal("h", case.name, "a step once they have left against one of the survivors alone", "ms_per_step", LATER,
             ALONE, "at most", 1.1),
        Goal("h", case.name, "survivors bitwise the same runs alone: 1, else 0", "bitwise", NORMSTUDY,
             None, "at least", 1),
    )
]  # fmt: skip


def measure(scope: Scope) -> Iterator[Sample]:
    """Row h, on the CPU whatever the scope's device."""
    for case, rounds in ((D32_L4, 2),) if scope.quick else ((D32_L4, 5), (D64_L6, 3)):
        yield from in_worker(measure_case, (case, RUNS, rounds))


def configs(case: Case, runs: int) -> list[RunConfig]:
    """A batch in which every second run diverges."""
    base = [run_config(case, r, probe=ProbeConfig(every=1)) for r in range(runs)]
    return [
        replace(
            c,
            model=replace(c.model, placement="none"),
            schedule=replace(c.schedule, warmup_steps=WARMUP_STEPS, peak_lr=ABSURD_LR if r % 2 else c.schedule.peak_lr),
        )
        for r, c in enumerate(base)
    ]


@dataclass
class Watched:
    """What a batch did. ms: of each step in order, of it and of the survivors alone; ends: (End, steps it stayed)."""

    ms: list[tuple[float, float]] = field(default_factory=list)
    ends: list[tuple[End, int]] = field(default_factory=list)
    bitwise: bool = True


def measure_case(job: tuple[Case, int, int]) -> Iterator[Sample]:
    """(shape, runs, rounds), in this process."""
    case, runs, rounds = job
    for number in range(rounds):
        seen = watch(configs(case, runs))
        first = min(end.nonfinite_step or 0 for end, _ in seen.ends)
        last = len(seen.ms) - AFTER
        steps = {BEFORE: [ms for ms, _ in seen.ms[min(WARM_UP, first) : first + 1]],
                 LATER: [ms for ms, _ in seen.ms[last:]],
                 ALONE: [ms for _, ms in seen.ms[last:]]}  # fmt: skip
        typical = {subject: statistics.median(ms) for subject, ms in steps.items()}
        for subject, ms in typical.items():
            yield Sample("h", case.name, subject, "ms_per_step", "ms", number, ms)
        speed_up = typical[BEFORE] / typical[LATER]
        yield Sample("h", case.name, NORMSTUDY, "speed_up", "1", number, speed_up)
        yield Sample("h", case.name, THEORY, "speed_up", "1", number, runs / (runs - len(seen.ends)))
        worst = max(stayed for _, stayed in seen.ends)
        yield Sample("h", case.name, NORMSTUDY, "steps_until_left", "steps", number, worst)
        latest = max(end.nonfinite_step or 0 for end, _ in seen.ends)
        yield Sample("h", case.name, NORMSTUDY, "nonfinite_step", "step", number, latest)
        yield Sample("h", case.name, NORMSTUDY, "bitwise", "1", number, float(seen.bitwise))


def watch(batch: list[RunConfig]) -> Watched:
    """Train until every second run has left and some steps beyond, with the survivors together and each alone."""
    from normstudy.data import texts
    from normstudy.training import batch as train

    text = texts.load(batch[0].data)
    survivors = list(range(0, len(batch), 2))
    mixed = train.train_batch(batch, text)
    together = train.train_batch([batch[r] for r in survivors], text)
    alone = {r: train.train_batch([batch[r]], text) for r in survivors}
    seen = Watched()
    since_last = 0
    while since_last <= AFTER:  # the step at which runs leave also moves the others together
        record, ends, ms = next_record(mixed)
        _, _, ms_of_survivors = next_record(together)
        seen.ms.append((ms, ms_of_survivors))
        seen.ends += [(end, record.step - 1 - (end.nonfinite_step or 0)) for end in ends]
        for r, records in alone.items():
            one, _, _ = next_record(records)
            seen.bitwise &= r in record.runs and same(record, record.runs.index(r), one)
        since_last += len(seen.ends) == len(batch) - len(survivors)
        if record.step > PATIENCE:
            raise AssertionError(f"{len(seen.ends)} of {len(batch) - len(survivors)} runs left in {PATIENCE} steps")
    return seen


def next_record(records: Iterator[Event]) -> tuple[Record, list[End], float]:
    """The next step's record, the ends that came before it, and the CPU time of all that in ms."""
    from normstudy.training.batch import End, Record

    ends: list[End] = []
    before = time.process_time()
    while not isinstance(item := next(records), Record):
        assert isinstance(item, End)
        ends.append(item)
    return item, ends, 1e3 * (time.process_time() - before)


def numbers(record: Record) -> dict[str, Array]:
    """All that a record says of its runs, name -> (..., runs)."""
    out = {name: getattr(record, name) for name in ("train_loss", "grad_norm", "param_norm", "update_norm")}
    if record.val_loss is not None:
        out["val_loss"] = record.val_loss
    return out if record.probe is None else out | vars(record.probe)


def same(record: Record, i: int, one: Record) -> bool:
    """Whether the i-th run of a record has bitwise the numbers of a record of that run alone."""
    mine, theirs = numbers(record), numbers(one)
    return (record.step, record.lr[i], mine.keys()) == (one.step, one.lr[0], theirs.keys()) and all(
        mine[name][..., i].tobytes() == theirs[name][..., 0].tobytes() for name in mine
    )

"""Runs that diverge by themselves leave their batch at once, and nothing that the survivors record is touched.

Nothing is injected: every second run of a batch without norms gets a peak rate five hundred times the others', and
trains until float32 overflows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from normstudy.bench.subjects import Case, run_config
from normstudy.config import ProbeConfig, RunConfig
from normstudy.data import texts
from normstudy.training import batch as train
from normstudy.training.batch import End, Record
from normstudy.training.probes import Array

torch.set_num_threads(1)

TINY = Case(d_model=16, n_layers=4, batch_size=2, seq_len=8)
TEXT = texts.load(run_config(TINY).data)
AFTER = 16  # steps that the survivors take after the last diverged run has left


def configs(runs: int, lr: float = 1e-3) -> list[RunConfig]:
    """A batch in which every second run diverges, after a warmup."""
    base = [run_config(TINY, r, probe=ProbeConfig(every=1)) for r in range(runs)]
    rates = [0.5 if r % 2 else lr for r in range(runs)]
    return [
        replace(
            c, model=replace(c.model, placement="none"), schedule=replace(c.schedule, warmup_steps=10, peak_lr=rate)
        )
        for c, rate in zip(base, rates, strict=True)
    ]


def next_record(records: Iterator[Record | End]) -> tuple[Record, list[End]]:
    """The next step's record, and the ends that came before it."""
    ends = []
    while not isinstance(item := next(records), Record):
        ends.append(item)
    return item, ends


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


def test_diverged_runs_leave_within_100_steps_and_the_others_are_bitwise_the_same_runs_alone() -> None:
    batch = configs(4)
    mixed = train.train_batch(batch, TEXT)
    alone = {r: train.train_batch([batch[r]], TEXT) for r in (0, 2)}
    ended: dict[int, tuple[int, int]] = {}  # run -> step of its first number that is not finite, steps that it stayed
    since_last = 0
    while since_last <= AFTER:
        record, ends = next_record(mixed)
        for end in ends:
            assert end.nonfinite_step is not None
            ended[end.run] = end.nonfinite_step, record.step - 1 - end.nonfinite_step
        assert sorted([*record.runs, *ended]) == [0, 1, 2, 3]
        for r, records in alone.items():
            assert same(record, record.runs.index(r), next_record(records)[0])
        since_last += len(ended) == 2
        assert record.step < 200
    assert sorted(ended) == [1, 3]
    assert all(step > 0 and 0 <= stayed <= 100 for step, stayed in ended.values())


def second(batch: list[RunConfig]) -> Record:
    """The second step of some runs."""
    records = train.train_batch(batch, TEXT)
    next(records)
    return next_record(records)[0]


def test_one_other_bit_in_any_number_is_a_difference() -> None:
    survivors = configs(6)[::2]
    many, one = second(survivors), second(survivors[:1])
    assert same(many, 0, one)
    assert not same(many, 1, one)
    assert not same(many, 0, second(configs(1, lr=2e-3)))
    assert not same(many, 0, replace(one, probe=None))
    assert not same(many, 0, replace(one, step=3))
    assert one.probe is not None
    for name, values in numbers(one).items():
        other = values.copy()
        other.flat[-1] = np.nextafter(other.flat[-1], np.inf)
        of_probe = name in vars(one.probe)
        changed = replace(one, probe=replace(one.probe, **{name: other})) if of_probe else replace(one, **{name: other})
        assert not same(many, 0, changed), name

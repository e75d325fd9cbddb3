"""Row h: its runs diverge by themselves, leave, and a survivor's smallest difference would be seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from normstudy.bench import divergence
from normstudy.bench.divergence import AFTER, ALONE, BEFORE, LATER
from normstudy.bench.subjects import Case
from normstudy.data import texts
from normstudy.training import batch as train

torch.set_num_threads(1)

TINY = Case(d_model=16, n_layers=4, batch_size=2, seq_len=8)


def test_every_second_run_diverges_and_the_others_are_untouched() -> None:
    batch = divergence.configs(TINY, 5)
    seen = divergence.watch(batch)
    assert sorted(end.run for end, _ in seen.ends) == [1, 3]
    assert all(end.nonfinite_step is not None and 0 < end.nonfinite_step < divergence.PATIENCE for end, _ in seen.ends)
    assert all(0 <= stayed <= 100 for _, stayed in seen.ends)
    assert seen.bitwise
    last = max((end.nonfinite_step or 0) + stayed for end, stayed in seen.ends)
    assert len(seen.ms) == last + 1 + 1 + AFTER  # steps count from 0, and one more moves the others together


def records(runs: int, lr: float = 1e-3) -> train.Record:
    """The second step of some runs."""
    batch = divergence.configs(TINY, 2 * runs)[::2]
    batch = [dataclasses.replace(c, schedule=dataclasses.replace(c.schedule, peak_lr=lr)) for c in batch]
    found = train.train_batch(batch, texts.load(batch[0].data))
    next(found)
    record = next(found)
    assert isinstance(record, train.Record)
    return record


def test_one_other_bit_in_any_number_is_a_difference() -> None:
    many, one = records(3), records(1)
    assert divergence.same(many, 0, one)
    assert not divergence.same(many, 1, one)
    assert not divergence.same(many, 0, records(1, lr=2e-3))
    assert not divergence.same(many, 0, dataclasses.replace(one, probe=None))
    assert not divergence.same(many, 0, dataclasses.replace(one, step=3))
    assert many.probe is not None
    assert one.probe is not None
    for name, values in divergence.numbers(one).items():
        other = values.copy()
        other.flat[-1] = np.nextafter(other.flat[-1], np.inf)
        if name in vars(one.probe):
            changed = dataclasses.replace(one, probe=dataclasses.replace(one.probe, **{name: other}))
        else:
            changed = dataclasses.replace(one, **{name: other})
        assert not divergence.same(many, 0, changed), name


def test_every_line_of_the_table_is_measured() -> None:
    samples = list(divergence.measure_case((TINY, 4, 1)))
    values = {(s.subject, s.metric): s.value for s in samples}
    assert len(values) == len(samples)
    for goal in divergence.GOALS:
        assert (goal.subject, goal.metric) in values
        assert goal.opponent is None or (goal.opponent, goal.metric) in values
    before, later, alone = (values[subject, "ms_per_step"] for subject in (BEFORE, LATER, ALONE))
    assert min(before, later, alone) > 0
    assert values["normstudy", "speed_up"] == before / later
    assert values["theory", "speed_up"] == 2
    assert values["normstudy", "bitwise"] == 1

"""Row b: that one subject measures nothing, another everything, a third at the default density, of the same runs."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from normstudy.bench import probing
from normstudy.bench.probing import DEFAULT, EVERY_STEP, OFF
from normstudy.bench.subjects import Case
from normstudy.config import ProbeConfig
from normstudy.training import batch

torch.set_num_threads(1)

TINY = Case(d_model=16, n_layers=1, batch_size=2, seq_len=8)


def test_the_subjects_are_the_same_runs_and_differ_in_what_they_measure() -> None:
    period = ProbeConfig().every
    records = {name: list(itertools.islice(r, 2 * period)) for name, r in probing.subjects(TINY, runs=2).items()}
    probed, losses = {}, {}
    for name, steps in records.items():
        assert all(isinstance(r, batch.Record) for r in steps)
        probed[name] = sum(r.probe is not None for r in steps if isinstance(r, batch.Record))
        losses[name] = np.stack([r.train_loss for r in steps if isinstance(r, batch.Record)])
    assert probed == {OFF: 0, EVERY_STEP: 2 * period, DEFAULT: 2}
    assert np.array_equal(losses[OFF], losses[EVERY_STEP])
    assert np.array_equal(losses[OFF], losses[DEFAULT])


def test_every_goal_is_measured_in_every_round() -> None:
    samples = list(probing.measure_case((TINY, 2, 3)))
    assert {(s.case, s.metric, s.unit) for s in samples} == {("d16 L1", "ms_per_run_step", "ms")}
    assert sorted((s.subject, s.round) for s in samples) == sorted(
        itertools.product((OFF, EVERY_STEP, DEFAULT), range(3))
    )
    assert min(s.value for s in samples) > 0
    for goal in probing.GOALS:
        assert goal.case in [case.name for case in probing.CASES]
        assert (goal.subject, goal.opponent) in [(EVERY_STEP, OFF), (DEFAULT, OFF)]
        assert (goal.metric, goal.sense, goal.limit) == ("ms_per_run_step", "at most", 1.05)

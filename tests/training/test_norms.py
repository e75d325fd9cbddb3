"""Norms of float32 tensors are those of float64 from 1e-37 to 1e37, and ordinary ones keep the bits of torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import PROPERTY
from torch import Tensor

from normstudy.config import DataConfig, EvalConfig, ModelConfig, RunConfig, ScheduleConfig
from normstudy.data import texts
from normstudy.training import batch, probes, step
from normstudy.training.probes import layout_of

torch.set_num_threads(1)

TEXT = texts.load(DataConfig(name="synthetic"))
SIZES = (1, 3, 17, 400)  # numbers per run of the tensors of an example
PLAIN = torch.linalg.vector_norm
Rows = list[list[tuple[float, float]]]


@pytest.mark.parametrize(("d_model", "limit"), [(64, 1.3e-5), (512, 6e-4)])
def test_the_norm_of_equal_numbers_is_off_by_what_the_page_says(d_model: int, limit: float) -> None:
    """results/README.md; the largest module has 4 d_model^2 weights and 4 d_model biases."""
    off = []
    for value in (1e-2, 9.99e-3, 5.5e-3, 3e-3):
        equal = torch.full((1, 4 * d_model * (d_model + 1)), value)
        off.append(abs(float(probes.norms_by_run([equal])) / float(equal.double().norm()) - 1))
    assert limit / 2 < max(off) < limit


def tensors_of(rows: Rows, seed: int) -> list[Tensor]:
    """One tensor (runs, size) per size. rows[i][r]: the decades of the largest and the smallest numbers of a row.

    A third of the numbers is 0. A row is 0 if its largest decade is below the denormal numbers.
    """
    rng = np.random.default_rng(seed)
    made = []
    for size, of_runs in zip(SIZES, rows, strict=True):
        top, spread = np.array(of_runs).T[..., None]
        decades = top - spread * rng.random((len(of_runs), size))
        decades[:, 0] = top[:, 0]
        some = (rng.random(decades.shape) > 1 / 3) | (np.arange(size) == 0)
        signs = rng.choice([-1.0, 1.0], decades.shape)
        made.append(torch.from_numpy((signs * some * 10.0**decades).astype(np.float32)))
    return made


@st.composite
def examples(draw: st.DrawFn) -> list[Tensor]:
    """Tensors of one to four runs, whose rows lie anywhere in 70 decades, span up to 40, or are 0."""
    n_runs = draw(st.integers(1, 4))
    tops = st.one_of(st.floats(-37, 35.5), st.floats(-15.5, -14.5), st.floats(14, 15.5), st.just(-60.0))
    rows = st.lists(st.tuples(tops, st.floats(0, 40)), min_size=n_runs, max_size=n_runs)
    return tensors_of([draw(rows) for _ in SIZES], draw(st.integers(0, 2**32)))


def bits(x: Tensor) -> bytes:
    return x.numpy().tobytes()


@PROPERTY
@given(examples())
def test_norms_are_those_of_float64(tensors: list[Tensor]) -> None:
    norms = probes.norms_by_run(tensors)
    truth = torch.stack([PLAIN(x.double(), dim=1) for x in tensors])
    assert norms.dtype == torch.float32
    np.testing.assert_allclose(norms.double(), truth, rtol=3e-6, atol=0)
    rms = torch.stack([probes.rms_by_run([x])[0] for x in tensors])
    np.testing.assert_allclose(rms, truth / torch.tensor(SIZES)[:, None] ** 0.5, rtol=3e-6, atol=0)
    whole = PLAIN(truth, dim=0)
    np.testing.assert_allclose(probes.global_norm(step.to_numpy(norms)), whole, rtol=3e-6, atol=0)
    limits = torch.full((len(whole),), 0.5, dtype=torch.float64)
    clipped = (limits / (whole + 1e-6)).clamp(max=1)
    np.testing.assert_allclose(step.clip_factors(norms, limits), clipped, rtol=3e-6, atol=0)


@PROPERTY
@given(examples())
def test_ordinary_norms_keep_the_bits_of_torch_and_no_run_depends_on_another(tensors: list[Tensor]) -> None:
    norms = probes.norms_by_run(tensors)
    plain = torch.stack([PLAIN(x, dim=1) for x in tensors])
    ordinary = (plain >= 1e-15) & (plain <= 1e15)
    assert bits(norms[ordinary]) == bits(plain[ordinary])
    for r in range(norms.shape[1]):
        assert bits(probes.norms_by_run([x[r : r + 1] for x in tensors])[:, 0].clone()) == bits(norms[:, r].clone())
    for row, x in zip(norms, tensors, strict=True):
        assert bits(probes.norms_by_run([x])[0]) == bits(row)


def test_what_is_zero_infinite_or_nan_stays_so() -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([[0, 0, -0.0], [1e30, -inf, 0], [inf, nan, 1], [nan, 1e-30, 0], [3e38, 3e38, 3e38], [0, 3, 4]])
    for rows in (probes.norms_by_run([x]), probes.rms_by_run([x]) * 3**0.5):
        np.testing.assert_allclose(rows[0], [0, inf, nan, nan, inf, 5], rtol=1e-6)
    assert probes.rms_by_run([x])[0, 4] == pytest.approx(3e38)  # the norm leaves float32, the root mean square does not
    assert probes.norms_by_run([torch.zeros(2, 0), x[:2]]).tolist() == [[0, 0], [0, inf]]


def test_the_norms_of_a_layout_are_exact_too() -> None:
    layout = layout_of({"embed.weight": torch.zeros(5, 3), "pos.weight": torch.zeros(2, 3)})
    flat = layout.flatten({"embed.weight": torch.full((2, 5, 3), 1e-30), "pos.weight": torch.full((2, 2, 3), 1e30)})
    np.testing.assert_allclose(layout.norms(flat), [[15**0.5 * 1e-30] * 2, [6**0.5 * 1e30] * 2], rtol=1e-6)


def deep(placement: str, peak_lr: float, n_steps: int, batch_size: int, seq_len: int) -> RunConfig:
    return RunConfig(
        model=ModelConfig(placement=placement, init="xavier", n_layers=48, d_model=16, n_heads=2),
        data=DataConfig(name="synthetic", seq_len=seq_len, batch_size=batch_size),
        schedule=ScheduleConfig(n_steps=n_steps, peak_lr=peak_lr),
        eval=EvalConfig(windows=1),
    )


def last_step(config: RunConfig) -> tuple[list[Tensor], list[Tensor]]:
    """Train a run; return the norms that its last step measured, and the same by module or layer in float64."""
    runs = batch.begin([config], TEXT, "cpu")
    *before, last = step.inputs_of(range(config.schedule.n_steps), [config], TEXT, runs.params)
    for inputs in before:
        step.step_(runs, inputs, probing=False, probed=False)
    params = runs.params.detach().clone()
    leaves = [p.requires_grad_() for p in runs.layout.tensors(params.clone())]
    losses, residual = runs.losses(leaves, last.tokens)
    found = torch.autograd.grad(losses.sum(), [*leaves, *residual])
    grads = runs.layout.flatten(dict(zip(runs.layout.names, found, strict=False)))
    _, *measured = step.step_(runs, last, probing=True, probed=True)

    def by_module(flat: Tensor) -> Tensor:
        return torch.stack([PLAIN(flat[:, low:high].double(), dim=1) for low, high in runs.layout.spans])

    rms = torch.stack([x.detach().double().square().mean().sqrt()[None] for x in residual])
    stream = torch.stack([PLAIN(g.double().flatten(1), dim=1) for g in found[len(leaves) :]])
    truth = [by_module(grads), by_module(params), by_module(runs.grads), rms, stream]
    return [m for m in measured if m is not None], truth


def assert_equal_norms(measured: list[Tensor], truth: list[Tensor]) -> None:
    for ours, theirs in zip(measured, truth, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=3e-6, atol=1e-43)  # a few steps of the denormal numbers


def test_vanishing_gradients_of_a_deep_post_norm_run() -> None:
    measured, truth = last_step(deep("post", 0.2, n_steps=4, batch_size=1, seq_len=4))
    assert ((truth[0] > 1e-37) & (truth[0] < 1e-22)).sum() > 20
    assert_equal_norms(measured, truth)


def test_exploding_gradients_of_a_deep_run_without_norms_are_no_divergence() -> None:
    config = deep("none", 1e-2, n_steps=2, batch_size=2, seq_len=8)
    measured, truth = last_step(config)
    assert_equal_norms(measured, truth)
    *_, record, end = batch.train_batch([config], TEXT)
    assert isinstance(record, batch.Record)
    assert isinstance(end, batch.End)
    assert (record.step, end.nonfinite_step) == (1, None)
    # The square of a norm above 1.8e19 is no float32. How far the gradients explode depends on the CPU's rounding.
    assert 1e20 < record.grad_norm[0] == pytest.approx(float(PLAIN(truth[0])), rel=1e-6)


def test_update_norm_is_of_what_the_optimizer_subtracts() -> None:
    """At a rate of 1e-10 it is proportional to the rate, while rounding leaves most parameters unchanged."""
    config = RunConfig(
        model=ModelConfig(n_layers=1, d_model=16, n_heads=2),
        data=DataConfig(name="synthetic", seq_len=8, batch_size=2),
        schedule=ScheduleConfig(peak_lr=1e-10),
    )
    runs = batch.begin([config], TEXT, "cpu")
    (inputs,) = step.inputs_of(range(1), [config], TEXT, runs.params)
    before = runs.params.clone()
    measured = step.step_(runs, inputs, probing=True, probed=False)
    assert measured.update is not None
    update, updated = float(PLAIN(measured.update)), (runs.grads != 0).sum()
    changed = (runs.params != before).sum()
    assert update == pytest.approx(1e-10 * float(updated) ** 0.5, rel=0.05)  # Adam's first step is the rate
    assert 0 < changed < updated / 2

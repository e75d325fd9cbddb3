"""Optimizers against torch.optim, schedules against tables written by hand, clipping against torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from normstudy.config import SCHEDULE_NAMES, DataConfig, OptimizerConfig, RunConfig, ScheduleConfig
from normstudy.data import texts
from normstudy.training import optim, probes
from normstudy.training.probes import layout_of
from normstudy.training.step import clip_factors, inputs_of

torch.set_num_threads(1)

SHAPES = [(3, 4), (5,), (2, 2, 2)]
N_STEPS = 50


def configs(name: str, *, decay: bool) -> list[OptimizerConfig]:
    """Three runs that differ in every setting that may differ within a batch."""
    decays = (0.1, 0.0, 0.3) if decay else (0.0, 0.0, 0.0)
    return [
        OptimizerConfig(name=name, weight_decay=wd, momentum=momentum)
        if name == "sgd"
        else OptimizerConfig(name=name, weight_decay=wd, beta1=b1, beta2=b2, eps=eps)
        for b1, b2, eps, momentum, wd in zip(
            (0.9, 0.8, 0.0), (0.98, 0.999, 0.9), (1e-8, 1e-3, 1e-8), (0.0, 0.9, 0.5), decays, strict=True
        )
    ]


RATES = (0.01, 0.003, 0.1)


def torch_optimizer(c: OptimizerConfig, params: list[Tensor], lr: float) -> torch.optim.Optimizer:
    if c.name == "sgd":
        return torch.optim.SGD(params, lr, momentum=c.momentum, weight_decay=c.weight_decay, foreach=False)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[c.name]
    return kind(
        params, lr, betas=(c.beta1, c.beta2), eps=c.eps, weight_decay=c.weight_decay, foreach=False, fused=False
    )


def gradient(p: Tensor, step: int) -> Tensor:
    """Gradient of a moving, badly conditioned quadratic: it changes in size and sign."""
    curvature = torch.linspace(0.01, 5, p.numel(), dtype=p.dtype).view(p.shape)
    return curvature * (p - math.sin(0.7 * step))


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_optimizer_equals_torch_over_50_steps(name: str, decay: bool) -> None:
    """The parameters of every run after every step, and every update, under a changing rate."""
    rng = np.random.Generator(np.random.Philox(key=1))
    starts = [torch.from_numpy(rng.standard_normal((3, *shape))) for shape in SHAPES]
    runs = configs(name, decay=decay)
    layout = layout_of({str(i): p[0] for i, p in enumerate(starts)})
    flat = layout.flatten({str(i): p for i, p in enumerate(starts)})
    params, state = layout.tensors(flat), optim.new_state(name, flat)
    theirs = [[p[r].clone().requires_grad_() for p in starts] for r in range(3)]
    torch_optimizers = [torch_optimizer(c, theirs[r], RATES[r]) for r, c in enumerate(runs)]

    for step in range(N_STEPS):
        lr = [rate * (1 + 0.5 * math.cos(step)) for rate in RATES]
        before = [p.clone() for p in params]
        grads = [torch.stack([gradient(run, step) for run in p]) for p in params]
        given = layout.flatten({str(i): g for i, g in enumerate(grads)})
        (numbers,) = optim.coefficients(name, [step], [lr], runs, flat)
        optim.update_(name, flat, given, state, numbers)
        for r, torch_optimizer_ in enumerate(torch_optimizers):
            for p in theirs[r]:
                p.grad = gradient(p.detach(), step)
            torch_optimizer_.param_groups[0]["lr"] = lr[r]
            torch_optimizer_.step()
            for p, expected in zip(params, theirs[r], strict=True):
                torch.testing.assert_close(p[r], expected.detach(), rtol=1e-10, atol=1e-12)
        for update, p, old in zip(layout.tensors(given), params, before, strict=True):
            torch.testing.assert_close(update, old - p, rtol=1e-9, atol=1e-13)


def updated(
    c: OptimizerConfig, params: list[list[float]], grads: list[list[float]], state: optim.State, step: int, lr: float
) -> Tensor:
    """Parameters (runs, width) after one update with the same settings for every run."""
    p, n = torch.tensor(params), len(params)
    (numbers,) = optim.coefficients(c.name, [step], [[lr] * n], [c] * n, p)
    optim.update_(c.name, p, torch.tensor(grads), state, numbers)
    return p


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_optimizer_changes_in_place_and_gives_the_update(name: str) -> None:
    params, grads = torch.ones(2, 5), torch.full((2, 5), 0.5)
    state = optim.new_state(name, params)
    tensors = [params, grads, *state.values()]
    pointers = [t.data_ptr() for t in tensors]
    c = OptimizerConfig(name=name, weight_decay=0.1)
    (numbers,) = optim.coefficients(name, [0], [[0.1, 0.1]], [c, c], params)
    optim.update_(name, params, grads, state, numbers)
    assert pointers == [t.data_ptr() for t in tensors]
    assert (params < 1).all()
    assert torch.equal(1 - grads, params)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_a_matrix_wider_than_what_is_updated_at_once(name: str) -> None:
    """Columns are updated in parts of AT_ONCE / runs. A run alone has other parts and the same bits."""
    width = optim.AT_ONCE // 2 + 17
    torch.manual_seed(0)  # with some seeds, an update is smaller than the rounding of its number
    start, gradient = torch.randn(3, width), torch.randn(3, width)
    c = OptimizerConfig(name=name, weight_decay=0.01, momentum=0.5 if name == "sgd" else 0.0)

    def after(rows: slice) -> Tensor:
        params = start[rows].clone()
        state = optim.new_state(name, params)
        for step in range(3):
            n = len(params)
            (numbers,) = optim.coefficients(name, [step], [[0.1] * n], [c] * n, params)
            optim.update_(name, params, gradient[rows].clone(), state, numbers)
        return params

    together = after(slice(0, 3))
    assert (together != start).all()
    assert all(torch.equal(together[r : r + 1], after(slice(r, r + 1))) for r in range(3))


def test_first_adam_update_is_the_rate_by_hand() -> None:
    """Bias correction makes m = g and v = g^2 at step 0, so the update is lr * sign(g) whatever g's size."""
    c = OptimizerConfig(name="adam", eps=1e-30)
    state = optim.new_state("adam", torch.zeros(1, 3))
    after = updated(c, [[0, 0, 0.0]], [[1e-3, -50.0, 2.0]], state, step=0, lr=0.25)
    torch.testing.assert_close(after, torch.tensor([[-0.25, 0.25, -0.25]]))


def test_sgd_with_momentum_by_hand() -> None:
    """g = 1 at each step, momentum 1/2: velocities 1, 1.5, 1.75; lr 2: parameters -2, -5, -8.5."""
    c = OptimizerConfig(name="sgd", momentum=0.5)
    state, seen = {"velocity": torch.zeros(1, 1)}, [0.0]
    for step in range(3):
        seen.append(updated(c, [[seen[-1]]], [[1.0]], state, step, lr=2.0).item())
    assert seen == [0.0, -2.0, -5.0, -8.5]


# ---- schedules ----------------------------------------------------------------------------------------

SCHEDULES = [
    # name, warmup_steps, n_steps, rate at each step for a peak of 8
    # Without warmup the first step has the full rate.
    ("constant", 0, 4, [8, 8, 8, 8]),
    # Warmup of 4: (step + 1) / 4 of the peak, so step 0 is not idle and step 3, the last, has the peak.
    ("constant", 4, 6, [2, 4, 6, 8, 8, 8]),
    ("constant", 1, 3, [8, 8, 8]),
    # The warmup may be the whole run.
    ("constant", 4, 4, [2, 4, 6, 8]),
    ("linear", 4, 4, [2, 4, 6, 8]),
    ("cosine", 4, 4, [2, 4, 6, 8]),
    ("inverse_sqrt", 4, 4, [2, 4, 6, 8]),
    # linear: the peak again at step = warmup_steps, then decreasing evenly; it would be 0 at step n_steps.
    ("linear", 0, 4, [8, 6, 4, 2]),
    ("linear", 2, 6, [4, 8, 8, 6, 4, 2]),
    # cosine: peak (1 + cos(pi k / 4)) / 2 for k = 0 ... 3 steps after the warmup.
    ("cosine", 0, 4, [8, 4 + 2 * math.sqrt(2), 4, 4 - 2 * math.sqrt(2)]),
    ("cosine", 2, 6, [4, 8, 8, 4 + 2 * math.sqrt(2), 4, 4 - 2 * math.sqrt(2)]),
    # inverse_sqrt: peak sqrt(w / (step + 1)): with w = 1 (none, or one step) 1, 1/sqrt 2, 1/sqrt 3, 1/2;
    ("inverse_sqrt", 0, 4, [8, 8 / math.sqrt(2), 8 / math.sqrt(3), 4]),
    ("inverse_sqrt", 1, 4, [8, 8 / math.sqrt(2), 8 / math.sqrt(3), 4]),
    # with w = 4 the peak at step 3 and half of it at step 15.
    ("inverse_sqrt", 4, 16, [2, 4, 6, 8, *[8 * math.sqrt(4 / k) for k in range(5, 16)], 4]),
]


@pytest.mark.parametrize(("name", "warmup_steps", "n_steps", "expected"), SCHEDULES)
def test_schedule_against_a_table(name: str, warmup_steps: int, n_steps: int, expected: list[float]) -> None:
    schedule = ScheduleConfig(name=name, peak_lr=8.0, warmup_steps=warmup_steps, n_steps=n_steps)
    got = [optim.lr_at(step, schedule) for step in range(n_steps)]
    assert got == pytest.approx(expected, rel=1e-14)


def test_the_table_covers_every_schedule() -> None:
    assert {name for name, *_ in SCHEDULES} == set(SCHEDULE_NAMES)


def test_the_default_schedule_does_not_depend_on_warmup_after_it() -> None:
    """If the decay changed with the warmup, a sweep over warmup would vary two things."""
    assert ScheduleConfig().name == "constant"
    for warmup in (0, 1, 100, 300):
        schedule = ScheduleConfig(peak_lr=3e-3, warmup_steps=warmup, n_steps=600)
        assert {optim.lr_at(step, schedule) for step in range(warmup, 600)} == {3e-3}


@pytest.mark.parametrize("name", ["constant", "inverse_sqrt", "linear", "cosine"])
def test_a_rate_is_positive_and_never_above_the_peak(name: str) -> None:
    for warmup in (0, 1, 7, 40):
        schedule = ScheduleConfig(name=name, peak_lr=0.3, warmup_steps=warmup, n_steps=40)
        assert all(0 < optim.lr_at(step, schedule) <= 0.3 for step in range(40))


# ---- clipping -----------------------------------------------------------------------------------------


def test_clipping_equals_torch() -> None:
    """One run is above its limit, one below, one has none. The last two keep their bits."""
    rng = np.random.Generator(np.random.Philox(key=2))
    grads = [torch.from_numpy(rng.standard_normal((3, *shape)).astype(np.float32)) for shape in SHAPES]
    limits = (0.5, 100.0, math.inf)
    norms = probes.norms_by_run(grads)
    factors = clip_factors(norms, torch.tensor(limits, dtype=torch.float64))
    assert factors[0] < 1
    assert factors[1:].tolist() == [1, 1]
    for r, limit in enumerate(limits):
        theirs = [torch.zeros_like(g[r], requires_grad=True) for g in grads]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g[r].clone()
        torch.nn.utils.clip_grad_norm_(theirs, limit)
        for p, g in zip(theirs, grads, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(g[r] * factors[r].float(), p.grad, rtol=1e-6, atol=0)


def test_clip_factors_do_not_depend_on_the_other_runs() -> None:
    norms = torch.rand(37, 5)
    limits = torch.full((5,), 0.1, dtype=torch.float64)
    together = clip_factors(norms, limits)
    for r in range(5):
        assert torch.equal(clip_factors(norms[:, r : r + 1], limits[r : r + 1]), together[r : r + 1])


def test_clipping_is_off_by_default() -> None:
    assert OptimizerConfig().max_grad_norm is None
    text = texts.load(DataConfig(name="synthetic"))
    off, on = RunConfig(), RunConfig(optimizer=OptimizerConfig(max_grad_norm=1.0))
    assert inputs_of(range(1), [off, off], text, torch.zeros(1))[0].limits is None
    limits = inputs_of(range(1), [off, on], text, torch.zeros(1))[0].limits
    assert limits is not None
    assert limits.tolist() == [math.inf, 1.0]

"""Optimizers against torch.optim, schedules against tables written by hand, clipping against torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from normstudy import optim
from normstudy.config import SCHEDULE_NAMES, OptimizerConfig, RunConfig, ScheduleConfig
from normstudy.train import _clip

torch.set_num_threads(1)

SHAPES = [(3, 4), (5,), (2, 2, 2)]
N_STEPS = 50


def configs(name: str, *, decay: bool) -> list[OptimizerConfig]:
    """Three runs that differ in every setting that may ride on the run axis."""
    decays = (0.1, 0.0, 0.3) if decay else (0.0, 0.0, 0.0)
    return [
        OptimizerConfig(name=name, beta1=b1, beta2=b2, eps=eps, momentum=momentum, weight_decay=wd)
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
        params,
        lr,
        betas=(c.beta1, c.beta2),
        eps=c.eps,
        weight_decay=c.weight_decay,
        foreach=False,
        fused=False,
    )


def gradient(p: Tensor, step: int) -> Tensor:
    """Of a moving, badly conditioned bowl: it changes in size and sign, and depends on the parameters."""
    curvature = torch.linspace(0.01, 5, p.numel(), dtype=p.dtype).view(p.shape)
    return curvature * (p - math.sin(0.7 * step))


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_optimizer_equals_torch_over_50_steps(name: str, decay: bool) -> None:
    """Parameters of every run after every step, with a rate that changes; and the norm of every update."""
    rng = np.random.Generator(np.random.Philox(key=1))
    starts = [torch.from_numpy(rng.standard_normal((3, *shape))) for shape in SHAPES]
    runs = configs(name, decay=decay)
    params, state = [p.clone() for p in starts], optim.new_state(name, starts)
    theirs = [[p[r].clone().requires_grad_() for p in starts] for r in range(3)]
    torch_optimizers = [torch_optimizer(c, theirs[r], RATES[r]) for r, c in enumerate(runs)]

    for step in range(N_STEPS):
        lr = [rate * (1 + 0.5 * math.cos(step)) for rate in RATES]
        before = [p.clone() for p in params]
        grads = [torch.stack([gradient(run, step) for run in p]) for p in params]
        norms = optim.OPTIMIZERS[name](params, grads, state, step, lr, runs)
        for r, torch_optimizer_ in enumerate(torch_optimizers):
            for p in theirs[r]:
                p.grad = gradient(p.detach(), step)
            torch_optimizer_.param_groups[0]["lr"] = lr[r]
            torch_optimizer_.step()
            for p, expected in zip(params, theirs[r], strict=True):
                torch.testing.assert_close(p[r], expected.detach(), rtol=1e-10, atol=1e-12)
        assert norms.shape == (len(SHAPES), 3)
        for row, p, old in zip(norms, params, before, strict=True):
            moved = torch.linalg.vector_norm((p - old).view(3, -1), dim=1)
            torch.testing.assert_close(row, moved, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_optimizer_changes_in_place_and_leaves_the_gradients(name: str) -> None:
    params = [torch.ones(2, 3), torch.ones(2, 1)]
    grads = [torch.full_like(p, 0.5) for p in params]
    kept = [g.clone() for g in grads]
    state = optim.new_state(name, params)
    pointers = [t.data_ptr() for t in (*params, *[t for slot in state.values() for t in slot])]
    c = OptimizerConfig(name=name, weight_decay=0.1)
    optim.OPTIMIZERS[name](params, grads, state, 0, [0.1, 0.1], [c, c])
    after = [t.data_ptr() for t in (*params, *[t for slot in state.values() for t in slot])]
    assert pointers == after
    assert all(torch.equal(g, k) for g, k in zip(grads, kept, strict=True))
    assert all((p < 1).all() for p in params)


def test_first_adam_update_is_the_rate_by_hand() -> None:
    """Bias correction makes m = g and v = g^2 at step 0, so the update is lr * sign(g) whatever g's size."""
    params = [torch.zeros(1, 3)]
    grads = [torch.tensor([[1e-3, -50.0, 2.0]])]
    c = OptimizerConfig(name="adam", eps=0.0)
    norms = optim.adam_(params, grads, optim.new_state("adam", params), 0, [0.25], [c])
    torch.testing.assert_close(params[0], torch.tensor([[-0.25, 0.25, -0.25]]))
    assert norms.item() == pytest.approx(0.25 * math.sqrt(3), rel=1e-6)


def test_sgd_with_momentum_by_hand() -> None:
    """g = 1 at each step, momentum 1/2: velocities 1, 1.5, 1.75; lr 2: parameters -2, -5, -8.5."""
    params, state = [torch.zeros(1, 1)], {"velocity": [torch.zeros(1, 1)]}
    c = OptimizerConfig(name="sgd", momentum=0.5)
    seen = []
    for step in range(3):
        optim.sgd_(params, [torch.ones(1, 1)], state, step, [2.0], [c])
        seen.append(params[0].item())
    assert seen == [-2.0, -5.0, -8.5]


# ---- schedules ----------------------------------------------------------------------------------------

SCHEDULES = [
    # name, warmup_steps, n_steps, rate at each step for a peak of 8
    # Without warmup the first step has the whole rate.
    ("constant", 0, 4, [8, 8, 8, 8]),
    # Warmup of 4: (step + 1) / 4 of the peak, so step 0 is not idle and step 3, the last, has the peak.
    ("constant", 4, 6, [2, 4, 6, 8, 8, 8]),
    ("constant", 1, 3, [8, 8, 8]),
    # The warmup may be the whole run.
    ("constant", 4, 4, [2, 4, 6, 8]),
    ("linear", 4, 4, [2, 4, 6, 8]),
    ("cosine", 4, 4, [2, 4, 6, 8]),
    ("inverse_sqrt", 4, 4, [2, 4, 6, 8]),
    # linear: the peak again at step = warmup_steps, then down by equal parts; it would be 0 at step n_steps.
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
    """A decay that moved with the warmup sweep would be a second treatment."""
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
    """Per run: one above its limit, one below, one without. The latter two keep their bits."""
    rng = np.random.Generator(np.random.Philox(key=2))
    grads = [torch.from_numpy(rng.standard_normal((3, *shape)).astype(np.float32)) for shape in SHAPES]
    limits = (0.5, 100.0, None)
    runs = [RunConfig(optimizer=OptimizerConfig(max_grad_norm=limit)) for limit in limits]
    norms = np.array([math.sqrt(sum(float(g[r].double().square().sum()) for g in grads)) for r in range(3)])
    assert norms.min() > 0.5
    clipped = _clip(grads, norms, runs)
    for r, limit in enumerate(limits):
        theirs = [torch.zeros_like(g[r], requires_grad=True) for g in grads]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g[r].clone()
        torch.nn.utils.clip_grad_norm_(theirs, math.inf if limit is None else limit)
        for got, p, g in zip(clipped, theirs, grads, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(got[r], p.grad, rtol=1e-6, atol=0)
            assert torch.equal(got[r], g[r]) == (limit != 0.5)


def test_clipping_is_off_by_default() -> None:
    assert OptimizerConfig().max_grad_norm is None
    grads = [torch.full((2, 3), 1e6)]
    assert _clip(grads, np.array([1e6, 1e6]), [RunConfig(), RunConfig()])[0] is grads[0]

"""The learning rate schedule, and optimizers that update a batch of runs in place.

Every setting that differs only in value rides on the run axis. An optimizer is a function

    update_(params, grads, state, step, lr, configs) -> update norms (tensors, runs)

with params and grads each (runs, *shape), lr and configs one a run. It changes params and state in place (out of
place costs several times as much) and equals torch.optim of the same name. The norm of an update counts
all that is subtracted from the parameters, decoupled weight decay too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from normstudy.config import OptimizerConfig, ScheduleConfig

Configs = Sequence[OptimizerConfig]  # one a run
State = dict[str, list[Tensor]]  # slot -> one tensor (runs, *shape) a parameter


def lr_at(step: int, schedule: ScheduleConfig) -> float:
    """The learning rate of a 0-based step.

    lr = peak (step + 1) / warmup_steps for step < warmup_steps, so that the last warmup step has the peak and
    warmup_steps = 0 means none. Afterwards constant; inverse_sqrt: peak sqrt(w / (step + 1)), w = max(1, warmup_steps)
    (Vaswani et al. 2017); linear and cosine: from the peak towards 0 at n_steps.
    """
    peak, warmup, n = schedule.peak_lr, schedule.warmup_steps, schedule.n_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (n - step) / (n - warmup)  # in (0, 1]; step >= warmup, so warmup < n here
    match schedule.name:
        case "constant":
            return peak
        case "inverse_sqrt":
            return peak * math.sqrt(max(1, warmup) / (step + 1))
        case "linear":
            return peak * left
        case "cosine":
            return peak * 0.5 * (1 - math.cos(math.pi * left))
    raise AssertionError(schedule.name)


def per_run(values: Sequence[float], like: Tensor) -> Tensor:
    """One number a run, (runs,), of the type and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def over(numbers: Tensor, x: Tensor) -> Tensor:
    """Numbers (runs,) in a shape that broadcasts over x, (runs, ...)."""
    return numbers.view(-1, *[1] * (x.dim() - 1))


def new_state(name: str, params: Sequence[Tensor]) -> State:
    """The state before the first update: all zeros."""
    return {slot: [torch.zeros_like(p) for p in params] for slot in SLOTS[name]}


def norm_by_run(x: Tensor) -> Tensor:
    """L2 norm over all but the leading run axis: (runs, ...) -> (runs,)."""
    norms: Tensor = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
    return norms


def _adam_(
    params: list[Tensor],
    grads: list[Tensor],
    state: State,
    step: int,
    lr: list[float],
    configs: Configs,
    *,
    decoupled: bool,
) -> Tensor:
    """Adam (Kingma & Ba, arXiv:1412.6980) and AdamW (arXiv:1711.05101), bias-corrected."""
    # Powers in Python floats: a vectorized pow may round a run's last bit by its place in the batch.
    like = params[0]
    step_size = per_run([rate / (1 - c.beta1 ** (step + 1)) for rate, c in zip(lr, configs, strict=True)], like)
    root_correction = per_run([math.sqrt(1 - c.beta2 ** (step + 1)) for c in configs], like)
    weight1 = per_run([1 - c.beta1 for c in configs], like)
    weight2 = per_run([1 - c.beta2 for c in configs], like)
    eps = per_run([c.eps for c in configs], like)
    decay = per_run([c.weight_decay * (rate if decoupled else 1.0) for rate, c in zip(lr, configs, strict=True)], like)
    decays = any(c.weight_decay for c in configs)
    norms = []
    for p, g, m, v in zip(params, grads, state["m"], state["v"], strict=True):
        if decays and not decoupled:
            g = g + p * over(decay, p)
        m.lerp_(g, over(weight1, p))
        v.lerp_(g.square(), over(weight2, p))
        update = v.sqrt().div_(over(root_correction, p)).add_(over(eps, p))
        torch.div(m, update, out=update)
        update.mul_(over(step_size, p))
        if decays and decoupled:
            update.add_(p * over(decay, p))
        p.sub_(update)
        norms.append(norm_by_run(update))
    return torch.stack(norms)


def adam_(
    params: list[Tensor], grads: list[Tensor], state: State, step: int, lr: list[float], configs: Configs
) -> Tensor:
    """torch.optim.Adam: weight decay is added to the gradient."""
    return _adam_(params, grads, state, step, lr, configs, decoupled=False)


def adamw_(
    params: list[Tensor], grads: list[Tensor], state: State, step: int, lr: list[float], configs: Configs
) -> Tensor:
    """torch.optim.AdamW: weight decay acts on the parameters."""
    return _adam_(params, grads, state, step, lr, configs, decoupled=True)


def sgd_(
    params: list[Tensor], grads: list[Tensor], state: State, step: int, lr: list[float], configs: Configs
) -> Tensor:
    """torch.optim.SGD with momentum (no dampening): velocity = momentum velocity + g; p -= lr velocity."""
    like = params[0]
    rate, momentum = per_run(lr, like), per_run([c.momentum for c in configs], like)
    decay = per_run([c.weight_decay for c in configs], like)
    decays = any(c.weight_decay for c in configs)
    norms = []
    for p, g, velocity in zip(params, grads, state["velocity"], strict=True):
        if decays:
            g = g + p * over(decay, p)
        velocity.mul_(over(momentum, p)).add_(g)
        update = velocity * over(rate, p)
        p.sub_(update)
        norms.append(norm_by_run(update))
    return torch.stack(norms)


Optimizer = Callable[[list[Tensor], list[Tensor], State, int, list[float], Configs], Tensor]
OPTIMIZERS: dict[str, Optimizer] = {"adam": adam_, "adamw": adamw_, "sgd": sgd_}
SLOTS: dict[str, tuple[str, ...]] = {"adam": ("m", "v"), "adamw": ("m", "v"), "sgd": ("velocity",)}

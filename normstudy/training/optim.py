"""Compute learning rates, and update a batch of runs in place, as torch.optim's optimizers update.

All parameters of a batch form one matrix (runs, width) (probes.py). Optimizer settings may differ between runs, so the
`coefficients` of a step are tensors (runs, 1), which are computed on the host before the step.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from normstudy.config import OptimizerConfig, ScheduleConfig
from normstudy.training.probes import Layout

Configs = Sequence[OptimizerConfig]  # one config per run
State = dict[str, Tensor]  # slot -> (runs, width)
Coefficients = dict[str, Tensor]  # name -> (runs, 1); in `update_`, `decay` may become (runs, width)

AT_ONCE = 2**17  # parameters per operation: these parameters and their optimizer state fit into one core's cache


def lr_at(step: int, schedule: ScheduleConfig) -> float:
    """Return the learning rate at a step, counted from 0.

    While step < w = warmup_steps, the rate is peak (step + 1) / w. So the last warmup step has the peak rate.
    Then `constant` keeps the peak, and `inverse_sqrt` is peak sqrt(max(1, w) / (step + 1)) (arXiv:1706.03762).
    `linear` and `cosine` decay from the peak to 0 at step n_steps, one step after the last.
    """
    peak, warmup, n = schedule.peak_lr, schedule.warmup_steps, schedule.n_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (n - step) / (n - warmup)  # in (0, 1], since warmup <= step < n
    return {
        "constant": peak,
        "inverse_sqrt": peak * math.sqrt(max(1, warmup) / (step + 1)),
        "linear": peak * left,
        "cosine": peak * 0.5 * (1 - math.cos(math.pi * left)),
    }[schedule.name]


def coefficients(
    name: str, steps: Sequence[int], lr: Sequence[Sequence[float]], configs: Configs, like: Tensor
) -> list[Coefficients]:
    """Compute the coefficients of several steps, and move them together to the device of `like`. lr: (steps, runs)."""
    numbers = [_numbers(name, step, rates, configs) for step, rates in zip(steps, lr, strict=True)]
    table = torch.tensor([list(of_step.values()) for of_step in numbers], dtype=torch.float64).to(like)
    return [dict(zip(numbers[0], of_step[..., None], strict=True)) for of_step in table]


def _numbers(name: str, step: int, lr: Sequence[float], configs: Configs) -> dict[str, list[float]]:
    """Compute a step's coefficients as Python floats, because a vectorized pow may round differently in each batch."""
    pairs = list(zip(lr, configs, strict=True))
    if name == "sgd":
        out = {"rate": list(lr), "momentum": [c.momentum for c in configs]}
    else:
        # Adam: m / corrected1 / (sqrt(v) / corrected2 + eps) = m corrected2 / corrected1 / (sqrt(v) + corrected2 eps)
        corrected1 = [1 - c.beta1 ** (step + 1) for c in configs]
        corrected2 = [math.sqrt(1 - c.beta2 ** (step + 1)) for c in configs]
        out = {
            "step_size": [rate * b / a for rate, a, b in zip(lr, corrected1, corrected2, strict=True)],
            "weight1": [1 - c.beta1 for c in configs],
            "weight2": [1 - c.beta2 for c in configs],
            "corrected_eps": [b * c.eps for b, c in zip(corrected2, configs, strict=True)],
        }
    if any(c.weight_decay for c in configs):
        out["decay"] = [c.weight_decay * (rate if name == "adamw" else 1.0) for rate, c in pairs]
    return out


def new_state(name: str, params: Tensor) -> State:
    return {slot: torch.zeros_like(params) for slot in OPTIMIZERS[name].slots}


def decayed_columns(layout: Layout, decay: str, device: str = "cpu") -> Tensor | None:
    """Return a vector (width,): 1 where weight decay acts, else 0. Return None if weight decay acts everywhere."""
    if decay == "all":
        return None
    spared = ("embed", "pos") if decay == "matrices_but_embeddings" else ()
    acts = {
        name: torch.full((1, *shape), float(len(shape) > 1 and name not in spared))
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
    return layout.flatten(acts)[0].to(device)


def update_(
    name: str, params: Tensor, grads: Tensor, state: State, c: Coefficients, decayed: Tensor | None = None
) -> None:
    """Update params and state (runs, width). Replace grads by what is subtracted from params (decay included)."""
    width = params.shape[1]
    columns = max(1, AT_ONCE // len(params)) if params.device.type == "cpu" else width
    for low in range(0, width, columns):
        part = slice(low, low + columns)
        slots = {slot: values[:, part] for slot, values in state.items()}
        of_part = c if decayed is None else c | {"decay": c["decay"] * decayed[part]}
        OPTIMIZERS[name].update_(params[:, part], grads[:, part], slots, of_part)


def adam_(p: Tensor, g: Tensor, state: State, c: Coefficients, *, decoupled: bool) -> None:
    """If `decoupled`, use AdamW (arXiv:1711.05101). Otherwise use Adam (arXiv:1412.6980) with decay added to `g`."""
    m, v = state["m"], state["v"]
    if "decay" in c and not decoupled:
        g.add_(p * c["decay"])
    m.lerp_(g, c["weight1"])
    v.lerp_(g.square_(), c["weight2"])
    root = torch.sqrt(v, out=g).add_(c["corrected_eps"])
    torch.div(m, root, out=g).mul_(c["step_size"])
    if "decay" in c and decoupled:
        g.add_(p * c["decay"])
    p.sub_(g)


def sgd_(p: Tensor, g: Tensor, state: State, c: Coefficients) -> None:
    """Update by SGD without dampening: velocity = momentum * velocity + g; p -= lr * velocity."""
    velocity = state["velocity"]
    if "decay" in c:
        g.add_(p * c["decay"])
    velocity.mul_(c["momentum"]).add_(g)
    p.sub_(torch.mul(velocity, c["rate"], out=g))


class Optimizer(NamedTuple):
    """An optimizer: the names of its state tensors, and the function that updates parameters and state in place."""

    slots: tuple[str, ...]
    update_: Callable[[Tensor, Tensor, State, Coefficients], None]


OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(("m", "v"), partial(adam_, decoupled=False)),
    "adamw": Optimizer(("m", "v"), partial(adam_, decoupled=True)),
    "sgd": Optimizer(("velocity",), sgd_),
}

"""The learning rate schedule, and optimizers that update a batch of runs in place.

All parameters of a batch are one matrix (runs, width): layout.py. Settings that differ only in value have a run axis:
the `coefficients` of a step are numbers (runs, 1), computed on the host before the step. An update replaces the
gradients by what it subtracts from the parameters, including decoupled weight decay, and equals the update of
torch.optim of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from normstudy.config import OptimizerConfig, ScheduleConfig

Configs = Sequence[OptimizerConfig]  # one per run
State = dict[str, Tensor]  # slot -> (runs, width)
Coefficients = dict[str, Tensor]  # name -> (runs, 1)

AT_ONCE = 2**17  # elements of a matrix updated at once: with the optimizer state they fit into the cache of a core


def lr_at(step: int, schedule: ScheduleConfig) -> float:
    """The learning rate of a 0-based step.

    For step < warmup_steps, lr = peak (step + 1) / warmup_steps: the last warmup step has the peak, and
    warmup_steps = 0 means no warmup. Afterwards, constant: peak; inverse_sqrt: peak sqrt(w / (step + 1)) with
    w = max(1, warmup_steps) (Vaswani et al. 2017); linear and cosine: from the peak towards 0 at n_steps.
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


def coefficients(
    name: str, steps: Sequence[int], lr: Sequence[Sequence[float]], configs: Configs, like: Tensor
) -> list[Coefficients]:
    """The coefficients of several updates, moved to the device of `like` in one transfer.

    lr: (steps, runs). There is a decay coefficient only if a run of the batch has weight decay.
    """
    numbers = [_numbers(name, step, rates, configs) for step, rates in zip(steps, lr, strict=True)]
    table = torch.tensor([list(of_step.values()) for of_step in numbers], dtype=torch.float64).to(like)
    return [dict(zip(numbers[0], of_step[..., None], strict=True)) for of_step in table]


def _numbers(name: str, step: int, lr: Sequence[float], configs: Configs) -> dict[str, list[float]]:
    """The coefficients of one update, in Python floats: a vectorized pow may round by a run's position in the batch."""
    pairs = list(zip(lr, configs, strict=True))
    if name == "sgd":
        out = {"rate": list(lr), "momentum": [c.momentum for c in configs]}
    else:
        # m / corrected1 / (sqrt(v) / corrected2 + eps) = m corrected2 / corrected1 / (sqrt(v) + corrected2 eps)
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
    """The state before the first update: all zeros."""
    return {slot: torch.zeros_like(params) for slot in OPTIMIZERS[name].slots}


def norm_by_run(x: Tensor) -> Tensor:
    """L2 norm over all but the leading run axis: (runs, ...) -> (runs,)."""
    norms: Tensor = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
    return norms


def update_(name: str, params: Tensor, grads: Tensor, state: State, c: Coefficients) -> None:
    """Update params and state, (runs, width) each, in place; grads becomes the amount subtracted from params."""
    width = params.shape[1]
    columns = max(1, AT_ONCE // len(params)) if params.device.type == "cpu" else width
    for low in range(0, width, columns):
        part = slice(low, low + columns)
        slots = {slot: values[:, part] for slot, values in state.items()}
        OPTIMIZERS[name].update_(params[:, part], grads[:, part], slots, c)


def adam_(p: Tensor, g: Tensor, state: State, c: Coefficients, *, decoupled: bool) -> None:
    """Bias-corrected Adam (arXiv:1412.6980), whose weight decay is added to the gradient.

    decoupled: AdamW (arXiv:1711.05101), whose weight decay acts on the parameters.
    """
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
    """torch.optim.SGD with momentum (no dampening): velocity = momentum velocity + g; p -= lr velocity."""
    velocity = state["velocity"]
    if "decay" in c:
        g.add_(p * c["decay"])
    velocity.mul_(c["momentum"]).add_(g)
    p.sub_(torch.mul(velocity, c["rate"], out=g))


@dataclass(frozen=True)
class Optimizer:
    """An optimizer. slots: of its state; update_: changes some columns, (runs, columns), of all matrices."""

    slots: tuple[str, ...]
    update_: Callable[[Tensor, Tensor, State, Coefficients], None]


OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(("m", "v"), partial(adam_, decoupled=False)),
    "adamw": Optimizer(("m", "v"), partial(adam_, decoupled=True)),
    "sgd": Optimizer(("velocity",), sgd_),
}

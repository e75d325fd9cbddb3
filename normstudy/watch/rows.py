"""What a probe collects of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

Number = float | Tensor | None


@dataclass
class Row:
    """Hold what is known of one step. Dictionaries are parameter's index -> norm, all on the model's device."""

    step: int
    probed: bool
    lr: Number = None
    train_loss: Number = None
    val_loss: Number = None
    grads: dict[int, Tensor] = field(default_factory=dict)  # before clipping
    clipped: dict[int, Tensor] = field(default_factory=dict)  # what the optimizer used
    late: set[int] = field(default_factory=set)  # parameters whose gradient was seen at the step only, as one by hand
    params: dict[int, Tensor] = field(default_factory=dict)
    updates: dict[int, Tensor] = field(default_factory=dict)
    stream: Tensor | None = None  # (3, points): sums of mean squares, forward passes, sums of squared gradients
    repeated: bool = False  # whether an optimizer called its closure at several points, as L-BFGS does
    skipped: Number = None  # above 0 if a fused optimizer left the parameters as they were, because of its scaler
    scale: Tensor | None = None  # by which a GradScaler multiplied the loss


def number(value: object) -> Number:
    """Return a real number that float32 can hold, or a tensor of one; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() == 1 and not value.is_complex() and not value.is_meta else None
    try:
        x = float(getattr(value, "item", lambda: value)())  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    if isinstance(value, str | bytes):
        return None
    return math.copysign(math.inf, x) if abs(x) > torch.finfo(torch.float32).max else x

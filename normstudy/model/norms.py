"""Norm functions, and a module for each. All normalize over the last axis, whose length is the width D."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normstudy.config import sources
from normstudy.model import kernels
from normstudy.model.own import construct

EPS = 1e-5
DYT_A = 0.5  # initial value of dyt's a (arXiv:2503.10622)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """gamma * (x - mean) / sqrt(var + 1e-5) + beta with biased variance (Ba et al., arXiv:1607.06450)."""
    return kernels.layer_norm(x, gamma, beta, EPS)


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """gamma * x / sqrt(mean(x^2) + 1e-5) (Zhang & Sennrich, arXiv:1910.07467)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * gamma


def dynamic_tanh(x: Tensor, a: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """gamma * tanh(a x) + beta (Zhu et al., arXiv:2503.10622)."""
    return gamma * torch.tanh(a * x) + beta


class LayerNorm(nn.Module):
    """Layer norm with a gain (D,) starting at 1 and a bias (D,) starting at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.gamma, self.beta)


class RMSNorm(nn.Module):
    """RMS norm with a gain (D,) starting at 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.gamma)


class DynamicTanh(nn.Module):
    """Dynamic tanh with a gain (D,) starting at 1, a bias (D,) starting at 0, and a scalar `a` starting at 0.5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(DYT_A))
        self.gamma = nn.Parameter(torch.ones(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return dynamic_tanh(x, self.a, self.gamma, self.beta)


class NoNorm(nn.Module):
    """The norm `none`: it returns x unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class FunctionNorm(nn.Module):
    """A user's norm(x), norm(x, gamma) or norm(x, gamma, beta); gamma (D,) starts at 1, beta (D,) at 0."""

    def __init__(self, function: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.function = function
        wanted = sources.parameters(function)
        self.gamma = nn.Parameter(torch.ones(width)) if "gamma" in wanted else None
        self.beta = nn.Parameter(torch.zeros(width)) if "beta" in wanted else None

    def forward(self, x: Tensor) -> Tensor:
        learned = {"gamma": self.gamma, "beta": self.beta}
        return self.function(x, **{name: p for name, p in learned.items() if p is not None})


def own_norm(found: Callable[..., object], width: int) -> nn.Module:
    """Construct the module for a user's own norm: a function, or a class whose constructor takes the width."""
    if isinstance(found, type):
        return construct(functools.partial(found, width), seed=0)
    return FunctionNorm(found, width)  # type: ignore[arg-type]


NORMS: dict[str, type[nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm, "dyt": DynamicTanh, "none": NoNorm}

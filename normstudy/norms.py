"""Norm functions and their modules: each normalizes over the last axis and has parameters of its own.

D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """gamma * (x - mean) / sqrt(var + 1e-5) + beta, var biased (Ba et al., arXiv:1607.06450)."""
    return F.layer_norm(x, x.shape[-1:], gamma, beta, EPS)


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """gamma * x / sqrt(mean(x^2) + 1e-5) (Zhang & Sennrich, arXiv:1910.07467)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * gamma


class LayerNorm(nn.Module):
    """layer_norm with a gain (D,) starting at 1 and a bias (D,) starting at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.gamma, self.beta)


class RMSNorm(nn.Module):
    """rms_norm with a gain (D,) starting at 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.gamma)


NORMS: dict[str, type[nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}

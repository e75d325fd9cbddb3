"""Define the norms as functions and as modules. All normalize over the last axis, whose length is the width D."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normstudy.config import sources
from normstudy.model import kernels

EPS = 1e-5
DYT_A = 0.5  # initial value of dyt's a (arXiv:2503.10622)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Return gamma * (x - mean) / sqrt(var + 1e-5) + beta with biased variance (Ba et al., arXiv:1607.06450)."""
    return kernels.layer_norm(x, gamma, beta, EPS)


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """Return gamma * x / sqrt(mean(x^2) + 1e-5) (Zhang & Sennrich, arXiv:1910.07467)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * gamma


def dynamic_tanh(x: Tensor, a: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Return gamma * tanh(a x) + beta (Zhu et al., arXiv:2503.10622)."""
    return gamma * torch.tanh(a * x) + beta


class FunctionNorm(nn.Module):
    """Call `function` with x and with each of the learned parameters a, gamma and beta that `function` takes.

    The scalar `a` is initially 0.5, gamma (D,) is 1, and beta (D,) is 0.
    """

    def __init__(self, function: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.function = function
        initial = {"a": torch.tensor(DYT_A), "gamma": torch.ones(width), "beta": torch.zeros(width)}
        wanted = sources.parameters(function)
        self.learned = [name for name in initial if name in wanted]
        for name in self.learned:
            self.register_parameter(name, nn.Parameter(initial[name]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **{name: getattr(self, name) for name in self.learned})


class LayerNorm(FunctionNorm):
    """Layer norm with a gain and a bias."""

    def __init__(self, width: int) -> None:
        super().__init__(layer_norm, width)


class RMSNorm(FunctionNorm):
    """RMS norm with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__(rms_norm, width)


class DynamicTanh(FunctionNorm):
    """Dynamic tanh with a gain, a bias, and a scalar `a` inside the tanh."""

    def __init__(self, width: int) -> None:
        super().__init__(dynamic_tanh, width)


# nn.Identity fits into this table, because its constructor accepts the width and ignores it.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": LayerNorm, "rmsnorm": RMSNorm, "dyt": DynamicTanh, "none": nn.Identity,
}  # fmt: skip

"""Define the norms as functions and as modules. Every norm normalizes over the last axis, of length D (the width)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from normstudy.config import sources
from normstudy.model import kernels

EPS = 1e-5


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, eps: float = EPS) -> Tensor:
    """Return gamma * (x - mean) / sqrt(var + eps) + beta with biased variance (Ba et al., arXiv:1607.06450)."""
    return kernels.layer_norm(x, gamma, beta, eps)


def rms_norm(x: Tensor, gamma: Tensor, *, eps: float = EPS) -> Tensor:
    """Return gamma * x / sqrt(mean(x^2) + eps) (Zhang & Sennrich, arXiv:1910.07467)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gamma


def dynamic_tanh(x: Tensor, a: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Return gamma * tanh(a x) + beta (Zhu et al., arXiv:2503.10622)."""
    return gamma * torch.tanh(a * x) + beta


class FunctionNorm(nn.Module):
    """Call `function` with x, and with `eps`, `a`, `gamma` and `beta` if `function` takes them.

    The scalar `a` starts at 0.5 (arXiv:2503.10622), `gamma` (D,) at 1, and `beta` (D,) at 0. All three are learned.
    """

    def __init__(self, function: Callable[..., Tensor], width: int, eps: float = EPS) -> None:
        super().__init__()
        self.function = function
        initial = {"a": torch.tensor(0.5), "gamma": torch.ones(width), "beta": torch.zeros(width)}
        wanted = sources.parameters(function)
        self.numbers = {"eps": eps} if "eps" in wanted else {}
        self.learned = [name for name in initial if name in wanted]
        for name in self.learned:
            self.register_parameter(name, nn.Parameter(initial[name]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **{name: getattr(self, name) for name in self.learned}, **self.numbers)


# nn.Identity fits into this table, because its constructor accepts the width and eps and ignores them.
NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": partial(FunctionNorm, layer_norm), "rmsnorm": partial(FunctionNorm, rms_norm),
    "dyt": partial(FunctionNorm, dynamic_tanh), "none": nn.Identity,
}  # fmt: skip

"""Initialization: the distribution of every tensor, and its draw.

Init is a treatment, so it is recorded and never silent. Weights are normal with mean 0; biases and norm biases
start at 0, norm gains at 1. The token and position tables are drawn so that x_0 has unit variance.

| init   | standard deviation of a weight matrix (out, in)                                         |
|--------|-----------------------------------------------------------------------------------------|
| xavier | sqrt(2 / (in + out)) (Glorot & Bengio 2010), Q, K and V being three matrices of their own |
| normal | 0.02                                                                                    |
| gpt2   | 0.02, and 0.02 / sqrt(2 L) for the output projections of attention and MLP (GPT-2)       |
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from normstudy.config import ModelConfig, resolve

NORMAL_STD = 0.02
OUTPUT_PROJECTIONS = ("attn.out.weight", "mlp.w2.weight")


def _xavier(name: str, shape: torch.Size, config: ModelConfig) -> float:
    return math.sqrt(2 / (shape[0] + shape[1]))


def _normal(name: str, shape: torch.Size, config: ModelConfig) -> float:
    return NORMAL_STD


def _gpt2(name: str, shape: torch.Size, config: ModelConfig) -> float:
    return NORMAL_STD / math.sqrt(2 * config.n_layers) if name.endswith(OUTPUT_PROJECTIONS) else NORMAL_STD


INITS = {"xavier": _xavier, "normal": _normal, "gpt2": _gpt2}


def distribution(name: str, shape: torch.Size, config: ModelConfig) -> tuple[float, float]:
    """(mean, standard deviation) of the tensor `name` of a Transformer at its initialization."""
    leaf = name.rpartition(".")[2]
    if leaf in ("embed", "pos"):
        return 0.0, math.sqrt(0.5)
    if leaf == "gamma":
        return 1.0, 0.0
    if leaf in ("bias", "beta"):
        return 0.0, 0.0
    return 0.0, INITS[resolve(config).init](name, shape, config)


def draw(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """The tensor `name` at its initialization, float32.

    Each tensor has a stream of its own, keyed by (seed, name): adding a tensor never moves another's draw,
    and torch's global generator is never used.
    """
    mean, std = distribution(name, shape, config)
    if std == 0:
        return torch.full(shape, mean)
    key = int.from_bytes(hashlib.sha256(f"init/{seed}/{name}".encode()).digest()[:16], "little")
    rng = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(rng.standard_normal(tuple(shape), np.float32) * np.float32(std) + np.float32(mean))


def init_params(shapes: dict[str, torch.Size], configs: list[ModelConfig], seeds: list[int]) -> dict[str, Tensor]:
    """Every tensor of a batch of runs, stacked on a leading run axis: name -> (runs, *shape)."""
    return {
        name: torch.stack([draw(name, shape, c, s) for c, s in zip(configs, seeds, strict=True)])
        for name, shape in shapes.items()
    }

"""Draw the initial values of a model's tensors, from the distributions in moments.py."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from normstudy.config import ModelConfig
from normstudy.model.moments import distribution
from normstudy.model.own import construct, made_by


def _key(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"init/{seed}/{name}".encode()).digest()[:16], "little")


def draw(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """Draw a tensor's initial values (float32) from a random stream that depends only on `seed` and `name`."""
    mean, std = distribution(name, shape, config)
    if std == 0:
        return torch.full(shape, mean)
    rng = np.random.Generator(np.random.Philox(key=_key(name, seed)))
    return torch.from_numpy(rng.standard_normal(tuple(shape), np.float32) * np.float32(std) + np.float32(mean))


def draw_own(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Construct each of the user's own modules, seeded by `seed` and the module's name. Return parameters by name."""
    out: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        make = made_by(module)
        if make is not None:
            made = construct(make, _key(prefix, seed) % 2**63)
            out |= {f"{prefix}.{name}": p.detach().float() for name, p in made.named_parameters()}
    return out


def init_params(model: nn.Module, configs: list[ModelConfig], seeds: list[int]) -> dict[str, Tensor]:
    """Draw the initial parameters of a batch of runs, and stack them over runs: name -> (runs, *shape)."""
    runs = [(draw_own(model, seed), config, seed) for config, seed in zip(configs, seeds, strict=True)]
    return {
        name: torch.stack([own[name] if name in own else draw(name, p.shape, config, s) for own, config, s in runs])
        for name, p in model.named_parameters()
    }

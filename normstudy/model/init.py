"""Draw the initial values of a model's tensors.

Weights are normal with mean 0. Biases (also those of norms) start at 0, norm gains at 1, dyt's a at 0.5, rezero's scale
at 0, and admin's omegas at 1 until a profiling pass sets them. A user's own module keeps the values that its
constructor draws. For weight matrices, model.init decides:

| init     | standard deviation of a weight matrix (out, in)                                                      |
|----------|------------------------------------------------------------------------------------------------------|
| xavier   | sqrt(2 / (in + out)) (Glorot & Bengio 2010); Q, K and V count as three separate matrices              |
| normal   | 0.02                                                                                                 |
| gpt2     | 0.02, and 0.02 / sqrt(2 L) for the output projections of attention and MLP (GPT-2)                    |
| deepnorm | xavier; V, O and the MLP's matrices times (8 L)^(-1/4) (arXiv:2203.00555, table 2, decoder only)      |
| sub      | xavier; V, O and the MLP's matrices times sqrt(ln 2 L) (arXiv:2210.06423, decoder only)               |
| tfixup   | xavier; V, O and the MLP's matrices times 0.67 L^(-1/4) (Huang et al. 2020, encoder; it has no decoder-only form) |

The table also applies to the output matrix, unless model.unembed_std is set. For embeddings, model.embed_init decides:

| embed_init | standard deviation of token and learned position embeddings                                        |
|------------|----------------------------------------------------------------------------------------------------|
| unit       | sqrt(1/2) each, or 1 if no positions are added, so that x_0 has unit variance                       |
| std        | model.embed_std, by default 0.02                                                                   |
| scaled     | model.embed_std, by default d_model^(-1/2); the model multiplies token embeddings by sqrt(d_model)  |
"""  # noqa: E501

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

from normstudy.config import ModelConfig, resolve
from normstudy.model.own import construct, made_by

NORMAL_STD = 0.02
OUTPUT_PROJECTIONS = ("attn.out.weight", "mlp.w2.weight")
VALUE_PATH = ("attn.v.weight", "attn.out.weight", "mlp.w1.weight", "mlp.gate.weight", "mlp.w2.weight")


def _weight_std(init: str, name: str, shape: torch.Size, n_layers: int) -> float:
    """Return the standard deviation that the module docstring's first table lists for a weight matrix (out, in)."""
    if init == "normal":
        return NORMAL_STD
    if init == "gpt2":
        return NORMAL_STD / math.sqrt(2 * n_layers) if name.endswith(OUTPUT_PROJECTIONS) else NORMAL_STD
    gains = {
        "xavier": 1.0,
        "deepnorm": (8 * n_layers) ** -0.25,
        "sub": math.sqrt(math.log(2 * n_layers)),
        "tfixup": 0.67 * n_layers**-0.25,
    }
    return math.sqrt(2 / (shape[0] + shape[1])) * (gains[init] if name.endswith(VALUE_PATH) else 1.0)


# The last part of a tensor's name -> the initial value of all its elements.
CONSTANTS = {"gamma": 1.0, "beta": 0.0, "bias": 0.0, "a": 0.5, "omega1": 1.0, "omega2": 1.0, "scale": 0.0}


def distribution(name: str, shape: torch.Size, config: ModelConfig) -> tuple[float, float]:
    """Return the mean and standard deviation of the initial values of a Transformer's tensor `name`."""
    leaf = name.rpartition(".")[2]
    if leaf in ("embed", "pos"):
        adds = config.positions in ("learned", "sinusoidal")  # whether x_0 includes positions of mean square 1/2
        return 0.0, resolve(config).embed_std or math.sqrt(0.5 if adds else 1.0)
    if leaf in CONSTANTS:
        return CONSTANTS[leaf], 0.0
    if name == "unembed.weight" and config.unembed_std is not None:
        return 0.0, config.unembed_std
    return 0.0, _weight_std(resolve(config).init, name, shape, config.n_layers)


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
    drawn = [draw_own(model, seed) for seed in seeds]
    return {
        name: torch.stack(
            [
                theirs[name] if name in theirs else draw(name, p.shape, config, seed)
                for theirs, config, seed in zip(drawn, configs, seeds, strict=True)
            ]
        )
        for name, p in model.named_parameters()
    }

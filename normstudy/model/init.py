"""Draw a model's initial parameters from the distributions in moments.py, and compute the omegas of `admin`."""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from normstudy.config import ModelConfig
from normstudy.model.moments import distribution
from normstudy.model.own import construct, made_by
from normstudy.model.transformer import Transformer


def _key(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"init/{seed}/{name}".encode()).digest()[:16], "little")


def draw(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """Draw a tensor's initial values (float32) from a random stream. Only `seed` and `name` determine the stream."""
    mean, std = distribution(name, shape, config)
    if std == 0:
        return torch.full(shape, mean)
    rng = np.random.Generator(np.random.Philox(key=_key(name, seed)))
    return torch.from_numpy(rng.standard_normal(tuple(shape), np.float32) * np.float32(std) + np.float32(mean))


def draw_own(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Construct the user's own modules, seeded by `seed` and the module's name. Return name -> parameter."""
    out: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        if make := made_by(module):
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


def set_omegas_(model: Transformer, params: dict[str, Tensor], tokens: Tensor) -> None:
    """Set the initial omegas of the placement `admin` from one batch of data, in place.

    omega_1 = 1 and omega_{i+1} = sqrt(Var(omega_i x_i) + Var(f_i)), where x_i and f_i are the input and output of
    sublayer i after all earlier omegas are set. The variance is over all elements (Liu et al., arXiv:2004.08249,
    section 4; code in Transformer-Clinic). Each omega is a vector of D numbers, all equal before training.

    params: name -> (runs, *shape); tokens: (runs, B, T).
    """
    for r in range(len(tokens)):
        for name, omega in profile(model, {n: p[r] for n, p in params.items()}, tokens[r]).items():
            params[name][r] = omega


def profile(model: Transformer, params: dict[str, Tensor], tokens_BT: Tensor) -> dict[str, Tensor]:
    """Compute one run's omegas, name -> (D,). Each run is profiled alone, so that no run depends on another."""
    omegas: dict[str, Tensor] = {}
    with torch.no_grad():
        x = torch.func.functional_call(model, params, (tokens_BT,))[1][0]  # x_0
        omega = 1.0
        for layer, block in enumerate(model.blocks):
            prefix = f"blocks.{layer}."
            own = {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}
            for half, sublayer in (("omega1", "attn"), ("omega2", "mlp")):
                own[half] = omegas[prefix + half] = torch.full_like(own[half], omega)
                read, gave, x_next = _observe(block, sublayer, own, x)
                omega = float(torch.sqrt(omega**2 * read.var(correction=0) + gave.var(correction=0)))
            x = x_next
    return omegas


def _observe(block: nn.Module, sublayer: str, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Call a block on x. Return the input and output of its submodule `sublayer`, and the block's output."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = block.get_submodule(sublayer).register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    try:
        x_next, _ = torch.func.functional_call(block, params, (x, x))
    finally:
        handle.remove()
    return *seen[0], x_next

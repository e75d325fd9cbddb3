"""Admin's profiling pass: the omegas that balance a post-norm stack, measured on one batch at initialization.

omega_1 = 1 and omega_{i+1} = sqrt(Var(omega_i x_i) + Var(f_i)), where x_i is what sublayer i reads and f_i what it
gives, with the omegas before it already set, the variance over all elements (Liu et al., arXiv:2004.08249, section 4;
Transformer-Clinic). Each omega is a vector of D equal numbers, learned from there on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normstudy.model.transformer import Transformer


def set_omegas_(model: Transformer, params: dict[str, Tensor], tokens: Tensor) -> None:
    """Profile each of a batch of runs: params name -> (runs, *shape), changed in place; tokens (runs, B, T)."""
    for r in range(len(tokens)):
        for name, omega in profile(model, {n: p[r] for n, p in params.items()}, tokens[r]).items():
            params[name][r] = omega


def profile(model: Transformer, params: dict[str, Tensor], tokens_BT: Tensor) -> dict[str, Tensor]:
    """The omegas of one run, name -> (D,), from its other parameters and one batch.

    One run at a time, so that its numbers do not depend on what it trains with.
    """
    omegas: dict[str, Tensor] = {}
    with torch.no_grad():
        x = torch.func.functional_call(model, params, (tokens_BT,))[1][0]  # x_0
        omega = 1.0
        for layer, block in enumerate(model.blocks):
            prefix = f"blocks.{layer}."
            own = {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}
            for half, sublayer in (("omega1", "attn"), ("omega2", "mlp")):
                own[half] = omegas[prefix + half] = torch.full_like(own[half], omega)
                read, gave, x_next = _watch(block, sublayer, own, x)
                omega = float(torch.sqrt(omega**2 * read.var(correction=0) + gave.var(correction=0)))
            x = x_next
    return omegas


def _watch(block: nn.Module, sublayer: str, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a sublayer of a block reads and gives, and the block's output."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = block.get_submodule(sublayer).register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    try:
        x_next, _ = torch.func.functional_call(block, params, (x, x))
    finally:
        handle.remove()
    return *seen[0], x_next

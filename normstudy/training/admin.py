"""Set the initial omegas of the placement `admin` from one batch of data, in a profiling pass.

omega_1 = 1 and omega_{i+1} = sqrt(Var(omega_i x_i) + Var(f_i)), where x_i and f_i are the input and output of sublayer
i once all earlier omegas are set. The variance is over all elements (Liu et al., arXiv:2004.08249, section 4; code in
Transformer-Clinic). Each omega is a vector of D numbers, which are equal until training changes them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normstudy.model.transformer import Transformer


def set_omegas_(model: Transformer, params: dict[str, Tensor], tokens: Tensor) -> None:
    """Set the omegas of a batch of runs in place. params: name -> (runs, *shape); tokens: (runs, B, T)."""
    for r in range(len(tokens)):
        for name, omega in profile(model, {n: p[r] for n, p in params.items()}, tokens[r]).items():
            params[name][r] = omega


def profile(model: Transformer, params: dict[str, Tensor], tokens_BT: Tensor) -> dict[str, Tensor]:
    """Compute one run's omegas, name -> (D,). Runs are profiled one by one, so that no run depends on another."""
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

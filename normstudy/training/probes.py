"""What a step measures, and when: modules, probed steps, and how module norms combine.

`step.step_` takes the norms of gradients, parameters and updates by `Layout.norms` (layout.py).
A module's norm is over all its tensors, so the squares of all module norms add up to the square of the global norm.
Module norms are (modules, runs), float32, and are combined in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normstudy.config import ProbeConfig

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

# The module of each part of a block whose module has another name. Q, K, V and their biases are one module.
_IN_BLOCK = {
    "attn.q": "attn_in", "attn.k": "attn_in", "attn.v": "attn_in", "attn.out": "attn_out",
    "attn.q_norm": "qkv_norm", "attn.k_norm": "qkv_norm", "q_norm": "qkv_norm", "k_norm": "qkv_norm",
    "v_norm": "qkv_norm", "mlp.gate": "mlp_in", "mlp.w1": "mlp_in", "mlp.w2": "mlp_out",
    "omega1": "scale", "omega2": "scale",
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """Norms at a probed step. grad, param, update: (modules, runs); rms, residual_grad: (n_layers + 1, runs)."""

    grad: Array
    param: Array
    update: Array
    rms: Array
    residual_grad: Array


@dataclass(frozen=True)
class Modules:
    """The rows of the table `modules` at a probed step, and the row of each tensor.

    layer: one per row, None outside the blocks; name: one per row; row_of_tensor: one per tensor.
    """

    layer: list[int | None]
    name: list[str]
    row_of_tensor: list[int]


def module_of(parameter: str) -> tuple[int | None, str]:
    """The layer and the module of a parameter: 'blocks.3.attn.q.weight' -> (3, 'attn_in'). The layer may be None."""
    first, *rest = parameter.split(".")
    if first != "blocks":
        return None, first
    layer, *path = rest
    part = ".".join(path[:2]) if path[0] in ("attn", "mlp") else path[0]
    return int(layer), _IN_BLOCK.get(part, part)


def modules_of(parameters: list[str]) -> Modules:
    """The modules of a model: first the blocks in order, then the modules outside of blocks."""
    keys = [module_of(p) for p in parameters]
    rows = sorted(set(keys), key=lambda k: (k[0] is None, k[0] if k[0] is not None else 0, keys.index(k)))
    return Modules([layer for layer, _ in rows], [name for _, name in rows], [rows.index(k) for k in keys])


def is_probed(step: int, n_steps: int, probe: ProbeConfig) -> bool:
    """Whether a step is probed: each of the first dense_steps, every probe.every-th after them, and the last."""
    return step < probe.dense_steps or step % probe.every == 0 or step == n_steps - 1


def sum_by_run(values: Array) -> Array:
    """Sum over the first axis: (n, runs) -> (runs,). The order of additions does not depend on the number of runs."""
    return np.asarray(np.ascontiguousarray(values.T).sum(1))


def global_norm(norms: Array) -> Array:
    """(modules, runs) -> (runs,): the L2 norm over all modules."""
    return np.asarray(np.sqrt(sum_by_run(norms**2)))


def rms_by_run(x: Tensor) -> Tensor:
    """Root mean square over all but the run axis: (runs, ...) -> (runs,)."""
    flat = x.reshape(len(x), -1)
    rms: Tensor = torch.linalg.vector_norm(flat, dim=1) / flat.shape[1] ** 0.5
    return rms

"""Lay out the parameters of runs, choose the modules and steps whose norms are recorded, and compute norms.

All parameters of a batch form one matrix (runs, width), so that an update takes few operations. A module's tensors are
adjacent, so one operation on a span of columns computes its norm. The squares of all module norms add up to the square
of the global norm. Module norms are float32, and `global_norm` combines them in float64. Norms from 1e-37 to 1e37 are
right, even if their squares are too small or too large for float32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normstudy.config import ProbeConfig

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

ALIGN = 16  # floats in a cache line; each module begins at a multiple of ALIGN
ORDINARY = (1e-15, 1e15)  # a norm in this range is right: no square overflows, and only negligible squares underflow

# Name of a module or parameter in a block -> the module's name in the tables. Names not listed stay the same.
_IN_BLOCK = {
    "attn.q": "attn_in", "attn.k": "attn_in", "attn.v": "attn_in", "attn.out": "attn_out",
    "attn.q_norm": "qkv_norm", "attn.k_norm": "qkv_norm", "q_norm": "qkv_norm", "k_norm": "qkv_norm",
    "v_norm": "qkv_norm", "mlp.gate": "mlp_in", "mlp.w1": "mlp_in", "mlp.w2": "mlp_out",
    "omega1": "scale", "omega2": "scale",
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """Norms at a step. grad, param, update: of each module, (modules, runs). rms, residual_grad: (layers + 1, runs)."""

    grad: Array
    param: Array
    update: Array
    rms: Array  # RMS of the residual stream x_0 ... x_L
    residual_grad: Array  # norm of the loss gradient with respect to x_0 ... x_L


class Modules(NamedTuple):
    """A run's modules, in the order of the rows of a Probe. row_of_tensor: for each tensor, the index of its module."""

    layer: list[int | None]  # None outside blocks
    name: list[str]
    row_of_tensor: list[int]


def module_of(parameter: str) -> tuple[int | None, str]:
    """Return a parameter's layer (None outside blocks) and module: 'blocks.3.attn.q.weight' -> (3, 'attn_in')."""
    first, *rest = parameter.split(".")
    if first != "blocks":
        return None, first
    layer, *path = rest
    part = ".".join(path[:2]) if path[0] in ("attn", "mlp") else path[0]
    return int(layer), _IN_BLOCK.get(part, part)


def modules_of(parameters: list[str]) -> Modules:
    """List the modules that own `parameters`: first the modules inside blocks, layer by layer, then the others."""
    keys = [module_of(p) for p in parameters]
    rows = sorted(set(keys), key=lambda k: (k[0] is None, k[0] if k[0] is not None else 0, keys.index(k)))
    return Modules([layer for layer, _ in rows], [name for _, name in rows], [rows.index(k) for k in keys])


class Layout(NamedTuple):
    """The columns of a run's tensors. starts: each tensor's first column. spans: each module's columns [low, high)."""

    names: list[str]
    shapes: list[torch.Size]
    starts: list[int]
    modules: Modules
    spans: list[tuple[int, int]]
    width: int

    def flatten(self, stacked: Mapping[str, Tensor]) -> Tensor:
        """Copy tensors into a new matrix (runs, width), padded with 0. stacked: name -> tensor (runs, *shape)."""
        first = stacked[self.names[0]]
        flat = first.new_zeros(len(first), self.width)
        for name, view in zip(self.names, self.tensors(flat), strict=True):
            view.copy_(stacked[name])
        return flat

    def tensors(self, flat: Tensor) -> list[Tensor]:
        """Return views of a matrix (runs, width): one tensor (runs, *shape) for each of `names`."""
        return [
            flat[:, start : start + math.prod(shape)].view(len(flat), *shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]

    def norms(self, flat: Tensor) -> Tensor:
        """Compute the L2 norm of each module: (runs, width) -> (modules, runs)."""
        return norms_by_run([flat[:, low:high] for low, high in self.spans])


def layout_of(parameters: Mapping[str, Tensor]) -> Layout:
    """Compute the layout for one run's parameters, name -> tensor."""
    names = list(parameters)
    modules = modules_of(names)
    starts, spans, column = [0] * len(names), [], 0
    for row in range(len(modules.name)):
        first = column = math.ceil(column / ALIGN) * ALIGN
        for i, name in enumerate(names):
            if modules.row_of_tensor[i] == row:
                starts[i] = column
                column += parameters[name].numel()
        spans.append((first, column))
    width = math.ceil(column / ALIGN) * ALIGN
    return Layout(names, [p.shape for p in parameters.values()], starts, modules, spans, width)


def is_probed(step: int, n_steps: int, probe: ProbeConfig) -> bool:
    """Return whether a step is among the first probe.dense_steps steps, a multiple of probe.every, or the last step."""
    return step < probe.dense_steps or step % probe.every == 0 or step == n_steps - 1


def sum_by_run(values: Array) -> Array:
    """Sum (n, runs) over the first axis -> (runs,), in an order that does not depend on the number of runs."""
    return np.asarray(np.ascontiguousarray(values.T).sum(1))


def global_norm(norms: Array) -> Array:
    """Combine module norms into global L2 norms: (modules, runs) -> (runs,)."""
    return np.asarray(np.sqrt(sum_by_run(norms**2)))


def rms_by_run(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the RMS of each tensor in each run: tensors (runs, ...), all of one size -> (tensors, runs)."""
    return norms_by_run(tensors, math.prod(tensors[0].shape[1:]) ** 0.5)


def norms_by_run(tensors: Sequence[Tensor], divisor: float = 1.0) -> Tensor:
    """Compute the L2 norm of each tensor in each run, divided by `divisor`: tensors (runs, ...) -> (tensors, runs).

    A norm outside ORDINARY is computed again: the tensor is divided by its largest absolute value, and the norm of the
    result is multiplied by this value. On a CPU, only tensors with such a norm are read again. On a GPU, all tensors
    are read again, because checking the norms first would make the CPU wait for the GPU.
    """
    flat = [x if x.ndim == 2 else x.reshape(len(x), -1) for x in tensors]
    plain = torch.stack([torch.linalg.vector_norm(x, dim=1) for x in flat])
    norms = plain if divisor == 1 else plain / divisor
    on_cpu, nearest = plain.device.type == "cpu", plain.clamp(*ORDINARY)
    if on_cpu and torch.equal(plain, nearest):
        return norms
    ordinary = plain == nearest
    done = ordinary.all(1).tolist() if on_cpu else [False] * len(flat)
    done = [d or not x.shape[1] for d, x in zip(done, flat, strict=True)]
    # On a CPU, abs and amax are ten times as fast as vector_norm(x, inf).
    largest = torch.stack([n if d else x.abs().amax(1) for d, x, n in zip(done, flat, plain, strict=True)])
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)  # numbers are not scaled by 0, inf or NaN
    parts = zip(done, flat, plain, scale[..., None], strict=True)
    scaled = torch.stack([n if d else torch.linalg.vector_norm(x / s, dim=1) for d, x, n, s in parts])
    return torch.where(ordinary, norms, scaled / divisor * scale)

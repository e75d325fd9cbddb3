"""Lay out all parameters of a batch of runs in one matrix (runs, width), so that an update takes few operations.

Each row is a run. A module's tensors are adjacent, so one operation on a span of columns computes its norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from normstudy.training.probes import Modules, modules_of, norms_by_run

ALIGN = 16  # floats in a cache line; each module begins at a multiple of ALIGN


class Layout(NamedTuple):
    """The columns of a run's tensors. starts: each tensor's first column. spans: each module's columns [low, high)."""

    names: list[str]
    shapes: list[torch.Size]
    starts: list[int]
    modules: Modules
    spans: list[tuple[int, int]]
    width: int

    def flatten(self, stacked: Mapping[str, Tensor]) -> Tensor:
        """Copy tensors into a new matrix (runs, width) that is 0 elsewhere. stacked: name -> tensor (runs, *shape)."""
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

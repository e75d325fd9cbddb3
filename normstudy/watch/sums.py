"""Compute the norms of many tensors, as exactly as their type allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROW = 1024  # squares that are added one after another


@torch.no_grad()
def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors' norms in float32, also those of half precision; in float64 if one tensor is float64.

    On a CPU torch adds all squares of a tensor one after another. The norm of four million equal numbers, as the first
    updates of Adam are, is then off by 0.3 %. So a long tensor's norm is that of the norms of its rows, in float64.
    """
    tensors = [torch.view_as_real(x) if x.is_complex() else x.float() if x.itemsize == 1 else x for x in tensors]
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    short = [x for x in tensors if not _is_long(x)]
    of_short = iter(torch._foreach_norm(short, 2, dtype) if short else ())
    return [_by_rows(x, dtype) if _is_long(x) else next(of_short) for x in tensors]


def has_norm(x: Tensor) -> bool:
    """Whether a tensor's values are those of the model: no integers of a quantized one, and stored on a device."""
    return (x.is_floating_point() or x.is_complex()) and not x.is_meta


def _is_long(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() > 4 * ROW


def _by_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    flat = x.reshape(-1)
    end = len(flat) // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:end].view(-1, ROW), dim=1, dtype=dtype)
    rest = torch.linalg.vector_norm(flat[end:], dtype=dtype)
    norm: Tensor = torch.linalg.vector_norm(torch.cat([rows, rest[None]]), dtype=torch.float64)
    return norm.to(dtype)

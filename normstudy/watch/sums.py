"""Compute the norms of many tensors, as exactly as their type allows."""

from collections.abc import Sequence

import torch
from torch import Tensor

ROW = 1024  # number of squares that are added one after another
ORDINARY = (1e-15, 1e15)  # for norms in this range, no relevant square over- or underflows float32


@torch.no_grad()
def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors' norms in float32, or in float64 if one tensor is float64.

    On a CPU, torch adds the squares of a tensor one after another. For four million equal numbers, such as Adam's first
    updates, this norm is off by 0.3 %. So long tensors are split into rows, whose norms are combined in float64. Norms
    outside ORDINARY are recomputed in float64. A GPU computes all norms in float64, because this check would wait.
    """
    tensors = [torch.view_as_real(x) if x.is_complex() else x.float() if x.itemsize == 1 else x for x in tensors]
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    short = [x for x in tensors if not _is_long(x)]
    on_cpu = all(x.is_cpu for x in tensors)
    of_short = iter(torch._foreach_norm(short, 2, dtype if on_cpu else wide(short[0].device)) if short else ())
    found = [_by_rows(x, dtype) if _is_long(x) else next(of_short).to(dtype) for x in tensors]
    if on_cpu and dtype == torch.float32:
        low, high = ORDINARY
        odd = [i for i, norm in enumerate(found) if not low < float(norm) < high]
        for i in odd:
            found[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64).float()
    return found


def wide(device: torch.device) -> torch.dtype:
    """Return the widest type of floating-point numbers that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def sum_of_squares(x: Tensor) -> Tensor:
    """Return the sum of a tensor's squares, in the device's widest type."""
    x = x.detach()
    if x.is_cpu and not torch.compiler.is_compiling():  # on a CPU, `norms` takes a quarter of the time of float64 sums
        fast = norms([x])[0]
        if ORDINARY[0] < float(fast) < ORDINARY[1]:
            return fast.double().square()
    norm: Tensor = torch.linalg.vector_norm(x, dtype=wide(x.device))
    return norm.square()


def has_norm(x: Tensor) -> bool:
    """Return whether a tensor has a norm: it is not a meta tensor, and not quantized to integers."""
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

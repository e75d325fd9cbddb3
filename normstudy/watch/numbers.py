"""Compute norms, store what a probe measures in a step, and copy the numbers of many steps from the device at once."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normstudy.watch.names import Layout

Number = float | Tensor | None
LOGGED = ("train_loss", "val_loss", "lr", "skipped")
ROW = 1024  # number of squares that are added one after another
ORDINARY = (1e-15, 1e15)  # for norms in this range, no relevant square over- or underflows float32


@dataclass
class Row:
    """Store the measurements of one step. Dictionaries map a parameter's index to a norm on the model's device."""

    step: int
    probed: bool
    lr: Number = None
    train_loss: Number = None
    val_loss: Number = None
    grads: dict[int, Tensor] = field(default_factory=dict)  # before clipping
    clipped: dict[int, Tensor] = field(default_factory=dict)  # after clipping, as the optimizer uses them
    late: set[int] = field(default_factory=set)  # parameters whose gradient no backward produced
    params: dict[int, Tensor] = field(default_factory=dict)
    updates: dict[int, Tensor] = field(default_factory=dict)
    stream: Tensor | None = None  # (3, points): sums of mean squares, forward passes, sums of squared gradients
    repeated: bool = False  # whether an optimizer called its closure several times, as L-BFGS does
    skipped: Number = None  # above 0 if a fused optimizer made no update, because its scaler found inf
    scale: Tensor | None = None  # the factor by which a GradScaler multiplied the loss


def number(value: object) -> Number:
    """Return a real number as a float (inf if too large for float32) or a tensor; return None for anything else."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() == 1 and not value.is_complex() and not value.is_meta else None
    try:
        x = float(getattr(value, "item", lambda: value)())  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    if isinstance(value, str | bytes):
        return None
    return math.copysign(math.inf, x) if abs(x) > torch.finfo(torch.float32).max else x


class Numbers(NamedTuple):
    """Store the numbers of one step. A missing number is NaN.

    steps: train_loss, val_loss and lr, then grad_norm, param_norm, update_norm and clip_factor over all parameters.
    modules: (groups, 3) norms; stream: (points, 2) numbers; both are empty if the step was not probed.
    """

    step: int
    steps: list[float]
    modules: list[list[float]]
    stream: list[list[float]]
    finite: bool  # whether the logged training loss and all norms are finite, or the step was skipped


class Groups:
    """Store the group of each parameter. Index tensors are cached, because creating one waits for the device."""

    def __init__(self, layout: Layout, model: nn.Module) -> None:
        params = list(model.named_parameters())
        self.of, self.n = [layout.groups[name] for name, _ in params], len(layout.places)
        self.device = next(p.device for _, p in params if p.requires_grad)
        self.unknown = sorted({layout.groups[name] for name, p in params if not has_norm(p)})  # without a norm
        self.points = len(layout.blocks) + 1 if layout.blocks else 0  # of the residual stream
        self.at = functools.cache(lambda which: torch.tensor([self.of[i] for i in which], device=self.device))


class Copy:
    """Start to copy the values in the rows from the device to the CPU, and return them later."""

    def __init__(self, rows: Sequence[Row], groups: Groups) -> None:
        self.rows, self.groups = rows, groups
        device = groups.device
        logged = [_scalar(getattr(row, name), device) for row in rows for name in LOGGED]
        self._parts = [torch.stack(logged).reshape(len(rows), -1)]
        probed = [row for row in rows if row.probed]
        if probed:
            self._parts += [torch.stack([_modules(row, groups) for row in probed])]
            if groups.points:
                self._parts += [torch.stack([_stream(row, groups.points, device) for row in probed])]
        self._event = None
        if device.type == "cuda":
            self._parts = [part.to("cpu", non_blocking=True) for part in self._parts]  # into pinned memory
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def ready(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def numbers(self) -> list[Numbers]:
        """Return the rows' numbers; wait for the copy if it is not ready."""
        if self._event is not None:
            self._event.synchronize()
        logged, *parts = (part.cpu().double() for part in self._parts)
        out, probed = [], zip(*parts, strict=True)
        for row, values in zip(self.rows, logged.tolist(), strict=True):
            skipped = values.pop() > 0  # a scaler found inf and a fused optimizer made no update: no divergence
            good = skipped or row.train_loss is None or math.isfinite(values[0])
            if not row.probed:
                out.append(Numbers(row.step, [*values, *[math.nan] * 4], [], [], good))
                continue
            modules, *stream = next(probed)
            modules[1, self.groups.unknown] = math.nan
            total = modules[:, :-1].square().nansum(dim=1).sqrt()
            known = ~modules[:, :-1].isnan().all(dim=1)
            known[1] &= not self.groups.unknown
            totals = torch.where(known, total, math.nan).tolist()
            numbers = [*values, *totals, modules[0, -1].item()]
            good = good and (skipped or not any(map(math.isinf, totals)))
            along = stream[0].T.tolist() if stream else []
            out.append(Numbers(row.step, numbers, modules[:, :-1].T.tolist(), along, good))
        return out


def _scalar(value: Number, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(device, torch.float32).reshape(())
    return torch.full((), math.nan if value is None else value, dtype=torch.float32, device=device)


def _modules(row: Row, groups: Groups) -> Tensor:
    """Return (3, groups + 1): each group's norms of gradients, parameters and updates. [0, -1] is the clip factor."""
    out = torch.full((3, groups.n + 1), math.nan, dtype=torch.float32, device=groups.device)
    for k, found in enumerate((row.grads, row.params, row.updates)):
        if found:
            at = groups.at(tuple(found))
            norms = _stacked(found.values(), groups.device).nan_to_num(math.inf, math.inf)
            if k == 0 and row.scale is not None:
                norms = norms / row.scale.to(groups.device)
            squares = norms.new_zeros(groups.n).index_add_(0, at, norms.square())
            out[k, :-1].index_copy_(0, at, squares.sqrt().float()[at])
    if both := [i for i in row.clipped if i in row.grads and not row.repeated]:
        before, after = (_stacked([of[i] for i in both], groups.device) for of in (row.grads, row.clipped))
        before = before / row.scale.to(groups.device) if row.scale is not None else before
        out[0, -1] = torch.linalg.vector_norm(after) / torch.linalg.vector_norm(before)
    if row.late:  # it is unknown whether these gradients were clipped
        late = _stacked([row.clipped[i] for i in sorted(row.late)], groups.device)
        out[0, -1] = torch.where((late != 0).any(), math.nan, out[0, -1])
    return out


def _stacked(norms: Iterable[Tensor], device: torch.device) -> Tensor:
    found = list(norms)
    alike = len({(norm.device, norm.dtype) for norm in found}) == 1  # then one conversion converts all
    return torch.stack(found if alike else [norm.to(device, wide(device)) for norm in found]).to(device, wide(device))


def _stream(row: Row, points: int, device: torch.device) -> Tensor:
    """Return (2, points): root mean squares of the residual stream, and norms of the gradients along it."""
    if row.stream is None:
        return torch.full((2, points), math.nan, dtype=torch.float32, device=device)
    squares, passes, gradients = row.stream
    norms = torch.where(gradients > 0, gradients, math.nan).sqrt()
    squares = torch.where(squares < 0, math.nan, squares)  # unknown, e.g. after several passes of a compiled block
    return torch.stack([(squares / passes).sqrt(), norms if row.scale is None else norms / row.scale]).float()


@torch.no_grad()
def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors' norms in float32, or in float64 if one tensor is float64.

    On a CPU, torch adds the squares of a tensor one after another. For four million equal numbers, such as Adam's first
    updates, its norm is off by 0.3 %. Therefore long tensors are split into rows, whose norms are combined in float64.
    Norms outside ORDINARY are recomputed in float64. On a GPU, to avoid this check, all norms are computed in `wide`.
    """
    tensors = [torch.view_as_real(x) if x.is_complex() else x.float() if x.itemsize == 1 else x for x in tensors]
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    short = [x for x in tensors if not _is_long(x)]
    on_cpu = all(x.is_cpu for x in tensors)
    of_short = iter(torch._foreach_norm(short, 2, dtype if on_cpu else wide(short[0].device)) if short else ())
    found = [(_by_rows(x) if _is_long(x) else next(of_short)).to(dtype) for x in tensors]
    if on_cpu and dtype == torch.float32:
        low, high = ORDINARY
        for i in [i for i, norm in enumerate(found) if not low < float(norm) < high]:
            found[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64).float()
    return found


def wide(device: torch.device) -> torch.dtype:
    """Return the widest type of floating-point numbers that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def sum_of_squares(x: Tensor) -> Tensor:
    """Return the sum of a tensor's squares, in the device's widest type."""
    x = x.detach()
    if x.is_cpu and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        norm = _by_rows(x)  # on a CPU, this takes a quarter of the time of a sum in float64
        if ORDINARY[0] < norm.item() < ORDINARY[1]:
            return norm.square()
    return torch.linalg.vector_norm(x, dtype=wide(x.device)).square()  # type: ignore[no-any-return]


def has_norm(x: Tensor) -> bool:
    """Return whether a tensor has a norm: it is not a meta tensor, and not quantized to integers."""
    return (x.is_floating_point() or x.is_complex()) and not x.is_meta


def _is_long(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() > 4 * ROW


def _by_rows(x: Tensor) -> Tensor:
    """Return a CPU tensor's norm in float64, combined from the norms of its rows (float32, unless x is float64)."""
    flat, dtype = x.reshape(-1), torch.float64 if x.dtype == torch.float64 else torch.float32
    end = len(flat) // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:end].view(-1, ROW), dim=1, dtype=dtype)
    if end < len(flat):
        rows = torch.cat([rows, torch.linalg.vector_norm(flat[end:], dtype=dtype)[None]])
    return torch.linalg.vector_norm(rows, dtype=torch.float64)  # type: ignore[no-any-return]

"""The matrix products of a run-step, each made alone in every way that this machine has: the limit of a3.

Every product is timed on all cores at once: by NumPy and by torch.bmm over the runs, torch.mm run by run, oneDNN run by
run in both orders; attention's by torch's fused attention too, with all that it does besides. The fastest counts.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normstudy import config as cfg
from normstudy.bench.children import Work
from normstudy.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

BMM, NUMPY = "torch.bmm", "NumPy"


@dataclass(frozen=True)
class Product:
    """`batch` products (m, k) x (k, n). layout: which factors are transposes of what lies in memory: nn, nt or tn."""

    batch: int
    m: int
    k: int
    n: int
    layout: str

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


@dataclass(frozen=True)
class Piece:
    """Products of one run, made one after the other, `count` times a run-step."""

    name: str
    products: tuple[Product, ...]
    count: int

    @property
    def flops(self) -> int:
        """Of one run-step."""
        return self.count * sum(p.flops for p in self.products)


ATTENTION, ATTENTION_BACKWARD = "attention", "attention backward"


def pieces(config: RunConfig, vocab_size: int) -> list[Piece]:
    """Every matrix product of one run-step of the default model, as normstudy makes them: q, k and v at once.

    Attention's are counted whole, with the half that the causal mask discards.
    """
    m, d = config.model, config.data
    width, d_ff, T, K = m.d_model, cfg.resolve(m).d_ff, d.seq_len, m.d_model // m.n_heads
    rows, heads, L = d.batch_size * T, d.batch_size * m.n_heads, m.n_layers

    def linear(name: str, n_in: int, n_out: int, count: int) -> list[Piece]:
        return [
            Piece(name, (Product(1, rows, n_in, n_out, "nt"),), count),
            Piece(f"{name}, gradient of x", (Product(1, rows, n_out, n_in, "nn"),), count),
            Piece(f"{name}, gradient of W", (Product(1, n_out, rows, n_in, "tn"),), count),
        ]

    scores, mixed, transposed = (
        Product(heads, T, K, T, "nt"), Product(heads, T, T, K, "nn"), Product(heads, T, T, K, "tn"),
    )  # fmt: skip
    return [
        *linear("q, k, v", width, 3 * width, L),
        *linear("out", width, width, L),
        *linear("w1", width, d_ff, L),
        *linear("w2", d_ff, width, L),
        *linear("unembed", width, vocab_size, 1),
        Piece(ATTENTION, (scores, mixed), L),
        # The gradients of the weights, and then of q, k and v.
        Piece(ATTENTION_BACKWARD, (scores, mixed, transposed, transposed), L),
    ]


def ways(piece: Piece, config: RunConfig, runs: int) -> dict[str, Callable[[], object]]:
    """The ways to make the products of a piece for a batch of runs; oneDNN where this torch has it."""
    import numpy as np
    import torch

    def factor(product: Product, rows: int, columns: int, transposed: bool) -> Tensor:
        shape = (columns, rows) if transposed else (rows, columns)
        x = torch.randn(runs * product.batch, *shape)
        return x.mT if transposed else x

    factors = [
        (factor(p, p.m, p.k, p.layout[0] == "t"), factor(p, p.k, p.n, p.layout[1] == "t")) for p in piece.products
    ]
    arrays = [(a.numpy(), b.numpy(), (a @ b).numpy()) for a, b in factors]
    out: dict[str, Callable[[], object]] = {
        BMM: lambda: [torch.bmm(a, b) for a, b in factors],
        NUMPY: lambda: [np.matmul(a, b, out=ab) for a, b, ab in arrays],
    }
    if piece.name in (ATTENTION, ATTENTION_BACKWARD):
        out["fused"] = fused_attention(config, runs, backward=piece.name == ATTENTION_BACKWARD)
        return out
    pairs = [(x, y) for a, b in factors for x, y in zip(a, b, strict=True)]
    out["torch.mm"] = lambda: [x @ y for x, y in pairs]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        linear = functools.partial(_linear, torch.ops.mkldnn._linear_pointwise)
        out["oneDNN"] = lambda: [linear(x, y.mT) for x, y in pairs]
        out["oneDNN, transposed"] = lambda: [linear(y.mT, x) for x, y in pairs]
    return out


def _linear(pointwise: Callable[..., Tensor], x: Tensor, w: Tensor) -> Tensor:
    """x W^T (rows, n) by oneDNN."""
    return pointwise(x, w, None, "none", [], "")


def fused_attention(config: RunConfig, runs: int, *, backward: bool) -> Callable[[], object]:
    """torch's fused attention, softmax included: where it is faster than the bare products, those are not the limit."""
    import torch
    from torch.nn import functional as F

    T, H, K = config.data.seq_len, config.model.n_heads, config.model.d_model // config.model.n_heads
    q, k, v = (
        torch.randn(runs * config.data.batch_size, T, H, K).transpose(1, 2).requires_grad_(backward) for _ in "qkv"
    )
    if not backward:
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    gradient = torch.randn_like(mixed)
    return lambda: torch.autograd.grad(mixed, [q, k, v], gradient, retain_graph=True)


def start_products(job: tuple[RunConfig, int]) -> Work[dict[tuple[str, str], float]]:
    """(config, runs of a batch) -> for each (piece, way) the seconds that all of it takes in a run-step."""
    from normstudy.data import texts

    config, runs = job
    made = [(piece, ways(piece, config, runs)) for piece in pieces(config, texts.load(config.data).vocab_size)]

    def work(milliseconds: int) -> dict[tuple[str, str], float]:
        return {
            (piece.name, way): typical_seconds(make, milliseconds / 1e3) * piece.count / runs
            for piece, by_way in made
            for way, make in by_way.items()
        }

    return work


def typical_seconds(
    call: Callable[[], object], at_least: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median time of a call, of at least three calls that take so many seconds together."""
    call()
    taken: list[float] = []
    while sum(taken) < at_least or len(taken) < 3:
        started = clock()
        call()
        taken.append(clock() - started)
    return statistics.median(taken)


def fastest(timed: Sequence[Mapping[tuple[str, str], float]]) -> tuple[float, float]:
    """Seconds that the products of a run-step take, each made in the fastest of all ways, and all by torch.bmm."""
    best: dict[str, float] = {}
    bmm: dict[str, float] = {}
    for seconds in timed:
        for (name, way), value in seconds.items():
            best[name] = min(value, best.get(name, value))
            if way == BMM:
                bmm[name] = min(value, bmm.get(name, value))
    return sum(best.values()), sum(bmm.values())

"""Time a training step's matrix products with each available library. The fastest library shows the machine's limit."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from normstudy.bench.subjects import Work
from normstudy.config import RunConfig, resolve

ATTENTION, ATTENTION_BACKWARD = "attention", "attention backward"
# (count, m, k, n, layout): `count` products of (m, k) by (k, n). layout nt: only the second factor is transposed.
Product = tuple[int, int, int, int, str]


class Piece(NamedTuple):
    """A group of matrix products that are computed one after the other."""

    name: str
    products: tuple[Product, ...]
    times: int  # how many times a step of one run computes the products

    @property
    def flops(self) -> int:
        """Return the number of floating-point operations in this piece's products, for one step of one run."""
        return self.times * sum(2 * batch * m * k * n for batch, m, k, n, _ in self.products)


def pieces(config: RunConfig, vocab_size: int) -> list[Piece]:
    """List the matrix products in one step of the default model. Attention counts as if it had no causal mask."""
    m, d = config.model, config.data
    width, d_ff, T, K = m.d_model, resolve(m).d_ff, d.seq_len, m.d_model // m.n_heads
    rows, heads, L = d.batch_size * T, d.batch_size * m.n_heads, m.n_layers
    maps = {"q, k, v": (width, 3 * width, L), "out": (width, width, L), "w1": (width, d_ff, L),
            "w2": (d_ff, width, L), "unembed": (width, vocab_size, 1)}  # fmt: skip
    found = []
    for name, (n_in, n_out, count) in maps.items():
        found.append(Piece(name, ((1, rows, n_in, n_out, "nt"),), count))
        found.append(Piece(f"{name}, gradient of x", ((1, rows, n_out, n_in, "nn"),), count))
        found.append(Piece(f"{name}, gradient of W", ((1, n_out, rows, n_in, "tn"),), count))
    scores, mixed, transposed = (heads, T, K, T, "nt"), (heads, T, T, K, "nn"), (heads, T, T, K, "tn")
    backward = scores, mixed, transposed, transposed  # for the gradients of attention weights, q, k, v
    return [*found, Piece(ATTENTION, (scores, mixed), L), Piece(ATTENTION_BACKWARD, backward, L)]


def ways(piece: Piece, config: RunConfig, runs: int) -> dict[str, Callable[[], object]]:
    """Map each library's name to a function that uses it to compute the products in `piece` for `runs` runs."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    def factor(batch: int, rows: int, columns: int, transposed: bool) -> torch.Tensor:
        return torch.randn(batch, columns, rows).mT if transposed else torch.randn(batch, rows, columns)

    factors = [
        (factor(runs * batch, m, k, layout[0] == "t"), factor(runs * batch, k, n, layout[1] == "t"))
        for batch, m, k, n, layout in piece.products
    ]
    arrays = [(a.numpy(), b.numpy(), (a @ b).numpy()) for a, b in factors]
    out: dict[str, Callable[[], object]] = {
        "torch.bmm": lambda: [torch.bmm(a, b) for a, b in factors],
        "NumPy": lambda: [np.matmul(a, b, out=ab) for a, b, ab in arrays],
    }
    if piece.name in (ATTENTION, ATTENTION_BACKWARD):  # torch's fused attention may be the fastest way
        H, K = config.model.n_heads, config.model.d_model // config.model.n_heads
        shape = runs * config.data.batch_size, config.data.seq_len, H, K
        q, k, v = (torch.randn(shape).transpose(1, 2).requires_grad_(piece.name == ATTENTION_BACKWARD) for _ in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out["fused"] = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if piece.name == ATTENTION_BACKWARD:
            out["fused"] = lambda: torch.autograd.grad(mixed, [q, k, v], mixed.detach(), retain_graph=True)
        return out
    pairs = [(x, y) for a, b in factors for x, y in zip(a, b, strict=True)]
    out["torch.mm"] = lambda: [x @ y for x, y in pairs]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        linear = torch.ops.mkldnn._linear_pointwise  # linear(x, W, ...) computes x W^T
        out["oneDNN"] = lambda: [linear(x, y.mT, None, "none", [], "") for x, y in pairs]
        out["oneDNN, transposed"] = lambda: [linear(y.mT, x, None, "none", [], "") for x, y in pairs]
    return out


def start_products(job: tuple[RunConfig, int]) -> Work:
    """Return a function f(ms) that repeats each Piece of a training step for at least `ms` milliseconds per library.

    f(ms) returns, for each Piece, the fastest library's seconds per step of one run. job: (config, runs).
    """
    from normstudy.data import texts

    config, runs = job
    made = [(p.times / runs, ways(p, config, runs)) for p in pieces(config, texts.load(config.data).vocab_size)]
    return lambda ms: [n * min(typical_seconds(make, ms / 1e3) for make in by_way.values()) for n, by_way in made]


def typical_seconds(make: Callable[[], object], least: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Call `make` at least three times and for at least `least` seconds in all. Return the median seconds per call."""
    make()
    taken: list[float] = []
    while sum(taken) < least or len(taken) < 3:
        started = clock()
        make()
        taken.append(clock() - started)
    return statistics.median(taken)

"""Generate the synthetic text from a Markov source, whose entropy rate is known exactly."""

from __future__ import annotations

import bisect

import numpy as np

from normstudy.data.blocks import Array, Floats

SYNTHETIC_SYMBOLS = 64
SYNTHETIC_LENGTH = 2**18


def markov_matrix(seed: int, symbols: int = SYNTHETIC_SYMBOLS) -> Floats:
    """Draw the transition matrix (V, V) of the synthetic source.

    Each row is drawn from a Dirichlet distribution whose mean is close to Zipf's law. Few entries of a row are large,
    so the next symbol depends strongly on the current one, and the stationary distribution is far from uniform.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    base = 1 / np.arange(1, symbols + 1)
    rows = rng.gamma(6 * base / base.sum() + 1e-3, size=(symbols, symbols)) + 1e-6
    return np.asarray(rows / rows.sum(1, keepdims=True))


def stationary(matrix: Floats) -> Floats:
    """Compute the stationary distribution (V,) of a transition matrix."""
    n = len(matrix)
    system = np.vstack([matrix.T - np.eye(n), np.ones(n)])
    solution, *_ = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)
    return np.asarray(solution)


def entropy_rate(matrix: Floats) -> float:
    """Compute the exact entropy rate of the Markov source with this transition matrix, in nats per token."""
    return float(-(stationary(matrix)[:, None] * matrix * np.log(matrix)).sum())


def synthetic_tokens(seed: int) -> Array:
    """Draw a text of SYNTHETIC_LENGTH tokens from the Markov source that `seed` determines."""
    # Drop each row's last sum. If rounding put that sum below a random number, bisect_right would return no symbol.
    rows = markov_matrix(seed).cumsum(1)[:, :-1].tolist()
    uniform = np.random.Generator(np.random.Philox(key=[seed, 2])).random(SYNTHETIC_LENGTH)
    symbol, out = 0, bytearray()
    for u in uniform.tolist():
        symbol = bisect.bisect_right(rows[symbol], u)
        out.append(symbol)
    return np.frombuffer(bytes(out), np.uint8)

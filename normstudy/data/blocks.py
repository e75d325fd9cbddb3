"""A text as blocks of tokens: the split into training and validation, and blocks of unequal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normstudy.config import ConfigError
from normstudy.data.tokenizer import Tokens

BLOCK = 4096  # bytes; tokens of the synthetic source
VALIDATION_EVERY = 10
Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of tokens, one after the other: block i is tokens[edges[i] : edges[i + 1]].

    tokens: flat, uint8 for a vocabulary of at most 256, else uint16. edges: (blocks + 1,).
    """

    tokens: Tokens
    edges: Ints

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens in each block, (blocks,)."""
        return np.diff(self.edges)


def split(symbols: Array) -> tuple[Array, Array]:
    """Training and validation blocks, each (blocks, block size). A ConfigError for a text too short to cut."""
    size = BLOCK if len(symbols) >= VALIDATION_EVERY * BLOCK else len(symbols) // VALIDATION_EVERY
    if size < 2:
        raise ConfigError(f"the text has {len(symbols)} bytes, and at least {2 * VALIDATION_EVERY} are needed")
    blocks = symbols[: len(symbols) // size * size].reshape(-1, size)
    is_validation = np.arange(len(blocks)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
    return blocks[~is_validation], blocks[is_validation]


def even_blocks(blocks: Array) -> Blocks:
    """Blocks of one size, from an array (blocks, block size) whose symbols are the tokens."""
    return Blocks(blocks.ravel(), np.arange(len(blocks) + 1, dtype=np.int64) * blocks.shape[1])


def ragged_blocks(blocks: Sequence[Tokens]) -> Blocks:
    """Blocks from the tokens of each."""
    return Blocks(np.concatenate(blocks), np.cumsum([0, *(len(block) for block in blocks)], dtype=np.int64))

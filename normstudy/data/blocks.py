"""Split a text into blocks of tokens for training and for validation.

A text is cut into blocks of 4 KiB, or into tenths if it has fewer than ten such blocks. Every tenth block is for
validation and the others are for training. Validation blocks from only the end of the text would be biased, since the
end may differ from the rest: the standard library ends with encoding tables. An incomplete last block is not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normstudy.data.tokenizer import Tokens
from normstudy.errors import ConfigError

BLOCK = 4096  # bytes per block; for the synthetic text, tokens per block
VALIDATION_EVERY = 10
Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Hold all blocks in one 1-D array `tokens`. Block i is tokens[edges[i] : edges[i + 1]]. edges: (blocks + 1,)."""

    tokens: Tokens
    edges: Ints

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def lengths(self) -> Ints:
        """Return the number of tokens in each block, (blocks,)."""
        return np.diff(self.edges)


def split(symbols: Array) -> tuple[Array, Array]:
    """Split a text into training and validation blocks, (blocks, size). Raise a ConfigError if it is too short."""
    size = BLOCK if len(symbols) >= VALIDATION_EVERY * BLOCK else len(symbols) // VALIDATION_EVERY
    if size < 2:
        raise ConfigError(
            f"the text has {len(symbols)} bytes, fewer than {2 * VALIDATION_EVERY} (2 for each of {VALIDATION_EVERY} "
            "blocks): use a longer text"
        )
    blocks = symbols[: len(symbols) // size * size].reshape(-1, size)
    is_validation = np.arange(len(blocks)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
    return blocks[~is_validation], blocks[is_validation]


def join(blocks: Array | Sequence[Tokens]) -> Blocks:
    """Make Blocks from one array of tokens per block, or from an array (blocks, block size)."""
    return Blocks(np.concatenate(blocks), np.cumsum([0, *(len(block) for block in blocks)], dtype=np.int64))

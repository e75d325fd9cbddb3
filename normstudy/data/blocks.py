"""Split a text into blocks of tokens for training and for validation, and compute the entropies of the blocks.

A text is cut into blocks of 4 KiB, or into tenths if it has fewer than ten such blocks. Every tenth block is for
validation, and all other blocks are for training. Validation blocks from only the end of the text would be biased: the
standard library, for example, ends with encoding tables. An incomplete last block is left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normstudy.data.tokenizer import Tokens
from normstudy.errors import ConfigError

BLOCK = 4096  # bytes per block; for the synthetic text, tokens per block
VALIDATION_EVERY = 10
UNIGRAM_SMOOTHING = 0.01  # added to the count of every token
BIGRAM_WEIGHT = 0.9  # weight of the bigram estimate; the unigram estimate has 1 - BIGRAM_WEIGHT
DENSE_VOCAB = 256  # largest vocabulary of which all pairs are counted; for 65,536 tokens the counts need 32 GiB
COUNTED_AT_ONCE = 2**22  # tokens per slice; counting a whole text at once would need 8 bytes of memory per token
Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Blocks:
    """All blocks in one 1-D array `tokens`. Block `i` is tokens[edges[i] : edges[i + 1]]. edges: (blocks + 1,)."""

    tokens: Tokens
    edges: Ints

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def lengths(self) -> Ints:
        """Return the number of tokens in each block, (blocks,)."""
        return np.diff(self.edges)


def split(symbols: Array) -> tuple[Array, Array]:
    """Split a text into training and validation blocks, (blocks, size). Raise a ConfigError for a short text."""
    size = BLOCK if len(symbols) >= VALIDATION_EVERY * BLOCK else len(symbols) // VALIDATION_EVERY
    if size < 2:
        raise ConfigError(
            f"the text has {len(symbols)} bytes, but at least {2 * VALIDATION_EVERY} are needed ({VALIDATION_EVERY} "
            "blocks of 2 bytes): use a longer text"
        )
    blocks = symbols[: len(symbols) // size * size].reshape(-1, size)
    is_validation = np.arange(len(blocks)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
    return blocks[~is_validation], blocks[is_validation]


def join(blocks: Array | Sequence[Tokens]) -> Blocks:
    """Make Blocks from one array of tokens per block, or from an array (blocks, block size)."""
    return Blocks(np.concatenate(blocks), np.cumsum([0, *(len(block) for block in blocks)], dtype=np.int64))


def entropies(train: Blocks, validation: Blocks, vocab_size: int) -> tuple[float, float]:
    """Return the cross-entropies of the validation blocks under a unigram and a bigram model of the training blocks.

    Both are finite, in nats per token. The bigram model gives a token a weighted mean of two probabilities: the token's
    frequency after the previous token of its block (counted in the training blocks), and its unigram probability.
    If nothing follows the previous token in the training blocks, the bigram model uses the unigram probability alone.
    """
    counts = _bincount(_slices(train.tokens), vocab_size) + UNIGRAM_SMOOTHING
    p1 = counts / counts.sum()
    unigram = -np.log(p1)[validation.tokens].mean()
    codes, seen = _counted(train, vocab_size)
    pairs, weight = _counted(validation, vocab_size)
    first, second = np.divmod(pairs, vocab_size)
    at = np.searchsorted(codes, pairs).clip(max=len(codes) - 1)
    found = np.where(codes[at] == pairs, seen[at], 0.0)  # the training count of each pair in the validation blocks
    total = np.bincount(codes // vocab_size, weights=seen, minlength=vocab_size)[first]
    bigram = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
    p2 = np.where(total > 0, BIGRAM_WEIGHT * bigram + (1 - BIGRAM_WEIGHT) * p1[second], p1[second])
    return float(unigram), float(-(weight * np.log(p2)).sum() / weight.sum())


def _counted(blocks: Blocks, vocab_size: int) -> tuple[Ints, Floats]:
    """Return the sorted codes (see `_pairs`) of all pairs that occur, and each pair's count."""
    if vocab_size <= DENSE_VOCAB:  # counting all possible pairs is faster
        return np.arange(vocab_size**2), _bincount(_pairs(blocks, vocab_size), vocab_size**2).astype(np.float64)
    parts, numbers = zip(*(np.unique(c, return_counts=True) for c in _pairs(blocks, vocab_size)), strict=True)
    codes, place = np.unique(np.concatenate(parts), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate(numbers))
    return np.asarray(codes, np.int64), np.asarray(counts, np.float64)


def _pairs(blocks: Blocks, vocab_size: int) -> Iterator[Ints]:
    """Encode each pair of adjacent tokens as `first * vocab_size + second`. Yield the codes, an array at a time."""
    begins_pair = np.ones(len(blocks.tokens) - 1, bool)
    begins_pair[blocks.edges[1:-1] - 1] = False  # a block's last token begins no pair
    every = map(_slices, (blocks.tokens[:-1], blocks.tokens[1:], begins_pair))
    for first, second, inside in zip(*every, strict=True):
        yield first[inside].astype(np.int64) * vocab_size + second[inside]


def _bincount(parts: Iterable[Tokens | Ints], size: int) -> Ints:
    return sum((np.bincount(part, minlength=size) for part in parts), np.zeros(size, np.int64))


def _slices(values: Any) -> Iterator[Any]:
    return (values[i : i + COUNTED_AT_ONCE] for i in range(0, len(values), COUNTED_AT_ONCE))

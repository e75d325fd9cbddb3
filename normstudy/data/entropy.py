"""Cross-entropies of the validation blocks under unigram and bigram models counted on the training blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from normstudy.data.blocks import Blocks, Floats, Ints
from normstudy.data.tokenizer import Tokens

UNIGRAM_SMOOTHING = 0.01  # added to the count of every token
BIGRAM_WEIGHT = 0.9  # weight of the bigram estimate; the unigram estimate has weight 0.1
DENSE_VOCAB = 256  # largest vocabulary whose pairs are counted in a V x V array
COUNTED_AT_ONCE = 2**22  # tokens per slice, which takes 8 bytes of memory per token


def entropies(train: Blocks, validation: Blocks, vocab_size: int) -> tuple[float, float]:
    """Unigram and bigram cross-entropy of the validation blocks, in nats per token, both finite for any text.

    The unigram model adds 0.01 to each token's training count. The bigram model is 0.9 bigram + 0.1 unigram, or the
    unigram alone after a token that training does not contain. No pair crosses the edge of a block.
    """
    counts = _bincount((train.tokens[i] for i in _slices(len(train.tokens))), vocab_size) + UNIGRAM_SMOOTHING
    p1 = counts / counts.sum()
    unigram = -np.log(p1)[validation.tokens].mean()
    bigram = _bigram_dense if vocab_size <= DENSE_VOCAB else _bigram_sparse
    return float(unigram), bigram(train, validation, p1)


def _bigram_dense(train: Blocks, validation: Blocks, p1: Floats) -> float:
    """Compute the bigram cross-entropy from (V, V) arrays, which is faster for a small vocabulary."""
    v = len(p1)

    def pairs(blocks: Blocks) -> Floats:
        return _bincount(_pairs(blocks, v), v * v).reshape(v, v).astype(float)

    seen = pairs(train)
    total = seen.sum(1, keepdims=True)
    bigram = np.divide(seen, total, out=np.zeros_like(seen), where=total > 0)
    p2 = np.where(total > 0, BIGRAM_WEIGHT * bigram + (1 - BIGRAM_WEIGHT) * p1, p1)
    weight = pairs(validation)
    return float(-(weight * np.log(p2)).sum() / weight.sum())


def _bigram_sparse(train: Blocks, validation: Blocks, p1: Floats) -> float:
    """Compute the bigram cross-entropy from only the pairs that occur: a (V, V) array takes 32 GiB at V = 65,536."""
    v = len(p1)
    codes, seen = _counted(train, v)
    total = np.bincount(codes // v, weights=seen, minlength=v)
    asked, weight = _counted(validation, v)
    first, second = np.divmod(asked, v)
    at = np.searchsorted(codes, asked).clip(max=len(codes) - 1)
    found = np.where(codes[at] == asked, seen[at], 0.0)
    known = total[first] > 0
    bigram = np.divide(found, total[first], out=np.zeros_like(found), where=known)
    p2 = np.where(known, BIGRAM_WEIGHT * bigram + (1 - BIGRAM_WEIGHT) * p1[second], p1[second])
    return float(-(weight * np.log(p2)).sum() / weight.sum())


def _counted(blocks: Blocks, vocab_size: int) -> tuple[Ints, Floats]:
    """The sorted codes (see `_pairs`) of the pairs that occur, and the count of each."""
    parts = [np.unique(codes, return_counts=True) for codes in _pairs(blocks, vocab_size)]
    codes, place = np.unique(np.concatenate([c for c, _ in parts]), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate([n for _, n in parts]))
    return np.asarray(codes, np.int64), np.asarray(counts, np.float64)


def _pairs(blocks: Blocks, vocab_size: int) -> Iterator[Ints]:
    """Yield arrays of pair codes, first * V + second, for adjacent tokens of a block, COUNTED_AT_ONCE at a time."""
    begins_pair = np.ones(len(blocks.tokens), bool)
    begins_pair[blocks.edges[1:] - 1] = False  # a block's last token begins no pair
    for i in _slices(len(blocks.tokens) - 1):
        inside = begins_pair[:-1][i]
        yield blocks.tokens[:-1][i][inside].astype(np.int64) * vocab_size + blocks.tokens[1:][i][inside]


def _bincount(parts: Iterable[Tokens | Ints], size: int) -> Ints:
    counts = np.zeros(size, np.int64)
    for part in parts:
        counts += np.bincount(part, minlength=size)
    return counts


def _slices(n: int) -> Iterator[slice]:
    return (slice(i, min(i + COUNTED_AT_ONCE, n)) for i in range(0, n, COUNTED_AT_ONCE))

"""Compute the cross-entropies of the validation blocks under unigram and bigram models of the training blocks."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from normstudy.data.blocks import Blocks, Floats, Ints
from normstudy.data.tokenizer import Tokens

UNIGRAM_SMOOTHING = 0.01  # added to the count of every token
BIGRAM_WEIGHT = 0.9  # weight of the bigram estimate; the unigram estimate has the rest
DENSE_VOCAB = 256  # largest vocabulary whose pairs are counted in a (V, V) array
COUNTED_AT_ONCE = 2**22  # tokens per slice; counting a whole text at once would need 8 bytes of memory per token


def entropies(train: Blocks, validation: Blocks, vocab_size: int) -> tuple[float, float]:
    """Return the unigram and bigram cross-entropy of the validation blocks, in nats per token. Both are finite.

    The bigram model mixes the pair's training frequency with the unigram model. After a token that begins no training
    pair, the bigram model equals the unigram model. No pair crosses the edge of a block.
    """
    counts = _bincount(_slices(train.tokens), vocab_size) + UNIGRAM_SMOOTHING
    p1 = counts / counts.sum()
    unigram = -np.log(p1)[validation.tokens].mean()
    bigram = _bigram_dense if vocab_size <= DENSE_VOCAB else _bigram_sparse
    return float(unigram), bigram(train, validation, p1)


def _bigram_dense(train: Blocks, validation: Blocks, p1: Floats) -> float:
    """Compute the bigram cross-entropy from (V, V) arrays, which is faster for a small vocabulary."""
    v = len(p1)
    seen, asked = (_bincount(_pairs(b, v), v * v).reshape(v, v).astype(float) for b in (train, validation))
    return _cross_entropy(asked, seen, seen.sum(1, keepdims=True), p1)


def _bigram_sparse(train: Blocks, validation: Blocks, p1: Floats) -> float:
    """Compute the bigram cross-entropy from the pairs that occur. A (V, V) array would need 32 GiB at V = 65,536."""
    v = len(p1)
    codes, seen = _counted(train, v)
    total = np.asarray(np.bincount(codes // v, weights=seen, minlength=v), np.float64)
    asked, weight = _counted(validation, v)
    first, second = np.divmod(asked, v)
    at = np.searchsorted(codes, asked).clip(max=len(codes) - 1)
    found = np.where(codes[at] == asked, seen[at], 0.0)
    return _cross_entropy(weight, found, total[first], p1[second])


def _cross_entropy(weight: Floats, seen: Floats, total: Floats, p1: Floats) -> float:
    """Average -ln p(second | first) over pairs of tokens, weighted by `weight`. seen: the pairs' training counts.

    total: the training count of all pairs with the same first token. p1: the second token's unigram probability.
    """
    known = total > 0
    bigram = np.divide(seen, total, out=np.zeros_like(seen), where=known)
    p2 = np.where(known, BIGRAM_WEIGHT * bigram + (1 - BIGRAM_WEIGHT) * p1, p1)
    return float(-(weight * np.log(p2)).sum() / weight.sum())


def _counted(blocks: Blocks, vocab_size: int) -> tuple[Ints, Floats]:
    """Return the sorted codes (see `_pairs`) of the pairs that occur, and the count of each."""
    parts, numbers = zip(*(np.unique(c, return_counts=True) for c in _pairs(blocks, vocab_size)), strict=True)
    codes, place = np.unique(np.concatenate(parts), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate(numbers))
    return np.asarray(codes, np.int64), np.asarray(counts, np.float64)


def _pairs(blocks: Blocks, vocab_size: int) -> Iterator[Ints]:
    """Yield the code first * vocab_size + second of each pair of adjacent tokens, in several arrays."""
    begins_pair = np.ones(len(blocks.tokens) - 1, bool)
    begins_pair[blocks.edges[1:-1] - 1] = False  # a block's last token begins no pair
    every = map(_slices, (blocks.tokens[:-1], blocks.tokens[1:], begins_pair))
    for first, second, inside in zip(*every, strict=True):
        yield first[inside].astype(np.int64) * vocab_size + second[inside]


def _bincount(parts: Iterable[Tokens | Ints], size: int) -> Ints:
    return sum((np.bincount(part, minlength=size) for part in parts), np.zeros(size, np.int64))


def _slices(values: Any) -> Iterator[Any]:
    return (values[i : i + COUNTED_AT_ONCE] for i in range(0, len(values), COUNTED_AT_ONCE))

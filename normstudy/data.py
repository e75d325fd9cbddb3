"""Texts, their split into training and validation blocks, their entropies, and counter-based batches.

A text is cut into blocks of 4 KiB (of a tenth, where it has under ten). Block i with i % 10 == 9 is validation,
the rest training, and no window crosses a block's edge: the tail of a text is no fair sample of it (the tail of
the standard library is encoding tables). A remainder shorter than a block is in neither part. The cuts are the
same for every tokenizer, since they are made in the bytes; blocks then have different numbers of tokens, and one
with fewer than a window needs has no place for it.

Batches are a function of (data_seed, step) alone. Needs no torch.

B batch, T sequence, V vocab.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from normstudy import corpora, tokenizer
from normstudy.config import BPE_VOCAB, ConfigError, DataConfig
from normstudy.tokenizer import Pieces, Tokens

BLOCK = 4096  # bytes; tokens of the synthetic source
VALIDATION_EVERY = 10
UNIGRAM_SMOOTHING = 0.01  # counts added to every symbol
BIGRAM_WEIGHT = 0.9  # P = 0.9 bigram + 0.1 unigram
MIN_ENTROPY_GAP = 0.2  # nats between unigram and bigram; below it outcomes cannot be told apart
DENSE_VOCAB = 256  # up to this, pairs are counted in a V x V array
COUNTED_AT_ONCE = 2**22  # tokens; counting all at once takes 8 bytes for each

SYNTHETIC_SYMBOLS = 64
SYNTHETIC_LENGTH = 2**18

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


@dataclass(frozen=True, eq=False)
class Text:
    """A text cut into blocks of tokens, with what is known about it.

    pieces: the bytes of each token of the vocabulary. bytes_per_token: over the validation blocks. Entropies in
    nats per token, on the validation blocks with training counts; source_entropy is the exact entropy rate of a
    synthetic source, else None.
    """

    name: str
    tokenizer: str
    train: Blocks
    validation: Blocks
    pieces: Pieces
    bytes_per_token: float
    sha256: str
    unigram_entropy: float
    bigram_entropy: float
    source_entropy: float | None

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return len(self.pieces)

    @property
    def ln_vocab(self) -> float:
        """The loss of a uniform guess, in nats per token."""
        return math.log(self.vocab_size)

    def decode(self, tokens: Tokens | Ints) -> bytes:
        """The bytes that a flat array of tokens stands for."""
        return b"".join([self.pieces[t] for t in tokens.tolist()])


# ---- the synthetic source -----------------------------------------------------------------------------


def markov_matrix(seed: int, symbols: int = SYNTHETIC_SYMBOLS) -> Floats:
    """Transition matrix (V, V) of the synthetic source: sparse rows over a skewed set of favorites.

    Each symbol's row is a Dirichlet draw around a Zipf-like base, so that the stationary distribution is far
    from uniform and the next symbol depends strongly on the last.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    base = 1 / np.arange(1, symbols + 1)
    rows = rng.gamma(6 * base / base.sum() + 1e-3, size=(symbols, symbols)) + 1e-6
    return np.asarray(rows / rows.sum(1, keepdims=True))


def stationary(matrix: Floats) -> Floats:
    """The stationary distribution (V,) of a transition matrix."""
    n = len(matrix)
    system = np.vstack([matrix.T - np.eye(n), np.ones(n)])
    solution, *_ = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)
    return np.asarray(solution)


def entropy_rate(matrix: Floats) -> float:
    """Exact entropy rate of a Markov source, in nats per token."""
    return float(-(stationary(matrix)[:, None] * matrix * np.log(matrix)).sum())


def synthetic_tokens(seed: int) -> Array:
    """A text of SYNTHETIC_LENGTH tokens from the Markov source of `seed`."""
    rows = markov_matrix(seed).cumsum(1)[:, :-1].tolist()  # without the last edge, which rounding may put below 1
    uniform = np.random.Generator(np.random.Philox(key=[seed, 2])).random(SYNTHETIC_LENGTH)
    symbol, out = 0, bytearray()
    for u in uniform.tolist():
        symbol = bisect.bisect_right(rows[symbol], u)
        out.append(symbol)
    return np.frombuffer(bytes(out), np.uint8)


# ---- split and entropies ------------------------------------------------------------------------------


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


def entropies(train: Blocks, validation: Blocks, vocab_size: int) -> tuple[float, float]:
    """Unigram and bigram cross-entropy of the validation blocks under training counts, nats per token.

    Unigram: counts + 0.01 per symbol. Bigram: 0.9 bigram + 0.1 unigram, and the unigram alone after a symbol
    that training never shows; finite on any text. No pair crosses a block's edge.
    """
    counts = _bincount((train.tokens[i] for i in _slices(len(train.tokens))), vocab_size) + UNIGRAM_SMOOTHING
    p1 = counts / counts.sum()
    unigram = -np.log(p1)[validation.tokens].mean()
    bigram = _bigram_dense if vocab_size <= DENSE_VOCAB else _bigram_sparse
    return float(unigram), bigram(train, validation, p1)


def _bigram_dense(train: Blocks, validation: Blocks, p1: Floats) -> float:
    """The bigram cross-entropy from (V, V) arrays: fast, for a small vocabulary."""
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
    """The bigram cross-entropy from the pairs that occur: (V, V) would take 32 GiB for 65,536 tokens."""
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
    """The codes of the pairs that occur, sorted, and how often each does."""
    parts = [np.unique(codes, return_counts=True) for codes in _pairs(blocks, vocab_size)]
    codes, place = np.unique(np.concatenate([c for c, _ in parts]), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate([n for _, n in parts]))
    return np.asarray(codes, np.int64), np.asarray(counts, np.float64)


def _pairs(blocks: Blocks, vocab_size: int) -> Iterator[Ints]:
    """The code first * V + second of every pair of neighbors within a block, a part of the text at a time."""
    begins_pair = np.ones(len(blocks.tokens), bool)
    begins_pair[blocks.edges[1:] - 1] = False  # a block's last token
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


# ---- loading ------------------------------------------------------------------------------------------


def load(config: DataConfig) -> Text:
    """The text of a data config, read once per process. A ConfigError says why a text cannot be used."""
    version = corpora.version(config.path) if config.path is not None else None
    vocab_size = (config.vocab_size or BPE_VOCAB) if config.tokenizer == "bpe" else None
    source_seed = config.source_seed if config.name == "synthetic" else 0
    return _load(config.name, config.path, config.tokenizer, vocab_size, source_seed, version)


@functools.lru_cache(maxsize=16)
def _load(
    name: str,
    path: str | None,
    tokenizer_name: str,
    vocab_size: int | None,
    source_seed: int,
    version: corpora.Version | None,
) -> Text:
    source_entropy, pieces = None, tokenizer.BYTES
    if name == "synthetic":
        symbols = synthetic_tokens(source_seed)
        pieces = pieces[:SYNTHETIC_SYMBOLS]
        source_entropy = entropy_rate(markov_matrix(source_seed))
    else:
        symbols = np.frombuffer(corpora.raw_bytes(name, path), np.uint8)
    sha256 = hashlib.sha256(symbols.data).hexdigest()
    train_symbols, validation_symbols = split(symbols)
    if tokenizer_name == "byte":
        train, validation = even_blocks(train_symbols), even_blocks(validation_symbols)
    else:
        raw = [block.tobytes() for part in (train_symbols, validation_symbols) for block in part]
        n = len(train_symbols)
        if tokenizer_name == "char":
            blocks, pieces = tokenizer.characters(raw)
        else:
            blocks, pieces = tokenizer.byte_pairs(raw, raw[:n], vocab_size or BPE_VOCAB, sha256)
        train, validation = ragged_blocks(blocks[:n]), ragged_blocks(blocks[n:])
        sha256 = tokens_sha256(train, validation, pieces)
    longest = min(int(train.lengths.max()), int(validation.lengths.max()))
    if longest < 2:  # not one pair, and no window
        raise ConfigError(
            f"the text of data={name} is one token a block of {train_symbols.shape[1]} bytes with "
            f"data.tokenizer={tokenizer_name}: use a longer text or a smaller vocabulary"
        )
    h1, h2 = entropies(train, validation, len(pieces))
    if h1 - h2 < MIN_ENTROPY_GAP:
        smaller = " or a smaller data.vocab_size" if tokenizer_name == "bpe" else ""
        raise ConfigError(
            f"the text of data={name} has a unigram entropy of {h1:.3f} and a bigram entropy of {h2:.3f} nats, "
            f"less than {MIN_ENTROPY_GAP} apart, outcomes could not be told apart. Use a text with more structure"
            f"{smaller}"
        )
    bytes_per_token = validation_symbols.size / len(validation.tokens)
    return Text(
        name, tokenizer_name, train, validation, pieces, bytes_per_token, sha256, h1, h2, source_entropy
    )  # fmt: skip


def tokens_sha256(train: Blocks, validation: Blocks, pieces: Pieces) -> str:
    """What identifies a text in tokens: the tokens, where their blocks begin, and the bytes that each stands for.

    So another tokenizer, or a version of its library that splits otherwise, makes another text.
    """
    digest = hashlib.sha256()
    for blocks in (train, validation):
        digest.update(np.array([len(blocks.tokens), len(blocks)], "<i8").data)
        digest.update(blocks.tokens.astype("<u2").data)
        digest.update(blocks.edges.astype("<i8").data)
    for piece in pieces:
        digest.update(len(piece).to_bytes(4, "little") + piece)
    return digest.hexdigest()


# ---- batches ------------------------------------------------------------------------------------------


def check_fits(text: Text, config: DataConfig, eval_windows: int) -> None:
    """Raise a ConfigError unless windows of seq_len + 1 tokens fit the blocks."""
    longest = int(text.train.lengths.max())
    if config.seq_len >= longest:
        n_tokens = len(text.train.tokens) + len(text.validation.tokens)
        limit = (
            f"the block size {longest} of data={text.name}"
            if text.tokenizer == "byte"
            else f"the {longest} tokens of the longest block of data={text.name} data.tokenizer={text.tokenizer}"
        )
        raise ConfigError(
            f"data.seq_len {config.seq_len} is not below {limit} ({n_tokens} tokens): shorten it or use a longer text"
        )
    available = int(_places(text.validation, config.seq_len)[-1])
    if eval_windows > available:
        raise ConfigError(f"eval.windows {eval_windows} exceeds the {available} validation windows of data={text.name}")


@functools.lru_cache(maxsize=32)
def _places(blocks: Blocks, seq_len: int) -> Ints:
    """The places where a window of seq_len + 1 tokens can begin, up to the end of each block, (blocks,)."""
    return (blocks.lengths - seq_len).clip(min=0).cumsum()


def _windows(blocks: Blocks, starts: Ints, seq_len: int) -> Ints:
    """(len(starts), T + 1) tokens; a start counts the places where a window fits, block after block."""
    places = _places(blocks, seq_len)
    block = np.searchsorted(places, starts, side="right")
    begin = blocks.edges[block + 1] - seq_len - (places[block] - starts)  # counted back from the block's end
    return blocks.tokens[begin[:, None] + np.arange(seq_len + 1)].astype(np.int64)


def batch(text: Text, data_seed: int, step: int, batch_size: int, seq_len: int) -> Ints:
    """The training windows of one step, (B, T + 1) int64: a function of its arguments, without a position."""
    rng = np.random.Generator(np.random.Philox(key=[data_seed, 0], counter=[0, 0, 0, step]))
    places = int(_places(text.train, seq_len)[-1])
    return _windows(text.train, rng.integers(0, places, batch_size), seq_len)


def validation_windows(text: Text, windows: int, seq_len: int) -> Ints:
    """Evenly spaced validation windows, (windows, T + 1) int64, the same for all seeds."""
    places = int(_places(text.validation, seq_len)[-1])
    return _windows(text.validation, (2 * np.arange(windows) + 1) * places // (2 * windows), seq_len)

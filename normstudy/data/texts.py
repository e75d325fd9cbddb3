"""Load a text: its blocks of tokens and its entropies. Draw windows, each of T + 1 adjacent tokens of one block."""

import functools
import hashlib
import math
from dataclasses import dataclass

import numpy as np

from normstudy.config import BPE_VOCAB, DataConfig
from normstudy.data import corpora, tokenizer
from normstudy.data.blocks import BLOCK, VALIDATION_EVERY, Blocks, Ints, entropies, join, split
from normstudy.data.tokenizer import Pieces
from normstudy.errors import ConfigError

MIN_ENTROPY_GAP = 0.2  # nats by which the unigram entropy must exceed the bigram entropy to tell outcomes apart


@dataclass(frozen=True, eq=False)
class Text:
    """A text as blocks of tokens, with its vocabulary and its entropies in nats per token."""

    name: str
    tokenizer: str
    train: Blocks
    validation: Blocks
    pieces: Pieces  # the bytes of each token in the vocabulary
    bytes_per_token: float  # mean over the validation blocks
    sha256: str
    unigram_entropy: float
    bigram_entropy: float
    source_entropy: float | None  # the exact entropy rate of the synthetic source; None for any other text

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def ln_vocab(self) -> float:
        """Return the loss of a model that gives every token the same probability, in nats per token."""
        return math.log(self.vocab_size)


def load(config: DataConfig) -> Text:
    """Load the text that a config selects, or raise a ConfigError. Cache 16 texts; reload a text that has changed."""
    version = corpora.version(config.path) if config.path is not None else None
    vocab_size = (config.vocab_size or BPE_VOCAB) if config.tokenizer == "bpe" else None
    source_seed = config.source_seed if config.name == "synthetic" else 0
    try:
        return _load(config.name, config.path, config.tokenizer, vocab_size, source_seed, version)
    except MemoryError:
        text = "the text of " + (f"data={config.name}" if config.path is None else f"data.path {config.path!r}")
        size = f", which has {sum(n for _, n, _ in version):,} bytes," if version else ""
        raise ConfigError(f"{text}{size} does not fit into this machine's memory: use a smaller text") from None


@functools.lru_cache(maxsize=16)
def _load(
    name: str, path: str | None, kind: str, vocab_size: int | None, source_seed: int, version: corpora.Version | None
) -> Text:
    source_entropy, pieces = None, tokenizer.BYTES
    if name == "synthetic":
        symbols, pieces = corpora.synthetic_tokens(source_seed), pieces[: corpora.SYNTHETIC_SYMBOLS]
        source_entropy = corpora.entropy_rate(corpora.markov_matrix(source_seed))
    else:
        symbols = np.frombuffer(corpora.raw_bytes(name, path), np.uint8)
    sha256 = hashlib.sha256(symbols.data).hexdigest()
    train_symbols, validation_symbols = split(symbols)
    if kind == "byte":
        train, validation = join(train_symbols), join(validation_symbols)
    else:
        raw, n = [block.tobytes() for block in (*train_symbols, *validation_symbols)], len(train_symbols)
        if kind == "char":
            blocks, pieces = tokenizer.characters(raw)
        else:
            blocks, pieces = tokenizer.byte_pairs(raw, raw[:n], vocab_size or BPE_VOCAB, sha256)
        train, validation = join(blocks[:n]), join(blocks[n:])
        sha256 = tokens_sha256(train, validation, pieces)
    if train.lengths.max() < 2 or validation.lengths.max() < 2:  # no block contains a pair of tokens or a window
        raise ConfigError(
            f"the text of data={name} has 1 token per block of {train_symbols.shape[1]} bytes with "
            f"data.tokenizer={kind}, but training needs at least 2: use a longer text or a smaller vocabulary"
        )
    h1, h2 = entropies(train, validation, len(pieces))
    if h1 - h2 < MIN_ENTROPY_GAP:
        smaller = " or a smaller data.vocab_size" if kind == "bpe" else ""
        if len(symbols) < VALIDATION_EVERY * BLOCK:
            smaller += f" and of at least {VALIDATION_EVERY * BLOCK} bytes (this one has only {len(symbols)})"
        raise ConfigError(
            f"the text of data={name} has a unigram entropy of {h1:.3f} and a bigram entropy of {h2:.3f} nats, "
            f"less than {MIN_ENTROPY_GAP} apart, so stuck runs could not be distinguished from those that learned: "
            f"use a text with more structure{smaller}"
        )
    bytes_per_token = validation_symbols.size / len(validation.tokens)
    return Text(name, kind, train, validation, pieces, bytes_per_token, sha256, h1, h2, source_entropy)


def tokens_sha256(train: Blocks, validation: Blocks, pieces: Pieces) -> str:
    """Hash a text after tokenization: its tokens, its block edges, and the bytes of each token of the vocabulary."""
    digest = hashlib.sha256()
    for blocks in (train, validation):
        digest.update(np.array([len(blocks.tokens), len(blocks)], "<i8").data)
        digest.update(blocks.tokens.astype("<u2").data)
        digest.update(blocks.edges.astype("<i8").data)
    for piece in pieces:
        digest.update(len(piece).to_bytes(4, "little") + piece)
    return digest.hexdigest()


def check_fits(text: Text, config: DataConfig, eval_windows: int) -> None:
    """Raise a ConfigError if a window is longer than every block, or if the text has too few validation windows."""
    longest = int(text.train.lengths.max())
    if config.seq_len >= longest:
        raise ConfigError(
            f"data.seq_len {config.seq_len} is not below {longest}, the number of tokens in the longest block "
            f"(data={text.name}, data.tokenizer={text.tokenizer}): reduce data.seq_len or use a longer text"
        )
    available = int(places(text.validation, config.seq_len)[-1])
    if eval_windows > available:
        raise ConfigError(
            f"eval.windows {eval_windows} exceeds the {available} validation windows of data={text.name}: "
            "reduce eval.windows or use a longer text"
        )


@functools.lru_cache(maxsize=32)
def places(blocks: Blocks, seq_len: int) -> Ints:
    """Return the running total of windows at the end of each block, (blocks,)."""
    return (blocks.lengths - seq_len).clip(min=0).cumsum()


def windows_at(blocks: Blocks, starts: Ints, seq_len: int) -> Ints:
    """Return the windows with the numbers `starts`, (len(starts), T + 1). Numbers run through all blocks, from 0."""
    ends = places(blocks, seq_len)
    block = np.searchsorted(ends, starts, side="right")
    begin = blocks.edges[block + 1] - seq_len - (ends[block] - starts)  # counted back from the block's end
    return blocks.tokens[begin[:, None] + np.arange(seq_len + 1)].astype(np.int64)


def batch(text: Text, data_seed: int, step: int, batch_size: int, seq_len: int) -> Ints:
    """Draw the training windows of one step, (batch_size, T + 1) int64. Equal arguments return equal windows."""
    rng = np.random.Generator(np.random.Philox(key=[data_seed, 0], counter=[0, 0, 0, step]))
    n_places = int(places(text.train, seq_len)[-1])
    return windows_at(text.train, rng.integers(0, n_places, batch_size), seq_len)


def validation_windows(text: Text, windows: int, seq_len: int) -> Ints:
    """Return evenly spaced validation windows, (windows, T + 1) int64. The windows do not depend on a seed."""
    n_places = int(places(text.validation, seq_len)[-1])
    return windows_at(text.validation, (2 * np.arange(windows) + 1) * n_places // (2 * windows), seq_len)

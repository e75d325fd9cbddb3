"""Texts, their split into training and validation blocks, their entropies, and counter-based batches.

A text is one array of tokens cut into blocks of 4 KiB (of a tenth, where it has under ten). Block i with
i % 10 == 9 is validation, the rest training, and no window crosses a block's edge: the tail of a text is
no fair sample of it (the tail of the standard library is encoding tables). A remainder shorter than a block
is in neither part.

Batches are a function of (data_seed, step) alone. Needs no torch.

B batch, T sequence, V vocab.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import importlib.resources
import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normstudy.config import ConfigError, DataConfig

BLOCK = 4096  # tokens
VALIDATION_EVERY = 10
UNIGRAM_SMOOTHING = 0.01  # counts added to every symbol
BIGRAM_WEIGHT = 0.9  # P = 0.9 bigram + 0.1 unigram
MIN_ENTROPY_GAP = 0.2  # nats between unigram and bigram; below it outcomes cannot be told apart

SYNTHETIC_SYMBOLS = 64
SYNTHETIC_LENGTH = 2**18

Tokens = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Text:
    """A text cut into blocks, with what is known about it.

    train, validation: (blocks, block size) uint8. Entropies in nats per token, on the validation blocks
    with training counts; source_entropy is the exact entropy rate of a synthetic source, else None.
    """

    name: str
    train: Tokens
    validation: Tokens
    vocab_size: int
    bytes_per_token: float
    sha256: str
    unigram_entropy: float
    bigram_entropy: float
    source_entropy: float | None

    @property
    def ln_vocab(self) -> float:
        """The loss of a uniform guess, in nats per token."""
        return math.log(self.vocab_size)


# ---- corpora ------------------------------------------------------------------------------------------

_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}


def stdlib_bytes(root: Path | None = None) -> bytes:
    """Every .py file of the standard library (of the tree `root`), sorted by relative path, joined.

    Left out: site-packages, tests, idlelib, lib2to3, turtledemo, and _sysconfigdata*, which differs by machine.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = sorted(
        (p.relative_to(root).as_posix(), p)
        for p in root.rglob("*.py")
        if not _LEFT_OUT & set(p.relative_to(root).parts) and not p.name.startswith("_sysconfigdata")
    )
    return b"".join(p.read_bytes() for _, p in files)


def pydoc_bytes() -> bytes:
    """The documentation topics that ship with Python (pydoc_data.topics): small English text."""
    return (importlib.resources.files("pydoc_data") / "topics.py").read_bytes()


def file_bytes(path: str) -> bytes:
    """A file's bytes; a ConfigError where it cannot be read, also for a pipe or device, which has no fixed content."""
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise ConfigError(f"data.path {path!r} is a pipe or device: give a readable text file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"data.path {path!r} cannot be read ({error.strerror}): give a readable text file") from None


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


def synthetic_tokens(seed: int) -> Tokens:
    """A text of SYNTHETIC_LENGTH tokens from the Markov source of `seed`."""
    rows = markov_matrix(seed).cumsum(1)[:, :-1].tolist()  # without the last edge, which rounding may put below 1
    uniform = np.random.Generator(np.random.Philox(key=[seed, 2])).random(SYNTHETIC_LENGTH)
    symbol, out = 0, bytearray()
    for u in uniform.tolist():
        symbol = bisect.bisect_right(rows[symbol], u)
        out.append(symbol)
    return np.frombuffer(bytes(out), np.uint8)


# ---- split and entropies ------------------------------------------------------------------------------


def split(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Training and validation blocks, each (blocks, block size). A ConfigError for a text too short to cut."""
    size = BLOCK if len(tokens) >= VALIDATION_EVERY * BLOCK else len(tokens) // VALIDATION_EVERY
    if size < 2:
        raise ConfigError(f"the text has {len(tokens)} tokens, and at least {2 * VALIDATION_EVERY} are needed")
    blocks = tokens[: len(tokens) // size * size].reshape(-1, size)
    is_validation = np.arange(len(blocks)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
    return blocks[~is_validation], blocks[is_validation]


def entropies(train: Tokens, validation: Tokens, vocab_size: int) -> tuple[float, float]:
    """Unigram and bigram cross-entropy of the validation blocks under training counts, nats per token.

    Unigram: counts + 0.01 per symbol. Bigram: 0.9 bigram + 0.1 unigram, and the unigram alone after a symbol
    that training never shows; finite on any text. No pair crosses a block's edge.
    """
    counts = np.bincount(train.ravel(), minlength=vocab_size) + UNIGRAM_SMOOTHING
    p1 = counts / counts.sum()
    unigram = -np.log(p1)[validation].mean()

    def pairs(blocks: Tokens) -> Floats:
        codes = blocks[:, :-1].astype(np.int64) * vocab_size + blocks[:, 1:]
        return np.bincount(codes.ravel(), minlength=vocab_size**2).reshape(vocab_size, vocab_size).astype(float)

    seen = pairs(train)
    total = seen.sum(1, keepdims=True)
    bigram = np.divide(seen, total, out=np.zeros_like(seen), where=total > 0)
    p2 = np.where(total > 0, BIGRAM_WEIGHT * bigram + (1 - BIGRAM_WEIGHT) * p1, p1)
    weight = pairs(validation)
    return float(unigram), float(-(weight * np.log(p2)).sum() / weight.sum())


def load(config: DataConfig) -> Text:
    """The text of a data config, read once per process. A ConfigError says why a text cannot be used."""
    version = _version(config.path) if config.path is not None else None
    return _load(config.name, config.path, config.source_seed if config.name == "synthetic" else 0, version)


def _version(path: str) -> tuple[int, int] | None:
    """What changes when a file is written again: its time and size."""
    try:
        found = Path(path).stat()
    except OSError:
        return None  # reading it says what is wrong
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=16)
def _load(name: str, path: str | None, source_seed: int, version: tuple[int, int] | None) -> Text:
    source_entropy = None
    vocab_size = 256
    if name == "synthetic":
        tokens = synthetic_tokens(source_seed)
        vocab_size = SYNTHETIC_SYMBOLS
        source_entropy = entropy_rate(markov_matrix(source_seed))
    else:
        raw = {"stdlib": stdlib_bytes, "pydoc": pydoc_bytes}[name]() if name != "file" else file_bytes(str(path))
        if not raw:
            raise ConfigError(f"data.path {path!r} is empty: give a text file")
        tokens = np.frombuffer(raw, np.uint8)
    train, validation = split(tokens)
    h1, h2 = entropies(train, validation, vocab_size)
    if h1 - h2 < MIN_ENTROPY_GAP:
        raise ConfigError(
            f"the text of data={name} has a unigram entropy of {h1:.3f} and a bigram entropy of {h2:.3f} nats, "
            f"less than {MIN_ENTROPY_GAP} apart, outcomes could not be told apart. Use a text with more structure"
        )
    return Text(
        name,
        train,
        validation,
        vocab_size,
        1.0,
        hashlib.sha256(tokens.tobytes()).hexdigest(),
        h1,
        h2,
        source_entropy,
    )


# ---- batches ------------------------------------------------------------------------------------------


def check_fits(text: Text, config: DataConfig, eval_windows: int) -> None:
    """Raise a ConfigError unless windows of seq_len + 1 tokens fit the blocks."""
    size = text.train.shape[1]
    if config.seq_len >= size:
        raise ConfigError(
            f"data.seq_len {config.seq_len} is not below the block size {size} of data={text.name} "
            f"({(len(text.train) + len(text.validation)) * size} tokens): shorten it or use a longer text"
        )
    available = len(text.validation) * (size - config.seq_len)
    if eval_windows > available:
        raise ConfigError(f"eval.windows {eval_windows} exceeds the {available} validation windows of data={text.name}")


def _windows(blocks: Tokens, starts: Ints, seq_len: int) -> Ints:
    """(len(starts), T + 1) tokens; a start counts the places where a window fits, block after block."""
    block, offset = np.divmod(starts, blocks.shape[1] - seq_len)
    return blocks[block[:, None], offset[:, None] + np.arange(seq_len + 1)].astype(np.int64)


def batch(text: Text, data_seed: int, step: int, batch_size: int, seq_len: int) -> Ints:
    """The training windows of one step, (B, T + 1) int64: a function of its arguments, without a position."""
    rng = np.random.Generator(np.random.Philox(key=[data_seed, 0], counter=[0, 0, 0, step]))
    places = len(text.train) * (text.train.shape[1] - seq_len)
    return _windows(text.train, rng.integers(0, places, batch_size), seq_len)


def validation_windows(text: Text, windows: int, seq_len: int) -> Ints:
    """Evenly spaced validation windows, (windows, T + 1) int64, the same for all seeds."""
    places = len(text.validation) * (text.validation.shape[1] - seq_len)
    return _windows(text.validation, (2 * np.arange(windows) + 1) * places // (2 * windows), seq_len)

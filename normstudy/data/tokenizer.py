"""Tokenizers: how the blocks of a text, which are bytes, become tokens.

A text is cut at bytes, into the same blocks for every tokenizer, and each block is encoded on its own, so that
training and validation hold the same bytes whatever their tokens are, and bits per byte compare. Every tokenizer
takes any bytes, UTF-8 or not, and the bytes of its tokens, joined, are the block again. Needs no torch.

byte: one token a byte, 256 in all.
char: one token for each character that occurs in the text.
bpe: byte-level byte pair encoding (Sennrich et al., 1508.07909; on bytes as in GPT-2), trained on the training
blocks by the `tokenizers` library.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from normstudy.config import VOCAB_MAX, ConfigError
from normstudy.data import corpora

if TYPE_CHECKING:
    import tokenizers

Tokens = np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.uint16]]
Pieces = tuple[bytes, ...]  # the bytes of every token
Merges = list[tuple[int, int]]  # pairs of tokens, in the order in which they are merged

BYTES: Pieces = tuple(bytes([b]) for b in range(256))
UNICODE = 0x110000  # code points


def dtype_of(vocab_size: int) -> type[np.uint8 | np.uint16]:
    """The smallest type that holds the tokens of a vocabulary of at most VOCAB_MAX."""
    return np.uint8 if vocab_size <= 256 else np.uint16


# ---- characters ---------------------------------------------------------------------------------------


def characters(blocks: Sequence[bytes]) -> tuple[list[Tokens], Pieces]:
    """The tokens of each block, and the bytes of each token: the characters of all blocks, sorted by code point.

    The vocabulary is that of training and validation together, since a character that only validation has needs
    a token too; it has no training count. Bytes that are no UTF-8 are a token each, and so are those of a
    character that a block's edge cuts in two. A ConfigError for more than VOCAB_MAX characters.
    """
    occurs = np.zeros(UNICODE, bool)
    for block in blocks:
        occurs[_code_points(block)] = True
    points = np.flatnonzero(occurs)
    if len(points) > VOCAB_MAX:
        raise ConfigError(
            f"the text has {len(points)} different characters, and data.tokenizer=char takes at most {VOCAB_MAX}: "
            "use data.tokenizer=bpe or byte"
        )
    token: Tokens = (occurs.cumsum() - 1).astype(dtype_of(len(points)))
    pieces = tuple(chr(p).encode("utf-8", "surrogateescape") for p in points.tolist())
    return [token[_code_points(block)] for block in blocks], pieces


def _code_points(block: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    text = block.decode("utf-8", "surrogateescape")  # a byte b that is no UTF-8 becomes the code point 0xDC00 + b
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


# ---- byte pairs ---------------------------------------------------------------------------------------

# Merges stay within words, numbers, signs and white space, a space going with what follows it, as in GPT-2. The
# library works on characters: a byte is the character of its number (Latin-1), so that any bytes pass through. So
# the classes are ASCII's, and all bytes of a character beyond it count as letters.
_SPACE, _LETTER = r" \t\n\r\x0b\x0c", r"A-Za-z\x80-\xff"
PATTERN = rf" ?[{_LETTER}]+| ?[0-9]+| ?[^{_SPACE}0-9{_LETTER}]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
CACHE_FORMAT = 1  # raised when PATTERN or the file's layout changes


def byte_pairs(
    blocks: Sequence[bytes], train: Sequence[bytes], vocab_size: int, text_sha256: str
) -> tuple[list[Tokens], Pieces]:
    """The tokens of each block, and the bytes of each token: the 256 bytes, then one per merge.

    train: the blocks to learn the merges from. text_sha256: what the trained merges are cached by, in the cache
    folder. A ConfigError where the library is missing, and where the text gives fewer tokens.
    """
    library = _library()
    name = f"bpe-{text_sha256}-{vocab_size}-{library.__version__}-{CACHE_FORMAT}.json"
    cached = corpora.cache_dir() / name
    merges = read_merges(cached, vocab_size)
    if merges is None:
        merges = train_merges(train, vocab_size)
        write_merges(cached, merges)
    return encode(blocks, merges), pieces_of(merges)


def train_merges(train: Sequence[bytes], vocab_size: int) -> Merges:
    """The merges that the library learns; a ConfigError where they give fewer than `vocab_size` tokens."""
    library = _library()
    trained = _splitting(library, library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=[chr(b) for b in range(256)], show_progress=False
    )
    trained.train_from_iterator((block.decode("latin-1") for block in train), trainer)
    token = {chr(b): b for b in range(256)}
    merges = []
    for a, b in json.loads(trained.to_str())["model"]["merges"]:
        merges.append((token[a], token[b]))
        token[a + b] = len(token)
    if len(token) < vocab_size:
        raise ConfigError(
            f"data.vocab_size {vocab_size} exceeds the {len(token)} tokens that the training blocks give with "
            f"data.tokenizer=bpe: ask for at most {len(token)} or use a longer text"
        )
    return merges


def pieces_of(merges: Merges) -> Pieces:
    """The bytes of every token of a list of merges: the 256 bytes, then one per merge.

    No two merges spell the same: between the same edges the same bytes are split in the same way.
    """
    pieces = list(BYTES)
    for a, b in merges:
        pieces.append(pieces[a] + pieces[b])
    return tuple(pieces)


def encode(blocks: Sequence[bytes], merges: Merges) -> list[Tokens]:
    """The tokens of each block, encoded on its own."""
    library = _library()
    spelled = [piece.decode("latin-1") for piece in pieces_of(merges)]
    model = library.models.BPE({s: i for i, s in enumerate(spelled)}, [(spelled[a], spelled[b]) for a, b in merges])
    encoder = _splitting(library, model)
    dtype = dtype_of(len(spelled))
    out: list[Tokens] = []
    for i in range(0, len(blocks), 256):  # what the library returns takes far more memory than the tokens
        encoded = encoder.encode_batch_fast([block.decode("latin-1") for block in blocks[i : i + 256]])
        out += [np.array(e.ids, dtype) for e in encoded]
    return out


def _splitting(library: ModuleType, model: object) -> tokenizers.Tokenizer:
    """A tokenizer of the library that splits as PATTERN says, and then does as `model` says."""
    tokenizer: tokenizers.Tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(PATTERN), "isolated")
    return tokenizer


def _library() -> ModuleType:
    # One thread: a sweep has a process per core, and a process that forks beside the library's threads can hang.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "data.tokenizer=bpe needs the tokenizers library, which is not installed: pip install tokenizers"
        ) from None
    return tokenizers


def read_merges(path: Path, vocab_size: int) -> Merges | None:
    """The merges in a cache file, or None where there is none that is whole and gives `vocab_size` tokens."""
    try:
        kept = json.loads(path.read_bytes())
        if kept["sha256"] != _checksum(kept["merges"]):
            return None
        merges = [(a, b) for a, b in kept["merges"]]
        return merges if len(pieces_of(merges)) == vocab_size else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # training gives the same merges again


def write_merges(path: Path, merges: Merges) -> None:
    """Keep merges in a cache file, whole or not at all; without one they are trained each time."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps({"sha256": _checksum(merges), "merges": merges}))
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()


def _checksum(merges: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(merges).encode()).hexdigest()

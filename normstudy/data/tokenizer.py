"""Convert a text's blocks of bytes to tokens.

Each block is tokenized separately, so training and validation consist of the same bytes with every tokenizer, and bits
per byte can be compared. Any bytes are accepted, and the bytes of a block's tokens restore the block.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from normstudy.config import VOCAB_MAX, places
from normstudy.data import downloads
from normstudy.errors import ConfigError

Tokens = np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.uint16]]
Pieces = tuple[bytes, ...]  # the bytes of each token
Merges = list[tuple[int, int]]  # pairs of tokens to merge, in the order in which they were learned

BYTES: Pieces = tuple(bytes([b]) for b in range(256))
UNICODE = 0x110000  # number of Unicode code points


def characters(blocks: Sequence[bytes]) -> tuple[list[Tokens], Pieces]:
    """Tokenize by characters. Return the tokens of each block, and the bytes of each token.

    The vocabulary consists of the characters of all blocks, sorted by code point. A byte that is not part of a complete
    UTF-8 character, for example because a block's edge splits the character, is a token by itself.
    """
    occurs = np.zeros(UNICODE, bool)
    for block in blocks:
        occurs[_code_points(block)] = True
    points = np.flatnonzero(occurs)
    if len(points) > VOCAB_MAX:
        raise ConfigError(
            f"the text has {len(points)} different characters, and data.tokenizer=char allows {VOCAB_MAX}: "
            "use data.tokenizer=bpe or byte"
        )
    token: Tokens = (occurs.cumsum() - 1).astype(np.min_scalar_type(len(points) - 1))
    pieces = tuple(chr(p).encode("utf-8", "surrogateescape") for p in points.tolist())
    return [token[_code_points(block)] for block in blocks], pieces


def _code_points(block: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    text = block.decode("utf-8", "surrogateescape")  # a byte b that is not UTF-8 becomes code point 0xDC00 + b
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


# As in GPT-2, a merge stays within a word, a number, or a series of punctuation or white space, and a space belongs
# to the word after it. The library works on characters, so each byte is passed as the Latin-1 character of the same
# number. Bytes from 0x80 on belong to non-ASCII characters, and the pattern treats each of these bytes as a letter.
_SPACE, _LETTER = r" \t\n\r\x0b\x0c", r"A-Za-z\x80-\xff"
PATTERN = rf" ?[{_LETTER}]+| ?[0-9]+| ?[^{_SPACE}0-9{_LETTER}]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
CACHE_FORMAT = 1  # increase when PATTERN or the format of the cache file changes


def byte_pairs(
    blocks: Sequence[bytes], train: Sequence[bytes], vocab_size: int, text_sha256: str
) -> tuple[list[Tokens], Pieces]:
    """Tokenize by byte pairs learned from `train` (Sennrich et al., arXiv:1508.07909). Result: see `characters`."""
    name = f"bpe-{text_sha256}-{vocab_size}-{_library().__version__}-{CACHE_FORMAT}.json"
    merges = read_merges(cached := downloads.cache_dir() / name, vocab_size)
    if merges is None:
        merges = train_merges(train, vocab_size)
        write_merges(cached, merges)
    return encode(blocks, merges), pieces_of(merges)


def train_merges(train: Sequence[bytes], vocab_size: int) -> Merges:
    """Learn merges from the training blocks. Raise a ConfigError if they are too short for `vocab_size` tokens."""
    library = _library()
    trained = _splitting(library, library.models.BPE())
    token = {chr(b): b for b in range(256)}
    trainer = library.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=list(token), show_progress=False)
    trained.train_from_iterator((block.decode("latin-1") for block in train), trainer)
    merges = []
    for a, b in json.loads(trained.to_str())["model"]["merges"]:
        merges.append((token[a], token[b]))
        token[a + b] = len(token)
    if len(token) < vocab_size:
        raise ConfigError(
            f"data.vocab_size {vocab_size} exceeds the {len(token)} tokens that data.tokenizer=bpe can learn from the "
            f"training blocks: set it to at most {len(token)} or use a longer text"
        )
    return merges


def pieces_of(merges: Merges) -> Pieces:
    """Return the bytes of each token: the 256 single bytes, then one per merge. No two tokens have equal bytes."""
    pieces = list(BYTES)
    for a, b in merges:
        pieces.append(pieces[a] + pieces[b])
    return tuple(pieces)


def encode(blocks: Sequence[bytes], merges: Merges) -> list[Tokens]:
    library = _library()
    spelled = [piece.decode("latin-1") for piece in pieces_of(merges)]
    model = library.models.BPE({s: i for i, s in enumerate(spelled)}, [(spelled[a], spelled[b]) for a, b in merges])
    encoder = _splitting(library, model)
    out: list[Tokens] = []
    for i in range(0, len(blocks), 256):  # in parts, because the library's results need far more memory than tokens
        encoded = encoder.encode_batch_fast([block.decode("latin-1") for block in blocks[i : i + 256]])
        out += [np.array(e.ids, np.min_scalar_type(len(spelled) - 1)) for e in encoded]
    return out


def _splitting(library: ModuleType, model: object) -> Any:
    """Make a Tokenizer of the library `tokenizers` that splits text by PATTERN, and then applies `model`."""
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(PATTERN), "isolated")
    return tokenizer


def _library() -> ModuleType:
    # Turn off the library's threads: a sweep already runs one process per core, and forking while threads run can hang.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "data.tokenizer=bpe needs the library tokenizers, which is not installed: pip install tokenizers"
        ) from None
    return tokenizers


def read_merges(path: Path, vocab_size: int) -> Merges | None:
    """Read merges from a cache file. Return None if the file is missing, damaged, or not for `vocab_size` tokens."""
    try:
        with open(path, "rb", opener=places.own_opener) as file:
            kept = json.load(file)
        if kept["sha256"] != _checksum(kept["merges"]):
            return None
        merges = [(a, b) for a, b in kept["merges"]]
        return merges if len(pieces_of(merges)) == vocab_size else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # then the caller learns the same merges again


def write_merges(path: Path, merges: Merges) -> None:
    """Write merges to a cache file atomically. A failure is ignored, since merges can be learned again."""
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

"""Tokens of characters and of byte pairs: by hand, against a slow encoder, and on any bytes."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from normstudy.config import ConfigError
from normstudy.data import corpora, tokenizer

TEXT = corpora.raw_bytes("pydoc")[:60_000]
BLOCKS = [TEXT[i : i + 4096] for i in range(0, len(TEXT), 4096)]
RNG = np.random.Generator(np.random.Philox(key=3))
# Empty, every byte, lines, whole and cut UTF-8, surrogates in UTF-8, and noise of many lengths.
ANY_BYTES = [
    b"",
    bytes(range(256)),
    bytes(range(255, -1, -1)),
    b"\n",
    b"\r\n \t\n\n   x  \n",
    b"\0\0\0",
    b"\xff",
    b"\x85\xa0 \x85",  # white space in Latin-1
    "é日🎉 naïve".encode(),
    "é日🎉".encode()[1:-1],
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xc0\x80",  # an overlong zero
    *(RNG.bytes(int(n)) for n in [1, 2, 3, 4, 5, 7, 31, 100, 1000, 4096]),
    *(bytes(RNG.choice(list(b"ab \n\xc3\xa9"), int(n))) for n in RNG.integers(1, 200, 20)),
    TEXT[:500].upper(),
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NORMSTUDY_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def joined(tokens: np.ndarray, pieces: tokenizer.Pieces) -> bytes:
    return b"".join(pieces[t] for t in tokens.tolist())


# ---- characters ---------------------------------------------------------------------------------------


def test_characters_by_hand() -> None:
    """Sorted by code point. A byte that is not UTF-8 counts as U+DC00 plus its value, before U+1F389.

    The second and third block share an é that the edge cut in two: its halves are tokens of one byte each.
    """
    blocks, pieces = tokenizer.characters(["b🎉a".encode(), b"aa\xc3", b"\xa9\n", "é".encode()])
    assert pieces == (b"\n", b"a", b"b", "é".encode(), b"\xa9", b"\xc3", "🎉".encode())
    assert [b.tolist() for b in blocks] == [[2, 6, 1], [1, 1, 5], [4, 0], [3]]
    assert all(b.dtype == np.uint8 for b in blocks)


def test_characters_of_any_bytes_give_them_back() -> None:
    blocks, pieces = tokenizer.characters(ANY_BYTES)
    assert [joined(b, pieces) for b in blocks] == ANY_BYTES
    assert len(set(pieces)) == len(pieces)
    used = set(np.concatenate(blocks).tolist())
    assert used == set(range(len(pieces)))  # every token occurs
    for block in ANY_BYTES[1:]:
        (alone,), own = tokenizer.characters([block])
        assert joined(alone, own) == block


def test_many_characters_take_two_bytes_a_token_and_too_many_are_refused() -> None:
    points = [*range(0xD800), *range(0xE000, 0x20000)]
    most = "".join(map(chr, points[: 2**16])).encode()
    (tokens,), pieces = tokenizer.characters([most])
    assert tokens.dtype == np.uint16
    np.testing.assert_array_equal(tokens, np.arange(2**16))
    assert joined(tokens, pieces) == most
    (few,), _ = tokenizer.characters(["".join(map(chr, range(257))).encode()])
    assert few.dtype == np.uint16
    assert int(few[-1]) == 256
    with pytest.raises(
        ConfigError, match=r"65537 different characters, .*allows 65536: use data.tokenizer=bpe or byte"
    ):
        tokenizer.characters(["".join(map(chr, points[: 2**16 + 1])).encode()])


# ---- byte pairs: what is learned ----------------------------------------------------------------------


def words(block: bytes) -> list[bytes]:
    """The parts of a block within which merges stay, by Python's re on bytes."""
    return re.findall(tokenizer.PATTERN.encode(), block)


def test_merges_stay_within_words_numbers_signs_and_space() -> None:
    assert words(b"def f(x):\n    return x+12 != 'na\xc3\xafve'  \n\n\tend  ") == [
        b"def", b" f", b"(", b"x", b"):", b"\n   ", b" return", b" x", b"+", b"12", b" !=", b" '",
        b"na\xc3\xafve", b"'", b"  \n\n", b"\t", b"end", b"  ",
    ]  # fmt: skip
    for block in ANY_BYTES:
        assert b"".join(words(block)) == block


def test_byte_pairs_by_hand() -> None:
    """ab | ab | _ab | _abc: ab occurs 4 times, then _ab (of 32 and the new 256) twice, then _abc once.

    No pair is left for a 260th token, since pairs do not cross the edges of blocks.
    """
    train = [b"ab", b"ab ab abc"]
    merges = tokenizer.train_merges(train, 259)
    assert merges == [(97, 98), (32, 256), (257, 99)]
    assert tokenizer.pieces_of(merges) == (*tokenizer.BYTES, b"ab", b" ab", b" abc")
    assert tokenizer.train_merges(train, 257) == [(97, 98)]
    (tokens, more) = tokenizer.encode([b"ab abc cab abd", b"b"], merges)
    assert tokens.tolist() == [256, 258, 32, 99, 256, 257, 100]
    assert more.tolist() == [98]
    assert tokens.dtype == np.uint16
    with pytest.raises(ConfigError, match=r"data.vocab_size 260 exceeds the 259 tokens .* set it to at most 259"):
        tokenizer.train_merges(train, 260)


def pairs(tokens: list[int]) -> Counter[tuple[int, int]]:
    return Counter(itertools.pairwise(tokens))


def merged(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace every occurrence of a pair, from the left."""
    out: list[int] = []
    for token in tokens:
        if out and (out[-1], token) == pair:
            out[-1] = new
        else:
            out.append(token)
    return out


def test_each_merge_is_a_most_frequent_pair_and_the_encoder_applies_them_in_order() -> None:
    """Compare with a slow trainer and encoder that works word by word, on this text and another."""
    merges = tokenizer.train_merges(BLOCKS, 400)
    token_of = {piece: i for i, piece in enumerate(tokenizer.pieces_of(merges))}
    learned = Counter(word for block in BLOCKS for word in words(block))
    other = [*ANY_BYTES, corpora.raw_bytes("pydoc")[-4096:]]
    unseen = {word for block in other for word in words(block)} - set(learned)
    state = {word: list(word) for word in [*learned, *unseen]}
    for pair in merges:
        counts: Counter[tuple[int, int]] = Counter()
        for word, n in learned.items():
            for p, k in pairs(state[word]).items():
                counts[p] += n * k
        assert counts[pair] == max(counts.values()) > 0
        new = token_of[tokenizer.pieces_of(merges)[pair[0]] + tokenizer.pieces_of(merges)[pair[1]]]
        state = {word: merged(tokens, pair, new) for word, tokens in state.items()}
    for block, tokens in zip([*BLOCKS, *other], tokenizer.encode([*BLOCKS, *other], merges), strict=True):
        assert tokens.tolist() == [t for word in words(block) for t in state[word]]


@pytest.mark.parametrize("vocab_size", [257, 300, 2000])
def test_byte_pairs_of_any_bytes_give_them_back(vocab_size: int, cache: Path) -> None:
    """The merges are learned from English, and noise is encoded."""
    blocks, pieces = tokenizer.byte_pairs(ANY_BYTES, BLOCKS, vocab_size, "0" * 64)
    assert len(pieces) == len(set(pieces)) == vocab_size
    assert [joined(b, pieces) for b in blocks] == ANY_BYTES
    (english,), _ = tokenizer.byte_pairs([TEXT], BLOCKS, vocab_size, "0" * 64)
    assert joined(english, pieces) == TEXT
    assert int(english.max()) >= 256


def test_merges_are_learned_from_the_training_blocks_only(cache: Path) -> None:
    _, pieces = tokenizer.byte_pairs([b"zq" * 1000, *BLOCKS], BLOCKS, 300, "0" * 64)
    assert b"zq" not in pieces
    _, pieces = tokenizer.byte_pairs(BLOCKS, [b"zq" * 1000], 257, "1" * 64)
    assert pieces[256] == b"zq"


def test_the_same_text_gives_the_same_tokens_in_every_process(tmp_path: Path) -> None:
    """The hash seed and the number of threads do not matter. The default is one thread, and nothing is printed."""
    (tmp_path / "text").write_bytes(TEXT)
    code = (
        "import os; from normstudy.data import texts; from normstudy.config import DataConfig\n"
        "before = os.listdir('/proc/self/task')\n"
        f"config = DataConfig(name='file', path={str(tmp_path / 'text')!r}, tokenizer='bpe', vocab_size=900)\n"
        "text = texts.load(config)\n"
        "print(text.sha256, os.listdir('/proc/self/task') == before)"
    )
    printed = []
    for seed, threads in (("1", None), ("2", None), ("3", "true")):
        env = {**os.environ, "PYTHONHASHSEED": seed, "NORMSTUDY_DATA_DIR": str(tmp_path / seed)}
        env.pop("TOKENIZERS_PARALLELISM", None)
        env |= {"TOKENIZERS_PARALLELISM": threads} if threads else {}
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, check=True)
        assert done.stderr == b""
        printed.append(done.stdout.split())
        assert len(list((tmp_path / seed).iterdir())) == 1
    assert len({sha256 for sha256, _ in printed}) == 1
    assert [alone for _, alone in printed[:2]] == [b"True", b"True"]


def test_a_missing_library_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # makes `import tokenizers` fail
    with pytest.raises(ConfigError, match=r"not installed: pip install tokenizers$"):
        tokenizer.byte_pairs(BLOCKS, BLOCKS, 300, "0" * 64)


# ---- byte pairs: what is kept -------------------------------------------------------------------------

OTHER = [(ord("q"), b) for b in range(44)]  # merges to 300 tokens that no text would give


def kept_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_merges_are_kept_by_text_size_and_version(cache: Path) -> None:
    import tokenizers

    learned = tokenizer.byte_pairs(BLOCKS, BLOCKS, 300, "ab" * 32)[1]
    path = kept_file(cache)
    assert path.name == f"bpe-{'ab' * 32}-300-{tokenizers.__version__}-1.json"
    tokenizer.write_merges(path, OTHER)
    assert tokenizer.byte_pairs(BLOCKS, BLOCKS, 300, "ab" * 32)[1] == tokenizer.pieces_of(OTHER)  # read from the cache
    assert tokenizer.byte_pairs(BLOCKS, BLOCKS, 300, "cd" * 32)[1] == learned
    assert len(tokenizer.byte_pairs(BLOCKS, BLOCKS, 301, "ab" * 32)[1]) == 301
    assert len(list(cache.iterdir())) == 3


def test_a_damaged_file_is_trained_again(cache: Path) -> None:
    blocks, pieces = tokenizer.byte_pairs(BLOCKS, BLOCKS, 300, "0" * 64)
    path = kept_file(cache)
    good = path.read_bytes()
    kept = json.loads(good)
    first = json.dumps(kept["merges"][:2]).encode()[1:-1]
    changed = first.replace(b"[", b"[1", 1)
    assert good.count(first) == 1
    others = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        good[: len(good) // 2],
        good.replace(first, changed),  # one digit more
        json.dumps({"merges": kept["merges"]}).encode(),
        json.dumps({**kept, "sha256": "0" * 64}).encode(),
        json.dumps({**kept, "merges": 5}).encode(),
    ]
    for bad_merges in ([[97]], [["a", "b"]], [[97, 98]], [[97, 100_000]], ["ab"], [None]):  # valid files, other merges
        tokenizer.write_merges(path, bad_merges)  # type: ignore[arg-type]
        others.append(path.read_bytes())
    for damaged in others:
        path.write_bytes(damaged)
        again, spelled = tokenizer.byte_pairs(BLOCKS, BLOCKS, 300, "0" * 64)
        assert spelled == pieces, damaged
        np.testing.assert_array_equal(np.concatenate(again), np.concatenate(blocks))
        assert path.read_bytes() == good
        assert kept_file(cache) == path  # no partial file beside it


def test_without_a_cache_the_tokens_are_the_same(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokenizer.byte_pairs(BLOCKS, BLOCKS, 300, "0" * 64)[1]
    path = kept_file(cache)
    path.unlink()
    path.mkdir()  # a folder where the file should be
    assert tokenizer.byte_pairs(BLOCKS, BLOCKS, 300, "0" * 64)[1] == expected
    assert list(cache.iterdir()) == [path]
    (tmp_path / "file").touch()
    monkeypatch.setenv("NORMSTUDY_DATA_DIR", str(tmp_path / "file" / "cache"))  # the cache folder cannot be created
    assert tokenizer.byte_pairs(BLOCKS, BLOCKS, 300, "0" * 64)[1] == expected

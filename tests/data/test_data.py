"""Texts, their split, their entropies and their batches, by hand and by brute force."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from normstudy.config import ConfigError, DataConfig
from normstudy.data import corpora, tokenizer
from normstudy.data import texts as data
from normstudy.data.blocks import Blocks, entropies, join, split
from normstudy.data.texts import Text


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder for trained vocabularies, instead of the user's."""
    monkeypatch.setenv("NORMSTUDY_DATA_DIR", str(tmp_path / "cache"))


def text_of(train: Blocks, validation: Blocks, tokenizer: str = "byte") -> Text:
    """A text with these blocks; its other fields do not matter."""
    return Text("numbered", tokenizer, train, validation, (), 1.0, "", 0.0, 0.0, None)


def decoded(text: Text, tokens: np.ndarray) -> bytes:
    """The bytes of a flat array of tokens."""
    return b"".join(text.pieces[t] for t in tokens.tolist())


def numbered_text(n_tokens: int) -> Text:
    """A text whose tokens are their positions, so that a window shows where it was cut."""
    return text_of(*map(join, split(np.arange(n_tokens))))


def numbered_blocks(*lengths: int) -> Blocks:
    """Blocks of these lengths, the tokens of block i being 1000 i, 1000 i + 1, ..."""
    return join([1000 * i + np.arange(n) for i, n in enumerate(lengths)])


def each(blocks: Blocks) -> list[np.ndarray]:
    """The tokens of every block."""
    return np.split(blocks.tokens, blocks.edges[1:-1])


# ---- split --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_tokens", "size"),
    [
        (40960, 4096),  # exactly ten blocks
        (40959, 4095),  # under ten: blocks of a tenth
        (100_000, 4096),
        (230, 23),
        (239, 23),  # what remains after the last whole block is in neither part
        (20, 2),
    ],
)
def test_every_tenth_block_is_validation(n_tokens: int, size: int) -> None:
    text = numbered_text(n_tokens)
    n_blocks = n_tokens // size
    blocks = [np.arange(i * size, (i + 1) * size) for i in range(n_blocks)]
    np.testing.assert_array_equal(each(text.validation), [b for i, b in enumerate(blocks) if i % 10 == 9])
    np.testing.assert_array_equal(each(text.train), [b for i, b in enumerate(blocks) if i % 10 != 9])
    assert not set(text.train.tokens.tolist()) & set(text.validation.tokens.tolist())
    assert len(text.train.tokens) + len(text.validation.tokens) == n_blocks * size
    assert len(text.train) + len(text.validation) == n_blocks


@pytest.mark.parametrize("n_tokens", [0, 1, 19])
def test_a_text_too_short_to_cut_is_refused(n_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"has {n_tokens} bytes, but at least 20 are needed .10 blocks of 2 bytes"):
        split(np.zeros(n_tokens, np.uint8))


# ---- windows ------------------------------------------------------------------------------------------


def check_windows(windows: np.ndarray, seq_len: int, size: int, *, validation: bool) -> None:
    """Assert that each window is seq_len + 1 adjacent tokens of one block of the right part."""
    assert windows.dtype == np.int64
    assert windows.shape[1] == seq_len + 1
    assert (np.diff(windows, axis=1) == 1).all()
    first, last = windows[:, 0] // size, windows[:, -1] // size
    assert (first == last).all()
    assert ((first % 10 == 9) == validation).all()


@pytest.mark.parametrize("seq_len", [1, 8, 21, 22])
def test_no_window_crosses_an_edge_and_every_place_is_drawn(seq_len: int) -> None:
    """Blocks of 23 tokens, 9 of 10 for training: 9 (23 - T) window starts; T = 22 leaves one start per block."""
    text = numbered_text(230)
    drawn = np.concatenate([data.batch(text, 1, step, 32, seq_len) for step in range(150)])
    check_windows(drawn, seq_len, 23, validation=False)
    places = [b * 23 + offset for b in range(9) for offset in range(23 - seq_len)]
    assert sorted(set(drawn[:, 0].tolist())) == places
    # Uniform over the window starts: 4800 draws, within 6 standard errors of their mean.
    counts = np.bincount(drawn[:, 0], minlength=230)[places]
    mean = len(drawn) / len(places)
    assert np.abs(counts - mean).max() < 6 * math.sqrt(mean)

    n_places = 23 - seq_len
    fixed = data.validation_windows(text, n_places, seq_len)
    check_windows(fixed, seq_len, 23, validation=True)
    assert fixed[:, 0].tolist() == [207 + offset for offset in range(n_places)]


def test_validation_windows_are_evenly_spaced_by_hand() -> None:
    """One validation block of 23 tokens, T = 8: 15 starts. Each of five windows starts in the middle of a fifth."""
    assert data.validation_windows(numbered_text(230), 5, 8)[:, 0].tolist() == [207 + k for k in (1, 4, 7, 10, 13)]
    # 30 blocks: 3 x 15 starts. Each of three windows starts in the middle of a third, the middle of a block.
    three = data.validation_windows(numbered_text(40960 * 3), 3, 96)
    assert three[:, 0].tolist() == [4096 * b + 2000 for b in (9, 19, 29)]


def test_validation_windows_spread_over_any_text() -> None:
    text = numbered_text(40960 * 2)
    starts = data.validation_windows(text, 64, 64)[:, 0]
    check_windows(data.validation_windows(text, 64, 64), 64, 4096, validation=True)
    inside = np.diff(starts)[np.diff(starts) < 4096]  # without the jump from one validation block to the next
    assert inside.max() - inside.min() <= 1
    assert len(inside) == 62


LENGTHS = (5, 3, 2, 9, 4, 1, 4)  # for T = 3: 2, 0, 0, 6, 1, 0 and 1 window starts
PLACES = [0, 1, 3000, 3001, 3002, 3003, 3004, 3005, 4000, 6000]


def test_every_place_of_ragged_blocks_is_drawn_and_short_blocks_have_none() -> None:
    """Some blocks have no room for a window. A window may end with the last token of a block."""
    text = text_of(numbered_blocks(*LENGTHS), numbered_blocks(2, *LENGTHS, 3))
    drawn = np.concatenate([data.batch(text, 1, step, 32, 3) for step in range(100)])
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(drawn - drawn[:, :1], np.tile(np.arange(4), (3200, 1)))
    starts, counts = np.unique(drawn[:, 0], return_counts=True)
    assert starts.tolist() == PLACES
    assert np.abs(counts - 320).max() < 6 * math.sqrt(320)  # uniform over the window starts
    fixed = data.validation_windows(text, 10, 3)
    assert fixed[:, 0].tolist() == [1000 + p for p in PLACES]
    assert data.validation_windows(text, 5, 3)[:, 0].tolist() == [1001, 4001, 4003, 4005, 7000]


def test_blocks_of_one_length_do_not_care_how_they_were_made() -> None:
    even = numbered_text(230)
    ragged = text_of(join(each(even.train)), join(each(even.validation)))
    for t in (1, 8, 22):
        np.testing.assert_array_equal(data.batch(even, 1, 2, 64, t), data.batch(ragged, 1, 2, 64, t))
        np.testing.assert_array_equal(data.validation_windows(even, 1, t), data.validation_windows(ragged, 1, t))


def test_batches_are_a_function_of_data_seed_and_step() -> None:
    """Batches can be drawn in any order and repeatedly. Another seed or step gives another batch."""
    text = numbered_text(40960)
    forward = [data.batch(text, 3, step, 4, 8) for step in range(10)]
    backward = [data.batch(text, 3, step, 4, 8) for step in reversed(range(10))][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a, b)
    others = [data.batch(text, seed, step, 4, 8) for seed in (0, 3, 4, 2**31 - 1) for step in (0, 1, 2, 10**6)]
    assert len({w.tobytes() for w in others}) == len(others)


def test_golden_batches() -> None:
    """The stream of batches is part of a run's identity: when this moves, NUMERICS must be raised."""
    text = numbered_text(40960)
    assert [data.batch(text, 3, step, 4, 8)[:, 0].tolist() for step in (0, 1, 599)] == GOLDEN_STARTS
    assert data.batch(text, 4, 0, 4, 8)[:, 0].tolist() == GOLDEN_OTHER_SEED


GOLDEN_STARTS = [[31772, 34438, 9959, 2912], [34941, 32448, 26773, 8434], [34777, 634, 7241, 21021]]
GOLDEN_OTHER_SEED = [11703, 0, 26015, 15723]


def test_what_does_not_fit_is_refused() -> None:
    text = numbered_text(230)
    data.check_fits(text, DataConfig(seq_len=22), 1)
    with pytest.raises(
        ConfigError, match=r"seq_len 23 is not below 23, the number of tokens in the longest block .*=byte"
    ):
        data.check_fits(text, DataConfig(seq_len=23), 1)
    data.check_fits(text, DataConfig(seq_len=8), 15)
    with pytest.raises(ConfigError, match=r"eval\.windows 16 exceeds the 15 validation windows"):
        data.check_fits(text, DataConfig(seq_len=8), 16)


def test_what_does_not_fit_ragged_blocks_is_refused() -> None:
    """The longest training block limits seq_len. Validation blocks that are too short have no windows."""
    text = text_of(numbered_blocks(5, 9, 2), numbered_blocks(4, 12, 3), "bpe")
    data.check_fits(text, DataConfig(seq_len=8), 4)
    with pytest.raises(
        ConfigError, match=r"seq_len 9 is not below 9, the number of tokens in the longest block .*tokenizer=bpe"
    ):
        data.check_fits(text, DataConfig(seq_len=9), 1)
    data.check_fits(text, DataConfig(seq_len=3), 1 + 9)
    with pytest.raises(ConfigError, match=r"eval\.windows 11 exceeds the 10 validation windows"):
        data.check_fits(text, DataConfig(seq_len=3), 11)
    with pytest.raises(ConfigError, match=r"eval\.windows 1 exceeds the 0 validation windows"):
        data.check_fits(text_of(text.train, numbered_blocks(4, 4), "char"), DataConfig(seq_len=4), 1)


# ---- entropies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [3, 300])
def test_entropies_by_hand(vocab_size: int) -> None:
    """Three symbols of a vocabulary, counted by either method. The blocks have two and three tokens.

    train 0 1 | 0 0: counts 3, 1, 0, smoothed 3.01, 1.01, 0.01; pairs 01, 00, and no 10, which would cross an
    edge. Nothing is known about what follows 1 or 2.
    validation 0 1 1 | 2 0 2 | 1: pairs 01, 11, 20, 02, and no 12 or 21, which would cross an edge.
    """
    mass = 4 + 0.01 * vocab_size
    p = [3.01 / mass, 1.01 / mass, 0.01 / mass]
    h1 = -sum(math.log(p[s]) for s in (0, 1, 1, 2, 0, 2, 1)) / 7
    after_0_comes_1 = 0.9 * (1 / 2) + 0.1 * p[1]
    after_1_comes_1 = p[1]  # no training pair begins with 1, so the unigram alone counts
    after_2_comes_0 = p[0]
    after_0_comes_2 = 0.9 * 0 + 0.1 * p[2]
    h2 = -sum(math.log(x) for x in (after_0_comes_1, after_1_comes_1, after_2_comes_0, after_0_comes_2)) / 4
    train = join([np.array(b) for b in ([0, 1], [0, 0])])
    validation = join([np.array(b) for b in ([0, 1, 1], [2, 0, 2], [1])])
    assert entropies(train, validation, vocab_size) == pytest.approx((h1, h2), rel=1e-12)


def test_entropies_of_a_cycle_and_of_noise() -> None:
    """0 1 2 3 0 1 2 3 ...: unigram ln 4, bigram -ln(0.9 + 0.1 / 4). Without structure bigram equals unigram."""
    cycle = np.tile(np.arange(4, dtype=np.uint8), 10_000).reshape(-1, 100)
    h1, h2 = entropies(join(cycle), join(cycle[:3]), 4)
    assert h1 == pytest.approx(math.log(4), rel=1e-6)
    assert h2 == pytest.approx(-math.log(0.9 + 0.1 / 4), rel=1e-6)
    noise = np.random.Generator(np.random.Philox(key=1)).integers(0, 4, (400, 100)).astype(np.uint8)
    h1, h2 = entropies(join(noise[:300]), join(noise[300:]), 4)
    assert h2 == pytest.approx(h1, abs=0.01)


def test_entropies_of_the_largest_vocabulary() -> None:
    """An array of all pairs would take 32 GiB. The last token is the largest number of a uint16."""
    v = 2**16
    train = join([np.array([v - 1, v - 2] * 2000, np.uint16)])
    h1, h2 = entropies(train, train, v)
    assert h1 == pytest.approx(-math.log(2000.01 / (4000 + 0.01 * v)))
    assert h2 == pytest.approx(-math.log(0.9 + 0.1 * 2000.01 / (4000 + 0.01 * v)))


@pytest.mark.parametrize("vocab_size", [256, 257])
def test_entropies_do_not_depend_on_how_many_tokens_are_counted_at_once(
    vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.Generator(np.random.Philox(key=2))
    train, validation = (
        join([rng.integers(0, 6, n).astype(np.uint8) for n in rng.integers(1, 30, 20)]) for _ in range(2)
    )
    expected = entropies(train, validation, vocab_size)
    for n in (1, 7, 64):
        monkeypatch.setattr("normstudy.data.blocks.COUNTED_AT_ONCE", n)
        assert entropies(train, validation, vocab_size) == expected


def test_golden_entropies() -> None:
    """H1 and H2 define outcomes and are columns of the committed tables, so both ways to count must agree."""
    text = data.load(DataConfig(name="synthetic"))
    assert (text.unigram_entropy, text.bigram_entropy) == pytest.approx(GOLDEN_ENTROPIES, rel=1e-12)


GOLDEN_ENTROPIES = (3.2315826807777044, 2.1132654823890316)


# ---- the synthetic source -----------------------------------------------------------------------------


def test_entropy_rate_by_hand() -> None:
    """State 0 is left with probability 0.1, state 1 with 0.4, so the stationary distribution is 0.8 and 0.2."""
    matrix = np.array([[0.9, 0.1], [0.4, 0.6]])
    np.testing.assert_allclose(corpora.stationary(matrix), [0.8, 0.2], rtol=1e-12)
    h0 = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    h1 = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert corpora.entropy_rate(matrix) == pytest.approx(0.8 * h0 + 0.2 * h1, rel=1e-12)


def test_entropy_rate_by_brute_force() -> None:
    """H(X_1 ... X_6) - H(X_1 ... X_5) over all 3^6 strings of a source in its stationary state."""
    matrix = corpora.markov_matrix(5, symbols=3)
    start = np.full(3, 1 / 3)
    for _ in range(2000):
        start = start @ matrix
    np.testing.assert_allclose(corpora.stationary(matrix), start, rtol=1e-10)

    def entropy(length: int) -> float:
        total = 0.0
        for string in itertools.product(range(3), repeat=length):
            p = start[string[0]] * math.prod(matrix[a, b] for a, b in itertools.pairwise(string))
            total -= p * math.log(p)
        return total

    assert corpora.entropy_rate(matrix) == pytest.approx(entropy(6) - entropy(5), rel=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_synthetic_text_separates_outcomes(seed: int) -> None:
    """ln V - H1 >= 0.5 and H1 - H2 >= 0.5 nats, a skewed stationary distribution, and a text that follows it."""
    text = data.load(DataConfig(name="synthetic", source_seed=seed))
    assert text.vocab_size == 64
    assert text.ln_vocab == pytest.approx(math.log(64))
    assert text.ln_vocab - text.unigram_entropy >= 0.5
    assert text.unigram_entropy - text.bigram_entropy >= 0.5
    matrix = corpora.markov_matrix(seed)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-12)
    assert (matrix > 0).all()
    pi = corpora.stationary(matrix)
    assert pi.sum() == pytest.approx(1)
    assert pi.max() > 10 * np.median(pi)

    tokens = corpora.synthetic_tokens(seed)
    frequency = np.bincount(tokens, minlength=64) / len(tokens)
    np.testing.assert_allclose(frequency, pi, atol=0.01)
    top = int(pi.argmax())
    followers = tokens[1:][tokens[:-1] == top]
    np.testing.assert_allclose(np.bincount(followers, minlength=64) / len(followers), matrix[top], atol=0.01)

    # No model beats the entropy rate. A bigram model comes near, since the source depends on one symbol only.
    assert text.source_entropy == corpora.entropy_rate(matrix)
    assert 0 < text.bigram_entropy - text.source_entropy < 0.1


def test_synthetic_text_is_a_function_of_its_seed() -> None:
    a, b = corpora.synthetic_tokens(0), corpora.synthetic_tokens(1)
    np.testing.assert_array_equal(a, corpora.synthetic_tokens(0))
    assert (a == b).mean() < 0.5
    # A golden hash: a change of the source needs NUMERICS raised.
    assert hashlib.sha256(a.tobytes()).hexdigest()[:16] == GOLDEN_SYNTHETIC


GOLDEN_SYNTHETIC = "f43c9d681a4b612f"


# ---- texts on disk ------------------------------------------------------------------------------------


def test_the_real_stdlib_is_usable_text() -> None:
    """Sizes and entropies vary with the version of Python; on 3.11.7 they are 10,965,865 bytes, 3.259 and 2.455."""
    text = data.load(DataConfig(name="stdlib"))
    assert text.vocab_size == 256
    assert text.bytes_per_token == 1.0
    assert 1000 < len(text.train) < 10_000
    assert len(text.validation) == (len(text.train) + len(text.validation)) // 10
    assert 3.0 < text.unigram_entropy < 3.5
    assert 2.2 < text.bigram_entropy < 2.7
    assert text.source_entropy is None


def test_pydoc_text_has_the_hash_of_its_bytes() -> None:
    text = data.load(DataConfig(name="pydoc"))
    assert text.sha256 == hashlib.sha256(corpora.raw_bytes("pydoc")).hexdigest()
    assert text.unigram_entropy - text.bigram_entropy > 0.5
    assert data.load(DataConfig(name="pydoc", source_seed=9)) is text  # source_seed does not matter


# ---- a file of one's own ------------------------------------------------------------------------------


def test_a_file_is_read_as_bytes(tmp_path: Path) -> None:
    raw = ("Naïve café, 12 €.\r\n" * 300).encode()
    path = tmp_path / "text"
    path.write_bytes(raw)
    text = data.load(DataConfig(name="file", path=str(path)))
    size = len(raw) // 10
    assert text.train.lengths.tolist() == [size] * 9
    assert text.train.tokens.dtype == np.uint8
    assert bytes(text.train.tokens[:size]) == raw[:size]
    assert text.sha256 == hashlib.sha256(raw).hexdigest()
    assert text.vocab_size == 256


def test_unusable_texts_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"0123456789")
    noise = np.random.Generator(np.random.Philox(key=1)).integers(0, 256, 60_000).astype(np.uint8)
    (tmp_path / "noise").write_bytes(noise.tobytes())
    (tmp_path / "letters").write_bytes(b"ab" * 20)
    cases = {
        ("missing", "byte"): "missing.*cannot be read .No such file",
        ("short", "byte"): "10 bytes, but at least 20",
        ("short", "bpe"): "10 bytes, but at least 20",
        ("noise", "byte"): "less than 0.2 apart.*more structure$",
        ("noise", "bpe"): "less than 0.2 apart.*more structure or a smaller data.vocab_size$",
        ("letters", "bpe"): "1 token per block of 4 bytes with data.tokenizer=bpe",
    }
    for (name, tokens), expected in cases.items():
        path, vocab_size = str(tmp_path / name), 258 if tokens == "bpe" else None
        with pytest.raises(ConfigError, match=expected) as error:
            data.load(DataConfig(name="file", path=path, tokenizer=tokens, vocab_size=vocab_size))
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="contains a NUL byte"):
        DataConfig(name="file", path="a\0b")


def test_a_file_that_changes_is_another_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 500)
    before = data.load(DataConfig(name="file", path=str(path)))
    path.write_text("a lazy dog jumps over the quick brown fox. " * 500)
    assert data.load(DataConfig(name="file", path=str(path))).sha256 != before.sha256


# ---- a text in other tokens ---------------------------------------------------------------------------

# Characters of one to four bytes, some cut by block edges, and bytes that are not UTF-8.
MIXED = (
    corpora.raw_bytes("pydoc")[:100_000]
    .replace(b" the ", " thé 日本 🎉 ".encode())
    .replace(b".\n", b".\xff\xc3\x80 \r\n")
)


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, Text]:
    """The same text with every tokenizer."""
    (tmp_path / "text").write_bytes(MIXED)
    return {
        name: data.load(DataConfig(name="file", path=str(tmp_path / "text"), tokenizer=name))
        for name in ("byte", "char", "bpe")
    }


def test_every_tokenizer_has_the_same_bytes_in_the_same_blocks(mixed: dict[str, Text]) -> None:
    blocks = [MIXED[i : i + 4096] for i in range(0, len(MIXED) // 4096 * 4096, 4096)]
    for text in mixed.values():
        assert [decoded(text, b) for b in each(text.train)] == [b for i, b in enumerate(blocks) if i % 10 != 9]
        assert [decoded(text, b) for b in each(text.validation)] == blocks[9::10]


def test_bytes_per_token_are_those_of_the_validation_blocks(mixed: dict[str, Text]) -> None:
    """They convert a loss in nats per token to bits per byte, which compare between tokenizers."""
    validation = b"".join([MIXED[i : i + 4096] for i in range(0, len(MIXED) // 4096 * 4096, 4096)][9::10])
    for name, text in mixed.items():
        assert text.bytes_per_token == len(validation) / len(text.validation.tokens), name
    assert mixed["byte"].bytes_per_token == 1
    assert 1.01 < mixed["char"].bytes_per_token < 1.5 < mixed["bpe"].bytes_per_token


def test_a_tiny_text_by_hand(tmp_path: Path) -> None:
    """Ten blocks of 12 bytes, 'é' two of them: nine of 9 characters, and one of 10 for validation.

    Training: 27 of each character, and ab, bé, éa always. Validation: ab four times, bé and éa twice, ba once.
    """
    path = tmp_path / "text"
    path.write_bytes(("abéabéabé" * 9 + "abéabéabab").encode())
    text = data.load(DataConfig(name="file", path=str(path), tokenizer="char"))
    assert text.pieces == (b"a", b"b", "é".encode())
    assert [b.tolist() for b in each(text.train)] == [[0, 1, 2] * 3] * 9
    assert text.validation.tokens.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1]
    assert text.bytes_per_token == 12 / 10
    assert text.unigram_entropy == pytest.approx(math.log(3))
    assert text.bigram_entropy == pytest.approx(-(8 * math.log(0.9 + 0.1 / 3) + math.log(0.1 / 3)) / 9)


def test_tokens_take_the_smallest_type_and_entropies_are_finite(mixed: dict[str, Text]) -> None:
    for name, vocab_size, dtype in (("byte", 256, np.uint8), ("char", None, np.uint8), ("bpe", 512, np.uint16)):
        text = mixed[name]
        assert text.vocab_size == vocab_size or name == "char"
        assert text.train.tokens.dtype == text.validation.tokens.dtype == dtype
        assert int(text.train.tokens.max()) < text.vocab_size
        assert 0 < text.bigram_entropy < text.unigram_entropy < text.ln_vocab


def test_another_tokenizer_or_vocabulary_is_another_text(mixed: dict[str, Text], tmp_path: Path) -> None:
    larger = data.load(DataConfig(name="file", path=str(tmp_path / "text"), tokenizer="bpe", vocab_size=300))
    assert larger.vocab_size == 300
    texts = [*mixed.values(), larger]
    assert len({t.sha256 for t in texts}) == 4
    assert mixed["byte"].sha256 == hashlib.sha256(MIXED).hexdigest()
    asked = data.load(DataConfig(name="file", path=str(tmp_path / "text"), tokenizer="bpe", vocab_size=512))
    assert asked is mixed["bpe"]  # the default, given explicitly


def test_the_hash_of_tokens_covers_tokens_edges_and_spellings() -> None:
    def blocks(*parts: list[int]) -> Blocks:
        return join([np.array(p, np.uint16) for p in parts])

    base = data.tokens_sha256(blocks([0, 1], [1]), blocks([0, 0]), (b"a", b"b"))
    assert base == data.tokens_sha256(blocks([0, 1], [1]), blocks([0, 0]), (b"a", b"b"))
    others = [
        data.tokens_sha256(blocks([0, 1], [0]), blocks([0, 0]), (b"a", b"b")),
        data.tokens_sha256(blocks([0], [1, 1]), blocks([0, 0]), (b"a", b"b")),
        data.tokens_sha256(blocks([0, 1, 1]), blocks([0, 0]), (b"a", b"b")),
        data.tokens_sha256(blocks([0, 1], [1]), blocks([0], [0]), (b"a", b"b")),
        data.tokens_sha256(blocks([0, 1], [1]), blocks([0, 0]), (b"a", b"c")),
        data.tokens_sha256(blocks([0, 1], [1]), blocks([0, 0]), (b"ab", b"")),
        data.tokens_sha256(blocks([0, 1], [1]), blocks([0, 0]), (b"a", b"b", b"")),
        data.tokens_sha256(blocks([0, 1]), blocks([1], [0, 0]), (b"a", b"b")),
    ]
    assert len({base, *others}) == 9
    # A golden hash: it is part of a run's identity.
    assert base[:16] == GOLDEN_TOKENS


GOLDEN_TOKENS = "0c46f5a3adfc7b1f"


def test_byte_pairs_are_learned_from_the_training_blocks(tmp_path: Path) -> None:
    """zq would be among the most frequent pairs of the text, but occurs in validation blocks only."""
    raw = bytearray(corpora.raw_bytes("pydoc")[:81920])
    for start in (36864, 77824):
        raw[start : start + 256] = b"zq" * 128
    (tmp_path / "text").write_bytes(raw)
    text = data.load(DataConfig(name="file", path=str(tmp_path / "text"), tokenizer="bpe", vocab_size=400))
    assert b"zq" not in text.pieces
    assert text.validation.tokens[:256].tolist() == list(b"zq" * 128)


def test_batches_of_any_tokenizer_are_pieces_of_the_text(mixed: dict[str, Text]) -> None:
    for text in mixed.values():
        windows = np.concatenate([data.batch(text, 0, 0, 50, 16), data.validation_windows(text, 50, 16)])
        assert all(decoded(text, w) in MIXED for w in windows)


def test_synthetic_symbols_decode_to_their_numbers() -> None:
    text = data.load(DataConfig(name="synthetic"))
    assert decoded(text, text.train.tokens[:100]) == bytes(text.train.tokens[:100])
    assert text.pieces == tokenizer.BYTES[:64]


def test_a_text_that_is_too_large_for_the_memory_is_one_line(tmp_path: Path) -> None:
    """Also one whose bytes fit, but not its tokens."""
    (tmp_path / "text").write_bytes(b"")
    os.truncate(tmp_path / "text", 300_000_000)
    code = (
        "import resource, sys; from normstudy.data import texts; from normstudy.config import DataConfig\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)\n"
        "texts.load(DataConfig('file', path=sys.argv[1]))"
    )
    for room in (100_000_000, 700_000_000):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "text"), str(room)], capture_output=True, text=True
        )
        assert done.stderr.splitlines()[-1] == (
            f"normstudy.errors.ConfigError: the text of data.path '{tmp_path}/text', which has 300,000,000 bytes, does "
            "not fit into this machine's memory: use a smaller text"
        )

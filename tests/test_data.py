"""Texts, their split, their entropies and their batches, by hand and by brute force."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from normstudy import data
from normstudy.config import ConfigError, DataConfig
from normstudy.data import Text


def numbered_text(n_tokens: int) -> Text:
    """A text whose tokens are their own places, so that a window tells where it was cut."""
    train, validation = data.split(np.arange(n_tokens))
    return Text("numbered", train, validation, n_tokens, 1.0, "", 0.0, 0.0, None)


# ---- split --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_tokens", "size"),
    [
        (40960, 4096),  # exactly ten blocks
        (40959, 4095),  # under ten: blocks of a tenth
        (100_000, 4096),
        (230, 23),
        (239, 23),  # a remainder is in neither part
        (20, 2),
    ],
)
def test_every_tenth_block_is_validation(n_tokens: int, size: int) -> None:
    text = numbered_text(n_tokens)
    n_blocks = n_tokens // size
    blocks = [np.arange(i * size, (i + 1) * size) for i in range(n_blocks)]
    np.testing.assert_array_equal(text.validation, [b for i, b in enumerate(blocks) if i % 10 == 9])
    np.testing.assert_array_equal(text.train, [b for i, b in enumerate(blocks) if i % 10 != 9])
    assert not set(text.train.ravel().tolist()) & set(text.validation.ravel().tolist())
    assert text.train.size + text.validation.size == n_blocks * size


@pytest.mark.parametrize("n_tokens", [0, 1, 19])
def test_a_text_too_short_to_cut_is_refused(n_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"the text has {n_tokens} tokens, and at least 20 are needed"):
        data.split(np.zeros(n_tokens, np.uint8))


# ---- windows ------------------------------------------------------------------------------------------


def check_windows(windows: np.ndarray, seq_len: int, size: int, *, validation: bool) -> None:
    """Each is seq_len + 1 consecutive tokens of one block of the right part."""
    assert windows.dtype == np.int64
    assert windows.shape[1] == seq_len + 1
    assert (np.diff(windows, axis=1) == 1).all()
    first, last = windows[:, 0] // size, windows[:, -1] // size
    assert (first == last).all()
    assert ((first % 10 == 9) == validation).all()


@pytest.mark.parametrize("seq_len", [1, 8, 21, 22])
def test_no_window_crosses_an_edge_and_every_place_is_drawn(seq_len: int) -> None:
    """Blocks of 23 tokens, 9 of 10 for training: 9 (23 - T) places; T = 22 leaves one place a block."""
    text = numbered_text(230)
    drawn = np.concatenate([data.batch(text, 1, step, 32, seq_len) for step in range(150)])
    check_windows(drawn, seq_len, 23, validation=False)
    places = [b * 23 + offset for b in range(9) for offset in range(23 - seq_len)]
    assert sorted(set(drawn[:, 0].tolist())) == places
    # Uniform over the places: 4800 draws, within 6 standard errors of their mean.
    counts = np.bincount(drawn[:, 0], minlength=230)[places]
    mean = len(drawn) / len(places)
    assert np.abs(counts - mean).max() < 6 * math.sqrt(mean)

    n_places = 23 - seq_len
    fixed = data.validation_windows(text, n_places, seq_len)
    check_windows(fixed, seq_len, 23, validation=True)
    assert fixed[:, 0].tolist() == [207 + offset for offset in range(n_places)]


def test_validation_windows_are_evenly_spaced_by_hand() -> None:
    """One validation block of 23 tokens, T = 8: 15 places. Five windows sit in the middle of five fifths."""
    assert data.validation_windows(numbered_text(230), 5, 8)[:, 0].tolist() == [207 + k for k in (1, 4, 7, 10, 13)]
    # 30 blocks: 3 x 15 places, three windows in the middle of each third, which is the middle of a block.
    three = data.validation_windows(Text("", *data.split(np.arange(40960 * 3)), 0, 1.0, "", 0, 0, None), 3, 96)
    assert three[:, 0].tolist() == [4096 * b + 2000 for b in (9, 19, 29)]


def test_validation_windows_spread_over_any_text() -> None:
    text = numbered_text(40960 * 2)
    starts = data.validation_windows(text, 64, 64)[:, 0]
    check_windows(data.validation_windows(text, 64, 64), 64, 4096, validation=True)
    inside = np.diff(starts)[np.diff(starts) < 4096]  # without the jump from one validation block to the next
    assert inside.max() - inside.min() <= 1
    assert len(inside) == 62


def test_batches_are_a_function_of_data_seed_and_step() -> None:
    """In any order, any number of times; another seed or step gives another batch."""
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
    with pytest.raises(ConfigError, match=r"data\.seq_len 23 is not below the block size 23 .*230 tokens"):
        data.check_fits(text, DataConfig(seq_len=23), 1)
    data.check_fits(text, DataConfig(seq_len=8), 15)
    with pytest.raises(ConfigError, match=r"eval\.windows 16 exceeds the 15 validation windows"):
        data.check_fits(text, DataConfig(seq_len=8), 16)


# ---- entropies ----------------------------------------------------------------------------------------


def test_entropies_by_hand() -> None:
    """Three symbols, blocks of two and three tokens.

    train 0 1 | 0 0: counts 3, 1, 0, smoothed 3.01, 1.01, 0.01 of 4.03; pairs 01, 00, and never 10, which would
    cross an edge, so that nothing is known of what follows 1 or 2.
    validation 0 1 1 | 2 0 2: pairs 01, 11, 20, 02, and never 12.
    """
    p = [3.01 / 4.03, 1.01 / 4.03, 0.01 / 4.03]
    h1 = -sum(math.log(p[s]) for s in (0, 1, 1, 2, 0, 2)) / 6
    after_0_comes_1 = 0.9 * (1 / 2) + 0.1 * p[1]
    after_1_comes_1 = p[1]  # no training pair begins with 1: the unigram alone
    after_2_comes_0 = p[0]
    after_0_comes_2 = 0.9 * 0 + 0.1 * p[2]
    h2 = -sum(math.log(x) for x in (after_0_comes_1, after_1_comes_1, after_2_comes_0, after_0_comes_2)) / 4
    train = np.array([[0, 1], [0, 0]], np.uint8)
    validation = np.array([[0, 1, 1], [2, 0, 2]], np.uint8)
    assert data.entropies(train, validation, 3) == pytest.approx((h1, h2), rel=1e-12)


def test_entropies_of_a_cycle_and_of_noise() -> None:
    """0 1 2 3 0 1 2 3 ...: unigram ln 4, bigram -ln(0.9 + 0.1 / 4). Without structure bigram equals unigram."""
    cycle = np.tile(np.arange(4, dtype=np.uint8), 10_000).reshape(-1, 100)
    h1, h2 = data.entropies(cycle, cycle[:3], 4)
    assert h1 == pytest.approx(math.log(4), rel=1e-6)
    assert h2 == pytest.approx(-math.log(0.9 + 0.1 / 4), rel=1e-6)
    noise = np.random.Generator(np.random.Philox(key=1)).integers(0, 4, (400, 100)).astype(np.uint8)
    h1, h2 = data.entropies(noise[:300], noise[300:], 4)
    assert h2 == pytest.approx(h1, abs=0.01)


# ---- the synthetic source -----------------------------------------------------------------------------


def test_entropy_rate_by_hand() -> None:
    """Leaving 0 with 0.1 and 1 with 0.4: in balance 0.8 and 0.2 of the time are spent in each."""
    matrix = np.array([[0.9, 0.1], [0.4, 0.6]])
    np.testing.assert_allclose(data.stationary(matrix), [0.8, 0.2], rtol=1e-12)
    h0 = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    h1 = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert data.entropy_rate(matrix) == pytest.approx(0.8 * h0 + 0.2 * h1, rel=1e-12)


def test_entropy_rate_by_brute_force() -> None:
    """H(X_1 ... X_6) - H(X_1 ... X_5) over all 3^6 strings of a source in its stationary state."""
    matrix = data.markov_matrix(5, symbols=3)
    start = np.full(3, 1 / 3)
    for _ in range(2000):
        start = start @ matrix
    np.testing.assert_allclose(data.stationary(matrix), start, rtol=1e-10)

    def entropy(length: int) -> float:
        total = 0.0
        for string in itertools.product(range(3), repeat=length):
            p = start[string[0]] * math.prod(matrix[a, b] for a, b in itertools.pairwise(string))
            total -= p * math.log(p)
        return total

    assert data.entropy_rate(matrix) == pytest.approx(entropy(6) - entropy(5), rel=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_synthetic_text_separates_outcomes(seed: int) -> None:
    """ln V - H1 >= 0.5 and H1 - H2 >= 0.5 nats, a skewed stationary distribution, and a text that follows it."""
    text = data.load(DataConfig(name="synthetic", source_seed=seed))
    assert text.vocab_size == 64
    assert text.ln_vocab == pytest.approx(math.log(64))
    assert text.ln_vocab - text.unigram_entropy >= 0.5
    assert text.unigram_entropy - text.bigram_entropy >= 0.5
    matrix = data.markov_matrix(seed)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-12)
    assert (matrix > 0).all()
    pi = data.stationary(matrix)
    assert pi.sum() == pytest.approx(1)
    assert pi.max() > 10 * np.median(pi)

    tokens = data.synthetic_tokens(seed)
    frequency = np.bincount(tokens, minlength=64) / len(tokens)
    np.testing.assert_allclose(frequency, pi, atol=0.01)
    top = int(pi.argmax())
    followers = tokens[1:][tokens[:-1] == top]
    np.testing.assert_allclose(np.bincount(followers, minlength=64) / len(followers), matrix[top], atol=0.01)

    # No bigram model beats the source; ours comes near, since the source has no longer memory.
    assert text.source_entropy == data.entropy_rate(matrix)
    assert 0 < text.bigram_entropy - text.source_entropy < 0.1


def test_synthetic_text_is_a_function_of_its_seed() -> None:
    a, b = data.synthetic_tokens(0), data.synthetic_tokens(1)
    np.testing.assert_array_equal(a, data.synthetic_tokens(0))
    assert (a == b).mean() < 0.5
    # A golden hash: a change of the source needs NUMERICS raised.
    assert hashlib.sha256(a.tobytes()).hexdigest()[:16] == GOLDEN_SYNTHETIC


GOLDEN_SYNTHETIC = "f43c9d681a4b612f"


# ---- corpora on disk ----------------------------------------------------------------------------------


def test_stdlib_rule_on_a_small_tree(tmp_path: Path) -> None:
    """Order is that of the relative paths as text: '-' < '.' < '/'. Folders are left out at any depth."""
    kept = ["a-b.py", "a.py", "a/b.py", "json/decoder.py", "test.py", "testing/x.py", "unittest/case.py"]
    left_out = [
        "site-packages/numpy/core.py",
        "test/test_os.py",
        "json/tests/test_json.py",
        "ctypes/test/test_x.py",
        "idlelib/idle.py",
        "lib2to3/main.py",
        "turtledemo/clock.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "a.pyc",
        "a/readme.txt",
    ]
    root = tmp_path / "test" / "lib"  # the names of the folders above do not matter
    for name in [*kept[::-1], *left_out]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"<{name}>\r\n".encode())
    assert data.stdlib_bytes(root).decode() == "".join(f"<{name}>\r\n" for name in kept)


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
    assert text.sha256 == hashlib.sha256(data.pydoc_bytes()).hexdigest()
    assert text.unigram_entropy - text.bigram_entropy > 0.5
    assert data.load(DataConfig(name="pydoc", source_seed=9)) is text  # read once; the seed is not its own


# ---- a file of one's own ------------------------------------------------------------------------------


def test_a_file_is_read_as_bytes(tmp_path: Path) -> None:
    raw = ("Naïve café, 12 €.\r\n" * 300).encode()
    path = tmp_path / "text"
    path.write_bytes(raw)
    text = data.load(DataConfig(name="file", path=str(path)))
    size = len(raw) // 10
    assert text.train.shape == (9, size)
    assert bytes(text.train[0]) == raw[:size]
    assert text.sha256 == hashlib.sha256(raw).hexdigest()
    assert text.vocab_size == 256


def test_unusable_files_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(b"0123456789")
    noise = np.random.Generator(np.random.Philox(key=1)).integers(0, 256, 60_000).astype(np.uint8)
    (tmp_path / "noise").write_bytes(noise.tobytes())
    cases = {
        "missing": "missing.*cannot be read .No such file",
        ".": "cannot be read .Is a directory",
        "empty/deeper": "cannot be read .Not a directory",
        "empty": "empty. is empty: give a text file",
        "short": "10 tokens, and at least 20",
        "noise": "less than 0.2 apart",
    }
    for name, expected in cases.items():
        with pytest.raises(ConfigError, match=expected) as error:
            data.load(DataConfig(name="file", path=str(tmp_path / name)))
        assert "\n" not in str(error.value)


def test_an_unreadable_file_is_one_clear_line() -> None:
    """Files that no user can read, root included, and one that has no end."""
    with pytest.raises(ConfigError, match=r"/proc/self/mem' cannot be read .Input/output error"):
        data.load(DataConfig(name="file", path="/proc/self/mem"))
    with pytest.raises(ConfigError, match="/dev/zero' is a pipe or device"):
        data.load(DataConfig(name="file", path="/dev/zero"))
    with pytest.raises(ConfigError, match="holds a NUL byte"):
        DataConfig(name="file", path="a\0b")


def test_a_file_that_changes_is_another_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 500)
    before = data.load(DataConfig(name="file", path=str(path)))
    path.write_text("a lazy dog jumps over the quick brown fox. " * 500)
    assert data.load(DataConfig(name="file", path=str(path))).sha256 != before.sha256

"""Texts that come with Python, and the user's files, folders and globs."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from normstudy.config import ConfigError, DataConfig
from normstudy.data import corpora, texts

BODY = b"the quick brown fox jumps over the lazy dog, 0123456789. " * 4000


def refusal(path: Path | str) -> str:
    """The one line that refuses a data.path."""
    with pytest.raises(ConfigError) as error:
        corpora.file_bytes(str(path))
    assert "\n" not in str(error.value)
    assert repr(str(path)) in str(error.value)
    return str(error.value)


def write(root: Path, *names: str) -> None:
    """Create files, each containing its name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"<{name}>".encode())


# ---- texts that come with Python ----------------------------------------------------------------------


def test_stdlib_rule_on_a_small_tree(tmp_path: Path) -> None:
    """Files are sorted by relative path as text: '-' < '.' < '/'. Excluded folders are left out at any depth."""
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
    write(root, *kept[::-1], *left_out)
    assert corpora.stdlib_bytes(root).decode() == "".join(f"<{name}>" for name in kept)


# ---- files, folders, globs ----------------------------------------------------------------------------


def test_every_file_counts_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    """Otherwise copies of the training text would reach the validation blocks: here 82 files for 2."""
    write(tmp_path, "a.txt", "b.txt", "c/d.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "a-link.txt").symlink_to("a.txt")
    os.link(tmp_path / "b.txt", tmp_path / "z.txt")
    names = sorted(path.resolve().name for path in corpora.files_of(f"{tmp_path}/**/*.txt"))
    assert names == ["a.txt", "b.txt", "d.txt"]
    assert corpora.file_bytes(str(tmp_path)) == b"<a.txt><b.txt><c/d.txt>"
    assert corpora.file_bytes(f"{tmp_path}/*.txt") == b"<a.txt><b.txt>"


def test_results_below_the_text_are_not_part_of_it(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b/c.txt", "results/s/tables/runs/0-schema.parquet", "results/s/state/logs/x-1.txt")
    assert corpora.file_bytes(str(tmp_path)) == b"<a.txt><b/c.txt>"
    assert corpora.file_bytes(f"{tmp_path}/**/*.*") == b"<a.txt><b/c.txt>"
    refusal(tmp_path / "results")


def test_a_folder_is_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """The file system's order does not matter. Hidden files and folders, pipes and linked folders are left out."""
    kept = ["a-b.txt", "a.txt", "a/b.txt", "a/deep/er/c", "b", "ä.txt"]
    root = tmp_path / ".hidden" / "texts"  # the names of the folders above do not matter
    write(root, *kept[::-1], ".git/config", "a/.b.txt.swp", "a/.cache/x.txt")
    write(tmp_path, "elsewhere/x.txt")
    os.mkfifo(root / "pipe")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "dangling").symlink_to("nowhere")
    (root / "c.txt").symlink_to(tmp_path / "elsewhere/x.txt")
    kept.insert(5, "elsewhere/x.txt")
    assert corpora.file_bytes(str(root)).decode() == "".join(f"<{name}>" for name in kept)
    assert corpora.file_bytes(f"{root}/") == corpora.file_bytes(str(root))


def test_a_glob_is_the_files_it_matches_in_the_order_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "d/b.md", "d/a.md", "d/a.txt", "d/sub/a.md", "d/sub/deep/z.md", "d/.hidden/a.md", "e/a.md")
    (tmp_path / "d" / "folder.md").mkdir()
    monkeypatch.chdir(tmp_path)
    for pattern, expected in {
        "d/*.md": "<d/a.md><d/b.md>",
        "d/**/*.md": "<d/a.md><d/b.md><d/sub/a.md><d/sub/deep/z.md>",
        "?/a.md": "<d/a.md><e/a.md>",
        "[de]/a.*": "<d/a.md><d/a.txt><e/a.md>",
        f"{tmp_path}/*/a.md": "<d/a.md><e/a.md>",
    }.items():
        assert corpora.file_bytes(pattern).decode() == expected, pattern


def test_a_file_that_is_there_is_no_glob(tmp_path: Path) -> None:
    write(tmp_path, "a[1].txt", "a1.txt")
    assert corpora.file_bytes(f"{tmp_path}/a[1].txt") == b"<a[1].txt>"
    assert corpora.file_bytes(f"{tmp_path}/a[1]*") == b"<a1.txt>"


def test_unusable_paths_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "bare" / ".git").mkdir(parents=True)
    write(tmp_path, "bare/.git/config")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "mem").symlink_to("/proc/self/mem")  # no user can read it, root included
    os.mkfifo(tmp_path / "pipe")
    for name, expected in {
        "missing": r"missing' cannot be read \(No such file",
        "empty/deeper": r"cannot be read \(Not a directory",
        "x" * 300: r"cannot be read \(File name too long",
        "empty": "empty' is empty: choose a file",
        "empt*": "empt\\*' is empty: choose a file",
        "bare": "bare' has no files",
        "pipe": r"pipe' cannot be read \(it is a folder, a pipe, a device or a file of the kernel",
        "*.md": r"\*.md' matches no file",
        "nowhere/**/*.md": "matches no file",
        "linked": r"linked' cannot be read at '.*/linked/mem' \(it is a folder, a pipe, a device or a file of",
    }.items():
        assert re.search(expected, refusal(tmp_path / name)), name
    for path in ("/dev/zero", "/proc/self/mem", "/proc/kmsg"):
        assert f"{path}' cannot be read (it is a folder, a pipe, a device or a file of the kernel" in refusal(path)


# root can read everything unless it drops its capabilities first (setpriv is in Debian's util-linux).
WITHOUT_POWERS = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []


@pytest.mark.parametrize(("mode", "named"), [(0o000, "locked"), (0o400, "locked/b.txt")])
def test_a_folder_without_permission_is_one_clear_line(mode: int, named: str, tmp_path: Path) -> None:
    """The text is not read without the files of the locked folder."""
    write(tmp_path, "a.txt", "locked/b.txt")
    (tmp_path / "locked").chmod(mode)
    code = f"from normstudy.data import corpora; corpora.file_bytes({str(tmp_path)!r})"
    try:
        done = subprocess.run(
            [*WITHOUT_POWERS, sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert re.search(rf"ConfigError: .* cannot be read at '[^']*/{named}' \(Permission denied\)", done.stderr)


@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
def test_a_folder_or_glob_that_changes_is_another_text(pattern: str, tmp_path: Path) -> None:
    """Another content, size or order, a new file, a missing file: one process notices each."""
    config = DataConfig(name="file", path=f"{tmp_path}/{pattern}")
    seen = []

    def look() -> None:
        text = texts.load(config)
        assert texts.load(config) is text
        seen.append(text.sha256)

    (tmp_path / "a.txt").write_bytes(BODY)
    (tmp_path / "b.txt").write_bytes(BODY[:-57])
    look()
    (tmp_path / "a.txt").write_bytes(BODY.replace(b"dog", b"cat"))
    look()
    (tmp_path / "c.txt").write_bytes(BODY)
    look()
    (tmp_path / "a.txt").rename(tmp_path / "d.txt")
    look()
    (tmp_path / "b.txt").write_bytes(BODY[:-114])
    look()
    (tmp_path / "c.txt").unlink()
    look()
    assert len(set(seen)) == 6
    assert seen[-1] == hashlib.sha256(BODY[:-114] + BODY.replace(b"dog", b"cat")).hexdigest()


def test_names_alone_tell_one_order_from_another(tmp_path: Path) -> None:
    """Two files have the same size and time, and the first is renamed to come last."""
    for name, raw in (("a", BODY), ("b", BODY.replace(b"dog", b"cat"))):
        (tmp_path / name).write_bytes(raw)
        os.utime(tmp_path / name, (1, 1))
    config = DataConfig(name="file", path=str(tmp_path))
    before = texts.load(config).sha256
    (tmp_path / "a").rename(tmp_path / "c")
    assert texts.load(config).sha256 != before

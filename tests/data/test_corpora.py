"""Files, folders and globs of one's own, and downloads from a server on the loopback interface."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import pty
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from normstudy.config import ConfigError, DataConfig
from normstudy.config.schema import DOWNLOADED
from normstudy.data import corpora, texts
from normstudy.data.corpora import Corpus

BODY = b"the quick brown fox jumps over the lazy dog, 0123456789. " * 4000


def refusal(path: Path | str) -> str:
    """The one line that refuses a data.path."""
    with pytest.raises(ConfigError) as error:
        corpora.file_bytes(str(path))
    assert "\n" not in str(error.value)
    assert repr(str(path)) in str(error.value)
    return str(error.value)


def write(root: Path, *names: str) -> None:
    """Files that hold their own names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"<{name}>".encode())


# ---- texts that come with Python ----------------------------------------------------------------------


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
    write(root, *kept[::-1], *left_out)
    assert corpora.stdlib_bytes(root).decode() == "".join(f"<{name}>" for name in kept)


# ---- files, folders, globs ----------------------------------------------------------------------------


def test_a_folder_is_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """'-' < '.' < '/', whatever the file system's order; hidden files and folders, pipes and linked folders are out."""
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
    (tmp_path / "linked" / "mem").symlink_to("/proc/self/mem")  # which no user can read, root included
    os.mkfifo(tmp_path / "pipe")
    for name, expected in {
        "missing": r"missing' cannot be read \(No such file",
        "empty/deeper": r"cannot be read \(Not a directory",
        "x" * 300: r"cannot be read \(File name too long",
        "empty": "empty' is empty: give a text file",
        "empt*": "empt\\*' is empty: give a text file",
        "bare": "bare' is a folder without files",
        "pipe": "pipe' is a pipe or device",
        "*.md": r"\*.md' matches no file",
        "nowhere/**/*.md": "matches no file",
        "linked": r"linked' cannot be read at '.*/linked/mem' \(Input/output error",
    }.items():
        assert re.search(expected, refusal(tmp_path / name)), name
    assert "/dev/zero' is a pipe or device" in refusal("/dev/zero")
    assert re.search(r"/proc/self/mem' cannot be read \(Input/output error", refusal("/proc/self/mem"))


# root reads everything, unless it gives its powers up first (setpriv is in Debian's util-linux).
WITHOUT_POWERS = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []


@pytest.mark.parametrize(("mode", "named"), [(0o000, "locked"), (0o400, "locked/b.txt")])
def test_a_folder_without_permission_is_one_clear_line(mode: int, named: str, tmp_path: Path) -> None:
    """Not a text that silently lacks what lies in it."""
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
    """Content, size, a file more, a file less, another order: each is noticed within one process."""
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
    """Two files of one size and time: what was first becomes the last."""
    for name, raw in (("a", BODY), ("b", BODY.replace(b"dog", b"cat"))):
        (tmp_path / name).write_bytes(raw)
        os.utime(tmp_path / name, (1, 1))
    config = DataConfig(name="file", path=str(tmp_path))
    before = texts.load(config).sha256
    (tmp_path / "a").rename(tmp_path / "c")
    assert texts.load(config).sha256 != before


# ---- downloads ----------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """A server of one file that can leave out ranges, cut a connection, and wait for a second request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.knows_ranges = True
        self.cut_after: int | None = None  # bytes of the next answer's body; then the connection is closed
        self.chunked = False
        self.status: int | None = None
        self.waits = False
        self.second = threading.Event()
        self.ranges: list[str | None] = []  # of every request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/input.txt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        if len(self.server.ranges) > 1:
            self.server.second.set()
        elif self.server.waits:
            self.server.second.wait(0.5)
        body, start = self.server.body, 0
        if asked and self.server.knows_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if start >= len(body):
                self.send_error(416)
                return
        if self.server.status:
            self.send_error(self.server.status)
            return
        if self.server.chunked:
            self.protocol_version = "HTTP/1.1"
        self.send_response(206 if start else 200)
        sent = body[start:][: self.server.cut_after]
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            sent = f"{len(sent):x}\r\n".encode() + sent + b"\r\n" + (b"" if self.server.cut_after else b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(sent)
        self.server.cut_after = None
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NORMSTUDY_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def corpus(url: str, raw: bytes = BODY) -> Corpus:
    return Corpus(url, hashlib.sha256(raw).hexdigest(), len(raw), "http://example.org/about")


def kept(cache: Path) -> dict[str, bytes]:
    """What the cache holds, without the empty files that are locked."""
    return {p.name: p.read_bytes() for p in cache.iterdir() if p.suffix != ".lock"}


def failure(name: str, wanted: Corpus) -> str:
    """The one line that a download ends with."""
    with pytest.raises(ConfigError) as error:
        corpora.downloaded_bytes(name, wanted)
    assert "\n" not in str(error.value)
    assert "data=file data.path=" in str(error.value)
    return str(error.value)


def test_a_download_is_kept_and_needs_the_server_once(server: Server, cache: Path) -> None:
    wanted = corpus(server.url)
    assert corpora.downloaded_bytes("shakes", wanted) == BODY
    assert server.ranges == [None]
    assert kept(cache) == {"shakes.txt": BODY}
    server.shutdown()
    server.server_close()
    assert corpora.downloaded_bytes("shakes", wanted) == BODY


def test_the_text_in_an_archive(server: Server, cache: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("other", b"no")
        file.writestr("text", BODY)
    server.body = archive.getvalue()
    wanted = Corpus(
        server.url.replace("input.txt", "text.zip"), hashlib.sha256(server.body).hexdigest(), len(BODY), "", "text"
    )
    assert corpora.downloaded_bytes("wiki", wanted) == BODY
    assert kept(cache) == {"wiki.zip": server.body}
    longer = dataclasses.replace(wanted, n_bytes=len(BODY) + 1)
    assert f"holds {len(BODY)} bytes of text, and not {len(BODY) + 1}" in failure("wiki", longer)


def test_a_wrong_hash_is_refused_and_not_kept(server: Server, cache: Path) -> None:
    wanted = corpus(server.url)
    server.body = BODY[:-1] + b"?"
    line = failure("shakes", wanted)
    assert hashlib.sha256(server.body).hexdigest() in line
    assert wanted.sha256 in line
    assert server.url in line
    assert wanted.source in line
    assert kept(cache) == {}
    server.body = BODY
    assert corpora.downloaded_bytes("shakes", wanted) == BODY


@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_download_is_continued_by_the_next_call(chunked: bool, server: Server, cache: Path) -> None:
    wanted = corpus(server.url)
    server.cut_after, server.chunked = 100_000, chunked
    line = failure("shakes", wanted)
    assert f"broke off at 100000{'' if chunked else f' of {len(BODY)}'} bytes" in line
    assert server.url in line
    assert kept(cache) == {"shakes.txt.part": BODY[:100_000]}
    server.cut_after = 50_000
    assert "broke off at 150000" in failure("shakes", wanted)
    assert corpora.downloaded_bytes("shakes", wanted) == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert kept(cache) == {"shakes.txt": BODY}


def test_a_server_without_ranges_sends_all_again(server: Server, cache: Path) -> None:
    server.knows_ranges, server.cut_after = False, 100_000
    wanted = corpus(server.url)
    failure("shakes", wanted)
    assert corpora.downloaded_bytes("shakes", wanted) == BODY
    assert server.ranges == [None, "bytes=100000-"]
    assert kept(cache) == {"shakes.txt": BODY}


def test_what_began_another_file_is_dropped(server: Server, cache: Path) -> None:
    """Continued, it has a wrong hash, and is fetched from its beginning at once; longer than the file, too."""
    cache.mkdir()
    for began in (b"another file", BODY + b"and more"):
        server.ranges.clear()
        (cache / "shakes.txt").unlink(missing_ok=True)
        (cache / "shakes.txt.part").write_bytes(began)
        assert corpora.downloaded_bytes("shakes", corpus(server.url)) == BODY
        assert server.ranges == [f"bytes={len(began)}-", None]
        assert kept(cache) == {"shakes.txt": BODY}


def test_a_whole_part_is_not_fetched_again(server: Server, cache: Path) -> None:
    """A process was killed between the last byte and the new name."""
    cache.mkdir()
    (cache / "shakes.txt.part").write_bytes(BODY)
    assert corpora.downloaded_bytes("shakes", corpus(server.url)) == BODY
    assert server.ranges == [f"bytes={len(BODY)}-"]  # answered with 416
    assert kept(cache) == {"shakes.txt": BODY}


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "shakes.txt").write_bytes(BODY[:-1])
    assert corpora.downloaded_bytes("shakes", corpus(server.url)) == BODY
    assert kept(cache) == {"shakes.txt": BODY}


def test_no_server_and_no_file_are_one_line_with_the_way_out(server: Server, cache: Path) -> None:
    server.status = 404
    line = failure("shakes", corpus(server.url))
    assert server.url in line
    assert "(404 Not Found)" in line
    server.shutdown()
    server.server_close()
    line = failure("shakes", corpus(server.url))
    assert "data=shakes is not on this machine yet" in line
    assert server.url in line
    assert "Connection refused" in line
    assert kept(cache) == {}


def test_two_at_once_download_once(server: Server, cache: Path) -> None:
    server.waits = True
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: got.append(corpora.downloaded_bytes("shakes", corpus(server.url))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [BODY, BODY]
    assert server.ranges == [None]


def test_a_cache_folder_that_cannot_be_written_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NORMSTUDY_DATA_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"file/cache cannot be read or written \(Not a directory\).*_DATA_DIR"):
        corpora.downloaded_bytes("shakes", corpus(server.url))
    assert server.ranges == []


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NORMSTUDY_DATA_DIR", "~/texts")
    assert corpora.cache_dir() == tmp_path / "texts"
    for unset in ("", None):
        monkeypatch.delenv("NORMSTUDY_DATA_DIR")
        if unset is not None:
            monkeypatch.setenv("NORMSTUDY_DATA_DIR", unset)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert corpora.cache_dir().name == "normstudy"
        assert tmp_path in corpora.cache_dir().parents


def test_a_bar_on_a_terminal_and_one_line_in_a_pipe(server: Server, cache: Path) -> None:
    """The terminal is one that says it has no columns, which a bar must survive."""
    code = (
        "import sys; from normstudy.data import corpora; corpora.fetch('shakes', corpora.Corpus(*sys.argv[1:3], 1, ''))"
    )
    command = [sys.executable, "-c", code, server.url, corpus(server.url).sha256]
    master, slave = pty.openpty()
    subprocess.run(command, stderr=slave, check=True)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    assert re.search(rb"shakes: 100%\|.*\| 228k/228k", shown)
    (cache / "shakes.txt").unlink()
    assert subprocess.run(command, capture_output=True, check=True).stderr == f"downloading {server.url}\n".encode()
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""


def test_a_downloaded_text_is_loaded_by_its_name(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(corpora.CORPORA, "text8", corpus(server.url))
    text = texts.load(DataConfig(name="text8"))
    assert text.name == "text8"
    assert text.sha256 == hashlib.sha256(BODY).hexdigest()


def test_the_table_of_corpora() -> None:
    assert set(corpora.CORPORA) == set(DOWNLOADED)
    for known in corpora.CORPORA.values():
        assert re.fullmatch("[0-9a-f]{64}", known.sha256)
        assert known.url.endswith(".zip") == (known.member is not None)

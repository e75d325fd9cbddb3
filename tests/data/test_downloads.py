"""Downloads from a server on the loopback interface."""

from __future__ import annotations

import contextlib
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

from normstudy.config import DataConfig
from normstudy.config.schema import DOWNLOADED
from normstudy.data import downloads, texts
from normstudy.data.downloads import Corpus
from normstudy.errors import ConfigError

BODY = b"the quick brown fox jumps over the lazy dog, 0123456789. " * 4000


class Server(ThreadingHTTPServer):
    """A server of one file that can ignore ranges, cut a connection, or wait for a second request."""

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
    return Corpus(url, hashlib.sha256(raw).hexdigest(), "http://example.org/about")


def kept(cache: Path) -> dict[str, bytes]:
    """The content of the cache, without the empty lock files."""
    return {p.name: p.read_bytes() for p in cache.iterdir() if p.suffix != ".lock"}


def failure(name: str, wanted: Corpus) -> str:
    """The error with which a download ends."""
    with pytest.raises(ConfigError) as error:
        downloads.downloaded_bytes(name, wanted)
    assert "\n" not in str(error.value)
    assert "data=file data.path=" in str(error.value)
    return str(error.value)


def test_a_download_is_kept_and_needs_the_server_once(server: Server, cache: Path) -> None:
    wanted = corpus(server.url)
    assert downloads.downloaded_bytes("shakes", wanted) == BODY
    assert server.ranges == [None]
    assert kept(cache) == {"shakes.txt": BODY}
    server.shutdown()
    server.server_close()
    assert downloads.downloaded_bytes("shakes", wanted) == BODY


def test_the_text_in_an_archive(server: Server, cache: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("other", b"no")
        file.writestr("wiki", BODY)
    server.body = archive.getvalue()
    wanted = Corpus(server.url.replace("input.txt", "text.zip"), hashlib.sha256(server.body).hexdigest(), "")
    assert downloads.downloaded_bytes("wiki", wanted) == BODY
    assert kept(cache) == {"wiki.zip": server.body}


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
    assert downloads.downloaded_bytes("shakes", wanted) == BODY


@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_download_is_continued_by_the_next_call(chunked: bool, server: Server, cache: Path) -> None:
    wanted = corpus(server.url)
    server.cut_after, server.chunked = 100_000, chunked
    line = failure("shakes", wanted)
    assert f"stopped after 100000{'' if chunked else f' of {len(BODY)}'} bytes" in line
    assert server.url in line
    assert kept(cache) == {"shakes.txt.part": BODY[:100_000]}
    server.cut_after = 50_000
    assert "stopped after 150000" in failure("shakes", wanted)
    assert downloads.downloaded_bytes("shakes", wanted) == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert kept(cache) == {"shakes.txt": BODY}


def test_a_server_without_ranges_sends_all_again(server: Server, cache: Path) -> None:
    server.knows_ranges, server.cut_after = False, 100_000
    wanted = corpus(server.url)
    failure("shakes", wanted)
    assert downloads.downloaded_bytes("shakes", wanted) == BODY
    assert server.ranges == [None, "bytes=100000-"]
    assert kept(cache) == {"shakes.txt": BODY}


def test_what_began_another_file_is_dropped(server: Server, cache: Path) -> None:
    """The continued download has a wrong hash, so the same call fetches the file from its beginning.

    A .part file may also be longer than the file.
    """
    cache.mkdir()
    for began in (b"another file", BODY + b"and more"):
        server.ranges.clear()
        (cache / "shakes.txt").unlink(missing_ok=True)
        (cache / "shakes.txt.part").write_bytes(began)
        assert downloads.downloaded_bytes("shakes", corpus(server.url)) == BODY
        assert server.ranges == [f"bytes={len(began)}-", None]
        assert kept(cache) == {"shakes.txt": BODY}


def test_a_whole_part_is_not_fetched_again(server: Server, cache: Path) -> None:
    """A process may be killed after the last byte and before it renames the file."""
    cache.mkdir()
    (cache / "shakes.txt.part").write_bytes(BODY)
    assert downloads.downloaded_bytes("shakes", corpus(server.url)) == BODY
    assert server.ranges == [f"bytes={len(BODY)}-"]  # answered with 416
    assert kept(cache) == {"shakes.txt": BODY}


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "shakes.txt").write_bytes(BODY[:-1])
    assert downloads.downloaded_bytes("shakes", corpus(server.url)) == BODY
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
        threading.Thread(target=lambda: got.append(downloads.downloaded_bytes("shakes", corpus(server.url))))
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
    with pytest.raises(ConfigError, match=r"file/cache, in the cache .*\(Not a directory\).*_DATA_DIR"):
        downloads.downloaded_bytes("shakes", corpus(server.url))
    assert server.ranges == []


@pytest.mark.parametrize("name", ["shakes.txt", "shakes.txt.part", ".shakes.txt.lock"])
@pytest.mark.parametrize("what", ["link", "pipe", "other"])
def test_the_cache_opens_no_link_and_no_file_of_another_user(
    name: str, what: str, server: Server, cache: Path, tmp_path: Path
) -> None:
    """Whoever can write into a shared cache must not choose what is read, or where a download is written to."""
    (tmp_path / "target").write_bytes(BODY)
    cache.mkdir()
    if what == "link":
        (cache / name).symlink_to(tmp_path / "target")
    elif what == "pipe":
        os.mkfifo(cache / name)
    elif os.geteuid() == 0:
        (cache / name).write_bytes(BODY)
        os.chown(cache / name, 12345, -1)
    else:
        pytest.skip("only root can give a file to another user")
    with pytest.raises(ConfigError) as error:
        downloads.downloaded_bytes("shakes", corpus(server.url))
    assert f"{cache / name}, in the cache for data=shakes, cannot be read or written (" in str(error.value)
    reasons = {"link": "symbolic link", "pipe": "a pipe|No such device", "other": "belongs to user 12345"}
    assert re.search(reasons[what], str(error.value))
    assert what != "other" or (cache / name).read_bytes() == BODY
    assert (tmp_path / "target").read_bytes() == BODY


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NORMSTUDY_DATA_DIR", "~/texts")
    assert downloads.cache_dir() == tmp_path / "texts"
    for unset in ("", None):
        monkeypatch.delenv("NORMSTUDY_DATA_DIR")
        if unset is not None:
            monkeypatch.setenv("NORMSTUDY_DATA_DIR", unset)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert downloads.cache_dir().name == "normstudy"
        assert tmp_path in downloads.cache_dir().parents


def test_a_bar_on_a_terminal_and_one_line_in_a_pipe(server: Server, cache: Path) -> None:
    """A new pseudo-terminal reports a width of 0 columns, which the bar must survive."""
    code = "import sys; from normstudy.data.downloads import *; fetch('shakes', Corpus(*sys.argv[1:3], ''))"
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
    monkeypatch.setitem(downloads.CORPORA, "text8", corpus(server.url))
    text = texts.load(DataConfig(name="text8"))
    assert text.name == "text8"
    assert text.sha256 == hashlib.sha256(BODY).hexdigest()


def test_the_table_of_corpora() -> None:
    assert set(downloads.CORPORA) == set(DOWNLOADED)
    for known in downloads.CORPORA.values():
        assert re.fullmatch("[0-9a-f]{64}", known.sha256)

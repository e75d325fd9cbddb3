"""The bytes of every text: the standard library, its documentation, files of one's own, and checked downloads.

A download is kept in a cache folder, `NORMSTUDY_DATA_DIR` or the system's own for caches, and is read from there
once its sha256 is right. One that breaks off leaves a `.part` file there, which the next try continues. Needs no
torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import hashlib
import http.client
import importlib.resources
import os
import stat
import sys
import sysconfig
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from tqdm import tqdm

from normstudy import terminal
from normstudy.config import ConfigError


def raw_bytes(name: str, path: str | None = None) -> bytes:
    """The bytes of the text `name`; path: of data=file. A ConfigError says why they cannot be had."""
    if name == "stdlib":
        return stdlib_bytes()
    if name == "pydoc":
        return pydoc_bytes()
    if name == "file":
        return file_bytes(str(path))
    return downloaded_bytes(name, CORPORA[name])


# ---- texts that come with Python ----------------------------------------------------------------------

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


# ---- a text of one's own ------------------------------------------------------------------------------


def file_bytes(path: str) -> bytes:
    """The bytes of data.path: a file, a folder's files or a glob's, joined.

    A ConfigError where there is nothing, where something cannot be read, and for a pipe or device, which has no
    fixed content.
    """
    parts = []
    for file in files_of(path):
        try:
            parts.append(file.read_bytes())
        except OSError as error:
            raise _unreadable(path, file, error) from None
        except MemoryError:
            raise ConfigError(
                f"data.path {path!r} does not fit the memory of this machine ({file.stat().st_size} bytes in "
                f"{file.name}): give a smaller text"
            ) from None
    if not any(parts):
        raise ConfigError(f"data.path {path!r} is empty: give a text file")
    return b"".join(parts)


def files_of(path: str) -> list[Path]:
    """The files behind data.path, in the order in which they are joined; a ConfigError where there are none.

    A folder gives every regular file below it, sorted by relative path, without hidden files and folders and
    without following links to folders. What is not there as it stands is a glob if it has a `*`, `?` or `[`:
    `**` goes into folders, and the matching files are sorted by path.
    """
    if os.path.isdir(path):
        found = _files_below(path)
        if not found:
            raise ConfigError(
                f"data.path {path!r} is a folder without files, hidden ones apart: give a folder of texts"
            )
        return found
    if glob.has_magic(path) and not os.path.lexists(path):
        found = sorted(_regular(path, map(Path, glob.glob(path, recursive=True))), key=Path.as_posix)
        if not found:
            raise ConfigError(f"data.path {path!r} matches no file: check the folder and the pattern")
        return found
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"data.path {path!r} is a pipe or device: give a readable text file")
    return [Path(path)]


def _files_below(folder: str) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise _unreadable(folder, Path(error.filename), error)

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(place, n) for n in names if not n.startswith(".")]
    root = Path(folder)
    return sorted(_regular(folder, found), key=lambda p: p.relative_to(root).as_posix())


def _regular(path: str, places: Iterable[Path]) -> Iterator[Path]:
    """Those that are regular files, or links to one; a link to nothing is not."""
    for place in places:
        try:
            if stat.S_ISREG(place.stat().st_mode):
                yield place
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unreadable(path, place, error) from None


def _unreadable(path: str, inside: Path, error: OSError) -> ConfigError:
    where = "" if inside == Path(path) else f" at {str(inside)!r}"
    return ConfigError(f"data.path {path!r} cannot be read{where} ({error.strerror}): give a readable text file")


Version = tuple[tuple[str, int, int], ...]


def version(path: str) -> Version | None:
    """What changes when a text is written again: each file's name, size and time; None where reading it will fail."""
    try:
        found = [(file.as_posix(), file.stat()) for file in files_of(path)]
    except (OSError, ConfigError):
        return None  # reading it says what is wrong
    return tuple((name, now.st_size, now.st_mtime_ns) for name, now in found)


# ---- downloads ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """A text to download: the sha256 of the file at `url`, and the text's own length.

    member: its name in a zip archive, or None where the file is the text. source: a page that describes it.
    """

    url: str
    sha256: str
    n_bytes: int
    source: str
    member: str | None = None


# The hashes are those of the files as downloaded, and agree over independent public records: enwik8's with the
# dataset_infos.json of Hugging Face's `enwik8`, all three with pinned hashes in unrelated repositories. The members
# have, as texts, sha256 2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8 (enwik8; its sha1
# 57b8363b814821dc9d47aa4d41f58733519076b2 is on its page) and
# 6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7 (text8).
CORPORA = {
    "tiny_shakespeare": Corpus(
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        n_bytes=1_115_394,
        source="https://github.com/karpathy/char-rnn",
    ),
    "enwik8": Corpus(
        url="http://mattmahoney.net/dc/enwik8.zip",
        sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        n_bytes=100_000_000,
        source="http://mattmahoney.net/dc/textdata.html",
        member="enwik8",
    ),
    "text8": Corpus(
        url="http://mattmahoney.net/dc/text8.zip",
        sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        n_bytes=100_000_000,
        source="http://mattmahoney.net/dc/textdata.html",
        member="text8",
    ),
}

TIMEOUT = 30  # seconds without a byte
CHUNK = 2**16  # bytes
OWN_COPY = "give a copy of your own with data=file data.path=FILE"


def cache_dir() -> Path:
    """The folder of downloads and trained vocabularies: NORMSTUDY_DATA_DIR, or the system's for caches."""
    own = os.environ.get("NORMSTUDY_DATA_DIR")
    if own:
        return Path(own).expanduser()
    import pooch

    return Path(pooch.os_cache("normstudy"))


def downloaded_bytes(name: str, corpus: Corpus) -> bytes:
    """The text of a corpus, downloaded once; a ConfigError where it cannot be had."""
    path = fetch(name, corpus)
    if corpus.member is None:
        raw = path.read_bytes()
    else:
        with zipfile.ZipFile(path) as archive:  # read anew each time: a second copy would cost 100 MB of disk
            raw = archive.read(corpus.member)
    if len(raw) != corpus.n_bytes:
        raise ConfigError(f"{corpus.url} holds {len(raw)} bytes of text, and not {corpus.n_bytes}: {OWN_COPY}")
    return raw


def fetch(name: str, corpus: Corpus) -> Path:
    """The checked file of a corpus in the cache, downloaded where it is missing or damaged.

    A ConfigError where it cannot be reached, breaks off, has another hash, or cannot be kept.
    """
    folder = cache_dir()
    path = folder / f"{name}{PurePosixPath(corpus.url).suffix}"
    part = folder / f"{path.name}.part"
    try:
        if path.is_file() and _sha256(path) == corpus.sha256:
            return path
        import pooch

        pooch.get_logger().setLevel("WARNING")  # it would say in three lines what the bar says
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{path.name}.lock"):
            downloader = functools.partial(_download, name, corpus, part)
            return Path(pooch.retrieve(corpus.url, f"sha256:{corpus.sha256}", path.name, folder, downloader=downloader))
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be read or written ({error.strerror}), and data={name} is to be kept there: "
            "set NORMSTUDY_DATA_DIR to another folder"
        ) from None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a flock on `path`: a second process waits, and then finds the file that the first one fetched."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, corpus: Corpus, part: Path, url: str, output_file: str, _: object) -> None:
    """A downloader for pooch: `url` into `output_file` by way of `part`, which outlives a broken connection."""
    continued = _receive(name, url, part)
    if continued and _sha256(part) != corpus.sha256:
        part.unlink()  # what lay there began another file
        _receive(name, url, part)
    found = _sha256(part)
    if found != corpus.sha256:
        part.unlink()
        raise ConfigError(
            f"{url} has sha256 {found}, and data={name} is {corpus.sha256}: it was changed there or on the way "
            f"(see {corpus.source}). Try again later, or {OWN_COPY}"
        )
    os.replace(part, output_file)


def _receive(name: str, url: str, part: Path) -> bool:
    """Append to `part` what it lacks of the file at `url`, or write it anew; returns whether old bytes were kept."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return True  # nothing is left to send
        raise _unreachable(name, url, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(name, url, error) from None
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT  # 200: a server that ignores the range
        start = have if continued else 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        with part.open("ab" if continued else "wb") as file, _bar(name, url, start, total) as bar:
            for chunk in _chunks(url, response, start, total):
                file.write(chunk)
                bar.update(len(chunk))
    return continued


def _chunks(url: str, response: http.client.HTTPResponse, done: int, total: int | None) -> Iterator[bytes]:
    """What a response holds; a ConfigError where it ends before `total` bytes, of which `done` were there before."""
    reason = "the connection was closed"
    try:
        while chunk := response.read1(CHUNK):
            done += len(chunk)
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        reason = _reason(error)
    else:
        if total is None or done >= total:
            return
    raise ConfigError(
        f"the download of {url} broke off at {done}{f' of {total}' if total else ''} bytes ({reason}): "
        f"the same command continues it, or {OWN_COPY}"
    )


def _unreachable(name: str, url: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"data={name} is not on this machine yet, and {url} cannot be downloaded ({_reason(error)}): "
        f"connect to the network once, or {OWN_COPY}"
    )


def _reason(error: Exception) -> str:
    """What an error of the network says, in one line."""
    inner = getattr(error, "reason", error)
    text = f"{error.code} {inner}" if isinstance(error, urllib.error.HTTPError) else str(inner)
    return " ".join(text.split()) or type(error).__name__


def _bar(name: str, url: str, start: int, total: int | None) -> tqdm[NoReturn]:
    """A progress bar on a terminal, as for a sweep; in a pipe one line that says what is waited for."""
    if not sys.stderr.isatty():
        print(f"downloading {url}", file=sys.stderr, flush=True)
    return tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True, **terminal.fit())

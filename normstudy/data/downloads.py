"""Download texts once into a cache folder, and check their sha256. An interrupted download is continued later."""

import fcntl
import functools
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from normstudy.config import places
from normstudy.errors import ConfigError, bar_options


class Corpus(NamedTuple):
    """A text to download. If `url` is a zip archive, the text is the file in it that has the text's name (enwik8)."""

    url: str
    sha256: str  # of the file at `url`
    source: str  # the address of a page about the text


# Other public repositories give the same hashes: for example, dataset_infos.json of Hugging Face's dataset `enwik8`.
CORPORA = {
    "tiny_shakespeare": Corpus(
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        source="https://github.com/karpathy/char-rnn",
    ),
    "enwik8": Corpus(
        url="http://mattmahoney.net/dc/enwik8.zip",
        sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        source="http://mattmahoney.net/dc/textdata.html",
    ),
    "text8": Corpus(
        url="http://mattmahoney.net/dc/text8.zip",
        sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        source="http://mattmahoney.net/dc/textdata.html",
    ),
}

TIMEOUT = 30  # seconds without data after which a download fails
OWN_COPY = "use your own copy with data=file data.path=FILE"


def cache_dir() -> Path:
    """Return the folder for downloads and learned BPE merges: NORMSTUDY_DATA_DIR, or a folder in the user's cache."""
    try:
        if chosen := os.environ.get("NORMSTUDY_DATA_DIR"):
            return Path(places.expanded(chosen, "NORMSTUDY_DATA_DIR"))
        import pooch

        return Path(pooch.os_cache("normstudy")).expanduser()
    except RuntimeError:  # neither HOME nor the list of users names a home folder
        raise ConfigError("this user has no home folder for the cache: set NORMSTUDY_DATA_DIR to a folder") from None


def downloaded_bytes(name: str, corpus: Corpus) -> bytes:
    """Return a text's bytes. Download the text's file first if it is not in the cache."""
    with open(path := fetch(name, corpus), "rb", opener=places.own_opener) as file:
        # An archive is unpacked at each call, to save 100 MB of disk space.
        return zipfile.ZipFile(file).read(name) if path.suffix == ".zip" else file.read()


def fetch(name: str, corpus: Corpus) -> Path:
    """Return the path of a text's file in the cache. Download the file first if it is missing or damaged."""
    folder = cache_dir()
    path = folder / f"{name}{PurePosixPath(corpus.url).suffix}"
    try:
        if os.path.lexists(path) and _sha256(path) == corpus.sha256:
            return path
        import pooch

        pooch.get_logger().setLevel("WARNING")  # hide pooch's messages, which the progress bar replaces
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f".{path.name}.lock", "a", opener=places.own_opener) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process downloads the file while all others wait
            downloader = functools.partial(_download, name, corpus, folder / f"{path.name}.part")
            return Path(pooch.retrieve(corpus.url, f"sha256:{corpus.sha256}", path.name, folder, downloader=downloader))
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}, in the cache for data={name}, cannot be read or written ({error.strerror}): "
            "remove it, or set NORMSTUDY_DATA_DIR to another folder"
        ) from None


def _sha256(path: Path) -> str:
    with open(path, "rb", opener=places.own_opener) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, corpus: Corpus, part: Path, url: str, output_file: str, _: object) -> None:
    """Download `url` to `part`, check the hash, and rename `part` to `output_file`. pooch calls this function."""
    if _receive(name, url, part) and _sha256(part) != corpus.sha256:
        part.unlink()  # an earlier attempt downloaded another version of the file
        _receive(name, url, part)
    if (found := _sha256(part)) != corpus.sha256:
        part.unlink()
        raise ConfigError(
            f"{url} has sha256 {found} instead of {corpus.sha256}, so the file for data={name} was changed by its "
            f"publisher (see {corpus.source}) or damaged during the download: try again later, or {OWN_COPY}"
        )
    os.replace(part, output_file)


def _receive(name: str, url: str, part: Path) -> bool:
    """Append the missing bytes of `url` to `part`. Return False if the server sent the whole file instead."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                return True  # no bytes are missing
        raise ConfigError(
            f"data={name} is not on this machine yet, and {url} cannot be downloaded ({_reason(error)}): "
            f"connect to the network, or {OWN_COPY}"
        ) from None
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start, length = have if continued else 0, response.headers["Content-Length"]
        total = start + int(length) if length else None
        with (
            open(part, "ab" if continued else "wb", opener=places.own_opener) as file,
            tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True, **bar_options()) as bar,
        ):
            if bar.disable:
                print(f"downloading {url}", file=sys.stderr, flush=True)
            for chunk in _chunks(url, response, start, total):
                file.write(chunk)
                bar.update(len(chunk))
    return continued


def _chunks(url: str, response: http.client.HTTPResponse, done: int, total: int | None) -> Iterator[bytes]:
    """Yield a response's bytes. Raise a ConfigError if the response ends early. done: number of saved bytes."""
    reason = "the connection was closed"
    try:
        while chunk := response.read1(2**16):
            done += len(chunk)
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        reason = _reason(error)
    else:
        if total is None or done >= total:
            return
    raise ConfigError(
        f"the download of {url} stopped after {done}{f' of {total}' if total else ''} bytes ({reason}): "
        f"rerun the same command to continue, or {OWN_COPY}"
    )


def _reason(error: Exception) -> str:
    """Return a network error's message in one line."""
    inner = getattr(error, "reason", error)
    text = f"{error.code} {inner}" if isinstance(error, urllib.error.HTTPError) else str(inner)
    return " ".join(text.split()) or type(error).__name__

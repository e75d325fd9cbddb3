"""Read the bytes of texts, such as Python's standard library or a user's files. Generate the synthetic text."""

import bisect
import errno
import functools
import glob
import importlib.resources
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from normstudy.config import places
from normstudy.data import downloads
from normstudy.data.blocks import Array, Floats
from normstudy.errors import ConfigError


def raw_bytes(name: str, path: str | None = None) -> bytes:
    """Read the text `name`. Raise a ConfigError if this is impossible. path: the value of data.path."""
    if name == "stdlib":
        return stdlib_bytes()
    if name == "pydoc":
        return (importlib.resources.files("pydoc_data") / "topics.py").read_bytes()  # a small English text
    return file_bytes(str(path)) if name == "file" else downloads.downloaded_bytes(name, downloads.CORPORA[name])


STUDY = Path("tables", "runs", "0-schema.parquet")  # a file that the folder of every study contains
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}


def stdlib_bytes(root: Path | None = None) -> bytes:
    """Join the standard library's .py files in path order, without files that can differ between machines."""
    root = root or Path(sysconfig.get_path("stdlib"))
    every = (p for p in sorted(root.rglob("*.py"), key=Path.as_posix) if not p.name.startswith("_sysconfigdata"))
    return b"".join(p.read_bytes() for p in every if not _LEFT_OUT & set(p.relative_to(root).parts))


def file_bytes(path: str) -> bytes:
    """Read and join the files that data.path names. Raise a ConfigError if a file is missing or unreadable."""
    parts = []
    for file in files_of(path):
        try:
            parts.append(places.read(file))
        except OSError as error:
            raise _unreadable(path, file, error) from None
    if not any(parts):
        raise ConfigError(f"data.path {path!r} is empty: choose a file that contains text")
    return b"".join(parts)


def files_of(path: str) -> list[Path]:
    """List the files that data.path names, in the order of joining. Raise a ConfigError if a folder or glob has none.

    A folder stands for all regular files below it, sorted by path, except hidden files and files in hidden or linked
    folders. A path that does not exist and contains `*`, `?` or `[` is a glob, in which `**` matches folders at any
    depth. A file with several links is listed once: a second copy could put the same text into training and validation.
    Files of studies are left out.
    """
    path = places.expanded(path, "data.path")
    if os.path.isdir(path):
        found: Iterable[Path] = _files_below(path)
        why = "has no files (hidden files and studies do not count): choose a folder with texts"
    elif glob.has_magic(path) and not os.path.lexists(path):
        found = map(Path, glob.glob(path, recursive=True))
        why = "matches no file: check the folder and the pattern"
    else:
        return [Path(path)]
    if files := list(_regular(path, sorted(found, key=Path.as_posix))):
        return files
    raise ConfigError(f"data.path {path!r} {why}")


def _files_below(folder: str) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise _unreadable(folder, Path(error.filename), error)

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        yield from (Path(place, n) for n in names if not n.startswith("."))


def _regular(path: str, candidates: Iterable[Path]) -> Iterator[Path]:
    """Yield the regular files and links to regular files, each file once, and no file of a study."""
    seen = set[object]()
    is_in_study = functools.cache(lambda folder: any((p / STUDY).exists() for p in (folder, *folder.parents)))
    for candidate in candidates:
        try:
            real, now = Path(os.path.realpath(candidate)), candidate.stat()
            key = (now.st_dev, now.st_ino) if now.st_nlink > 1 else real
            if stat.S_ISREG(now.st_mode) and key not in seen and not is_in_study(real.parent):
                seen.add(key)
                yield candidate
        except OSError as error:  # leave out links that have no target or form a circle
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise _unreadable(path, candidate, error) from None


def _unreadable(path: str, inside: Path, error: OSError) -> ConfigError:
    where = "" if inside == Path(os.path.expanduser(path)) else f" at {str(inside)!r}"
    return ConfigError(f"data.path {path!r} cannot be read{where} ({error.strerror}): choose a readable text file")


Version = tuple[tuple[str, int, int], ...]


def version(path: str) -> Version | None:
    """Return name, size and modification time of each file that data.path names, or None if a file is unreadable."""
    try:
        found = ((file.as_posix(), file.stat()) for file in files_of(path))
        return tuple((name, now.st_size, now.st_mtime_ns) for name, now in found)
    except (OSError, ConfigError):
        return None


SYNTHETIC_SYMBOLS = 64
SYNTHETIC_LENGTH = 2**18


def markov_matrix(seed: int, symbols: int = SYNTHETIC_SYMBOLS) -> Floats:
    """Draw the transition matrix (V, V) of the synthetic source.

    Each row is drawn from a Dirichlet distribution whose mean is close to Zipf's law. Few entries of a row are large,
    so the next symbol depends strongly on the current symbol, and some symbols are far more frequent than others.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    base = 1 / np.arange(1, symbols + 1)
    rows = rng.gamma(6 * base / base.sum() + 1e-3, size=(symbols, symbols)) + 1e-6
    return np.asarray(rows / rows.sum(1, keepdims=True))


def stationary(matrix: Floats) -> Floats:
    """Compute the stationary distribution (V,) of a transition matrix."""
    n = len(matrix)
    system = np.vstack([matrix.T - np.eye(n), np.ones(n)])
    solution, *_ = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)
    return np.asarray(solution)


def entropy_rate(matrix: Floats) -> float:
    """Compute the exact entropy rate of the Markov source with this transition matrix, in nats per token."""
    return float(-(stationary(matrix)[:, None] * matrix * np.log(matrix)).sum())


def synthetic_tokens(seed: int) -> Array:
    """Draw the synthetic text from a Markov source, whose entropy rate is known exactly."""
    # Drop each row's last sum. If rounding put this sum below a random number, bisect_right would return no symbol.
    rows = markov_matrix(seed).cumsum(1)[:, :-1].tolist()
    uniform = np.random.Generator(np.random.Philox(key=[seed, 2])).random(SYNTHETIC_LENGTH)
    symbol, out = 0, bytearray()
    for u in uniform.tolist():
        symbol = bisect.bisect_right(rows[symbol], u)
        out.append(symbol)
    return np.frombuffer(bytes(out), np.uint8)

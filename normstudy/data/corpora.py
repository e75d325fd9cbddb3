"""Read the bytes of texts, such as Python's standard library or the user's files."""

from __future__ import annotations

import errno
import functools
import glob
import importlib.resources
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from normstudy.config import places
from normstudy.data import downloads
from normstudy.errors import ConfigError


def raw_bytes(name: str, path: str | None = None) -> bytes:
    """Read the text `name`, or raise a ConfigError if it cannot be read. path: the value of data.path."""
    if name == "stdlib":
        return stdlib_bytes()
    if name == "pydoc":
        return pydoc_bytes()
    if name == "file":
        return file_bytes(str(path))
    return downloads.downloaded_bytes(name, downloads.CORPORA[name])


STUDY = Path("tables", "runs", "0-schema.parquet")  # in the folder of every study
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}


def stdlib_bytes(root: Path | None = None) -> bytes:
    """Join the standard library's .py files in path order.

    Leave out the folders _LEFT_OUT and the files _sysconfigdata*.py, because they can differ between machines.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = sorted(
        (p.relative_to(root).as_posix(), p)
        for p in root.rglob("*.py")
        if not _LEFT_OUT & set(p.relative_to(root).parts) and not p.name.startswith("_sysconfigdata")
    )
    return b"".join(p.read_bytes() for _, p in files)


def pydoc_bytes() -> bytes:
    """Read the documentation topics that come with Python (pydoc_data.topics), a small English text."""
    return (importlib.resources.files("pydoc_data") / "topics.py").read_bytes()


def file_bytes(path: str) -> bytes:
    """Read and join the files that data.path names. Raise a ConfigError if a file is missing or unreadable."""
    parts = []
    for file in files_of(path):
        try:
            parts.append(places.read(file))
        except OSError as error:
            raise _unreadable(path, file, error) from None
        except MemoryError:
            raise ConfigError(
                f"data.path {path!r} does not fit into this machine's memory ({file.stat().st_size} bytes in "
                f"{file.name}): use a smaller text"
            ) from None
    if not any(parts):
        raise ConfigError(f"data.path {path!r} is empty: choose a file that contains text")
    return b"".join(parts)


def files_of(path: str) -> list[Path]:
    """List the files that data.path names, in the order of joining. Raise a ConfigError if a folder or glob has none.

    A folder stands for all regular files below it, sorted by relative path, except hidden files and files in hidden or
    linked folders. A path that does not exist and contains `*`, `?` or `[` is a glob, in which `**` matches folders at
    any depth. Its files are sorted by path. Of several links to one file only the first counts, since its text must not
    be in training and validation blocks. Files of studies do not count.
    """
    path = places.expanded(path, "data.path")
    if os.path.isdir(path):
        found = _files_below(path)
        if not found:
            raise ConfigError(
                f"data.path {path!r} has no files (hidden files and studies do not count): choose a folder with texts"
            )
        return found
    if glob.has_magic(path) and not os.path.lexists(path):
        found = list(_regular(path, sorted(map(Path, glob.glob(path, recursive=True)), key=Path.as_posix)))
        if not found:
            raise ConfigError(f"data.path {path!r} matches no file: check the folder and the pattern")
        return found
    return [Path(path)]


def _files_below(folder: str) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise _unreadable(folder, Path(error.filename), error)

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(place, n) for n in names if not n.startswith(".")]
    return list(_regular(folder, sorted(found, key=lambda p: p.relative_to(folder).as_posix())))


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
        except OSError as error:  # a link without a target, or seen through a circle of links, is left out
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise _unreadable(path, candidate, error) from None


def _unreadable(path: str, inside: Path, error: OSError) -> ConfigError:
    where = "" if inside == Path(os.path.expanduser(path)) else f" at {str(inside)!r}"
    return ConfigError(f"data.path {path!r} cannot be read{where} ({error.strerror}): choose a readable text file")


Version = tuple[tuple[str, int, int], ...]


def version(path: str) -> Version | None:
    """Return name, size and modification time of each file that data.path names; None if a file cannot be read."""
    try:
        found = [(file.as_posix(), file.stat()) for file in files_of(path)]
    except (OSError, ConfigError):
        return None
    return tuple((name, now.st_size, now.st_mtime_ns) for name, now in found)

"""Files that are there whole or not at all: written in state/, made durable, and moved to their place.

A process that is killed at any instant leaves what was there before, or the new file; never half of one where a reader
looks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from normstudy.errors import ConfigError, StorageError

FSYNCS_AT_ONCE = 4  # 24 small files: 160 ms one by one on busy cores, 12 ms so; 6.7 and 4.5 ms on idle ones
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of some network file systems
REMEDIES = {
    errno.ENOSPC: "make room on its disk", errno.EDQUOT: "make room in your quota", errno.EMFILE: "raise ulimit -n",
    errno.EFBIG: "raise ulimit -f", errno.EROFS: "mount it writable", errno.EACCES: "make it writable",
    errno.EIO: "look after its disk",
}  # fmt: skip


def fsync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fsync_all(paths: Sequence[Path]) -> None:
    """The same for several at once: one wait for the disk, and for a core after it, then serves many."""
    if len(paths) < 2:
        for path in paths:
            fsync(path)
        return
    with ThreadPoolExecutor(FSYNCS_AT_ONCE) as threads:
        list(threads.map(fsync, paths))  # which raises what one of them raised


def place(study_dir: Path, relative: str, data: bytes) -> None:
    """Write a file whole in state/, make it durable, and move it to `study_dir / relative`."""
    place_all(study_dir, [(relative, data)])


def place_all(study_dir: Path, files: Iterable[tuple[str, bytes | None]]) -> None:
    """Place several files, (relative, data) each: all of them are durable before the first is moved.

    data: None for a file that is there already; whoever moved it in may have ended before its name was durable.
    """
    state = study_dir / "state"
    writer = f"{socket.gethostname()}-{os.getpid()}"
    targets: dict[Path, Path] = {}
    folders: dict[Path, None] = {}
    try:
        state.mkdir(parents=True, exist_ok=True)
        for relative, data in files:
            target = study_dir / relative
            folders[target.parent] = None
            if data is None:
                continue
            part = state / f"{target.parent.name}-{target.name}.{writer}.part"
            targets[part] = target
            write_bytes(part, data)
        _fsync_all(list(targets))
        for part, target in targets.items():
            os.replace(part, target)
        _fsync_all(list(folders))
    except OSError:
        for part in targets:  # what is half a file helps nobody, and its space may
            with contextlib.suppress(OSError):
                part.unlink()
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Make a file of these bytes, or let its OSError through."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)


def remedy(error: OSError) -> str:
    """What a user can do about it: `make room on its disk`."""
    return REMEDIES.get(error.errno or 0, "mend that")


@contextlib.contextmanager
def storing(study_dir: Path) -> Iterator[None]:
    """Turns an OSError of writing results into a StorageError, whose line says what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{study_dir} cannot be written: {error.strerror}. What was finished is intact; "
            f"{remedy(error)} and give the same command again"
        ) from error


@contextlib.contextmanager
def reading(path: Path, study_dir: Path) -> Iterator[None]:
    """Turns whatever the bytes of a damaged file raise into a ConfigError, whose line names the file and the remedy.

    An error of the system, as for a file that is gone, comes through.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EIO):  # pyarrow's own have no number
            raise
        raise ConfigError(f"{path} cannot be read ({damage(error)}): run normstudy check {study_dir}") from error


def damage(error: Exception) -> str:
    """What an error says of damaged bytes, in a few words on one line."""
    return " ".join(str(error).split())[:100] or type(error).__name__


def remove_parts(study_dir: Path) -> None:
    """Remove what killed commands were writing. Needs the lock, alone."""
    for pattern in ("*.part", "*.heartbeat"):
        for path in (study_dir / "state").glob(pattern):
            path.unlink(missing_ok=True)

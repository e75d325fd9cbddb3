"""The lock of a study: one command at a time writes to it.

It is a flock on state/lock. Processes that inherit the descriptor hold the lock with the command that took it, and
the system frees it at once when the last of them is gone, however they ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from normstudy import store
from normstudy.config import ConfigError

LOCK = "state/lock"
NEW_TABLES = "state/tables.new"  # what a compaction writes, before it is swapped in
OLD_TABLES = "state/tables.old"


@contextlib.contextmanager
def hold(study_dir: Path, command: str) -> Iterator[int]:
    """Hold the study's lock; yields its descriptor, for workers to inherit.

    command: what holds it, told to others that want it. Makes the folder where there is none, and ends a
    compaction that was killed between its two renames. Raises ConfigError where another command holds the lock,
    and where the folder cannot be written.
    """
    try:
        fd = _take(study_dir, command)
    except OSError as e:
        raise ConfigError(f"{study_dir} cannot be written: {e.strerror}. Give another results_dir") from None
    try:
        finish_swap(study_dir)
        yield fd
    finally:
        os.close(fd)  # not LOCK_UN: workers that are still alive go on holding it


def _take(study_dir: Path, command: str) -> int:
    path = study_dir / LOCK
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                holder = {
                    "pid": os.getpid(), "host": socket.gethostname(), "command": command,
                    "since": store.now().isoformat(timespec="seconds"),
                }  # fmt: skip
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps(holder).encode(), 0)
                return fd
            os.close(fd)  # the file was removed between open and flock, by a seal: its lock guards nothing
        except BlockingIOError:
            text = os.pread(fd, 10_000, 0)
            os.close(fd)
            raise ConfigError(f"{study_dir} is in use by {_holder(text)}: wait for it, or end it") from None
        except BaseException:
            os.close(fd)
            raise


def _holder(text: bytes) -> str:
    try:
        told = json.loads(text)
        return f"`{told['command']}` (pid {told['pid']} on {told['host']}, since {told['since']})"
    except (ValueError, KeyError, TypeError):
        return "another command"


def swap_interrupted(study_dir: Path) -> bool:
    """Whether a compaction was killed after the old tables were moved away and before the new ones came."""
    return (study_dir / OLD_TABLES).is_dir() and not (study_dir / "tables").exists()


def swap(study_dir: Path) -> None:
    """Put the new tables in the place of the old ones. Needs the lock."""
    os.rename(study_dir / "tables", study_dir / OLD_TABLES)
    finish_swap(study_dir)


def finish_swap(study_dir: Path) -> None:
    """Bring tables back where a swap was interrupted, and remove what a compaction left. Needs the lock."""
    if swap_interrupted(study_dir):
        whole = NEW_TABLES if (study_dir / NEW_TABLES).is_dir() else OLD_TABLES
        os.rename(study_dir / whole, study_dir / "tables")
        store.fsync_folder(study_dir)
    for leftover in (NEW_TABLES, OLD_TABLES):
        shutil.rmtree(study_dir / leftover, ignore_errors=True)

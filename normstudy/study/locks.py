"""The lock of a study: one sweep or compaction at a time writes to it, or any number of single runs.

It is a flock on state/lock. Processes that inherit the descriptor hold the lock with the command that took it, and
the system frees it at once when the last of them is gone, however they ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from normstudy.config import ConfigError
from normstudy.study import files, swap, tables
from normstudy.study.swap import finish_swap, swap_interrupted

LOCK = "state/lock"
PATIENCE_SECONDS = 1.0  # of a single run: another one may be removing state/, which takes a moment


@contextlib.contextmanager
def hold(study_dir: Path, command: str, *, shared: bool = False, patience: float | None = None) -> Iterator[int]:
    """Hold the study's lock; yields its descriptor, for workers to inherit.

    shared: let other shared holders in, which single runs are: they write files of their own. A sweep and a
    compaction are alone. command: what holds it, told to others that want it. patience: seconds to wait for another
    command to end; None: a moment where shared, else not at all. Makes the folder where there is none, and ends a
    compaction that was killed between its two renames. Raises ConfigError where another command holds the lock, and
    where the folder cannot be written.
    """
    if patience is None:
        patience = PATIENCE_SECONDS if shared else 0.0
    try:
        fd = _take(study_dir, command, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience)
    except OSError as e:
        raise ConfigError(f"{study_dir} cannot be written: {e.strerror}. Give another results_dir") from None
    try:
        if not shared:
            finish_swap(study_dir)
        elif swap_interrupted(study_dir):  # two shared holders must not both repair it
            raise ConfigError(swap.SWAPPING.format(study_dir))
        yield fd
    finally:
        os.close(fd)  # not LOCK_UN: workers that are still alive go on holding it


def alone(fd: int) -> bool:
    """Whether surely no other process holds the lock behind `fd`; it is exclusive from then on."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _take(study_dir: Path, command: str, kind: int, patience: float) -> int:
    path, end = study_dir / LOCK, time.monotonic() + patience
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # a seal removed the folder just now
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                os.close(fd)
                time.sleep(0.1)
                continue
            text = os.pread(fd, 10_000, 0)
            os.close(fd)
            raise ConfigError(f"{study_dir} is in use by {_holder(text)}: wait for it, or end it") from None
        except OSError as error:
            if error.errno not in files.NO_LOCKS:
                os.close(fd)
                raise
            # Two sweeps at once would then train the same runs twice, and write the same bytes.
            print(f"{path}: no locks on this file system; start no second sweep on this study", file=sys.stderr)
        if _is_at(fd, path):
            break
        os.close(fd)  # a seal removed the file between open and flock: its lock guards nothing
    holder = {
        "pid": os.getpid(), "host": socket.gethostname(), "command": command,
        "since": tables.now().isoformat(timespec="seconds"),
    }  # fmt: skip
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(holder).encode(), 0)
    return fd


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _holder(text: bytes) -> str:
    try:
        told = json.loads(text)
        return f"`{told['command']}` (pid {told['pid']} on {told['host']}, since {told['since']})"
    except (ValueError, KeyError, TypeError):
        return "another command"

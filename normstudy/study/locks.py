"""Lock a study, so that one command at a time writes to it, and lock runs, so that one process at a time trains a run.

A sweep or a compaction holds the lock state/lock exclusively. Several `normstudy run` commands can share this lock. To
train a run, a process also locks one byte of state/run_locks. The operating system frees a lock when the last process
that holds it ends.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from normstudy.config import places
from normstudy.errors import ConfigError, printable
from normstudy.study import files, swap, tables

LOCK = "state/lock"
RUN_LOCKS = "state/run_locks"
KERNEL_LOCKS = Path("/proc/locks")
# By default, `normstudy run` waits this long for the lock, because another `normstudy run` that is about to end may
# hold the lock exclusively to remove state/.
PATIENCE_SECONDS = 1.0


class Holder(NamedTuple):
    """The command that holds a study's lock."""

    text: str  # text that tells users which command holds the lock
    since: float  # when the holder took the lock, in seconds since 1970; NaN if unknown
    alone: bool  # True for an exclusive lock, False for a lock that several `normstudy run` commands can share
    verified: bool  # whether this machine's kernel lists the lock; False if only the lock file names the holder


class _Note(NamedTuple):
    """The content of the lock file, which the lock's holder writes."""

    pid: object
    host: str
    since: float  # when the holder took the lock, in seconds since 1970
    text: str  # text that tells users which command holds the lock


@contextlib.contextmanager
def hold_study(study_dir: Path, command: str, *, shared: bool = False, patience: float | None = None) -> Iterator[int]:
    """Hold the study's lock; yields the lock's file descriptor, which workers inherit.

    Creates the study's folder. An exclusive holder also completes a compaction that was killed between its two renames.

    command: this command as text; a command that finds the lock taken shows this text in its error.
    shared: whether other `normstudy run` commands, which write other files, may hold the lock at the same time.
    patience: seconds to wait for another command to end (default: PATIENCE_SECONDS if shared, else 0).

    Raises ConfigError if another command holds the lock, if the folder cannot be written, or if `shared` is true and a
    killed compaction must be completed first.
    """
    if patience is None:
        patience = PATIENCE_SECONDS if shared else 0.0
    try:
        fd = _take(study_dir, command, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience)
    except OSError as e:
        raise ConfigError(f"{study_dir} cannot be written: {e.strerror}. Choose another results_dir") from None
    try:
        if not shared:
            swap.finish_swap(study_dir)
        elif swap.swap_interrupted(study_dir):  # only an exclusive holder may complete the swap
            raise ConfigError(swap.SWAPPING.format(study_dir))
        yield fd
    finally:
        os.close(fd)  # LOCK_UN would free the lock although workers that inherited the descriptor may be alive


def make_exclusive(fd: int) -> bool:
    """Try to make a shared lock exclusive; returns False if another process shares the lock."""
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
            continue  # another command has just sealed the study and removed the folder
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            note = _note(os.pread(fd, 10_000, 0))
            os.close(fd)
            if time.monotonic() >= end:
                raise ConfigError(f"{study_dir} is in use by {note.text}: wait for it to end, or stop it") from None
            time.sleep(0.1)
            continue
        except OSError as error:
            if error.errno not in files.NO_LOCKS:
                os.close(fd)
                raise
            # Continue without a lock: two simultaneous sweeps would train each run twice, but write the same bytes.
            what = "this file system has no locks, so start no other sweep of this study until this command ends"
            print(printable(f"{path}: {what}"), file=sys.stderr)
        if _is_at(fd, path):
            break
        os.close(fd)  # another command has removed the file since it was opened, so the lock protects nothing
    note_text = {
        "pid": os.getpid(), "host": socket.gethostname(), "command": command,
        "since": tables.now().isoformat(timespec="seconds"),
    }  # fmt: skip
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(note_text).encode(), 0)
    return fd


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _note(content: bytes) -> _Note:
    try:
        held = json.loads(content)
        since = datetime.datetime.fromisoformat(held["since"]).timestamp()
        text = f"`{held['command']}`, pid {held['pid']} on {held['host']} since {held['since']}"
        return _Note(held["pid"], held["host"], since, text)
    except (ValueError, KeyError, TypeError):  # the holder has the lock, but has not written its note yet
        return _Note(None, socket.gethostname(), math.nan, "another command")


def holder_of(study_dir: Path) -> Holder | None:
    """Return the holder of the study's lock; None if the lock is free.

    This function never takes the lock itself, because a sweep that starts meanwhile would find the lock taken and fail.
    It looks for the lock in the kernel's list of locks, because the lock file remains after its holder ends. If
    another machine wrote the lock file, the holder named in the file is returned with verified=False.
    """
    try:
        status, content = (study_dir / LOCK).stat(), places.read(study_dir / LOCK)
    except FileNotFoundError:
        return None
    note = _note(content)
    kinds = _listed(status, note.pid)
    if kinds:
        return Holder(note.text, note.since, "WRITE" in kinds, verified=True)
    if kinds is not None and note.host == socket.gethostname():
        return None
    return Holder(f"{note.text} (cannot be verified from here)", note.since, alone=True, verified=False)


def _listed(lock: os.stat_result, pid: object) -> set[str] | None:
    """Return the kinds (READ, WRITE) of the locks that the kernel lists for a file; None if the kernel has no list."""
    try:
        lines = KERNEL_LOCKS.read_text().splitlines()
    except OSError:
        return None
    device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}"
    kinds = set()
    for line in lines:  # for example `1: FLOCK  ADVISORY  WRITE 13361 fe:00:2146926 0 EOF`
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK":  # for a waiting process, fields[1] is an arrow
            continue
        listed_device, _, inode = fields[5].rpartition(":")
        # On some file systems (btrfs), the device in the kernel's list differs from the device that stat returns. Then
        # the inode and the holder's process id identify the lock.
        if inode == str(lock.st_ino) and (listed_device == device or fields[4] == str(pid)):
            kinds.add(fields[3])
    return kinds


@contextlib.contextmanager
def hold_runs(study_dir: Path, run_ids: Sequence[str]) -> Iterator[list[str]]:
    """Lock the runs that no other process has locked, without waiting; yields the locked runs' run_ids.

    Without these locks, two processes could train one run, and each could write some of the run's files. A run's lock
    is one byte of RUN_LOCKS; the hexadecimal number at the end of the run_id is the byte's position. Calls must not be
    nested, because closing any descriptor of the file frees all locks of the process. On a file system without locks,
    all run_ids are yielded. Raises StorageError if RUN_LOCKS cannot be opened or locked.
    """
    with files.storing(study_dir):
        (study_dir / RUN_LOCKS).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(study_dir / RUN_LOCKS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with files.storing(study_dir):
            mine = [run_id for run_id in run_ids if _lock_byte(fd, int(run_id.rpartition("-")[2], 16))]
        yield mine
    finally:
        os.close(fd)


def _lock_byte(fd: int, position: int) -> bool:
    """Lock one byte, which may lie beyond the end of the file; returns False if another process has locked it."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in files.NO_LOCKS:
            raise
    return True

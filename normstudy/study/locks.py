"""Lock a study, so that one command at a time writes to it, and lock runs, so that one process at a time trains a run.

A sweep or a compaction holds state/lock exclusively; several `normstudy run` commands can share it. To train a run, a
process also locks one byte of state/run_locks. A lock becomes free when the last process that holds the lock ends.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from normstudy.config import places
from normstudy.errors import ConfigError, printable
from normstudy.study import files, tables

LOCK = "state/lock"
RUN_LOCKS = "state/run_locks"
KERNEL_LOCKS = Path("/proc/locks")
# By default, `normstudy run` waits this long for the lock. When another `normstudy run` ends, it holds the lock
# exclusively for a moment, to remove state/.
PATIENCE_SECONDS = 1.0


class Holder(NamedTuple):
    """The command that holds a study's lock."""

    text: str  # text that tells users which command holds the lock
    since: float  # when the holder took the lock, in seconds since 1970; NaN if unknown
    pid: object
    host: str
    alone: bool = True  # False for a lock that several `normstudy run` commands can share
    verified: bool = False  # whether this machine's kernel lists the lock; False if only the lock file names the holder


@contextlib.contextmanager
def hold_study(study_dir: Path, command: str, *, shared: bool = False, patience: float | None = None) -> Iterator[int]:
    """Hold the study's lock; yields the lock's file descriptor, which workers inherit. Creates the study's folder.

    If the lock is exclusive, also complete a compaction that was killed between its two renames.
    command: this command's text, which other commands show in their error message when the lock is taken.
    shared: whether other `normstudy run` commands may hold the lock at the same time (each writes its own files).
    patience: seconds to wait for another command to end (default: PATIENCE_SECONDS if shared, else 0).
    Raises ConfigError if another command holds the lock, if the folder cannot be written, or if `shared` is true and a
    killed compaction must be completed first.
    """
    default, kind = (PATIENCE_SECONDS, fcntl.LOCK_SH) if shared else (0.0, fcntl.LOCK_EX)
    try:
        fd = _take(study_dir, command, kind, default if patience is None else patience)
    except OSError as e:
        raise ConfigError(f"{study_dir} cannot be written: {e.strerror}. Choose another results_dir") from None
    try:
        if not shared:
            files.finish_swap(study_dir)
        elif files.swap_interrupted(study_dir):  # only an exclusive holder may complete the swap
            raise ConfigError(files.SWAPPING.format(study_dir))
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
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                break
        os.close(fd)  # another command has removed the opened file, so a lock on the file protects nothing
    note_text = {
        "pid": os.getpid(), "host": socket.gethostname(), "command": command,
        "since": tables.now().isoformat(timespec="seconds"),
    }  # fmt: skip
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(note_text).encode(), 0)
    return fd


def _note(content: bytes) -> Holder:
    """Return the holder that a lock file names."""
    try:
        held = json.loads(content)
        since = datetime.datetime.fromisoformat(held["since"]).timestamp()
        text = f"`{held['command']}`, pid {held['pid']} on {held['host']} since {held['since']}"
        return Holder(text, since, held["pid"], held["host"])
    except (ValueError, KeyError, TypeError):  # the holder has the lock, but has not written its note yet
        return Holder("another command", math.nan, None, socket.gethostname())


def holder_of(study_dir: Path) -> Holder | None:
    """Return the holder of the study's lock; None if the lock is free.

    The lock file may name a command that has ended, so this function also reads the kernel's list of locks. It does
    not test the lock by taking it, because a sweep that starts at the same time would then fail. A holder on another
    machine is returned with `verified` false.
    """
    try:
        status, content = (study_dir / LOCK).stat(), places.read(study_dir / LOCK)
    except FileNotFoundError:
        return None
    note = _note(content)
    kinds = _listed(status, note.pid)
    if kinds:
        return note._replace(alone="WRITE" in kinds, verified=True)
    if kinds is not None and note.host == socket.gethostname():
        return None
    return note._replace(text=f"{note.text} (cannot be verified from here)")


def _listed(lock: os.stat_result, pid: object) -> set[str] | None:
    """Return the kinds (READ, WRITE) of the locks that the kernel lists for a file; None if the kernel has no list."""
    try:
        text = KERNEL_LOCKS.read_text()
    except OSError:
        return None
    # A held lock has a line such as `1: FLOCK  ADVISORY  WRITE 13361 fe:00:2146926 0 EOF`. The line of a process that
    # waits for a lock has an arrow after the colon, so the pattern does not match that line.
    listed = re.findall(rf"^\d+: FLOCK +\S+ +(\S+) +(\S+) +(\S+):{lock.st_ino} ", text, re.MULTILINE)
    device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}"
    # On some file systems (btrfs), the device in the kernel's list differs from the device that stat returns. Then the
    # inode and the holder's process id identify the lock.
    return {kind for kind, holder, on in listed if on == device or holder == str(pid)}


@contextlib.contextmanager
def hold_runs(study_dir: Path, run_ids: Sequence[str]) -> Iterator[list[str]]:
    """Lock, without waiting, the runs that no other process has locked; yields the run_ids of these runs.

    A run's lock is one byte of the file RUN_LOCKS; the hexadecimal number at the end of the run_id is the byte's
    position. Calls must not be nested, because closing any descriptor of RUN_LOCKS frees all of the process's locks on
    the file. On a file system without locks, all run_ids are yielded. Raises StorageError if RUN_LOCKS cannot be opened
    or locked.
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

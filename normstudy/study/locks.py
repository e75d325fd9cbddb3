"""The locks of a study: which commands may write to its folder, and which process trains which run.

A sweep or a compaction holds state/lock alone; single runs share it. A byte of state/run_locks stands for each run.
The system frees a lock as soon as the last process that holds it ends, however that process ends.
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

from normstudy.errors import ConfigError
from normstudy.study import files, swap, tables

LOCK = "state/lock"
RUN_LOCKS = "state/run_locks"
KERNEL_LOCKS = Path("/proc/locks")
PATIENCE_SECONDS = 1.0  # of a single run, while another run may be removing state/


class Holder(NamedTuple):
    """Who holds a study. since: seconds since 1970, NaN if unknown; alone: False for single runs, which share the lock.

    verified: True if the kernel lists the lock; False if only the lock's file names a holder, on another machine.
    """

    text: str
    since: float
    alone: bool
    verified: bool


class _Note(NamedTuple):
    """What a holder writes into the lock's file. text: the whole note for users, since: seconds since 1970."""

    pid: object
    host: str
    since: float
    text: str


# ---- the lock of a study ------------------------------------------------------------------------------


@contextlib.contextmanager
def hold_study(study_dir: Path, command: str, *, shared: bool = False, patience: float | None = None) -> Iterator[int]:
    """Hold the study's lock; yields its descriptor, for workers to inherit.

    shared: admit other shared holders, as single runs are, which write separate files. command: shown to users whose
    command is refused. patience: seconds to wait for another command to end; None waits PATIENCE_SECONDS if shared,
    else not at all. Creates the study's folder, and completes a compaction that was killed between its two renames.
    Raises ConfigError if another command holds the lock, or if the folder cannot be written.
    """
    if patience is None:
        patience = PATIENCE_SECONDS if shared else 0.0
    try:
        fd = _take(study_dir, command, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience)
    except OSError as e:
        raise ConfigError(f"{study_dir} cannot be written: {e.strerror}. Give another results_dir") from None
    try:
        if not shared:
            swap.finish_swap(study_dir)
        elif swap.swap_interrupted(study_dir):  # two shared holders must not both complete the swap
            raise ConfigError(swap.SWAPPING.format(study_dir))
        yield fd
    finally:
        os.close(fd)  # not LOCK_UN, which would free the lock while workers that inherited it are alive


def make_exclusive(fd: int) -> bool:
    """Try to make a lock exclusive; returns False if another process shares it."""
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
            continue  # a command that sealed the study has just removed the folder
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            note = _note(os.pread(fd, 10_000, 0))
            os.close(fd)
            if time.monotonic() >= end:
                raise ConfigError(f"{study_dir} is in use by {note.text}: wait for it, or end it") from None
            time.sleep(0.1)
            continue
        except OSError as error:
            if error.errno not in files.NO_LOCKS:
                os.close(fd)
                raise
            # Two sweeps at once would train the same runs twice, and write the same bytes.
            print(f"{path}: this file system has no locks; do not start a second sweep on this study", file=sys.stderr)
        if _is_at(fd, path):
            break
        os.close(fd)  # sealing removed the file between open and flock, so the lock guards nothing
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
    except (ValueError, KeyError, TypeError):  # the holder has just taken the lock and written nothing yet
        return _Note(None, socket.gethostname(), math.nan, "another command")


# ---- who holds it -------------------------------------------------------------------------------------


def holder_of(study_dir: Path) -> Holder | None:
    """Who holds the study's lock; None if nobody does.

    The function never takes the lock, as a sweep that starts at that moment would be refused. The lock's file outlives
    its holder, so the kernel's list of locks decides. A holder on another machine is believed: no list shows its lock.
    """
    try:
        status, content = (study_dir / LOCK).stat(), (study_dir / LOCK).read_bytes()
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
    """READ or WRITE for each flock on a file that the kernel of this machine lists; None if there is no list."""
    try:
        lines = KERNEL_LOCKS.read_text().splitlines()
    except OSError:
        return None
    device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}"
    kinds = set()
    for line in lines:  # 1: FLOCK  ADVISORY  WRITE 13361 fe:00:2146926 0 EOF
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK":  # a process that waits for the lock has an arrow in this field
            continue
        listed_device, _, inode = fields[5].rpartition(":")
        # Some file systems (btrfs) have one device number in the list and another in stat.
        if inode == str(lock.st_ino) and (listed_device == device or fields[4] == str(pid)):
            kinds.add(fields[3])
    return kinds


# ---- the locks of runs --------------------------------------------------------------------------------


@contextlib.contextmanager
def hold_runs(study_dir: Path, run_ids: Sequence[str]) -> Iterator[list[str]]:
    """Hold the locks of those runs that no other process holds, without waiting; yields these runs.

    Two processes that train the same run would mix their windows. A run's lock is the byte at the number that ends its
    run_id: one descriptor serves any number of runs. A process may call this once at a time, because closing any
    descriptor of the file frees all locks of the process. On a file system without locks, all runs are yielded;
    hold_study has already warned. Raises StorageError.
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
    """Lock one byte, which may lie beyond the end of the file; returns False if another process holds the lock."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in files.NO_LOCKS:
            raise
    return True

"""Which process trains which run, where several may: two that train the same one would mix their windows.

A run's lock is one on a byte of state/run_locks, at the number that ends the run_id: no file a run, one descriptor for
any number of them, and the system frees it at once when its holder is gone, however it ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from normstudy.study import files

RUN_LOCKS = "state/run_locks"


@contextlib.contextmanager
def held(study_dir: Path, run_ids: Sequence[str]) -> Iterator[list[str]]:
    """Hold the locks of the runs that no other process holds, waiting for none; yields those runs.

    Where the file system has no locks, all are yielded: lock.hold has said that. A process may have one of these open
    at a time, as all its locks on a file go with the first descriptor that it closes. Raises StorageError.
    """
    with files.storing(study_dir):
        (study_dir / RUN_LOCKS).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(study_dir / RUN_LOCKS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with files.storing(study_dir):
            mine = [run_id for run_id in run_ids if _take(fd, int(run_id.rpartition("-")[2], 16))]
        yield mine
    finally:
        os.close(fd)


def _take(fd: int, place: int) -> bool:
    """Lock a byte, which need not be there; False where another process has it."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in files.NO_LOCKS:
            raise
    return True

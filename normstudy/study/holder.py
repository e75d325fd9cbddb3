"""Who holds a study, told without taking its lock, not even for a moment: a sweep that starts just then would be
refused. The kernel lists the locks that are held on this machine; what `lock.hold` wrote tells the rest.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import socket
from pathlib import Path
from typing import NamedTuple

from normstudy.study import locks

LOCKS = Path("/proc/locks")


class Holder(NamedTuple):
    """Who holds a study. since: in seconds, NaN where it is not told; alone: not one of several single runs.

    verified: whether the lock is seen to be held, or only its file tells of a holder on another machine.
    """

    text: str
    since: float
    alone: bool
    verified: bool


def holder_of(study: Path) -> Holder | None:
    """Who holds a study, None where nobody does.

    The file of a lock stays when its holder is gone. A holder elsewhere is believed, as it cannot be looked for.
    """
    try:
        there, text = (study / locks.LOCK).stat(), (study / locks.LOCK).read_text()
    except FileNotFoundError:
        return None
    try:
        told = json.loads(text)
        pid, host, since = told["pid"], told["host"], datetime.datetime.fromisoformat(told["since"]).timestamp()
        line = f"`{told['command']}`, pid {pid} on {host} since {told['since']}"
    except (ValueError, KeyError, TypeError):  # just taken, and nothing is written yet
        pid, host, since, line = None, socket.gethostname(), math.nan, "another command"
    kinds = _held(there, pid)
    if kinds:
        return Holder(line, since, "WRITE" in kinds, verified=True)
    if kinds is not None and host == socket.gethostname():
        return None
    return Holder(f"{line} (cannot be verified from here)", since, alone=True, verified=False)


def _held(there: os.stat_result, pid: object) -> set[str] | None:
    """READ or WRITE of each flock on a file that a process of this machine holds; None where that is not told."""
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return None
    device = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}"
    kinds = set()
    for line in lines:  # 1: FLOCK  ADVISORY  WRITE 13361 fe:00:2146926 0 EOF
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK":  # one that waits has an arrow there
            continue
        place, _, inode = fields[5].rpartition(":")
        # Some file systems (btrfs) have another device in the list than in stat.
        if inode == str(there.st_ino) and (place == device or fields[4] == str(pid)):
            kinds.add(fields[3])
    return kinds

"""Write and read state/<host>-<pid>.heartbeat: the progress of the batch that a worker process is training.

Only `normstudy status` reads heartbeats. They are not fsynced, because losing a heartbeat does no harm.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from normstudy.config import places
from normstudy.study import files

SUFFIX = ".heartbeat"
LIFETIME = 60.0  # minimum number of seconds until a heartbeat expires


class Heartbeat(NamedTuple):
    """The progress of a batch that a process is training. Times are in seconds since 1970."""

    began: float  # when the process began the batch
    now: float  # when the heartbeat was written
    expires: float  # after this time, the process is presumed killed
    steps: dict[str, tuple[int, int]]  # run_id -> (step at which the process started the run, the run's next step)


def write(study_dir: Path, began: float, previous: float, steps: Mapping[str, tuple[int, int]]) -> float:
    """Write a heartbeat, ignoring disk errors. Return its time. previous: the last heartbeat's time, or `began`."""
    now = time.time()
    content = Heartbeat(began, now, now + max(LIFETIME, 4 * (now - previous)), dict(steps))
    path = _path(study_dir)
    with contextlib.suppress(OSError):
        files.write_bytes(path.with_suffix(".part"), json.dumps(content).encode())
        os.replace(path.with_suffix(".part"), path)
    return now


def remove(study_dir: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(_path(study_dir))


def read_all(study_dir: Path) -> list[Heartbeat]:
    """Read all heartbeats of a study, including expired ones, oldest first."""
    found = []
    for path in (study_dir / "state").glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            began, now, expires, steps = json.loads(places.read(path))
            both = {run_id: (int(first), int(step)) for run_id, (first, step) in steps.items()}
            found.append(Heartbeat(float(began), float(now), float(expires), both))
    return sorted(found, key=lambda heartbeat: heartbeat.now)


def rate_of(heartbeats: Sequence[Heartbeat]) -> float | None:
    """Estimate the steps per second of all processes together. Return None if no process has taken a step yet."""
    taken = sum(step - first for heartbeat in heartbeats for first, step in heartbeat.steps.values())
    seconds = sum(heartbeat.now - heartbeat.began for heartbeat in heartbeats)
    return len(heartbeats) * taken / seconds if taken > 0 and seconds > 0 else None


def _path(study_dir: Path) -> Path:
    return study_dir / "state" / f"{socket.gethostname()}-{os.getpid()}{SUFFIX}"

"""Heartbeats: how far the runs of a batch are, and how fast they train.

While a worker process trains a batch, it keeps one small file, state/<host>-<pid>.heartbeat, up to date. Only
`normstudy status` reads these files. They are not made durable, and a lost file does no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from normstudy.study import files

SUFFIX = ".heartbeat"
LIFETIME = 60.0  # seconds; a heartbeat expires later if it was written more than LIFETIME / 4 after the previous one


class Heartbeat(NamedTuple):
    """How far a batch is. Times are in seconds since 1970; after `expires` the process counts as killed.

    steps: run_id -> the step at which the process began the run, and the run's next step.
    """

    began: float
    now: float
    expires: float
    steps: dict[str, tuple[int, int]]


def write(study_dir: Path, began: float, previous: float, steps: Mapping[str, tuple[int, int]]) -> float:
    """Replace this process's heartbeat, last written at `previous`; returns the time. Training continues on errors."""
    now = time.time()
    content = Heartbeat(began, now, now + max(LIFETIME, 4 * (now - previous)), dict(steps))
    path = _path(study_dir)
    with contextlib.suppress(OSError):
        files.write_bytes(path.with_suffix(".part"), json.dumps(content).encode())
        os.replace(path.with_suffix(".part"), path)
    return now


def remove(study_dir: Path) -> None:
    """Remove this process's heartbeat."""
    with contextlib.suppress(OSError):
        os.unlink(_path(study_dir))


def read_all(study_dir: Path) -> list[Heartbeat]:
    """The heartbeats of a study, including expired ones, the oldest first."""
    found = []
    for path in (study_dir / "state").glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            began, now, expires, steps = json.loads(path.read_bytes())
            both = {run_id: (int(first), int(step)) for run_id, (first, step) in steps.items()}
            found.append(Heartbeat(float(began), float(now), float(expires), both))
    return sorted(found, key=lambda heartbeat: heartbeat.now)


def rate_of(heartbeats: Sequence[Heartbeat]) -> float | None:
    """Run-steps per second of all processes: their mean rate times their number. None before the first step."""
    taken = sum(step - first for heartbeat in heartbeats for first, step in heartbeat.steps.values())
    seconds = sum(heartbeat.now - heartbeat.began for heartbeat in heartbeats)
    return len(heartbeats) * taken / seconds if taken > 0 and seconds > 0 else None


def seconds_left(run_steps: int, rate: float | None) -> float | None:
    """How long so many run-steps take; None without a rate."""
    return run_steps / rate if rate else None


def _path(study_dir: Path) -> Path:
    return study_dir / "state" / f"{socket.gethostname()}-{os.getpid()}{SUFFIX}"

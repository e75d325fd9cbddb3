"""Heartbeats: how far the runs of a batch are, and how fast they train.

A worker process writes one small file, state/<host>-<pid>.heartbeat, when a batch begins and then about once a second.
It removes the file when the batch ends. `normstudy status` reads the files. They are not made durable, and nothing else
depends on them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from normstudy.study import files

SUFFIX = ".heartbeat"
STALE_SECONDS = 120.0  # after which a heartbeat no longer counts: its process was killed, or a step takes minutes


class Heartbeat(NamedTuple):
    """The runs of one batch. Times in seconds since 1970; steps: run_id -> (its step at `began`, its step at `now`)."""

    began: float
    now: float
    steps: dict[str, tuple[int, int]]

    @property
    def is_stale(self) -> bool:
        """Whether the process has probably been killed."""
        return time.time() - self.now > STALE_SECONDS


def write(study_dir: Path, began: float, steps: Mapping[str, tuple[int, int]]) -> None:
    """Replace the heartbeat of this process. Training continues if the file cannot be written."""
    path = _path(study_dir)
    part = path.with_suffix(".part")
    with contextlib.suppress(OSError):
        files.write_bytes(part, json.dumps(Heartbeat(began, time.time(), dict(steps))).encode())
        os.replace(part, path)


def remove(study_dir: Path) -> None:
    """Remove the heartbeat of this process."""
    with contextlib.suppress(OSError):
        os.unlink(_path(study_dir))


def read_all(study_dir: Path) -> list[Heartbeat]:
    """The heartbeats of a study, the oldest first."""
    found = []
    for path in (study_dir / "state").glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            began, now, steps = json.loads(path.read_bytes())
            found.append(Heartbeat(began, now, {run_id: (first, step) for run_id, (first, step) in steps.items()}))
    return sorted(found, key=lambda heartbeat: heartbeat.now)


def rate_of(heartbeats: Iterable[Heartbeat]) -> float | None:
    """Run-steps per second of all processes together, None before the first step.

    A process that has just begun counts with the mean speed of the others.
    """
    beats = list(heartbeats)
    taken = sum(step - first for beat in beats for first, step in beat.steps.values())
    seconds = sum(beat.now - beat.began for beat in beats)
    return len(beats) * taken / seconds if taken > 0 and seconds > 0 else None


def seconds_left(run_steps: int, rate: float | None) -> float | None:
    """The time that so many run-steps take at this rate; None without a rate."""
    return run_steps / rate if rate else None


def _path(study_dir: Path) -> Path:
    return study_dir / "state" / f"{socket.gethostname()}-{os.getpid()}{SUFFIX}"

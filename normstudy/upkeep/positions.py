"""How far the runs of a study are: from heartbeats, checkpoints, windows of `steps`, and rows of `runs`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from normstudy.study import schema
from normstudy.study.checkpoints import head_of
from normstudy.workers.heartbeat import Heartbeat


@dataclass(frozen=True)
class Group:
    """Runs that are at the same step of n_steps. run_id: the first of them in the alphabet."""

    run_id: str
    runs: int
    step: int
    n_steps: int


class RunRow(NamedTuple):
    """The part of a row of `runs` that status needs. finished: seconds since 1970, NaN if the run has not ended."""

    status: str
    n_steps: int
    finished: float


class Position(NamedTuple):
    """How far an unfinished run is. step: steps known to be taken; saved: the step of its checkpoint, else 0.

    seen: when these steps were written, in seconds since 1970, 0 if that is not known.
    """

    step: int
    saved: int
    seen: float


def rows_of(frame: pd.DataFrame) -> Iterator[RunRow]:
    """The rows of a table `runs`."""
    finished = (frame["finished_at"] - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    for status, n_steps, at in zip(frame["status"], frame["n_steps"], finished, strict=True):
        yield RunRow(str(status), int(n_steps), float(at))


def positions_of(study: Path, unfinished: Mapping[str, RunRow], heartbeats: Iterable[Heartbeat]) -> dict[str, Position]:
    """How far each run is: the furthest of its heartbeat, its checkpoint and its windows.

    heartbeats: those of live processes, the oldest first. When a run ends, its last window is written before its
    checkpoint and its heartbeat are removed. So the heartbeats must be read first, and the windows are listed last.
    """
    beats = {run_id: (step, beat.now) for beat in heartbeats for run_id, (_, step) in beat.steps.items()}
    positions = {}
    for run_id in unfinished:
        head, (step, now) = head_of(study, run_id), beats.get(run_id, (0, 0.0))
        saved, written = (0, 0.0) if head is None else (head.step, head.written)
        positions[run_id] = Position(max(step, saved), saved, max(now, written))
    for name in os.listdir(study / "tables" / "steps"):
        run_id, _, window = name.removesuffix(".parquet").rpartition("-")
        if run_id in unfinished and window.isdigit():
            n_steps = unfinished[run_id].n_steps
            step = min(n_steps, (int(window) + 1) * schema.window_size(n_steps))
            positions[run_id] = positions[run_id]._replace(step=max(step, positions[run_id].step))
    return positions


def groups_of(run_ids: Iterable[str], steps: Mapping[str, int], rows: Mapping[str, RunRow]) -> tuple[Group, ...]:
    """The runs grouped by step, the most advanced first."""
    found: dict[tuple[int, int], list[str]] = {}
    for run_id in sorted(run_ids):
        found.setdefault((steps[run_id], rows[run_id].n_steps), []).append(run_id)
    return tuple(Group(ids[0], len(ids), *at) for at, ids in sorted(found.items(), reverse=True))

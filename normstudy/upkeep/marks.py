"""How far runs are and how fast, as their files tell: rows of `runs`, windows of `steps`, and checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from normstudy.study import schema
from normstudy.study.checkpoints import head_of


@dataclass(frozen=True)
class Place:
    """Runs that are equally far, `step` of `n_steps` steps. run_id: the first of them."""

    run_id: str
    runs: int
    step: int
    n_steps: int


class Run(NamedTuple):
    """What counts of a row of `runs`. taken: steps, fewer than n_steps where it diverged; times in seconds, or NaN."""

    status: str
    n_steps: int
    taken: int
    started: float
    finished: float
    seconds: float


class Mark(NamedTuple):
    """How far an unfinished run is. step: known to be taken, at `at`; saved: of its checkpoint, written at `saved_at`.

    seconds: that the run had taken at its checkpoint.
    """

    step: int = 0
    at: float = 0.0
    saved: int = 0
    saved_at: float = 0.0
    seconds: float = 0.0


def runs_of(frame: pd.DataFrame) -> Iterator[Run]:
    """What counts of each row."""
    zero = pd.Timestamp(0, tz="UTC")
    started, finished = ((frame[name] - zero).dt.total_seconds() for name in ("started_at", "finished_at"))
    last = frame["nonfinite_step"].astype(float)
    taken = frame["n_steps"].where(last.isna(), (last + 1).clip(upper=frame["n_steps"]))
    seconds = frame["wall_time_s"].astype(float)
    for status, n_steps, steps, *times in zip(
        frame["status"], frame["n_steps"], taken, started, finished, seconds, strict=True
    ):
        yield Run(str(status), int(n_steps), int(steps), *times)


def marks_of(study: Path, unfinished: Mapping[str, Run]) -> dict[str, Mark]:
    """How far each of the runs is, by its checkpoint or by its windows, whichever is further.

    The checkpoint is read first: when it goes because its run ends meanwhile, the windows are there.
    """
    marks = {run_id: _checkpoint(study, run_id) for run_id in unfinished}
    newest: dict[str, int] = {}
    for name in os.listdir(study / "tables" / "steps"):
        run_id, _, window = name.removesuffix(".parquet").rpartition("-")
        if run_id in unfinished and window.isdigit():
            newest[run_id] = max(newest.get(run_id, 0), int(window))
    for run_id, window_number in newest.items():
        n_steps = unfinished[run_id].n_steps
        step = min(n_steps, (window_number + 1) * schema.window_size(n_steps))
        if step > marks[run_id].step:
            written = (study / "tables" / "steps" / schema.window_name(run_id, window_number)).stat().st_mtime
            marks[run_id] = marks[run_id]._replace(step=step, at=written)
    return marks


def places_of(run_ids: Iterable[str], steps: Mapping[str, int], rows: Mapping[str, Run]) -> tuple[Place, ...]:
    """The runs by how far they are, the most advanced first."""
    found: dict[tuple[int, int], list[str]] = {}
    for run_id in sorted(run_ids):
        found.setdefault((steps[run_id], rows[run_id].n_steps), []).append(run_id)
    return tuple(Place(ids[0], len(ids), *far) for far, ids in sorted(found.items(), reverse=True))


def _checkpoint(study: Path, run_id: str) -> Mark:
    """What a checkpoint tells; nothing where there is none."""
    head = head_of(study, run_id)
    return Mark() if head is None else Mark(head.step, head.written, head.step, head.written, head.seconds)


def taken_since(began: float, done: Iterable[Run], running: Iterable[tuple[Run, Mark]]) -> tuple[float, float, float]:
    """Run-steps taken since a moment, when the first of their runs began, and when the last of them were taken.

    Where nothing is known the times are inf and -inf. Of a run that went on from a checkpoint nobody
    wrote down what it had then: it is taken to have been as fast before.
    """
    told = [(run, run.taken, run.finished, run.seconds) for run in done]
    for run, mark in running:
        step, at = (mark.step, mark.at) if run.started >= began else (mark.saved, mark.saved_at)
        told.append((run, step, at, mark.seconds))
    taken, first, last = 0.0, math.inf, -math.inf
    for run, step, at, seconds in told:
        if at > began:
            taken += step * _share(run, at, seconds, began)
            first, last = min(first, max(began, run.started)), max(last, at)
    return taken, first, last


def _share(run: Run, at: float, seconds: float, began: float) -> float:
    """Of what a run took in `seconds` until `at`, the share since `began`."""
    return 1.0 if run.started >= began or not seconds > 0 else min(1.0, (at - began) / seconds)


def time_left(rest: Iterable[tuple[int | None, int]], rate: float | None, silent: float) -> float | None:
    """Seconds until runs are through, (n_steps, step) of each; None where nothing can be said.

    silent: seconds since the last file, in which steps were taken too.
    """
    left = 0
    for n_steps, step in rest:
        if n_steps is None:
            return None
        left += n_steps - step
    seconds = left / rate - max(0.0, silent) if rate else 0.0
    return seconds if seconds > 0 else None

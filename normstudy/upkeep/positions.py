"""Read the `runs` rows and checkpoints that `normstudy status` needs, and group the runs that are at the same step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from normstudy.study.checkpoints import FOLDER, Head, head_of


class Group(NamedTuple):
    """Runs that are at the same step and have the same n_steps."""

    run_id: str  # the run_id that is first in alphabetical order
    runs: int  # the number of runs
    step: int
    n_steps: int


class RunRow(NamedTuple):
    """The `runs` columns that `normstudy status` needs for every run."""

    status: str
    n_steps: int
    finished: float  # when the run ended, in seconds since 1970; NaN if it has not


def rows_of(frame: pd.DataFrame) -> Iterator[RunRow]:
    """Convert a `runs` DataFrame to RunRows."""
    finished = (frame["finished_at"] - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    for status, n_steps, at in zip(frame["status"], frame["n_steps"], finished, strict=True):
        yield RunRow(str(status), int(n_steps), float(at))


def heads_of(study: Path) -> dict[str, Head]:
    """Return run_id -> Head of each readable checkpoint of a study."""
    run_ids = os.listdir(study / FOLDER) if (study / FOLDER).is_dir() else []
    heads = ((run_id, head_of(study, run_id)) for run_id in run_ids)
    return {run_id: head for run_id, head in heads if head is not None}


def groups_of(steps: Mapping[str, int], rows: Mapping[str, RunRow], run_ids: Iterable[str]) -> tuple[Group, ...]:
    """Group the runs `run_ids` by current step and n_steps, most advanced first. steps: run_id -> current step."""
    found: dict[tuple[int, int], list[str]] = {}
    for run_id in sorted(run_ids):
        found.setdefault((steps[run_id], rows[run_id].n_steps), []).append(run_id)
    return tuple(Group(ids[0], len(ids), *at) for at, ids in sorted(found.items(), reverse=True))

"""Define what a sweep and its workers send each other: the sweep sends Tasks, and the workers answer with Messages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from normstudy.config import RunConfig


@dataclass(frozen=True)
class Task:
    """A batch of runs with the same shape and text, to be trained together."""

    number: int  # index of the planned batch that the runs belong to
    study_dir: Path
    run_ids: list[str]
    configs: list[RunConfig]
    data_sha256: str
    device: str
    git_commit: str | None
    checkpoint_seconds: float = 60.0

    def only(self, run_ids: list[str]) -> Task:
        config_of = dict(zip(self.run_ids, self.configs, strict=True))
        return replace(self, run_ids=run_ids, configs=[config_of[i] for i in run_ids])

    def halves(self, run_ids: list[str]) -> list[Task]:
        """Return two tasks, each with half of the runs `run_ids`; a single run gives one task."""
        half = (len(run_ids) + 1) // 2
        return [self.only(part) for part in (run_ids[:half], run_ids[half:]) if part]


@dataclass(frozen=True)
class Message:
    """A report from a worker about its task, or from the pool about a worker."""

    number: int  # the task's number
    run_steps: int = 0  # steps to add to the sweep's progress; negative if steps were lost
    resumed: int = 0  # the part of run_steps that earlier processes had already taken
    ended: tuple[str, ...] = ()  # run_ids of finished runs
    failed: tuple[str, ...] = ()  # run_ids of failed runs
    error: str | None = None  # why the runs failed, in one line
    smaller: int | None = None  # the new number of runs per batch after an out-of-memory error
    notes: tuple[str, ...] = ()  # lines to show the user
    over: bool = False  # whether the task has ended
    stopped: bool = False  # whether the task was stopped on request, with its runs saved
    fatal: str | None = None  # why the whole sweep must stop

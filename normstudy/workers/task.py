"""What the parent of a sweep sends to a worker process, and what the worker answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from normstudy.config import RunConfig


@dataclass(frozen=True)
class Task:
    """One batch of runs of one shape on one text. number: of the planned batch that it is, or is a part of."""

    number: int
    study_dir: Path
    run_ids: list[str]
    configs: list[RunConfig]
    data_sha256: str
    device: str
    git_commit: str | None
    checkpoint_seconds: float = 60.0

    def only(self, run_ids: list[str]) -> Task:
        """The same for some of its runs."""
        config_of = dict(zip(self.run_ids, self.configs, strict=True))
        return replace(self, run_ids=run_ids, configs=[config_of[i] for i in run_ids])

    def halves(self, run_ids: list[str]) -> list[Task]:
        """Some of its runs in two parts, a single one as it is."""
        half = (len(run_ids) + 1) // 2
        return [self.only(part) for part in (run_ids[:half], run_ids[half:]) if part]


@dataclass(frozen=True)
class Message:
    """What a worker says of a task, or the pool of a worker.

    run_steps: done since the last message, negative for some that are lost; resumed: as many of them were taken before,
    by another process; ended, failed: runs; error: why they failed, in a line; smaller: the runs of a batch from now
    on, where the memory did not suffice; notes: lines for the user. over: the task is; stopped: it was asked to stop,
    and is saved; fatal: why nothing can go on.
    """

    number: int
    run_steps: int = 0
    resumed: int = 0
    ended: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    error: str | None = None
    smaller: int | None = None
    notes: tuple[str, ...] = ()
    over: bool = False
    stopped: bool = False
    fatal: str | None = None

"""Tiny studies that train in seconds, and the comparison of their tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from normstudy.config import (
    DataConfig,
    EvalConfig,
    ExecutionConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    RunConfig,
    ScheduleConfig,
)
from normstudy.study import schema, tables
from normstudy.sweep import critical, planning, run
from normstudy.workers.task import Task

# `runs` columns that may differ between two executions of the same run; all other columns are bitwise equal.
NOT_REPRODUCED = (
    "wall_time_s", "started_at", "finished_at", "git_commit", "data_path", "python", "torch", "cpu_capability",
    "blas", "device",
)  # fmt: skip
REQUEST: dict[str, object] = {"command": "a test", "overrides": ["a=1"]}


def tiny(
    root: Path,
    *,
    study: str = "tiny",
    placement: str = "pre",
    norm: str = "layernorm",
    n_layers: int = 1,
    d_model: int = 16,
    n_heads: int = 2,
    seq_len: int = 8,
    batch_size: int = 1,
    optimizer: str = "adam",
    peak_lr: float = 3e-3,
    warmup_steps: int = 0,
    n_steps: int = 12,
    seed: int = 0,
    data: str = "synthetic",
    path: str | None = None,
    workers: int | None = 1,
    runs_per_batch: int | None = None,
) -> RunConfig:
    """A run of a few milliseconds a step."""
    return RunConfig(
        study=study,
        results_dir=str(root),
        seed=seed,
        model=ModelConfig(placement=placement, norm=norm, n_layers=n_layers, d_model=d_model, n_heads=n_heads),
        data=DataConfig(name=data, path=path, seq_len=seq_len, batch_size=batch_size),
        optimizer=OptimizerConfig(name=optimizer),
        schedule=ScheduleConfig(peak_lr=peak_lr, warmup_steps=warmup_steps, n_steps=n_steps),
        probe=ProbeConfig(dense_steps=4, every=3),
        eval=EvalConfig(every=5, windows=8),
        execution=ExecutionConfig(device="cpu", workers=workers, runs_per_batch=runs_per_batch),
    )


def draw_no_figures(patch: pytest.MonkeyPatch) -> None:
    """Sweeps of this process draw no figures, which take most of a short sweep's time."""
    for module in (critical, run):
        patch.setattr(module, "draw", lambda study_dir: None)


def series_bytes(study_dir: Path) -> dict[str, bytes]:
    """Every file of the series tables."""
    return {
        f"{table}/{path.name}": path.read_bytes()
        for table in schema.SERIES
        for path in sorted((study_dir / "tables" / table).iterdir())
    }


def reproduced_runs(study_dir: Path) -> pd.DataFrame:
    """The `runs` table without the columns that two executions may differ in."""
    return tables.read(study_dir, "runs").drop(columns=list(NOT_REPRODUCED))


def assert_same_tables(one: Path, other: Path) -> None:
    """Bitwise equal studies: the same series files, the same `runs`, the columns outside the promise aside."""
    assert series_bytes(one) == series_bytes(other)
    pd.testing.assert_frame_equal(reproduced_runs(one), reproduced_runs(other), check_exact=True)


def task_of(configs: Sequence[RunConfig], seconds: float = 60.0) -> Task:
    """All as one batch."""
    planned = planning.plan(configs)
    tables.prepare(planned.study_dir)
    ids = list(dict.fromkeys(planned.ids))
    text = planned.texts[ids[0]]
    return Task(0, planned.study_dir, ids, [planned.runs[i] for i in ids], text, "cpu", None, seconds)


def after(steps: int) -> Callable[[], bool]:
    """Says to stop after so many steps."""
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


def never() -> bool:
    return False

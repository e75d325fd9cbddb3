"""Runs that crashed: their status `failed`, and state/logs/<run_id>-<n>.txt with the traceback of their n-th try."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from normstudy import files, store
from normstudy.config import RunConfig

LOGS = "state/logs"


def report(study_dir: Path, run_id: str, config: RunConfig, details: str) -> int:
    """Give an unfinished run the status `failed` and keep what went wrong; returns how often it has been tried.

    Raises StorageError.
    """
    before = store.read_row(study_dir, run_id) or {}
    if before.get("status") == "done":
        return tries(study_dir)[run_id]
    number = tries(study_dir)[run_id] + 1
    with files.storing(study_dir):
        (study_dir / LOGS).mkdir(parents=True, exist_ok=True)
        files.place(study_dir, f"{LOGS}/{run_id}-{number}.txt", details.encode())
    now = {"run_id": run_id, "status": "failed", "finished_at": store.now()}
    store.write_runs(study_dir, [{**before, **store.config_columns(config), **now}])
    return number


def tries(study_dir: Path) -> Counter[str]:
    """run_id -> how often it has crashed."""
    return Counter(path.stem.rpartition("-")[0] for path in (study_dir / LOGS).glob("*.txt"))

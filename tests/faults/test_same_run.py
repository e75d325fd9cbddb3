"""Two commands that train the same run at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from processes import SWEEP, start, wait_for, workers_of
from studies import assert_same_tables

pytestmark = pytest.mark.faults

WORDS = ["run", *SWEEP[1:], "schedule.n_steps=500", "execution.checkpoint_seconds=0.2"]


def both(cwd: Path) -> tuple[subprocess.Popen[str], list[int], subprocess.Popen[str]]:
    """Two commands: one whose worker is halted after the first window of its run and a checkpoint, that worker, and one
    that has said that it waits."""
    first, study = start(WORDS, cwd), cwd / "results" / "long"
    wait_for(lambda: list(study.glob("tables/steps/*-000.parquet")) and list(study.glob("state/checkpoints/*")))
    workers = workers_of(first.pid)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    second = start(WORDS, cwd)
    assert second.stderr is not None
    while "waiting for another process, which is training pre-L1-" not in (line := second.stderr.readline()):
        assert line, second.communicate()
    return first, workers, second


def resume(workers: list[int]) -> None:
    for pid in workers:
        os.kill(pid, signal.SIGCONT)


def test_the_same_run_twice_at_once_is_trained_once(undisturbed: Path, tmp_path: Path) -> None:
    first, workers, second = both(tmp_path)
    resume(workers)
    told, said = first.communicate(timeout=100), second.communicate(timeout=100)
    assert (first.returncode, second.returncode) == (0, 0), (told, said)
    assert told[0].splitlines()[-2:] == said[0].splitlines()[-2:]  # how it ended
    assert_same_tables(undisturbed, tmp_path / "results" / "long")
    assert not (tmp_path / "results" / "long" / "state").exists()


def test_a_run_whose_process_is_killed_goes_on_in_the_one_that_waits(undisturbed: Path, tmp_path: Path) -> None:
    first, workers, second = both(tmp_path)
    os.kill(first.pid, signal.SIGKILL)
    resume(workers)  # which end as their parent is gone
    said = second.communicate(timeout=100)
    first.communicate()
    assert second.returncode == 0, said
    assert "starts again from step 0" not in said[1]
    assert_same_tables(undisturbed, tmp_path / "results" / "long")

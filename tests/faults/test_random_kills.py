"""SIGKILL at random moments, of the parent or of a worker, with other workers and batches after each."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from processes import SWEEP, finish, is_gone, start, templates_of, wait_for, workers_of
from studies import assert_same_tables

from normstudy.errors import ConfigError
from normstudy.study import checkpoints, schema, tables

SEED = 7
KEPT = Path(__file__).parents[2] / "results" / "robustness" / "kills.parquet"
WORDS = [*SWEEP, "seed=range(0,6)", "schedule.n_steps=250", "execution.checkpoint_seconds=0.1"]
MOMENTS = 0.1, 0.7  # after a run was saved, of the time that the undisturbed sweep trains: runs finish between kills


# What Python prints in a process that was just being started when its parent was killed.
BEING_STARTED = re.compile(r"Traceback \(most recent call last\):\n(?:  .*\n)+EOFError: Ran out of input\n")


def check_said(err: str) -> None:
    """No run failed, and none had to start again although it had a checkpoint."""
    err = BEING_STARTED.sub("", err)
    assert "starts again from step 0" not in err
    assert "failed" not in err
    assert "Traceback" not in err


def kill_at_random(
    words: list[str], cwd: Path, rng: random.Random, training: float, one_by_one: bool
) -> tuple[str, float] | None:
    """Start the sweep and kill one of its processes some time later: which, after how many seconds.

    training: seconds that the undisturbed sweep trained on this machine. one_by_one: whether runs end before the sweep.

    One in four wherever it is then, the others while it trains, and of these one in three when a run has just finished.
    None where it was through before.
    """
    began, clock, study = time.time(), time.monotonic(), cwd / "results" / "long"
    before = finished_in(study)
    running, anywhere, wait = start(words, cwd), rng.random() < 0.25, training * rng.uniform(*MOMENTS)
    while not anywhere and running.poll() is None and not has_saved_since(study, began):
        time.sleep(0.02)
    if one_by_one and not anywhere and rng.random() < 1 / 3:
        wait = training * rng.uniform(0, 0.05)
        while running.poll() is None and finished_in(study) == before:
            time.sleep(0.02)
    end = time.monotonic() + wait
    while time.monotonic() < end and running.poll() is None:
        time.sleep(0.02)
    workers = workers_of(running.pid)
    if running.poll() is not None:
        check_said(running.communicate()[1])
        assert running.returncode == 0
        return None
    victim = running.pid if not workers or rng.random() < 0.5 else rng.choice(workers)
    seconds = time.monotonic() - clock
    os.kill(victim, signal.SIGKILL)
    if victim == running.pid:
        check_said(running.communicate()[1])
        wait_for(lambda: all(is_gone(pid) for pid in workers), 10)  # no orphan
        return "parent", seconds
    time.sleep(rng.uniform(0.0, 1.0))  # the batch goes on in another process
    if running.poll() is None:
        os.kill(running.pid, signal.SIGKILL)
    check_said(running.communicate()[1])
    wait_for(lambda: all(is_gone(pid) for pid in workers_of(running.pid)), 10)
    return "worker", seconds


def has_saved_since(study: Path, moment: float) -> bool:
    """Whether a run has been saved, so that it is being trained."""
    for path in (study / checkpoints.FOLDER).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > moment:
                return True
    return False


def finished_in(study: Path) -> set[str]:
    with contextlib.suppress(ConfigError, FileNotFoundError):
        return {run_id for run_id, status in tables.statuses(study).items() if status == "done"}
    return set()


def kills(undisturbed: Path, tmp_path: Path, n_kills: int, seed: int) -> pd.DataFrame:
    """So many kills, over as many sweeps as they take, each held against the undisturbed one. A row a kill.

    finished: of the runs, when the sweep was started again.
    """
    rng = random.Random(seed)
    training = float(tables.read(undisturbed, "runs")["wall_time_s"].max())
    rows: list[tuple[int, int, int, str, float, int]] = []
    sweep = 0
    while len(rows) < n_kills:
        cwd = tmp_path / str(sweep)
        cwd.mkdir()
        study = cwd / "results" / "long"
        finished: set[str] = set()
        through = False
        while not through:
            workers, together = rng.randint(1, 3), rng.choice([1, 2, 3, 6])  # with 6, all runs finish at the same time
            words = [*WORDS, f"execution.workers={workers}", f"execution.runs_per_batch={together}"]
            killed = None
            if len(rows) < n_kills:
                killed = kill_at_random(words, cwd, rng, training, together < 6)
                through = killed is None
            else:
                done = finish(words, cwd)
                assert done.returncode == 0, done.stderr
                check_said(done.stderr)
                through = True
            if (study / "tables" / "residual" / schema.SCHEMA_FILE).exists():
                for table in schema.TABLES:
                    pd.read_parquet(study / "tables" / table)
                now = finished_in(study)
                assert finished <= now, "finished runs were lost"
                finished = now
            if killed is not None:
                rows.append((sweep, workers, together, *killed, len(finished)))
        assert_same_tables(undisturbed, study)
        assert not (study / "state").exists()
        sweep += 1
    frame = pd.DataFrame(rows, columns=["sweep", "workers", "runs_per_batch", "victim", "seconds", "finished"])
    assert set(frame["victim"]) == {"parent", "worker"}
    assert frame["finished"].max() > 0
    return frame


@pytest.mark.faults
def test_eight_kills_change_no_bit(undisturbed: Path, tmp_path: Path) -> None:
    kills(undisturbed, tmp_path, 8, SEED + 1)


@pytest.mark.slow
def test_two_hundred_kills_change_no_bit(undisturbed: Path, tmp_path: Path) -> None:
    """By hand, some twenty minutes: pytest -m slow tests/faults/test_random_kills.py -n0. What it did is kept."""
    frame = kills(undisturbed, tmp_path, 200, SEED).assign(seed=SEED)
    KEPT.parent.mkdir(exist_ok=True)
    frame.to_parquet(KEPT, index=False)


@pytest.mark.faults
def test_workers_killed_before_they_begin_cost_no_try(undisturbed: Path, tmp_path: Path) -> None:
    """Kill the template four times while it imports torch: its workers end before they begin, so no try is counted."""
    running = start([*WORDS, "execution.workers=1", "execution.max_tries=1"], tmp_path)
    for _ in range(4):
        wait_for(lambda: templates_of(running.pid))
        (template,) = templates_of(running.pid)
        assert workers_of(running.pid) == []
        os.kill(template, signal.SIGKILL)
        wait_for(lambda template=template: is_gone(template), 10)  # type: ignore[misc]
    check_said(err := running.communicate(timeout=300)[1])
    assert "two batches" not in err
    assert running.returncode == 0
    assert_same_tables(undisturbed, tmp_path / "results" / "long")


CRITICAL = ["critical", *SWEEP[1:], "schedule.n_steps=150", "search.low=1e-3", "search.high=10", "search.max_runs=14"]


@pytest.mark.parametrize(
    "n_kills", [pytest.param(1, marks=pytest.mark.faults), pytest.param(10, marks=pytest.mark.slow)]
)
def test_a_killed_search_ends_in_the_same_tables_and_answer(tmp_path: Path, n_kills: int) -> None:
    """At random moments of its training; the answer is what it prints, but for how many runs it trained itself."""
    rng = random.Random(SEED)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    began = time.monotonic()
    whole = finish(CRITICAL, tmp_path / "whole")
    took = time.monotonic() - began
    assert whole.returncode == 0, whole.stderr
    for _ in range(n_kills):
        running = start(CRITICAL, tmp_path / "killed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(took * rng.uniform(0.4, 0.8))
        running.kill()
        running.communicate()
    resumed = finish(CRITICAL, tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    answer, again = (re.sub(r"command trained \d+", "", done.stdout) for done in (whole, resumed))
    assert answer == again
    assert_same_tables(*(tmp_path / name / "results" / "long" for name in ("whole", "killed")))

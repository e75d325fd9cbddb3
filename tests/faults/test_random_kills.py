"""SIGKILL at random moments, of the parent or of a worker, with other workers and batches after each."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from processes import SWEEP, finish, is_gone, start, wait_for, workers_of
from studies import assert_same_tables

from normstudy import store

SEED = 7
WORDS = [*SWEEP, "seed=range(0,6)", "schedule.n_steps=1500", "execution.checkpoint_seconds=0.1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("undisturbed")
    done = finish([*WORDS, "execution.workers=2"], cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "results" / "long"


def check_said(err: str) -> None:
    """No run failed, and none had to start again although it had a checkpoint."""
    assert "starts from zero" not in err
    assert "failed" not in err
    assert "Traceback" not in err


def kill_at_random(words: list[str], cwd: Path, rng: random.Random) -> str | None:
    """Start the sweep and kill one of its processes some time later; None where it was through before."""
    running = start(words, cwd)
    end = time.monotonic() + rng.uniform(0.3, 4.0)
    while time.monotonic() < end and running.poll() is None:
        time.sleep(0.02)
    workers = workers_of(running.pid)
    if running.poll() is not None:
        check_said(running.communicate()[1])
        assert running.returncode == 0
        return None
    victim = rng.choice([running.pid, *workers])
    os.kill(victim, signal.SIGKILL)
    if victim == running.pid:
        check_said(running.communicate()[1])
        wait_for(lambda: all(is_gone(pid) for pid in workers), 10)  # no orphan
        return "parent"
    time.sleep(rng.uniform(0.0, 1.0))  # the batch goes on in another process
    if running.poll() is None:
        os.kill(running.pid, signal.SIGKILL)
    check_said(running.communicate()[1])
    wait_for(lambda: all(is_gone(pid) for pid in workers_of(running.pid)), 10)
    return "worker"


def kills(undisturbed: Path, tmp_path: Path, n_kills: int, seed: int) -> dict[str, int]:
    """So many kills, over as many sweeps as they take, each held against the undisturbed one; who was killed."""
    rng = random.Random(seed)
    counts = {"parent": 0, "worker": 0, "sweeps": 0}
    while counts["parent"] + counts["worker"] < n_kills:
        cwd = tmp_path / str(counts["sweeps"])
        cwd.mkdir()
        study = cwd / "results" / "long"
        finished: set[str] = set()
        through = False
        while not through:
            how = [f"execution.workers={rng.randint(1, 3)}", f"execution.runs_per_batch={rng.randint(1, 6)}"]
            if counts["parent"] + counts["worker"] < n_kills:
                victim = kill_at_random([*WORDS, *how], cwd, rng)
                through = victim is None
                if victim is not None:
                    counts[victim] += 1
            else:
                done = finish([*WORDS, *how], cwd)
                assert done.returncode == 0, done.stderr
                check_said(done.stderr)
                through = True
            if (study / "tables" / "residual" / store.SCHEMA_FILE).exists():
                for table in store.TABLES:
                    pd.read_parquet(study / "tables" / table)
                now = {i for i, status in store.finished_ids(study).items() if status == "done"}
                assert finished <= now, "finished runs were lost"
                finished = now
        assert_same_tables(undisturbed, study)
        assert not (study / "state").exists()
        counts["sweeps"] += 1
    return counts


@pytest.mark.faults
def test_twenty_kills_change_no_bit(undisturbed: Path, tmp_path: Path) -> None:
    counts = kills(undisturbed, tmp_path, 20, SEED)
    assert min(counts.values()) > 0


@pytest.mark.slow
def test_two_hundred_kills_change_no_bit(undisturbed: Path, tmp_path: Path) -> None:
    """By hand, some twenty minutes: pytest -m slow tests/faults/test_random_kills.py -n0 -s."""
    counts = kills(undisturbed, tmp_path, 200, SEED)
    print(f"seed {SEED}: {counts}")
    assert min(counts.values()) > 0

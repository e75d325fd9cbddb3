"""Ctrl-C and its relatives, sent to real sweeps: once saves what there is, twice ends at once, and nothing is left."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import CLI, SWEEP, finish, is_gone, start, wait_for, workers_of
from studies import assert_same_tables

from normstudy.study import checkpoints as saved
from normstudy.study import tables

WORDS = [
    *SWEEP, "seed=range(0,4)", "schedule.n_steps=450", "execution.workers=2", "execution.checkpoint_seconds=1000",
]  # fmt: skip

pytestmark = pytest.mark.faults


def training(cwd: Path, prefix: tuple[str, ...] = ()) -> tuple[subprocess.Popen[str], list[int]]:
    """A sweep whose four runs have all written a window, and its workers."""
    running = start(WORDS, cwd, prefix)
    steps = cwd / "results" / "long" / "tables" / "steps"
    wait_for(lambda: len(list(steps.glob("*-000.parquet"))) == 4)
    return running, workers_of(running.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_once_saves_every_run_and_says_how_to_go_on(undisturbed: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Sent to the group, as a terminal does; test_a_stop_whose_words_nobody_reads sends it to the parent alone."""
    running, workers = training(tmp_path)
    os.killpg(running.pid, number)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 128 + number
    assert "Traceback" not in err
    if number != signal.SIGHUP:  # then there is no terminal to say it on
        assert "stopping: every run finishes its step and is saved" in err
        assert "interrupted: 0 of 4 runs of results/long are finished; rerun the same command to " in err
    study = tmp_path / "results" / "long"
    assert all(is_gone(pid) for pid in workers)
    assert len(list((study / saved.FOLDER).iterdir())) == 4
    assert set(tables.statuses(study).values()) == {"running"}
    if number == signal.SIGINT:  # the others save the same way
        again = finish(WORDS, tmp_path)
        assert again.returncode == 0, again.stderr
        assert_same_tables(undisturbed, study)


def test_a_worker_killed_before_it_has_saved_is_told(tmp_path: Path) -> None:
    running, workers = training(tmp_path)
    os.kill(workers[0], signal.SIGSTOP)
    os.kill(running.pid, signal.SIGINT)
    checkpoints = tmp_path / "results" / "long" / saved.FOLDER
    wait_for(lambda: checkpoints.exists() and len(list(checkpoints.iterdir())) == 2)  # the other worker's
    os.kill(workers[0], signal.SIGKILL)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130
    lost = "a worker process was killed by signal 9 before saving its 2 runs: rerun the command to resume from the "
    assert f"{lost}last checkpoint" in err.splitlines()


def test_a_killed_parent_leaves_no_orphan_and_no_failed_run(tmp_path: Path) -> None:
    """Its workers hold the study's lock: a second sweep would wait for one that went on. test_random_kills resumes."""
    running, workers = training(tmp_path)
    study = tmp_path / "results" / "long"
    for pid in workers:
        held = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        assert str(study / "state" / "lock") in held
    os.kill(running.pid, signal.SIGKILL)
    wait_for(lambda: all(is_gone(pid) for pid in workers), 10)
    running.communicate()
    # They ended at once and silently, not at their next word to a parent that is gone.
    assert "failed" not in tables.statuses(study).values()


def test_twice_ends_at_once_and_leaves_nobody(tmp_path: Path) -> None:
    running, workers = training(tmp_path)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # they will not save anything
    os.kill(running.pid, signal.SIGINT)
    assert running.stderr is not None
    while "stopping" not in running.stderr.readline():
        pass
    started = time.monotonic()
    os.kill(running.pid, signal.SIGINT)
    assert running.wait(timeout=20) == 130
    assert time.monotonic() - started < 5
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: all(is_gone(pid) for pid in workers), 10)
    running.communicate()


def test_under_nohup_a_lost_terminal_changes_nothing_and_a_worker_that_somebody_else_stops_is_replaced(
    undisturbed: Path, tmp_path: Path
) -> None:
    running, workers = training(tmp_path, ("nohup",))
    os.killpg(running.pid, signal.SIGHUP)
    os.kill(workers[0], signal.SIGTERM)
    _, err = running.communicate(timeout=200)
    assert running.returncode == 0, err
    assert_same_tables(undisturbed, tmp_path / "results" / "long")


def test_a_signal_before_the_workers_are_ready(tmp_path: Path) -> None:
    running = start(WORDS, tmp_path)
    wait_for(lambda: workers_of(running.pid))
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert "interrupted: 0 of 4 runs" in err  # a stop that is lost would let them train to their end


def test_a_stop_whose_words_nobody_reads_saves_all_the_same(tmp_path: Path) -> None:
    """As in `sweep 2>&1 | tee log`, where Ctrl-C ends the tee too."""
    running, _ = training(tmp_path)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    running.stderr.close()
    os.kill(running.pid, signal.SIGINT)
    running.wait(timeout=20)
    assert len(list((tmp_path / "results" / "long" / saved.FOLDER).iterdir())) == 4


def test_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    words = shlex.join([*CLI, *WORDS, "schedule.n_steps=5"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | true"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 141
    assert "Traceback" not in done.stderr


@pytest.mark.packages
def test_a_killed_command_leaves_no_process_of_joblib(tmp_path: Path) -> None:
    """Neither what trains, nor the launcher's idle processes and helpers, which run no code of normstudy."""
    words = [*SWEEP, "seed=0,1", "schedule.n_steps=1000000", "hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
    running = start(words, tmp_path)
    wait_for(lambda: list((tmp_path / "results/long/tables/runs").glob("pre*")))
    group = of_group(running.pid)
    assert len(group) >= 6
    os.kill(running.pid, signal.SIGKILL)
    running.communicate(timeout=20)  # what remains would hold its streams
    wait_for(lambda: all(is_gone(pid) for pid in of_group(running.pid)), 10)


def of_group(group: int) -> list[int]:
    """The processes of a group, whoever their parents are."""
    listed = subprocess.run(["ps", "-eo", "pid,pgid"], capture_output=True, text=True, check=True).stdout.split()
    return [int(pid) for pid, of in zip(listed[2::2], listed[3::2], strict=True) if int(of) == group]


def test_ctrl_c_during_figures_says_so(tmp_path: Path) -> None:
    running = start([*SWEEP, "seed=0,1", "model.n_layers=2", "schedule.n_steps=60"], tmp_path, figures=True)
    figures = tmp_path / "results/long/figures"
    wait_for(lambda: list(figures.glob("*.png")))
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "interrupted: some figures are not drawn; to draw them: normstudy plot results/long" in err
    assert "Traceback" not in err

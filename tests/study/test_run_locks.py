"""Only one process trains a run, even if several are asked to."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studies import never, task_of, tiny

from normstudy.study import locks, tables
from normstudy.workers import worker
from normstudy.workers.task import Message

IDS = [f"pre-L2-lr1e-3-wu0-s{seed}-{seed:09x}f" for seed in range(40)]
HOLDER = """
import sys, time
from pathlib import Path
from normstudy.study import locks
with locks.hold_runs(Path(sys.argv[1]), sys.argv[2:]) as mine:
    print(*mine, flush=True)
    sys.stdin.read()
"""


def hold(study: Path, run_ids: list[str]) -> subprocess.Popen[str]:
    """Another process that holds the locks of these runs until its input closes."""
    pipe = subprocess.PIPE
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(study), *run_ids], stdin=pipe, stdout=pipe, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().split() == run_ids
    return holder


def test_runs_of_another_process_are_left_to_it_until_it_is_gone(tmp_path: Path) -> None:
    one, two = hold(tmp_path, IDS[:3]), hold(tmp_path, IDS[3:5])
    with locks.hold_runs(tmp_path, IDS) as mine:
        assert mine == IDS[5:]
    one.communicate()  # ends normally
    with locks.hold_runs(tmp_path, IDS) as mine:
        assert mine == [*IDS[:3], *IDS[5:]]
        two.kill()
        two.communicate()
        three = subprocess.run(
            [sys.executable, "-c", HOLDER, tmp_path, *IDS], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert three.stdout.split() == IDS[3:5]
    with locks.hold_runs(tmp_path, IDS) as mine:
        assert mine == IDS
    assert (tmp_path / locks.RUN_LOCKS).stat().st_size == 0


def test_a_batch_waits_for_the_runs_of_another_process_after_its_own(tmp_path: Path) -> None:
    """One of the two awaited runs is finished by then, and is not trained again."""
    configs = [tiny(tmp_path, seed=s) for s in range(3)]
    task = task_of(configs)
    mine, taken, done = task.run_ids
    holder = hold(task.study_dir, [taken, done])
    messages, told = [], 0
    for message in worker.train_alone(task, never):
        messages.append(message)
        if message.notes:
            told = len(messages)
            assert message.notes == ("waiting for another process, which is training 2 runs",)
            assert tables.statuses(task.study_dir) == {mine: "done"}
            tables.write_runs(task.study_dir, [{"run_id": done, "status": "done"}])
            holder.communicate()
    assert [m.ended for m in messages[:told] if m.ended] == [(mine,)]
    assert [m.ended for m in messages[told:] if m.ended] == [(done,), (taken,)]
    assert sum(m.run_steps for m in messages) == 3 * 12
    assert sum(m.resumed for m in messages) == 12  # trained by another process
    assert set(tables.read(task.study_dir, "steps")["run_id"]) == {mine, taken}


def test_a_stop_ends_the_waiting(tmp_path: Path) -> None:
    task = task_of([tiny(tmp_path)])
    holder = hold(task.study_dir, task.run_ids)
    messages: list[Message] = []
    messages.extend(worker.train_alone(task, lambda: bool(messages)))
    holder.communicate()
    assert [m.stopped for m in messages] == [False, True]
    assert messages[0].notes == (f"waiting for another process, which is training {task.run_ids[0]}",)
    assert tables.statuses(task.study_dir) == {}


def test_where_there_are_no_locks_a_process_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none_here)
    with locks.hold_runs(tmp_path, IDS) as mine:
        assert mine == IDS


def test_a_lock_costs_little(tmp_path: Path) -> None:
    with locks.hold_runs(tmp_path, IDS):
        pass
    began = time.monotonic()
    for _ in range(10):
        with locks.hold_runs(tmp_path, IDS) as mine:
            assert len(mine) == 40
    assert (time.monotonic() - began) / 400 < 1e-3  # seconds per run; microseconds are typical

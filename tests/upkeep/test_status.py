"""`normstudy status` on real sweeps: while they train, after they are stopped, fail or end."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from handmade import SHA256, handmade_config, write_handmade_run
from processes import CLI, SWEEP, start, wait_for
from studies import REQUEST, after, never, task_of, tiny

from normstudy.analysis import likely_stuck
from normstudy.analysis.outcomes import MEANING, explained
from normstudy.cli import main
from normstudy.config import ConfigError, RunConfig
from normstudy.study import checkpoints, files, locks, records, tables
from normstudy.study.whole import Expected
from normstudy.upkeep import status, status_text
from normstudy.upkeep.compact import compact_study
from normstudy.upkeep.status_text import Group
from normstudy.workers import heartbeat, progress, recording
from normstudy.workers import worker as workers
from normstudy.workers.task import Message, Task

Capture = pytest.CaptureFixture[str]
REPOSITORY = Path(__file__).parents[2]
COMMAND = "normstudy sweep a=1"
N = 12  # steps of the tiny runs


def record(task: Task, trains: Sequence[str] | None = None, command: str = COMMAND) -> None:
    """Write the record of a sweep. trains: the runs that it has to train, by default all."""
    planned = dict(zip(task.run_ids, task.configs, strict=True))
    batch = task.run_ids if trains is None else trains
    records.record_request(task.study_dir, {**REQUEST, "command": command}, [batch], planned, workers="1")


def train(configs: Sequence[RunConfig], steps: int | None = None) -> Path:
    """Train runs as one batch in this process. steps: stop after so many."""
    task = task_of(configs)
    record(task)
    list(workers.train_halving(task, never if steps is None else after(steps)))
    return task.study_dir


@contextlib.contextmanager
def held(study: Path, *, shared: bool = False, **told: object) -> Iterator[None]:
    """Hold the study's lock. told: replaces fields of the lock's note about its holder."""
    with locks.hold_study(study, COMMAND, shared=shared):
        path = study / locks.LOCK
        path.write_text(json.dumps({**json.loads(path.read_text()), **told}))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one of which diverged."""
    root = tmp_path_factory.mktemp("finished")
    return train([tiny(root, seed=s, optimizer="sgd", peak_lr=1e9 if s == 2 else 0.1) for s in range(3)])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that were stopped after 5 of their 12 steps."""
    root = tmp_path_factory.mktemp("stopped")
    return train([tiny(root, seed=s) for s in range(2)], steps=5)


@pytest.fixture
def mine(stopped: Path, tmp_path: Path) -> Path:
    """A copy of `stopped` that a test may change."""
    return Path(shutil.copytree(stopped, tmp_path / "tiny"))


# ---- what is there ------------------------------------------------------------------------------------


def test_a_finished_study(finished: Path) -> None:
    told = status.look(finished)
    runs = tables.statuses(finished)
    assert told.outcomes["diverged"] == 1
    assert told.outcomes == dict(status.outcome_counts(progress.outcomes_of(finished, list(runs)).values()))
    counts = (told.planned, told.finished, told.running, told.interrupted, told.failed, told.not_begun)
    assert counts == (3, 3, 0, 0, 0, 0)
    # steps that a diverged run skips count as done
    assert (told.steps_done, told.steps_planned) == (3 * N, 3 * N)
    assert (told.holder, told.rate, told.left, told.over) == (None, None, None, True)
    outcomes = " ".join(f"{n} {outcome}" for outcome, n in told.outcomes.items())
    head = [f"{finished}: 3 runs, all 3 finished", "run-steps: 36 of 36, 100 %", f"outcomes: {outcomes}"]
    assert status_text.render(told).splitlines() == [*head, *explained(told.outcomes)]
    assert status_text.render(replace(told, outcomes={"unjudged": 3})).endswith(f"\nunjudged: {MEANING['unjudged']}")


def test_a_compacted_and_sealed_study_says_the_same(finished: Path, tmp_path: Path) -> None:
    sealed = Path(shutil.copytree(finished, tmp_path / "tiny"))
    compact_study(sealed, seal=True)
    before, told = status.look(finished), status.look(sealed)
    assert told == replace(before, study=str(sealed), sealed=True, silent=told.silent)


def test_a_shipped_study_has_no_record_of_its_sweep(capfd: Capture) -> None:
    assert main.main(["status", str(REPOSITORY / "results" / "warmup")]) == 0
    first, steps, outcomes, *_ = capfd.readouterr().out.splitlines()
    assert first.endswith("results/warmup: 40 runs, all 40 finished, sealed")
    assert steps == "run-steps: 24,000 of 24,000, 100 %"
    told = outcomes.removeprefix("outcomes: ").split()
    counts = dict(zip(told[1::2], map(int, told[::2]), strict=True))
    assert sum(counts.values()) == 40
    assert (counts["learned"], counts["stuck"]) == (34, 5)  # the outcome of the last run depends on rounding


def test_an_interrupted_study(stopped: Path) -> None:
    told = status.look(stopped)
    first = min(tables.statuses(stopped))
    assert (told.planned, told.finished, told.running, told.interrupted, told.not_begun) == (2, 0, 0, 2, 0)
    assert told.saved_at == (Group(first, 2, 5, N),)
    assert (told.steps_done, told.steps_planned, told.over) == (10, 24, False)
    assert status_text.render(told).splitlines() == [
        f"{stopped}: 2 runs, 2 interrupted",
        "run-steps: 10 of 24, 41 %",
        "interrupted, saved at:",
        f"  step 5 of 12: {first} and 1 more",
        f"no process is training the remaining runs; rerun the same command to resume: {COMMAND}",
    ]


def test_every_command_that_the_remaining_runs_need_is_printed_once(mine: Path, tmp_path: Path) -> None:
    other, more = (task_of([tiny(tmp_path, seed=s)]) for s in (7, 8))
    record(other, command="normstudy run seed=7")
    told = status.look(mine)
    assert (told.interrupted, told.not_begun) == (2, 1)
    assert told.commands == ("normstudy run seed=7", COMMAND)
    assert f"rerun the same command to resume: normstudy run seed=7; {COMMAND}\n" in status_text.render(told) + "\n"
    record(more, command=COMMAND)  # as jobs of another launcher do, one record each
    assert status.look(mine).commands == (COMMAND, "normstudy run seed=7")


def test_a_run_without_a_checkpoint_is_at_step_0(mine: Path) -> None:
    """The run would start again, whatever windows it has."""
    shutil.rmtree(mine / checkpoints.FOLDER)
    assert (status.look(mine).saved_at[0].step, status.look(mine).steps_done) == (0, 0)


def test_a_new_study_has_nothing(tmp_path: Path) -> None:
    tables.prepare(tmp_path / "new")
    told = status.look(tmp_path / "new")
    assert (told.planned, told.steps_planned, told.over) == (0, 0, False)
    assert status_text.render(told) == f"{tmp_path}/new: 0 runs, none planned yet"


def test_a_sweep_that_has_just_begun(tmp_path: Path) -> None:
    task = task_of([tiny(tmp_path, seed=s) for s in range(3)])
    with held(task.study_dir):
        record(task)
        told = status.look(task.study_dir)
    assert (told.planned, told.not_begun, told.steps_planned, told.rate, told.left) == (3, 3, 3 * N, None, None)
    lines = status_text.render(told).splitlines()
    assert lines[:2] == [f"{task.study_dir}: 3 runs, 3 not begun", "run-steps: 0 of 36, 0 %"]
    assert lines[2].startswith(f"held by `{COMMAND}`, pid {os.getpid()} on {socket.gethostname()} since 20")
    assert len(lines) == 3


def test_records_of_older_versions_tell_no_length(tmp_path: Path) -> None:
    first, both, second = ([tiny(tmp_path, seed=s) for s in seeds] for seeds in ((0,), (0, 1), (1,)))
    for configs in (first, both):
        record(task := task_of(configs))
    study = task.study_dir
    newest = max((study / "sweeps").iterdir())
    pq.write_table(pq.read_table(newest).drop_columns("n_steps"), newest)
    (study / "sweeps" / "optimization_results.yaml").touch()  # Hydra's other sweepers may write files here
    told = status.look(study)
    assert (told.planned, told.steps_planned) == (2, None)
    assert status_text.render(told).splitlines()[1] == "run-steps: 0"
    record(task_of(second))
    assert (status.look(study).planned, status.look(study).steps_planned) == (2, 2 * N)


def test_failed_runs_and_why(mine: Path, tmp_path: Path) -> None:
    task = replace(task_of([tiny(tmp_path, seed=9)]), data_sha256="0" * 64)
    record(task)
    for _ in range(2):
        list(workers.train_halving(task, never))
    told = status.look(mine)
    reason = "RuntimeError: the training text changed during the sweep: restore it, or start a sweep with the new text"
    assert told.failures == (status_text.Failure(task.run_ids[0], 2, reason),)
    assert (told.failed, told.interrupted, told.over) == (1, 2, False)
    tail = ["failed:", f"  {task.run_ids[0]}, tried 2 times: {reason}"]
    again = f"the tracebacks are in {mine}/state/logs. To retry these runs, fix the cause, then rerun the same command"
    again += f": {COMMAND}"
    assert status_text.render(told).splitlines()[-3:] == [*tail, again]
    list(workers.train_halving(task, never))
    assert status_text.render(status.look(mine)).endswith(
        f"{again}; if a run has failed 3 times, also set execution.max_tries=4"
    )


def test_only_ten_failed_runs_are_listed(tmp_path: Path) -> None:
    configs = {f"run-{i:010x}": handmade_config(tmp_path, seed=i) for i in range(12)}
    tables.prepare(tmp_path)
    for run_id, config in configs.items():
        records.record_failure(tmp_path, run_id, config, "Traceback\n  in it\nValueError: \x1b[31mred\n\n")
    (tmp_path / records.LOGS / "run-0000000000-1.txt").unlink()
    told = status.look(tmp_path)
    assert (told.failed, len(told.failures), told.over) == (12, 10, True)
    lines = status_text.render(told).splitlines()
    assert lines[lines.index("failed:") + 1] == "  run-0000000000, tried 0 times: the traceback is missing"
    assert lines[-3:-1] == ["  run-0000000009, tried 1 time: ValueError: [31mred", "  and 2 more"]
    with held(tmp_path):  # the holder may try them again
        assert not status.look(tmp_path).over


# ---- who holds it -------------------------------------------------------------------------------------


def test_who_holds_a_study_is_told_without_a_lock(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locks.holder_of(mine) is None
    with locks.hold_study(mine, "normstudy compact x"), monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: pytest.fail("status took a lock"))
        found = locks.holder_of(mine)
    assert found is not None
    assert found.text.startswith(f"`normstudy compact x`, pid {os.getpid()} on {socket.gethostname()} since 20")
    assert (found.alone, found.verified) == (True, True)
    assert abs(found.since - time.time()) < 60
    assert locks.holder_of(mine) is None


def test_a_holder_elsewhere_is_believed(mine: Path) -> None:
    with held(mine, host="elsewhere", since="2020-01-01T00:00:00+00:00"):
        pass  # the lock is released, but its file stays
    told = status.look(mine)
    assert (told.running, told.interrupted, told.verified) == (2, 0, False)
    assert told.holder is not None
    assert told.holder.endswith(" on elsewhere since 2020-01-01T00:00:00+00:00 (cannot be verified from here)")
    assert " here), last sign of training " in status_text.render(told)


def test_a_lock_of_which_nothing_is_written_yet(mine: Path) -> None:
    with locks.hold_study(mine, COMMAND):
        (mine / locks.LOCK).write_text("")
        told = status.look(mine)
    assert (told.holder, told.running, told.rate) == ("another command", 2, None)
    (mine / locks.LOCK).write_text("{")
    assert status.look(mine).holder is None


def test_a_system_that_does_not_list_its_locks(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "KERNEL_LOCKS", mine / "none")
    with held(mine):
        pass
    found = locks.holder_of(mine)
    assert found is not None
    assert found.text.endswith(" (cannot be verified from here)")


def test_what_is_held_by_another_command_is_not_trained(mine: Path, tmp_path: Path) -> None:
    ids = sorted(tables.statuses(mine))
    with held(mine, since="2100-01-01T00:00:00+00:00"):  # a compaction writes no record
        assert (status.look(mine).running, status.look(mine).interrupted) == (0, 2)
    with held(mine, since="2020-01-01T00:00:00+00:00"):
        assert (status.look(mine).running, status.look(mine).interrupted) == (2, 0)
        record(task_of([tiny(tmp_path, seed=s) for s in range(2)]), ids[:1])
        told = status.look(mine)
        assert (told.running_at[0].run_id, told.saved_at[0].run_id) == (ids[0], ids[1])
        assert "no process" not in status_text.render(told)
    with held(mine, shared=True, since="2020-01-01T00:00:00+00:00"):  # single runs, each of which writes a record
        assert (status.look(mine).running, status.look(mine).interrupted) == (2, 0)


# ---- how far, how fast --------------------------------------------------------------------------------


def test_what_is_read_of_checkpoints_is_what_is_written(stopped: Path) -> None:
    for run_id in tables.statuses(stopped):
        written = (stopped / checkpoints.FOLDER / run_id).stat().st_mtime
        assert checkpoints.head_of(stopped, run_id) == (5, written)


@pytest.mark.parametrize("length", [0, 10, 30, 36, 60, 300])
def test_half_a_checkpoint_tells_nothing(mine: Path, length: int) -> None:
    for run_id in tables.statuses(mine):
        os.truncate(mine / checkpoints.FOLDER / run_id, length)
    assert status.look(mine).steps_done == 0


def test_runs_are_grouped_by_step_and_the_most_advanced_come_first() -> None:
    steps = {f"r{i:02d}": 7 if i < 3 else i for i in range(14)}
    groups = status.groups_of(steps, dict.fromkeys(steps, 100), steps)
    assert groups[0] == Group("r13", 1, 13, 100)
    assert groups[6] == Group("r00", 4, 7, 100)
    assert len(groups) == 11
    assert list(status_text._groups(groups))[6:] == [
        "  step 7 of 100: r00 and 3 more", "  step 6 of 100: r06", "  step 5 of 100: r05", "  step 4 of 100: r04",
        "  and 1 more",
    ]  # fmt: skip


# ---- heartbeats ---------------------------------------------------------------------------------------


def put_heartbeat(study: Path, name: str, began: float, now: float, steps: dict[str, list[int]]) -> None:
    (study / "state" / f"{name}{heartbeat.SUFFIX}").write_text(json.dumps([began, now, now + 60, steps]))


def test_a_worker_reports_its_steps_until_its_batch_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes after the first step and with each message: per run, the step at which it began and the next step."""
    monkeypatch.setattr(recording, "MESSAGE_SECONDS", 0.0)
    configs = [tiny(tmp_path, seed=s) for s in range(2)]
    list(workers.train_halving(task_of(configs[:1]), after(3)))
    task, seen = task_of(configs), list[list[tuple[int, int]]]()
    for _ in workers.train_halving(task, never):
        seen += [[beat.steps[i] for i in task.run_ids] for beat in heartbeat.read_all(task.study_dir)]
    assert seen[0] == [(3, 3), (0, 1)]
    assert [(3, 12), (0, 12)] in seen
    assert seen == sorted(seen)
    assert [path.name for path in (task.study_dir / "state").iterdir() if "." in path.name] == []


def test_a_heartbeat_expires_later_where_steps_take_long(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for interval, lifetime in ((1.0, 60.0), (100.0, 400.0)):
        heartbeat.write(tmp_path, 0.0, time.time() - interval, {})
        (found,) = heartbeat.read_all(tmp_path)
        assert found.expires - found.now == pytest.approx(lifetime, abs=1)


def test_a_crash_leaves_no_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "save", lambda *_: 1 / 0)
    task = task_of([tiny(tmp_path)], seconds=0.0)
    list(workers.train_halving(task, never))
    assert set(tables.statuses(task.study_dir).values()) == {"failed"}
    assert heartbeat.read_all(task.study_dir) == []


def test_training_continues_where_no_heartbeat_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of([tiny(tmp_path)])
    monkeypatch.setattr(heartbeat, "_path", lambda study: study / "nowhere" / "a.heartbeat")
    list(workers.train_halving(task, never))
    assert set(tables.statuses(task.study_dir).values()) == {"done"}


def test_a_sweep_removes_the_heartbeats_of_killed_processes(mine: Path) -> None:
    put_heartbeat(mine, "elsewhere-1", 0.0, time.time(), {"r": [0, 5]})
    files.remove_parts(mine)
    assert heartbeat.read_all(mine) == []


def test_the_rate_of_all_processes() -> None:
    """The mean rate times the number of processes, including one that has just begun."""
    one = heartbeat.Heartbeat(1000.0, 1010.0, 1070.0, {"a": (0, 30), "b": (50, 80)})
    other = heartbeat.Heartbeat(1000.0, 1020.0, 1080.0, {"c": (0, 30)})
    begun = heartbeat.Heartbeat(1000.0, 1000.0, 1060.0, {"d": (7, 7)})
    assert heartbeat.rate_of([one]) == 6.0
    assert heartbeat.rate_of([one, other]) == 2 * 90 / 30
    assert heartbeat.rate_of([one, other, begun]) == 3 * 90 / 30
    assert heartbeat.rate_of([begun]) is None
    assert heartbeat.rate_of([]) is None


def test_status_reads_heartbeats_of_runs_that_are_trained(mine: Path, tmp_path: Path) -> None:
    """The newest heartbeat of a run counts, unless it has expired; none counts while no process trains."""
    now = time.time()
    first, second = sorted(tables.statuses(mine))
    put_heartbeat(mine, "killed-1", now - 30, now - 20, {first: [0, 11]})
    put_heartbeat(mine, "here-2", now - 4, now, {first: [5, 7], second: [5, 7]})
    put_heartbeat(mine, "long-ago-3", 0.0, now - 100, {second: [0, 12]})
    for name, text in (("a", ""), ("b", "[1]"), ("c", "[1, 2, 3, 4]"), ("d", '[1, 2, 3, {"r": 5}]')):
        (mine / "state" / f"{name}{heartbeat.SUFFIX}").write_text(text)
    assert [group.step for group in status.look(mine).saved_at] == [5]
    assert (status.look(mine).rate, status.look(mine).left) == (None, None)
    (mine / "state" / f"killed-1{heartbeat.SUFFIX}").unlink()
    with held(mine, since="2020-01-01T00:00:00+00:00"):
        told = status.look(mine)
        assert told.running_at == (Group(first, 2, 7, N),)
        assert told.rate == pytest.approx(1.0, rel=1e-3)
        assert told.left == pytest.approx(10.0, rel=1e-3)
        assert told.silent is not None
        assert told.silent < 60
        assert (
            status_text.render(told).splitlines()[1] == "run-steps: 14 of 24, 58 %, about 1 per second, about 10 s left"
        )
        record(task_of([tiny(tmp_path, seed=s) for s in range(3)]))  # one more run to train
        assert status.look(mine).left == pytest.approx(22.0, rel=1e-3)
        for path in (mine / "state").glob(f"*{heartbeat.SUFFIX}"):
            path.unlink()
        assert (status.look(mine).rate, status.look(mine).left) == (None, None)
    told = replace(told, rate=1234.5, left=750.0)
    assert status_text.render(told).splitlines()[1].endswith("58 %, about 1,234 per second, about 12:30 left")


# ---- early warning ------------------------------------------------------------------------------------


@pytest.fixture
def warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of 500 steps, of which 250 are on disk: three whose gradients vanish, one of them still in its warmup.

    One more run has even gradients.
    """
    monkeypatch.setattr(likely_stuck, "rule", lambda: likely_stuck.Rule(24, 0.1, 44, 36))
    for seed, warmup in ((0, 0), (1, 100), (2, 300)):
        write_handmade_run(tmp_path / "handmade", of(tmp_path, seed, warmup_steps=warmup), "running")
    write_handmade_run(tmp_path / "handmade", of(tmp_path, 3), "learned", columns={"status": "running"})
    return tmp_path / "handmade"


def of(root: Path, seed: int, **keys: int) -> RunConfig:
    return handmade_config(root, n_layers=6, n_steps=500, seed=seed, **keys)


def test_running_runs_that_look_stuck_are_counted_and_read_once(warned: Path) -> None:
    assert status.look(warned).likely_stuck == 0  # no process trains them
    said = "  2 likely stuck (of those that looked so at step 24 or after their warmup, 36 of 44 were)"
    with held(warned, since="2020-01-01T00:00:00+00:00"):
        looker = status.Looker(warned)
        told = looker.look()
        assert (told.running, told.likely_stuck) == (4, 2)
        assert status_text.render(told).splitlines()[-1] == said
        assert "likely" not in status_text.render(replace(told, likely_stuck=0))
        for path in (warned / "tables" / "modules").glob("*-s[013]-*"):
            path.write_bytes(b"cannot be read")
        assert looker.look().likely_stuck == 2
        assert status.look(warned).likely_stuck == 0  # `normstudy check` names the damage


@pytest.mark.parametrize(("warmup", "window"), [(0, 0), (300, 1)])
def test_of_a_run_without_the_step_on_disk_nothing_is_said(
    warned: Path, tmp_path: Path, warmup: int, window: int
) -> None:
    config = of(tmp_path, 5, warmup_steps=warmup)
    run_id = write_handmade_run(warned, config, "stuck", columns={"status": "running"})
    path = warned / "tables" / "modules" / f"{run_id}-{window:03d}.parquet"
    kept = path.read_bytes()
    path.unlink()
    with held(warned, since="2020-01-01T00:00:00+00:00"):
        looker = status.Looker(warned)
        assert looker.look().likely_stuck == 2
        path.write_bytes(kept)
        assert looker.look().likely_stuck == 3


def test_a_run_is_judged_at_its_first_probed_step_after_its_warmup(warned: Path) -> None:
    run = Expected("r", "running", 500, 6, 25, 50, None)
    steps = {0: 24, 24: 24, 25: 50, 50: 50, 201: 250, 480: 499, 500: None}
    assert {warmup: likely_stuck.step_of(run, warmup) for warmup in steps} == steps
    (name,) = (run_id for run_id in tables.statuses(warned) if "-s0-" in run_id)
    for warmup, n in ((0, 1), (500, 0)):
        values = (name, *run[1:7], warmup)
        assert likely_stuck.LikelyStuck(warned).count([values]) == n


def test_the_bar_counts_runs_that_look_stuck_until_they_end(warned: Path, tmp_path: Path) -> None:
    write_handmade_run(warned, of(tmp_path, 4))
    configs = [of(tmp_path, 0), of(tmp_path, 1, warmup_steps=100), of(tmp_path, 4)]
    ids = [next(i for i in tables.statuses(warned) if f"-s{c.seed}-" in i) for c in configs]
    postfix = progress.Postfix([Task(0, warned, ids, configs, SHA256, "cpu", None)])
    assert postfix.read() == "2 likely stuck"
    postfix.add(Message(0, ended=(ids[2],), failed=(ids[0],)))
    assert postfix.read() == "1 learned, 1 likely stuck"
    postfix.add(Message(0, failed=(ids[1],)))
    assert postfix.read() == "1 learned"


# ---- repeated reads -----------------------------------------------------------------------------------


def test_of_a_finished_run_nothing_is_read_twice(finished: Path, tmp_path: Path) -> None:
    study = Path(shutil.copytree(finished, tmp_path / "tiny"))
    later = train([tiny(tmp_path / "later", seed=5)])
    looker = status.Looker(study)
    before = looker.look()
    for path in [*(study / "tables" / "runs").glob("*-s*"), *(study / "tables" / "steps").glob("*-s*")]:
        path.write_bytes(b"cannot be read")
    shutil.copytree(later, study, dirs_exist_ok=True)
    told = looker.look()
    assert (told.planned, told.finished, sum(told.outcomes.values())) == (4, 4, 4)
    assert told.outcomes["diverged"] == before.outcomes["diverged"]


def test_runs_that_are_compacted_between_two_looks(tmp_path: Path) -> None:
    study = train([tiny(tmp_path)])
    looker = status.Looker(study)
    assert looker.look().finished == 1
    for seed in (1, 2):
        train([tiny(tmp_path, seed=seed)])
        compact_study(study)
        told = looker.look()
        assert (told.finished, told.planned, sum(told.outcomes.values())) == (seed + 1, seed + 1, seed + 1)


def test_looking_while_tables_are_swapped(finished: Path, tmp_path: Path) -> None:
    study = Path(shutil.copytree(finished, tmp_path / "tiny"))
    expected = replace(status.look(study), holder=None, verified=False, silent=None)
    through = threading.Event()

    def compact() -> None:
        for _ in range(15):
            compact_study(study)
        through.set()

    thread = threading.Thread(target=compact)
    thread.start()
    looks = 0
    while not through.is_set() or not looks:
        assert replace(status.look(study), holder=None, verified=False, silent=None) == expected
        looks += 1
    thread.join()


def test_tables_that_are_away_for_a_moment_are_waited_for(mine: Path) -> None:
    os.rename(mine / "tables", mine / files.OLD_TABLES)
    back = threading.Timer(0.3, os.rename, (mine / files.OLD_TABLES, mine / "tables"))
    back.start()
    assert status.look(mine).planned == 2
    back.join()


def test_a_file_that_cannot_be_read_is_one_line(mine: Path) -> None:
    first = sorted((mine / "tables" / "runs").glob("*-s*"))[0]
    first.write_bytes(b"nothing")
    with pytest.raises(ConfigError) as error:
        status.look(mine)
    assert str(error.value).startswith(f"{first} cannot be read (")
    assert str(error.value).endswith(f"run normstudy check {mine}")
    assert "\n" not in str(error.value)


# ---- the command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["results"], ["is not a study", "tables/runs"]),
        (["nowhere"], ["nowhere", "no such folder"]),
        ([], ["STUDY", "normstudy status --help"]),
        (["tiny", "--every", "3"], ["--every 3", "--watch"]),
        (["tiny", "--watch", "--every", "0"], ["--every 0", "0.1"]),
        (["tiny", "--watch", "--every", "nan"], ["--every nan", "0.1"]),
        (["tiny", "--seal"], ["--seal"]),
        (["swapping"], ["swapping has an interrupted compaction", "normstudy compact swapping"]),
    ],
)
def test_bad_requests(
    words: list[str], told: list[str], stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "tiny").symlink_to(stopped)
    (tmp_path / "swapping" / files.OLD_TABLES).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(status, "WAIT", 0.01)
    assert main.main(["status", *words]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert [word for word in told if word not in err] == []


def test_it_does_without_torch() -> None:
    code = "import sys; from normstudy.upkeep import status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_watching_a_finished_study_ends_at_once(finished: Path, capfd: Capture) -> None:
    assert main.main(["status", str(finished), "--watch"]) == 0
    assert capfd.readouterr().out == status_text.render(status.look(finished)) + "\n"


def test_a_terminal_is_redrawn_in_place_until_ctrl_c(stopped: Path) -> None:
    ours, theirs = pty.openpty()
    words = [*CLI, "status", str(stopped), "--watch", "--every", "0.1"]
    size = {**os.environ, "COLUMNS": "50", "LINES": "5"}
    watching = subprocess.Popen(words, stdout=theirs, stderr=theirs, env=size, start_new_session=True)
    os.close(theirs)
    told = b""
    try:
        while told.count(b"\x1b[J") < 3:
            assert select.select([ours], [], [], 20)[0], told
            told += os.read(ours, 10_000)
            assert told.count(b"run-steps") < 10, told
        os.killpg(watching.pid, signal.SIGINT)
        assert watching.wait(timeout=20) == 130
    finally:
        watching.kill()
    with contextlib.suppress(OSError):  # the other end of the terminal is closed
        while more := os.read(ours, 10_000):
            told += more
    os.close(ours)
    frames = told.decode().replace("\r\n", "\n").split("\x1b[4A\r\x1b[J")
    assert len(frames) >= 4
    lines = [line[:49] for line in status_text.render(status.look(stopped)).splitlines()[:4]]
    assert set(frames) == {"\n".join(lines) + "\n"}


# ---- a sweep of its own process -----------------------------------------------------------------------

LIVE_STEPS = 240
LIVE = [
    *SWEEP, "seed=range(0,2)", f"schedule.n_steps={LIVE_STEPS}", "execution.workers=1", "execution.runs_per_batch=1",
    "execution.checkpoint_seconds=0.05",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Live:
    """The status of a sweep, read repeatedly until Ctrl-C, and once after it."""

    cwd: Path
    looks: list[status_text.Status]
    code: int
    error: str
    after: status_text.Status


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    cwd = tmp_path_factory.mktemp("live")
    study = cwd / "results" / "long"
    running = start(LIVE, cwd)
    wait_for(lambda: list((study / "sweeps").glob("*.parquet")))
    looker, looks = status.Looker(study), list[status_text.Status]()
    while not looks or looks[-1].steps_done < 20:
        assert running.poll() is None
        time.sleep(0.05)
        looks.append(looker.look())
    os.killpg(running.pid, signal.SIGINT)
    _, error = running.communicate(timeout=20)
    return Live(cwd, looks, running.returncode, error, looker.look())


@pytest.mark.processes
def test_while_a_sweep_trains_no_number_goes_back(live: Live) -> None:
    for one, other in zip(live.looks, live.looks[1:], strict=False):
        assert one.steps_done <= other.steps_done
        assert one.not_begun >= other.not_begun
        assert one.finished <= other.finished
    for told in live.looks:
        assert (told.planned, told.steps_planned, told.interrupted, told.failed) == (2, 2 * LIVE_STEPS, 0, 0)
        assert told.finished + told.running + told.not_begun == 2
        assert "`normstudy sweep data=synthetic" in str(told.holder)
        assert told.verified
        assert not told.over
    last = live.looks[-1]
    assert sum(place.runs * place.step for place in last.running_at) == last.steps_done - LIVE_STEPS * last.finished
    assert last.rate is not None
    assert last.rate > 0
    assert last.left is None or last.left > 0


def test_after_ctrl_c_it_says_where_every_run_resumes(live: Live) -> None:
    assert live.code == 130
    assert "rerun the same command to resume the other runs" in live.error
    told, before = live.after, live.looks[-1]
    assert (told.running, told.holder, told.rate, told.left) == (0, None, None, None)
    assert told.interrupted == 2 - told.not_begun - told.finished > 0
    assert told.steps_done >= before.steps_done
    assert sum(place.runs * place.step for place in told.saved_at) == told.steps_done - LIVE_STEPS * told.finished
    assert f"resume: normstudy {LIVE[0]} {LIVE[1]}" in status_text.render(told)


@pytest.mark.processes
def test_watching_in_a_pipe_ends_with_the_sweep(live: Live) -> None:
    running = start(LIVE, live.cwd)
    watching = start(["status", "results/long", "--watch", "--every", "0.4"], live.cwd)
    out, err = watching.communicate(timeout=60)
    running.communicate(timeout=60)
    assert (watching.returncode, err) == (0, "")
    assert {c for c in out if not c.isprintable()} == {"\n"}
    blocks = out.removesuffix("\n").split("\n\n")
    assert len(blocks) > 2
    steps = 2 * LIVE_STEPS
    assert blocks[-1].startswith(
        f"results/long: 2 runs, all 2 finished\nrun-steps: {steps} of {steps}, 100 %\noutcomes: "
    )
    assert any("held by `normstudy sweep" in block for block in blocks)
    done = [int(block.splitlines()[1].split()[1].replace(",", "")) for block in blocks]
    assert done == sorted(done)

"""A run that crashes fails alone, keeps its traceback, is tried again, and is given up after max_tries tries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from processes import SWEEP, finish
from studies import REQUEST, after, never, reproduced_runs, series_bytes, task_of, tiny

from normstudy.config import RunConfig
from normstudy.study import records, tables
from normstudy.sweep import execute, planning, run
from normstudy.training.step import Inputs, Measured, StackedRuns, step_
from normstudy.workers import worker

BAD = 2


def four(root: Path) -> list[RunConfig]:
    return [tiny(root, seed=s, peak_lr=0.5 if s == BAD else 1e-3) for s in range(4)]


def crash_when(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """After `step` steps, a step of a batch that holds the bad run raises, as a user's block may."""
    seen = {"steps": 0}

    def crashes(runs: StackedRuns, inputs: Inputs, **how: bool) -> Measured:
        if 0.5 in inputs.lr:
            seen["steps"] += 1
            if seen["steps"] > step:
                raise ValueError("bad luck\nin two lines")
        return step_(runs, inputs, **how)

    monkeypatch.setattr("normstudy.training.step.step_", crashes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    list(worker.train_halving(task_of(four(root)), never))
    return root / "tiny"


@pytest.mark.parametrize("step", [0, 7])
def test_an_error_in_one_run_stops_no_other(
    undisturbed: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the bad run fails. The other runs of its batch get the same bits as in an undisturbed batch."""
    crash_when(monkeypatch, step)
    messages = list(worker.train_halving(task_of(four(tmp_path), seconds=0.0), never))
    study = tmp_path / "tiny"
    statuses = tables.statuses(study)
    (failed,) = (run_id for run_id, status in statuses.items() if status == "failed")
    assert list(statuses.values()).count("done") == 3
    assert [(m.failed, m.error) for m in messages if m.failed] == [((failed,), "ValueError: bad luck")]
    assert sum(m.run_steps for m in messages) == 4 * 12  # the failed run counts as complete in the progress bar
    log = study / records.LOGS / f"{failed}-1.txt"
    assert log.read_text().startswith("Traceback")
    assert "bad luck\nin two lines" in log.read_text()
    theirs = {name: data for name, data in series_bytes(undisturbed).items() if failed not in name}
    assert {name: data for name, data in series_bytes(study).items() if failed not in name} == theirs
    runs = [reproduced_runs(s).set_index("run_id").drop(failed) for s in (undisturbed, study)]
    assert runs[0].equals(runs[1])


def test_a_crashed_run_resumes_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, peak_lr=0.5)
    list(worker.train_halving(task_of([config]), after(4)))
    with monkeypatch.context() as patch:
        crash_when(patch, 2)
        messages = list(worker.train_halving(task_of([config]), never))
    assert [m.resumed for m in messages if m.resumed] == [4, -4]  # its steps are subtracted again
    assert list(tables.statuses(tmp_path / "tiny").values()) == ["failed"]
    messages = list(worker.train_halving(task_of([config]), never))
    assert sum(m.resumed for m in messages) == 4
    assert list(tables.statuses(tmp_path / "tiny").values()) == ["done"]


def test_a_stop_between_two_halves_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_when(monkeypatch, 0)
    messages = list(worker.train_halving(task_of(four(tmp_path)), after(2)))
    assert messages[-1].stopped
    assert "done" not in tables.statuses(tmp_path / "tiny").values()


def test_a_report_never_takes_a_finished_run_back(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    task = task_of([config])
    list(worker.train_halving(task, never))
    records.record_failure(tmp_path / "tiny", task.run_ids[0], config, "too late")
    assert list(tables.statuses(tmp_path / "tiny").values()) == ["done"]


# ---- with real workers ----------------------------------------------------------------------------------


def asked(config: RunConfig, **execution: object) -> Sequence[RunConfig]:
    return [replace(config, execution=replace(config.execution, **execution))]  # type: ignore[arg-type]


def test_a_run_is_tried_so_often_and_then_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The worker reads another text than the plan did. Once the text is restored, the same sweep succeeds."""
    text, words = tmp_path / "text.txt", ["dog", "cat"]
    good, bad = (f"the quick brown fox jumps over the lazy {word}. " * 500 for word in words)

    def write(content: str) -> None:
        text.write_text(content)
        os.utime(text, ns=(1, 1))  # with the same time and size, only the worker reads it again

    config = tiny(tmp_path, data="file", path=str(text))
    write(good)
    run_id = planning.plan([config]).ids[0]
    write(bad)
    for n in (1, 2, 3):
        with pytest.raises(execute.RunsFailed, match=r"1 of 1 runs failed \(RuntimeError: the training text changed"):
            execute.execute(planning.plan([config]), REQUEST)
        assert records.tries_of(tmp_path / "tiny") == {run_id: n}
    write(good)
    planned = planning.plan([config])
    assert (planned.given_up, planned.batches) == ([run_id], [])
    with pytest.raises(execute.RunsFailed, match=r"1 of 1 runs failed before and were left out.*max_tries=N"):
        run.run_sweep([config], request=REQUEST)
    assert "1 runs failed before and are left out" in capfd.readouterr().out
    assert planning.plan(asked(config, retry_failed=False, max_tries=9)).given_up == [run_id]
    execute.execute(planning.plan(asked(config, max_tries=4)), REQUEST)
    assert list(tables.statuses(tmp_path / "tiny").values()) == ["done"]
    assert not (tmp_path / "tiny" / "state").exists()


DEADLY = """
import ctypes, sys

def block(x, attn, mlp, norm1, norm2):
    if sys.argv[0] == "-c":  # in a worker, not in the planner, which tries the block once
        ctypes.string_at(0)
    x = x + attn(norm1(x))
    return x + mlp(norm2(x))
"""


@pytest.mark.faults
def test_a_run_whose_process_always_dies_is_failed_after_its_tries(tmp_path: Path) -> None:
    """Every process segfaults: the batch is split, and each single run is tried max_tries times."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    words = [*SWEEP, "model.placement=deadly:block", "seed=0,1", "schedule.n_steps=5", "execution.workers=1"]
    done = finish([*words, "execution.max_tries=2"], tmp_path)
    assert done.returncode == 1, done.stderr
    assert "resuming its 2 runs in two batches" in done.stderr
    assert done.stderr.count("trying the run again") == 2
    assert "2 of 2 runs failed (the worker process was killed by signal 11)" in done.stderr.splitlines()[-1]
    study = tmp_path / "results" / "long"
    assert sorted(records.tries_of(study).values()) == [2, 2]
    assert set(tables.statuses(study).values()) == {"failed"}

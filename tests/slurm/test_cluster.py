"""Jobs without a Slurm: bad options, the division of tasks among jobs, and the messages where Slurm does not answer."""

from __future__ import annotations

import dataclasses
import datetime
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from studies import REQUEST, after, never, task_of, tiny

from normstudy.cli import main
from normstudy.config import ConfigError, ExecutionConfig, RunConfig
from normstudy.config import execution as options
from normstudy.slurm import arrays, ask, submit
from normstudy.slurm.share import Share
from normstudy.study import locks, records, schema, tables
from normstudy.sweep import on_slurm as jobs
from normstudy.sweep import planning, run
from normstudy.upkeep import status, status_text
from normstudy.upkeep.compact import compact_study
from normstudy.workers import worker as workers
from normstudy.workers.signals import WARNING, Stop

SINCE = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a Slurm that this machine may have."""
    monkeypatch.setenv("PATH", "/nowhere")
    ask.cluster.cache_clear()  # a test with a fake Slurm may have been asked before


# ---- options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cluster": "local", "partition": "debug"}, "execution.partition debug applies only .*add execution=slurm"),
        ({"cluster": "local", "sbatch": {"qos": "low"}}, "execution.sbatch .*add execution=slurm"),
        ({"cluster": "pbs"}, "execution.cluster 'pbs' is not one of local, slurm"),
        ({"jobs": 0}, "execution.jobs 0 .*at least 1"),
        ({"requeues": -1}, "execution.requeues -1 .*at least 0"),
        ({"gpus": 2}, "execution.gpus 2 .*set it to 0 or 1"),
        ({"memory_gb": -1.0}, r"execution.memory_gb -1.0 .*above 0"),
        ({"minutes": 2}, "execution.signal_seconds 120 is not shorter than .*execution.minutes 2 .120 s"),
        ({"minutes": 9999, "signal_seconds": 65536}, "exceeds 65535"),
        ({"device": "cuda"}, "execution.gpus is 0: add execution.gpus=1"),
        ({"device": "cpu", "gpus": 1}, "leaves the GPU of execution.gpus=1 idle"),
        ({"partition": "-p"}, "execution.partition '-p'"),
        ({"account": "a\nb"}, r"execution.account 'a\\nb'"),
        ({"partition": ""}, "execution.partition ''"),
        ({"sbatch": {"qos": "a'b"}}, "execution.sbatch qos .*no quotes"),
        ({"sbatch": {"qos": {"a": "b"}}}, "execution.sbatch qos .*is not allowed"),
        ({"sbatch": {"-J": "x"}}, "'-J' is not the long name of an option of sbatch: write"),
        ({"sbatch": {"mem\n#SBATCH --x": "1"}}, "is not the long name of an option"),
        ({"sbatch": {"time": "1"}}, "execution.sbatch time cannot be set here: set execution.minutes instead"),
        ({"sbatch": {"wrap": "rm"}}, "execution.sbatch wrap is reserved for normstudy"),
    ],
)
def test_what_no_job_can_be_is_one_line(asked: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        ExecutionConfig(**{"cluster": "slurm", **asked})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_what_is_asked_of_sbatch() -> None:
    assert options.of_sbatch(ExecutionConfig(cluster="slurm")) == {
        "time": "60", "nodes": "1", "cpus-per-task": "1", "signal": "USR2@120", "requeue": "true",
    }  # fmt: skip
    many = ExecutionConfig(
        cluster="slurm", workers=3, partition="a,b", account="me", gpus=1, memory_gb=1.5, minutes=30,
        signal_seconds=60, sbatch={"qos": "low", "exclusive": "True"},
    )  # fmt: skip
    assert options.of_sbatch(many) == {
        "partition": "a,b", "account": "me", "time": "30", "nodes": "1", "cpus-per-task": "3", "mem": "1536M",
        "gpus-per-node": "1", "signal": "USR2@60", "requeue": "true", "qos": "low", "exclusive": "true",
    }  # fmt: skip


def on_slurm(config: RunConfig, **execution: object) -> RunConfig:
    return dataclasses.replace(config, execution=ExecutionConfig(cluster="slurm", **execution))  # type: ignore[arg-type]


def test_runs_are_grouped_for_the_workers_of_all_jobs(tmp_path: Path) -> None:
    configs = [on_slurm(tiny(tmp_path, seed=s), jobs=3, workers=2) for s in range(12)]
    planned = planning.plan(configs)
    assert (planned.device, planned.workers, len(planned.batches)) == ("cpu", 6, 6)
    gpu = [on_slurm(tiny(tmp_path, seed=s), jobs=2, gpus=1) for s in range(12)]
    planned = planning.plan(gpu)
    assert (planned.device, planned.workers, len(planned.batches)) == ("cuda", 2, 2)
    wide = {"d_model": 512, "n_layers": 4, "seq_len": 64, "batch_size": 8}
    small = [on_slurm(tiny(tmp_path, seed=s, **wide), jobs=1, memory_gb=1) for s in range(12)]
    assert len(planning.plan(small).batches) > len(
        planning.plan([on_slurm(c, jobs=1, memory_gb=8) for c in small]).batches
    )
    with pytest.raises(ConfigError, match="these runs name local and slurm: choose one"):
        planning.plan([configs[0], tiny(tmp_path, seed=1)])
    assert list(tmp_path.iterdir()) == []


def test_a_block_of_ones_own_is_tried_here_whatever_the_jobs_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "block_of_jobs.py").write_text("def block(x, attn, mlp):\n    return x + attn(x) + mlp(x)\n")
    monkeypatch.chdir(tmp_path)
    planned = planning.plan([on_slurm(tiny(tmp_path, placement="block_of_jobs:block"), gpus=1)])
    assert planned.device == "cuda"


@pytest.mark.parametrize(
    ("tasks", "of_a_job", "most", "sizes"),
    [(4, 1, 9, [1, 1, 1, 1]), (5, 2, 9, [2, 2, 1]), (5, 1, 2, [3, 2]), (1, 8, 9, [1])],
)
def test_tasks_are_shared_out_in_order(tmp_path: Path, tasks: int, of_a_job: int, most: int, sizes: list[int]) -> None:
    made = [dataclasses.replace(task_of([tiny(tmp_path)]), number=n) for n in range(tasks)]
    parts = submit.shares(made, of_a_job, most)
    assert sorted((len(part) for part in parts), reverse=True) == sizes
    assert [task.number for part in parts for task in part] == list(range(tasks))


# ---- in a job -----------------------------------------------------------------------------------------


def test_a_requeued_job_leaves_out_what_is_through(tmp_path: Path) -> None:
    tasks = [task_of([tiny(tmp_path, seed=s) for s in seeds]) for seeds in ((0, 1), (2,), (3,))]
    study, ids = tasks[0].study_dir, [i for task in tasks for i in task.run_ids]
    records.record_failure(study, ids[3], tasks[2].configs[0], "before the jobs were submitted")
    share = Share(study, tasks, 1, 3, "a test", records.tries_of(study))
    assert [(t.number, t.run_ids) for t in share.left()] == [(0, ids[:2]), (1, ids[2:3]), (2, ids[3:])]
    list(workers.train_halving(tasks[0].only(ids[:1]), never))
    records.record_failure(study, ids[2], tasks[1].configs[0], "in the job")
    assert [(t.number, t.run_ids) for t in share.left()] == [(0, ids[1:2]), (1, ids[3:])]
    (study / schema.SEALED).touch()
    assert share.left() == []


def test_a_job_waits_for_the_lock_of_whoever_submits_it(tmp_path: Path) -> None:
    task = task_of([tiny(tmp_path)])
    list(workers.train_halving(task, never))
    share = Share(task.study_dir, [task], 1, 3, "a test", {})
    with locks.hold_study(task.study_dir, "a sweep"):
        job = threading.Thread(target=share)  # all is through: it takes the lock and says so
        job.start()
        job.join(1.5)  # longer than a single run waits
        assert job.is_alive()
    job.join(5)
    assert not job.is_alive()


def test_late_files_are_waited_for_where_every_job_was_well(tmp_path: Path) -> None:
    task = task_of([tiny(tmp_path)])
    assert jobs.statuses_of(task.study_dir, [task], complete=False) == {}
    late = threading.Timer(0.3, lambda: list(workers.train_halving(task, never)))
    late.start()
    assert jobs.statuses_of(task.study_dir, [task], complete=True) == {task.run_ids[0]: "done"}
    late.join()


FAKES = {"sbatch": "echo Submitted batch job 17", "scontrol": "echo ClusterName = test", "squeue": ":", "srun": ":"}


def test_a_job_that_an_older_version_submitted_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its script starts normstudy.cluster, where older versions had the code of a job; no try of a run is counted."""
    for name, line in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    task = task_of([tiny(tmp_path)])
    tables.prepare(task.study_dir)
    with locks.hold_study(task.study_dir, "a sweep"):
        submit.submit(task.study_dir, [task], on_slurm(tiny(tmp_path)).execution, "a sweep", SINCE)
    (script,) = (task.study_dir / arrays.FOLDER).glob("17_submission.sh")
    before = {path: path.read_bytes() for path in task.study_dir.rglob("*") if path.is_file()}
    (words,) = (line.split() for line in script.read_text().splitlines() if line.startswith("srun"))
    started = [word.replace(submit.ENTRY, "normstudy.cluster") for word in words[words.index(sys.executable) :]]
    assert "normstudy.cluster" in started
    done = subprocess.run(started, capture_output=True, text=True, check=False)
    line = "an older version of normstudy submitted this job: rerun the sweep's command"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")
    assert {path: path.read_bytes() for path in task.study_dir.rglob("*") if path.is_file()} == before
    assert records.tries_of(task.study_dir) == {}


def test_in_a_job_a_second_signal_ends_nothing() -> None:
    with Stop((WARNING, signal.SIGTERM), patient=True) as stop:
        signal.raise_signal(WARNING)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == WARNING


# ---- where Slurm does not answer ------------------------------------------------------------------------


@pytest.fixture
def submitted(tmp_path: Path) -> Path:
    """A study whose two runs were submitted elsewhere; one was saved after 5 of its 12 steps."""
    task = task_of([tiny(tmp_path, seed=s) for s in range(2)])
    planned = dict(zip(task.run_ids, task.configs, strict=True))
    records.record_request(task.study_dir, REQUEST, [task.run_ids], planned)
    list(workers.train_halving(task.only(task.run_ids[:1]), after(5)))
    arrays.write(
        task.study_dir, arrays.Array("normstudy-tiny-0", "a test", "login1", SINCE.isoformat(), 2, "test", "17")
    )
    return task.study_dir


def test_status_believes_the_jobs(submitted: Path) -> None:
    told = status.look(submitted)
    assert (told.running, told.interrupted, told.not_begun, told.over) == (1, 0, 1, False)
    lines = status_text.render(told).splitlines()
    where = f"Slurm array 17, submitted on login1 at {SINCE.isoformat()}"
    assert f"{where}: no answer from Slurm (the command scontrol is not found on this machine)" in lines
    assert not any(line.startswith(("no process", "interrupted")) for line in lines)


def test_neither_a_sweep_nor_cancel_goes_on_without_an_answer(
    submitted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in submitted.rglob("*") if path.is_file()}
    for config in (tiny(tmp_path), on_slurm(tiny(tmp_path))):
        with pytest.raises(
            ConfigError, match=r"scontrol is not found.*run the command on login1; .*remove .*/jobs.json"
        ):
            run.run_sweep([config], request=REQUEST)
    assert main.main(["cancel", str(submitted)]) == 2
    assert "cannot be cancelled from here: the command scontrol is not found on this machine" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in submitted.rglob("*") if path.is_file()} == before
    (submitted / arrays.RECORD).write_text("{")
    with pytest.raises(ConfigError, match="is damaged: check with squeue"):
        run.run_sweep([tiny(tmp_path)], request=REQUEST)


def test_no_seal_while_a_job_may_yet_begin_its_runs(submitted: Path, tmp_path: Path) -> None:
    run.run_one(tiny(tmp_path, seed=0), request=REQUEST)  # the other has no row yet
    with pytest.raises(ConfigError, match="scontrol is not found"):
        compact_study(submitted, seal=True)
    assert not (submitted / schema.SEALED).exists()


def test_a_single_run_beside_jobs_leaves_their_record(submitted: Path, tmp_path: Path) -> None:
    """The record stays although every run that has a row is finished."""
    list(workers.train_halving(task_of([tiny(tmp_path, seed=0)]), never))
    run.run_one(tiny(tmp_path, seed=1), request=REQUEST)
    assert set(tables.statuses(submitted).values()) == {"done"}
    assert arrays.read(submitted) is not None


def test_nothing_is_written_where_nothing_can_be_submitted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the command sbatch"):
        run.run_sweep([on_slurm(tiny(tmp_path))], request=REQUEST)
    with pytest.raises(ConfigError, match=r"--detach .*add execution=slurm"):
        run.run_sweep([tiny(tmp_path)], detach=True, request=REQUEST)
    for call in (planning.check, lambda configs: run.run_one(configs[0], request=REQUEST)):
        with pytest.raises(ConfigError, match="execution=slurm needs the command normstudy sweep"):
            call([on_slurm(tiny(tmp_path))])
    assert list(tmp_path.iterdir()) == []


def test_planning_for_jobs_imports_neither_torch_nor_submitit(tmp_path: Path) -> None:
    words = ["sweep", "execution=slurm", "execution.gpus=1", "data=synthetic", "seed=0,1", "--dry-run"]
    look = "sys.exit(str({'torch', 'submitit'} & {*sys.modules}))"
    code = f"import sys; from normstudy.cli.main import main; main({words}); {look}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"
    assert "2 batches of 1 on 2 workers (cuda)" in done.stdout


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("sbatch: error: invalid partition: x\nallocation failure: Invalid partition name", "Invalid partition name"),
        ("sbatch: error: Batch job submission failed: Invalid account\n", "Invalid account"),
        ("sbatch: unrecognized option '--foo'\nTry sbatch --help\n", "unrecognized option '--foo'"),
        ("slurm_load_jobs error: Invalid job id specified\n", "Invalid job id specified"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_reason_of_a_refusal(said: str, words: str) -> None:
    assert ask.reason_of(said) == words

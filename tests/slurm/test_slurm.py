"""Sweeps on a real Slurm of two nodes: the same bits as here, whatever happens to the jobs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import processes
import pytest
from processes import SWEEP, finish, start, workers_of
from studies import assert_same_tables
from two_nodes import NODES

from normstudy.cli import main
from normstudy.slurm import arrays
from normstudy.study import checkpoints, tables

pytestmark = pytest.mark.slurm

# Four runs of some seconds, on Slurm in two jobs.
WORDS = [
    *SWEEP, "schedule.peak_lr=1e-3,3e-3", "seed=0,1", "schedule.n_steps=900", "execution.checkpoint_seconds=0.3",
    "execution.runs_per_batch=2",
]  # fmt: skip
ON_SLURM = [*WORDS, "execution=slurm", "execution.jobs=2"]
STUDY = Path("results", "long")


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs, trained on this machine without Slurm."""
    cwd = tmp_path_factory.mktemp("here")
    done = finish([*WORDS, "execution.workers=1"], cwd)
    assert done.returncode == 0, done.stderr
    return cwd / STUDY


def wait_for(condition: Callable[[], object]) -> None:
    """Wait long and poll rarely: Slurm, the jobs and the tests share a few cores."""
    processes.wait_for(lambda: condition() or time.sleep(0.3), 200)


def call(*words: str) -> str:
    """The output of a command of Slurm."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def jobs(cwd: Path, states: str = "running") -> list[str]:
    """Slurm's names of the jobs of a study in these states: 12_0, 12_1."""
    array = arrays.read(cwd / STUDY)
    if array is None:
        return []
    return call("squeue", "-h", "-r", f"--name={array.name}", f"--states={states}", "-o", "%i").split()


def hurry(cwd: Path, hurried: set[str]) -> None:
    """Shorten the wait of requeued jobs from two minutes to six seconds. hurried: the jobs that were changed already.

    The wait must not be zero: a node refuses a job in the second in which it ended it ("Job credential revoked").
    """
    for job in jobs(cwd, "pending"):
        restarts = call("squeue", "-h", f"--jobs={job}", "--Format=RestartCnt").strip()
        if restarts != "0" and (key := f"{job}: {restarts}") not in hurried:
            call("scontrol", "update", f"job={job}", "StartTime=now+6seconds")
            hurried.add(key)


def end(running: subprocess.Popen[str], cwd: Path) -> tuple[int, str, str]:
    """Wait for a command, shorten the wait of its requeued jobs; returns its exit code, output and errors."""
    hurried: set[str] = set()
    wait_for(lambda: hurry(cwd, hurried) or running.poll() is not None)
    out, err = running.communicate(timeout=20)
    return running.returncode, out, err


def windows(cwd: Path) -> list[Path]:
    """The first windows of the runs; they exist once the runs train."""
    return list((cwd / STUDY / "tables" / "steps").glob("*-000.parquet"))


def logs(cwd: Path) -> str:
    """The logs of the jobs."""
    return "".join(path.read_text() for path in sorted((cwd / STUDY / arrays.FOLDER).glob("*_log.*")))


def n_outcomes(out: str) -> int:
    """The runs whose outcome a command has printed."""
    (line,) = re.findall(r"^outcomes: (\d.*)$", out, re.M)
    return sum(map(int, re.findall(r"\d+", line)))


def workers_in(job: str) -> list[int]:
    """The live workers of a running job."""
    number = call("squeue", "-h", "-j", job, "-o", "%A").split()[0]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SLURM_JOB_ID={number}" in (process / "environ").read_text().split("\0"):
                found += workers_of(int(process.name))
    return sorted(found)


def test_both_nodes_train_what_one_machine_trains(here: Path, tmp_path: Path) -> None:
    running = start([*ON_SLURM, "execution.workers=2"], tmp_path)
    used = set[str]()
    wait_for(lambda: used.update(call("squeue", "-h", "-o", "%N").split()) or running.poll() is not None)
    out, err = running.communicate()
    assert running.returncode == 0, err
    assert used == set(NODES)
    assert re.search(r"long: 4 runs, 0 already finished, 4 batches of 1 on 4 workers \(cpu\)", out)
    assert re.search(r"Slurm array \d+: 2 jobs submitted", out)
    assert n_outcomes(out) == 4
    assert "difference" in out  # the comparison, as here
    assert_same_tables(here, tmp_path / STUDY)
    assert not (tmp_path / STUDY / "state").exists()


def test_a_killed_job_takes_its_runs_only_and_the_same_command_goes_on(here: Path, tmp_path: Path) -> None:
    running = start(ON_SLURM, tmp_path)
    wait_for(lambda: windows(tmp_path) and jobs(tmp_path))
    call("scancel", "--full", "--signal=KILL", jobs(tmp_path)[0])
    code, out, err = end(running, tmp_path)
    assert code == 1, err
    assert re.search(r"^error: 2 of 4 runs are not finished, because their jobs .* cancelled .logs: .*same", err, re.M)
    assert n_outcomes(out) == 2
    assert not list((tmp_path / STUDY / arrays.FOLDER).glob("*.pkl"))
    assert main.main(["check", str(tmp_path / STUDY)]) == 0
    done = finish(ON_SLURM, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 runs, 2 already finished" in done.stdout
    assert_same_tables(here, tmp_path / STUDY)


@pytest.mark.slow
def test_a_search_trains_each_round_as_jobs(tmp_path: Path) -> None:
    """By hand, two minutes. A search that is interrupted while its first round trains ends as one without Slurm."""
    words = ["critical", *SWEEP[1:], "schedule.n_steps=300", "model.placement=pre,post", "search.max_runs=10"]
    for name in ("here", "jobs"):
        (tmp_path / name).mkdir()
    alone = finish(words, tmp_path / "here")
    assert alone.returncode == 0, alone.stderr
    running = start([*words, "execution=slurm", "execution.jobs=2"], tmp_path / "jobs")
    wait_for(lambda: jobs(tmp_path / "jobs"))
    os.killpg(running.pid, signal.SIGINT)
    before = running.communicate(timeout=20)[0]
    assert running.returncode == 130
    wait_for(lambda: not jobs(tmp_path / "jobs", "running,pending,completing"))
    code, out, err = end(start([*words, "execution=slurm", "execution.jobs=2"], tmp_path / "jobs"), tmp_path / "jobs")
    assert code == 0, err + logs(tmp_path / "jobs")
    first, then = (re.findall(r"Slurm array (\d+): \d+ jobs? submitted", text) for text in (before, out))
    assert len(first) == 1
    assert then  # the later rounds
    assert first[0] not in then
    assert_same_tables(tmp_path / "here" / STUDY, tmp_path / "jobs" / STUDY)


def test_a_job_goes_on_after_its_time_limit(here: Path, tmp_path: Path) -> None:
    """The workers are stopped until Slurm sends each process of the job SIGCONT and the warning."""
    running = start([*ON_SLURM, "execution.workers=2", "execution.jobs=1"], tmp_path)
    wait_for(lambda: windows(tmp_path) and jobs(tmp_path))
    (job,) = jobs(tmp_path)
    workers = workers_in(job)
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    call("scontrol", "update", f"job={job}", "TimeLimit=2")  # minutes: the warning is due 120 s before
    wait_for(lambda: jobs(tmp_path, "pending"))
    assert not re.search("a worker process|resource_tracker", logs(tmp_path))
    assert len(list((tmp_path / STUDY / checkpoints.FOLDER).iterdir())) == 4
    call("scontrol", "update", f"job={job}", "TimeLimit=30")
    code, out, err = end(running, tmp_path)
    assert code == 0, err + logs(tmp_path)
    assert re.search(r"Slurm job \d+: 1 job submitted", out)
    assert_same_tables(here, tmp_path / STUDY)


@pytest.mark.parametrize("partition", ["debug", "grace"])
def test_a_preempted_job_saves_its_runs_and_goes_on(partition: str, here: Path, tmp_path: Path) -> None:
    """Without a time of grace Slurm requeues the job. With one, a job that ends within it must requeue itself.

    Without grace Slurm kills the job half a minute after SIGTERM.
    """
    running = start([*ON_SLURM, "execution.jobs=1", f"execution.partition={partition}"], tmp_path)
    wait_for(lambda: windows(tmp_path) and jobs(tmp_path))
    call("sbatch", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: jobs(tmp_path, "pending"))
    assert len(list((tmp_path / STUDY / checkpoints.FOLDER).iterdir())) > 0
    if partition == "grace":
        wait_for(lambda: "this job is preempted" in logs(tmp_path))
    else:
        assert "this job is preempted" not in logs(tmp_path)
    code, _, err = end(running, tmp_path)
    assert code == 0, err + logs(tmp_path)
    assert_same_tables(here, tmp_path / STUDY)


def test_the_runs_of_a_node_that_goes_down_go_on_elsewhere(here: Path, tmp_path: Path) -> None:
    running = start([*ON_SLURM, "execution.jobs=1"], tmp_path)
    wait_for(lambda: windows(tmp_path) and jobs(tmp_path))
    node = call("squeue", "-h", f"--jobs={jobs(tmp_path)[0]}", "-o", "%N").strip()
    call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        wait_for(lambda: "BeginTime" in call("squeue", "-h", "--states=pending", "-o", "%r"))
        code, _, err = end(running, tmp_path)
    finally:
        call("scontrol", "update", f"nodename={node}", "state=resume")
    assert code == 0, err
    assert_same_tables(here, tmp_path / STUDY)


def test_detach_status_cancel_and_the_same_command(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def said(*words: str, code: int = 0) -> str:
        assert main.main(list(words)) == code
        out, err = capfd.readouterr()
        return err if code else out

    detached = [*ON_SLURM, "--detach", "execution.sbatch={hold: true}"]
    out = said(*detached)
    assert re.search(r"Slurm array \d+: 2 jobs submitted, .*status results/long --watch .*cancel results/long", out)
    assert oct((STUDY / arrays.FOLDER).stat().st_mode & 0o777) == "0o700"
    told = said("status", str(STUDY))
    assert "4 runs, 4 not begun" in told
    assert re.search(r"^Slurm array \d+: 2 pending \(JobHeldUser\)$", told, re.M)
    assert "no process" not in told
    for words in (WORDS, detached):
        line = said(*words, code=2)
        assert re.fullmatch(
            r"error: results/long is being trained by Slurm array .*2 pending.*--watch.*cancel.*\n", line
        )
    (array,) = {one.partition("_")[0] for one in jobs(tmp_path, "pending")}
    call("scontrol", "release", array)
    wait_for(lambda: windows(tmp_path))
    told = said("status", str(STUDY))
    assert re.search(r"^Slurm array \d+: [12] running", told, re.M)
    assert not re.search("interrupted|no process", told)
    told = said("cancel", str(STUDY))
    assert re.search(r"^Slurm array \d+ is cancelled: \d of 4 runs are finished; to resume: norm", told)
    assert jobs(tmp_path, "running,pending,completing") == []
    told = said("status", str(STUDY))
    assert re.search(r"interrupted, saved at:\n  step \d", told)
    assert "Slurm" not in told
    assert "has no jobs to cancel" in said("cancel", str(STUDY), code=2)
    said(*ON_SLURM, "--detach")
    watching = finish(["status", str(STUDY), "--watch", "--every", "0.5"], tmp_path)
    assert watching.returncode == 0
    assert re.search(r"Slurm array \d+: over", watching.stdout.rpartition("\n\n")[2])
    assert "all 4 finished" in watching.stdout
    assert n_outcomes(said(*ON_SLURM)) == 4
    assert (STUDY / "figures" / "loss_curves.png").exists()
    assert_same_tables(here, tmp_path / STUDY)
    assert not (STUDY / "state").exists()


def test_ctrl_c_leaves_the_jobs_and_the_lost_id_of_an_array_is_found_by_its_name(here: Path, tmp_path: Path) -> None:
    running = start(ON_SLURM, tmp_path)
    wait_for(lambda: windows(tmp_path) and jobs(tmp_path))
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130, err
    assert re.search(r"Slurm array \d+ continues. normstudy status results/long --watch.*cancel results/long", err)
    record = tmp_path / STUDY / arrays.RECORD
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "id": None}))  # as if killed before it was written
    refused = finish(ON_SLURM, tmp_path)
    assert refused.returncode == 2
    assert f"is being trained by Slurm array {told['name']}" in refused.stderr
    wait_for(lambda: not jobs(tmp_path, "running,pending,completing"))
    last = finish(ON_SLURM, tmp_path)
    assert last.returncode == 0, last.stderr
    assert "submitted" not in last.stdout  # all were there
    assert_same_tables(here, tmp_path / STUDY)


def test_ctrl_c_while_jobs_are_submitted_comes_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the signal would also end sbatch, and what sbatch had submitted would be unknown."""
    slow, begun = tmp_path / "bin" / "sbatch", tmp_path / "begun"
    slow.parent.mkdir()
    real = shutil.which("sbatch")
    slow.write_text(f'#!/bin/sh\ncase "$*" in *--test-only*) ;; *) touch {begun}; sleep 2 ;; esac\nexec {real} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    running = start([*ON_SLURM, "execution.sbatch={hold: true}"], tmp_path)
    wait_for(begun.exists)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "2 jobs submitted" in out
    array = arrays.read(tmp_path / STUDY)
    assert array is not None
    assert array.id in {job.partition("_")[0] for job in jobs(tmp_path, "pending")}


def test_a_run_that_fails_in_a_job_is_told_as_here(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 500)
    words = [w for w in ON_SLURM if not w.startswith(("data=", "seed="))]
    words += ["data=file", f"data.path={text}", "seed=0,1", "schedule.n_steps=20", "execution.sbatch={hold: true}"]
    running = start(words, tmp_path)
    wait_for(lambda: jobs(tmp_path, "pending"))
    text.write_text("a lazy dog jumps over the quick brown fox. " * 500)
    call("scontrol", "release", jobs(tmp_path, "pending")[0].partition("_")[0])
    code, _, err = end(running, tmp_path)
    assert code == 1, err
    again = "Rerun the same command to try the failed runs again"
    assert re.search(rf"^error: 4 of 4 runs failed \(RuntimeError: the training text changed.*{again}", err, re.M)
    assert set(tables.statuses(tmp_path / STUDY).values()) == {"failed"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["execution.partition=nope"], "Invalid partition name specified"),
        (["execution.sbatch={colour: red}"], "unrecognized option '--colour=red'"),
        (["execution.workers=3"], "Requested node configuration is not available"),
    ],
)
def test_what_slurm_refuses_is_one_line(words: Sequence[str], expected: str, tmp_path: Path) -> None:
    done = finish([*ON_SLURM, *words], tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: Slurm refuses the jobs \({re.escape(expected)}\): .*\n", done.stderr)
    assert not list(tmp_path.glob("results/long/state/slurm/*.json"))
    assert arrays.read(tmp_path / STUDY) is None

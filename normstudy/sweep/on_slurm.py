"""Wait for the jobs of a sweep, show how far they are, cancel them."""

from __future__ import annotations

import contextlib
import select
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from normstudy import terminal
from normstudy.errors import ConfigError
from normstudy.slurm import arrays, ask
from normstudy.slurm.arrays import Array
from normstudy.study import files, locks, records, tables
from normstudy.study.records import Request
from normstudy.sweep.execute import RunsFailed, begin, command_of, end
from normstudy.sweep.planning import Plan
from normstudy.upkeep import status
from normstudy.workers.progress import PIPE_LINE_SECONDS, counted, duration, print_line
from normstudy.workers.signals import Interrupted, Stop, print_error
from normstudy.workers.task import Task

PAUSE_SECONDS = 2.5, 10.0  # between two looks, at first and at last
POLL_SECONDS = 1.0  # for files that come late, and jobs that are being cancelled
LATE_SECONDS = 60.0  # after which NFS looks again at what is in a folder
PATIENCE_SECONDS = 30.0  # for the study's lock: processes of the last jobs may still be about to end
CANCEL_SECONDS = 60.0  # until jobs are gone: Slurm kills them after half a minute


def told(study_dir: Path, array: Array) -> str:
    """What is submitted, and what to do about it."""
    jobs = "1 job" if array.jobs == 1 else f"{array.jobs:,} jobs"
    return f"{array}: {jobs} submitted, logs in {study_dir / arrays.FOLDER}. {told_next(study_dir)}"


def told_next(study_dir: Path) -> str:
    """What to do about jobs."""
    return (
        f"normstudy status {study_dir} --watch follows its jobs, normstudy cancel {study_dir} ends them, and the same "
        "command draws the figures once they are through"
    )


def wait(study_dir: Path, array: Array) -> ask.Counts:
    """Show how far the jobs are until none is left; returns how they ended. Raises Interrupted: the jobs go on."""
    looker, pause, asked = status.Looker(study_dir), PAUSE_SECONDS[0], ""
    seen, began = look(looker), time.monotonic()
    first, said = seen.steps_done if seen else 0, began
    total = seen.steps_planned if seen else None
    with Stop() as stop, tqdm(total=total, initial=first, unit="step", unit_scale=True, **terminal.fit()) as bar:
        while True:
            jobs = looker.jobs()
            if jobs is None or jobs.array != array:  # somebody has removed the record
                return ask.Counts(0, 0, ended=1)
            if jobs.counts is None and jobs.why != asked:
                print_line(f"Slurm cannot be asked ({jobs.why}): the jobs go on, and so does waiting for them")
            asked = jobs.why
            if jobs.counts is not None and jobs.surely_over:
                return jobs.counts
            if seen := look(looker):
                told = str(jobs.counts or "unknown")
                bar.total, bar.n = seen.steps_planned, seen.steps_done
                bar.set_postfix_str("; ".join(filter(None, [told, counted(Counter(seen.outcomes))])))
                if bar.disable and time.monotonic() - said > PIPE_LINE_SECONDS:
                    said = time.monotonic()
                    print_error(f"{line(seen, first, said - began)}; jobs: {told}")
            if select.select([stop.reader], [], [], PAUSE_SECONDS[0] if jobs.over else pause)[0]:
                print_error(f"\n{array} goes on. {told_next(study_dir)}")
                assert stop.number is not None
                raise Interrupted(stop.number)
            pause = min(PAUSE_SECONDS[1], 1.1 * pause)


def look(looker: status.Looker) -> status.Status | None:
    """How far the study is, None where that cannot be read just now."""
    try:
        return looker.look()
    except ConfigError:
        return None


def line(seen: status.Status, first: int, seconds: float) -> str:
    """`3/40 runs, 12 % of the steps, about 5:00 left`. first: steps that were there `seconds` ago."""
    told = f"{seen.finished}/{seen.planned} runs"
    if seen.steps_planned:
        told += f", {100 * seen.steps_done // seen.steps_planned} % of the steps"
        if seen.steps_done > first:
            left = seconds * (seen.steps_planned - seen.steps_done) / (seen.steps_done - first)
            told += f", about {duration(left)} left"
    return told


def statuses_of(study_dir: Path, tasks: Sequence[Task], *, complete: bool) -> dict[str, str]:
    """run_id -> status once the jobs are over.

    complete: every job says that its runs are through. A network file system may then show their last files late.
    """
    ids, end = [run_id for task in tasks for run_id in task.run_ids], time.monotonic() + LATE_SECONDS
    while True:
        statuses = tables.finished_ids(study_dir)
        if not complete or time.monotonic() > end or all(statuses.get(i) in ("done", "failed") for i in ids):
            return statuses
        time.sleep(POLL_SECONDS)


def errors_of(study_dir: Path, tasks: Sequence[Task], statuses: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """run_id -> why, of each run that crashed, and the runs that are neither finished nor failed."""
    ids = [run_id for task in tasks for run_id in task.run_ids]
    failed = [run_id for run_id in ids if statuses.get(run_id) == "failed"]
    lost = [run_id for run_id in ids if statuses.get(run_id) not in ("done", "failed")]
    return {one.run_id: one.reason for one in status.failures_of(study_dir, failed)}, lost


def told_lost(study_dir: Path, runs: int, lost: Sequence[str], errors: Mapping[str, str]) -> str:
    """The line about runs whose jobs were killed, and about those that crashed."""
    crashed = f", {len(errors)} failed (tracebacks: {study_dir / records.LOGS})" if errors else ""
    return (
        f"{len(lost)} of {runs} runs are not finished{crashed}: their jobs were killed, cancelled or broke off; logs: "
        f"{study_dir / arrays.FOLDER}. The same command goes on"
    )


def cancel(study_dir: Path) -> str:
    """End the jobs of a study, and wait until they are gone; returns what became of its runs, in a line.

    Raises ConfigError where there are none, or Slurm cannot be asked.
    """
    array = arrays.read(study_dir)
    if array is None:
        holder = locks.holder_of(study_dir)
        if holder is not None and holder.verified:
            raise ConfigError(f"{study_dir} has no jobs; it is held by {holder.text}: end that by Ctrl-C or kill -TERM")
        raise ConfigError(f"{study_dir} has no jobs to cancel: see normstudy status {study_dir}")
    end = time.monotonic() + CANCEL_SECONDS
    try:
        counts = arrays.counts(study_dir, array)
        if not counts.alive:
            raise ConfigError(f"{array} is over, nothing is left to cancel: the same command goes on")
        job_id = array.id or ask.id_of(array.name)
        assert job_id is not None
        ask.cancel(job_id, array.name)
        while (counts := arrays.counts_surely(study_dir, array)).alive and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            if counts.pending:  # one that was about to be requeued
                ask.cancel(job_id, array.name)
    except ask.Unavailable as why:
        raise ConfigError(f"{array} of {study_dir} cannot be cancelled from here: {why}") from None
    if not counts.alive:
        with (
            contextlib.suppress(ConfigError),
            locks.hold_study(study_dir, f"normstudy cancel {study_dir}", patience=5.0),
        ):
            arrays.remove(study_dir, array)
    seen = status.look(study_dir)
    gone = "is cancelled" if not counts.alive else f"is being cancelled ({counts})"
    done = f"{seen.finished} of {seen.planned} runs are finished"
    return f"{array} {gone}: {done}, the same command goes on: {array.command}"


def execute_on_slurm(planned: Plan, request: Request, *, detach: bool) -> bool:
    """The same in jobs; False where they are left to themselves. Raises RunsFailed also where jobs were killed."""
    from normstudy.slurm import submit
    from normstudy.sweep import on_slurm

    study_dir, command = planned.study_dir, command_of(request)
    over = arrays.refuse_while_alive(study_dir)
    if planned.batches:
        submit.check(planned.execution)
    with locks.hold_study(study_dir, command), Stop() as stop:
        arrays.remove(study_dir, over)
        files.remove_parts(study_dir)
        since, tasks = tables.now(), begin(planned, request)
        if stop.number is not None:
            raise Interrupted(stop.number)
        array = submit.submit(study_dir, tasks, planned.execution, command, since) if tasks else None
    ended = 0
    if array is not None:
        print(on_slurm.told(study_dir, array), flush=True)
        if stop.number is not None:
            raise Interrupted(stop.number)
        if detach:
            return False
        ended = on_slurm.wait(study_dir, array).ended
    statuses = on_slurm.statuses_of(study_dir, tasks, complete=not ended)
    with contextlib.ExitStack() as stack:
        held = None
        with contextlib.suppress(ConfigError):  # somebody else uses the study, and the next command does this
            held = stack.enter_context(locks.hold_study(study_dir, command, patience=on_slurm.PATIENCE_SECONDS))
            statuses = tables.finished_ids(study_dir)  # another command may have begun a run since
            arrays.remove(study_dir, array)
        errors, lost = on_slurm.errors_of(study_dir, tasks, statuses)
        if lost:
            raise RunsFailed(on_slurm.told_lost(study_dir, len(planned.runs), lost, errors))
        end(planned, errors, statuses, held)
    return True

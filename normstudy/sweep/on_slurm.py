"""Train a plan's missing runs in Slurm jobs: submit and follow them, find out which runs failed, or cancel the jobs."""

import contextlib
import select
import time
from collections.abc import Sequence
from pathlib import Path

from normstudy.analysis.grid import count_text
from normstudy.errors import ConfigError, bar_options, say
from normstudy.slurm import arrays, ask, submit
from normstudy.slurm.arrays import Array
from normstudy.study import locks, records, tables
from normstudy.study.records import Request
from normstudy.sweep.execute import RunsFailed, begin, end
from normstudy.sweep.planning import Plan
from normstudy.upkeep import status
from normstudy.upkeep.status_text import Status
from normstudy.workers.progress import PIPE_LINE_SECONDS, Bar, counted, line_of
from normstudy.workers.signals import Interrupted, Stop, print_error
from normstudy.workers.task import Task

POLL_SECONDS = 1.0  # seconds between two checks for ended jobs, or for files that a network file system shows late
LATE_SECONDS = 60.0  # seconds for which a network file system (NFS) may show an outdated list of a folder's files
PATIENCE_SECONDS = 30.0  # longest wait for the study's lock, which ending jobs may still hold
PAUSE_SECONDS = 2.5, 10.0  # seconds between two queries; the pause grows from the first value to the second
CANCEL_SECONDS = 60.0  # longest wait for cancelled jobs to end; Slurm kills a cancelled job after half a minute


def execute_on_slurm(planned: Plan, request: Request, *, detach: bool) -> bool:
    """Train a plan's runs in jobs; return False if `detach` leaves the jobs running. Raises RunsFailed if runs fail."""
    study_dir, command, since = planned.study_dir, str(request["command"]), tables.now()
    with begin(planned, request) as (_, stop, tasks):
        if stop.number is not None:
            raise Interrupted(stop.number)
        array = submit.submit(study_dir, tasks, planned.execution, command, since) if tasks else None
    ended = 0
    if array is not None:
        jobs = f"{count_text(array.jobs, 'job')} submitted, logs in {study_dir / arrays.FOLDER}"
        say(f"{array}: {jobs}. {_advice(study_dir)}")
        if stop.number is not None:
            raise Interrupted(stop.number)
        if detach:
            return False
        ended = wait(study_dir, array).ended
    statuses = statuses_of(study_dir, tasks, complete=not ended)
    with contextlib.ExitStack() as stack:
        held = None
        with contextlib.suppress(ConfigError):  # if another command holds the lock, the next sweep removes the record
            held = stack.enter_context(locks.hold_study(study_dir, command, patience=PATIENCE_SECONDS))
            statuses = tables.statuses(study_dir)  # read again, because another command may have changed a status
            arrays.remove(study_dir, array)
        ids = [run_id for task in tasks for run_id in task.run_ids]
        failed = [run_id for run_id in ids if statuses.get(run_id) == "failed"]
        errors = {one.run_id: one.reason for one in status.failures_of(study_dir, failed)}
        if lost := [run_id for run_id in ids if statuses.get(run_id) not in ("done", "failed")]:
            logs = study_dir / records.LOGS
            others_failed = f"; {len(errors)} other runs failed (tracebacks: {logs})" if errors else ""
            raise RunsFailed(
                f"{len(lost)} of {len(planned.runs)} runs are not finished, because their jobs crashed, or were killed "
                f"or cancelled (logs: {study_dir / arrays.FOLDER}){others_failed}. Rerun the same command to resume"
            )
        end(planned, errors, statuses, held)
    return True


def statuses_of(study_dir: Path, tasks: Sequence[Task], *, complete: bool) -> dict[str, str]:
    """Return run_id -> status after the jobs have ended.

    complete: whether every job succeeded. If so, wait for every run's result, which NFS may show late.
    """
    ids, end = [run_id for task in tasks for run_id in task.run_ids], time.monotonic() + LATE_SECONDS
    while True:
        statuses = tables.statuses(study_dir)
        if not complete or time.monotonic() > end or all(statuses.get(i) in ("done", "failed") for i in ids):
            return statuses
        time.sleep(POLL_SECONDS)


def _advice(study_dir: Path) -> str:
    return (
        f"normstudy status {study_dir} --watch follows the jobs, normstudy cancel {study_dir} ends them, and "
        "rerunning the sweep's command after the jobs have ended draws the figures"
    )


def wait(study_dir: Path, array: Array) -> ask.Counts:
    """Show progress until all jobs end; return their counts. A stop signal raises Interrupted, but ends no job."""
    looker, pause, asked = status.Looker(study_dir), PAUSE_SECONDS[0], ""
    seen, said = _status_of(looker), time.monotonic()
    first, total = (seen.steps_done, seen.steps_planned) if seen else (0, None)
    with Stop() as stop, Bar(total=total, initial=first, unit="step", unit_scale=True, **bar_options()) as bar:
        while True:
            jobs = looker.jobs()
            if jobs is None or jobs.array != array:  # another command has removed or replaced the jobs' record
                return ask.Counts(0, 0, ended=1)
            if jobs.counts is None and jobs.why != asked:
                print_error(f"Slurm does not answer ({jobs.why}); the jobs continue, and this command keeps waiting")
            asked = jobs.why
            if jobs.counts is not None and jobs.looks > 1:
                return jobs.counts
            if seen := _status_of(looker):
                state = str(jobs.counts or "unknown")
                bar.total, bar.n = seen.steps_planned, seen.steps_done
                outcomes = counted(seen.outcomes, seen.likely_stuck)
                bar.set_postfix_str("; ".join(filter(None, [state, outcomes])))
                if bar.disable and time.monotonic() - said > PIPE_LINE_SECONDS:
                    said = time.monotonic()
                    line = line_of(seen.finished, seen.planned, seen.steps_done, seen.steps_planned, seen.left)
                    print_error(f"{line}; jobs: {state}")
            if select.select([stop.reader], [], [], PAUSE_SECONDS[0] if jobs.over else pause)[0]:
                print_error(f"{array} continues. {_advice(study_dir)}")
                assert stop.number is not None
                raise Interrupted(stop.number)
            pause = min(PAUSE_SECONDS[1], 1.1 * pause)


def _status_of(looker: status.Looker) -> Status | None:
    with contextlib.suppress(ConfigError):  # the study's files cannot be read at the moment
        return looker.look()
    return None


def cancel(study_dir: Path) -> str:
    """End a study's jobs, wait for their end, and return a status line. Raises a ConfigError if no job is left."""
    array = arrays.read(study_dir)
    if array is None:
        if (holder := locks.holder_of(study_dir)) is not None and holder.verified:
            raise ConfigError(
                f"{study_dir} has no jobs; {holder.text} is using the study: end that process with Ctrl-C or kill -TERM"
            )
        raise ConfigError(f"{study_dir} has no jobs to cancel: see normstudy status {study_dir}")
    end = time.monotonic() + CANCEL_SECONDS
    try:
        counts = arrays.counts(array)
        if not counts.alive:
            raise ConfigError(f"{array} has ended, so no job is left to cancel: rerun the sweep's command to resume")
        job_id = array.id or ask.id_of(array.name)
        assert job_id is not None
        ask.cancel(job_id, array.name)
        while (counts := arrays.counts_surely(array)).alive and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            if counts.pending:  # the last ask.cancel missed a job that Slurm was requeueing
                ask.cancel(job_id, array.name)
    except ask.Unavailable as why:
        raise ConfigError(f"{array} of {study_dir} cannot be cancelled from here: {why}") from None
    if not counts.alive:
        command = f"normstudy cancel {study_dir}"
        with contextlib.suppress(ConfigError), locks.hold_study(study_dir, command, patience=5.0):
            arrays.remove(study_dir, array)
    seen = status.look(study_dir)
    state = "is cancelled" if not counts.alive else f"is being cancelled ({counts})"
    return f"{array} {state}: {seen.finished} of {seen.planned} runs are finished; to resume: {array.command}"

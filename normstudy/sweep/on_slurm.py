"""Train a plan's missing runs in Slurm jobs: submit the jobs, wait until they end, and find out which runs failed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from normstudy.errors import ConfigError, say
from normstudy.slurm import arrays, submit
from normstudy.study import files, locks, records, tables
from normstudy.study.records import Request
from normstudy.sweep import watch
from normstudy.sweep.execute import RunsFailed, begin, end
from normstudy.sweep.planning import Plan
from normstudy.upkeep import status
from normstudy.workers.signals import Interrupted, Stop
from normstudy.workers.task import Task

POLL_SECONDS = 1.0  # seconds between two checks for files that a network file system shows late
LATE_SECONDS = 60.0  # seconds for which a network file system (NFS) may show an outdated list of a folder's files
PATIENCE_SECONDS = 30.0  # longest wait for the study's lock, which jobs that are ending may still hold


def execute_on_slurm(planned: Plan, request: Request, *, detach: bool) -> bool:
    """Train a plan's runs in jobs; return False if `detach` leaves the jobs running. Raises RunsFailed if runs fail."""
    study_dir, command = planned.study_dir, str(request["command"])
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
        say(watch.submitted_line(study_dir, array))
        if stop.number is not None:
            raise Interrupted(stop.number)
        if detach:
            return False
        ended = watch.wait(study_dir, array).ended
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

    complete: whether every job succeeded. After success every run has a result, but on a network file system the files
    may become visible late. Therefore wait for these files, for at most LATE_SECONDS.
    """
    ids, end = [run_id for task in tasks for run_id in task.run_ids], time.monotonic() + LATE_SECONDS
    while True:
        statuses = tables.statuses(study_dir)
        if not complete or time.monotonic() > end or all(statuses.get(i) in ("done", "failed") for i in ids):
            return statuses
        time.sleep(POLL_SECONDS)

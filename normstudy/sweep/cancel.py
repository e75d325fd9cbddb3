"""End the Slurm jobs of a sweep, for `normstudy cancel`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from normstudy.errors import ConfigError
from normstudy.slurm import arrays, ask
from normstudy.study import locks
from normstudy.upkeep import status

POLL_SECONDS = 1.0
CANCEL_SECONDS = 60.0  # longest wait for the jobs to end; Slurm kills a cancelled job after half a minute


def cancel(study_dir: Path) -> str:
    """End a study's jobs, wait for their end, and return a status line. Raises a ConfigError if no job is left."""
    array = arrays.read(study_dir)
    if array is None:
        holder = locks.holder_of(study_dir)
        if holder is not None and holder.verified:
            raise ConfigError(
                f"{study_dir} has no jobs; {holder.text} is using it: end that process with Ctrl-C or kill -TERM"
            )
        raise ConfigError(f"{study_dir} has no jobs to cancel: see normstudy status {study_dir}")
    end = time.monotonic() + CANCEL_SECONDS
    try:
        counts = arrays.counts(study_dir, array)
        if not counts.alive:
            raise ConfigError(f"{array} has ended, so no job is left to cancel: rerun the sweep's command to resume")
        job_id = array.id or ask.id_of(array.name)
        assert job_id is not None
        ask.cancel(job_id, array.name)
        while (counts := arrays.counts_surely(study_dir, array)).alive and time.monotonic() < end:
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

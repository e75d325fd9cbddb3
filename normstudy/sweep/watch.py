"""Wait for a sweep's Slurm jobs and show their progress."""

from __future__ import annotations

import select
import time
from collections import Counter
from pathlib import Path

from normstudy.errors import ConfigError, bar_options
from normstudy.slurm import arrays, ask
from normstudy.slurm.arrays import Array
from normstudy.upkeep import status, status_text
from normstudy.workers.progress import PIPE_LINE_SECONDS, Bar, counted, line_of
from normstudy.workers.signals import Interrupted, Stop, print_error

PAUSE_SECONDS = 2.5, 10.0  # seconds between two queries; the pause grows from the first value to the second


def submitted_line(study_dir: Path, array: Array) -> str:
    """Return the line to print after jobs have been submitted."""
    jobs = "1 job" if array.jobs == 1 else f"{array.jobs:,} jobs"
    return f"{array}: {jobs} submitted, logs in {study_dir / arrays.FOLDER}. {_advice(study_dir)}"


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
            if jobs is None or jobs.array != array:  # another command has removed or replaced the record
                return ask.Counts(0, 0, ended=1)
            if jobs.counts is None and jobs.why != asked:
                print_error(f"Slurm does not answer ({jobs.why}); the jobs continue, and this command keeps waiting")
            asked = jobs.why
            if jobs.counts is not None and jobs.surely_over:
                return jobs.counts
            if seen := _status_of(looker):
                state = str(jobs.counts or "unknown")
                bar.total, bar.n = seen.steps_planned, seen.steps_done
                outcomes = counted(Counter(seen.outcomes), seen.likely_stuck)
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


def _status_of(looker: status.Looker) -> status_text.Status | None:
    """Return the study's status, or None if the study's files cannot be read at the moment."""
    try:
        return looker.look()
    except ConfigError:
        return None

"""Define the status of a study, and the text that `normstudy status` prints."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from normstudy.analysis.grid import count_text, three_digits
from normstudy.analysis.likely_stuck import text_of
from normstudy.analysis.outcomes import explained
from normstudy.config import ExecutionConfig
from normstudy.errors import printable
from normstudy.slurm import arrays, ask
from normstudy.slurm.arrays import Array
from normstudy.study import records
from normstudy.workers.progress import duration

MOST_LINES = 10  # maximum number of lines shown per list
AGAIN = "to continue a watched run, give its id: normstudy.watch(..., resume=RUN_ID)"
MOST_REASON = 200  # maximum characters shown of a traceback's last line


class Group(NamedTuple):
    """Runs that are at the same step and have the same n_steps."""

    run_id: str  # the run_id that is first in alphabetical order
    runs: int  # the number of runs
    step: int
    n_steps: int


class Failure(NamedTuple):
    """How often a failed run was tried, and why it failed."""

    run_id: str
    tries: int  # how often the run was tried
    reason: str  # the last line of the newest traceback


class Jobs(NamedTuple):
    """The Slurm jobs of a study."""

    array: Array
    counts: ask.Counts | None  # None if Slurm does not answer
    why: str = ""  # why Slurm does not answer
    looks: int = 0  # how many consecutive answers of Slurm, including the latest, said that no job is left

    @property
    def over(self) -> bool:
        """Whether Slurm's latest answer was that no job is left. The answer may be wrong (see arrays.AGAIN_SECONDS)."""
        return self.looks > 0


@dataclass(frozen=True, repr=False)
class Status:
    """A study's progress. Each planned run is counted once: as finished, running, interrupted, failed or not_begun."""

    study: str
    sealed: bool
    planned: int
    finished: int
    running: int
    interrupted: int
    failed: int
    not_begun: int
    steps_done: int
    steps_planned: int | None  # None if an older version did not record the lengths of runs that have not begun
    outcomes: dict[str, int]  # outcome -> number of finished runs
    likely_stuck: int  # number of running runs that look stuck
    running_at: tuple[Group, ...]  # steps of the running runs, most advanced first
    saved_at: tuple[Group, ...]  # steps of the interrupted runs' checkpoints, most advanced first
    failures: tuple[Failure, ...]  # at most MOST_LINES
    holder: str | None  # the command that holds the study's lock
    verified: bool  # whether this machine's kernel lists the lock; False if only the lock file names the holder
    silent: float | None  # seconds since the last sign of training
    commands: tuple[str, ...]  # commands that together train every run that no process trains, newest first
    rate: float | None  # steps per second, summed over runs; None if no process reports its progress
    left: float | None  # seconds until the training is finished; None if unknown
    jobs: Jobs | None = None  # None if the study has no Slurm jobs
    watched: bool = False  # whether normstudy.watch recorded the runs

    @property
    def over(self) -> bool:
        """Whether training has ended; False while a process of this machine holds the study's lock.

        If Slurm answers about the study's jobs, training has ended when no job is left. Otherwise it has ended when
        every planned run has finished or failed.
        """
        if self.holder and self.verified:
            return False
        if self.jobs is not None and self.jobs.counts is not None:
            return self.jobs.over
        return 0 < self.planned == self.finished + self.failed

    def __repr__(self) -> str:
        return render(self)


def render(s: Status) -> str:
    counts = {
        "finished": s.finished, "running": s.running, "interrupted": s.interrupted, "failed": s.failed,
        "not begun": s.not_begun,
    }  # fmt: skip
    text = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) or "none planned yet"
    text = f"all {s.planned:,} finished" if s.planned and s.finished == s.planned else text
    lines = [f"{s.study}: {count_text(s.planned, 'run')}, {text}{', sealed' if s.sealed else ''}"]
    if s.planned:
        of = f" of {s.steps_planned:,}, {100 * s.steps_done // s.steps_planned} %" if s.steps_planned else ""
        lines.append(f"run-steps: {s.steps_done:,}{of}")
    if s.rate:
        left = f", about {duration(s.left)} left" if s.left else ""
        lines[-1] += f", about {three_digits(s.rate, ',')} per second{left}"
    if s.outcomes:
        lines.append("outcomes: " + " ".join(f"{n:,} {outcome}" for outcome, n in s.outcomes.items()))
        lines += explained(s.outcomes)
    if s.jobs:
        array, answer = s.jobs.array, s.jobs.counts
        told = f", submitted on {array.host} at {array.since}: no answer from Slurm ({s.jobs.why})"
        if answer is not None:
            told = f": {answer}" + ("" if answer.alive else f"; logs: {s.study}/{arrays.FOLDER}")
        lines.append(f"{array}{told}")
    if s.holder:
        ago = f", last sign of training {duration(s.silent)} ago" if s.silent is not None and not s.verified else ""
        lines.append(f"held by {s.holder}{ago}")
    lines += ["running:", *_groups(s.running_at, s.watched)] if s.running else []
    lines += [f"  {text_of(s.likely_stuck)}"] if s.likely_stuck else []
    saved = "interrupted, recorded until:" if s.watched else "interrupted, saved at:"
    lines += [saved, *_groups(s.saved_at, s.watched)] if s.interrupted else []
    again = f": {'; '.join(s.commands)}" if s.commands else ""
    if not s.holder and not (s.jobs and not s.jobs.over) and s.interrupted + s.not_begun:
        how = AGAIN if s.watched else f"rerun the same command to resume{again}"
        lines.append(f"no process is training the remaining runs; {how}")
    return "\n".join(map(printable, (*lines, *_failures(s, again))))


def _groups(groups: tuple[Group, ...], watched: bool = False) -> Iterator[str]:
    for group in groups[:MOST_LINES]:
        more = f" and {group.runs - 1:,} more" if group.runs > 1 else ""
        of = "" if watched else f" of {group.n_steps:,}"  # the length of a watched run is unknown
        yield f"  step {group.step:,}{of}: {group.run_id}{more}"
    if rest := sum(group.runs for group in groups[MOST_LINES:]):
        yield f"  and {rest:,} more"


def _failures(s: Status, again: str) -> Iterator[str]:
    if not s.failures:
        return
    yield "failed:"
    for one in s.failures:
        yield f"  {one.run_id}, tried {count_text(one.tries, 'time')}: {one.reason[:MOST_REASON]}"
    if rest := s.failed - len(s.failures):
        yield f"  and {rest:,} more"
    most, limit = max(one.tries for one in s.failures), ExecutionConfig().max_tries
    more = f"; if a run has failed {limit} times, also set execution.max_tries={most + 1}" if most >= limit else ""
    logs = f"the tracebacks are in {s.study}/{records.LOGS}"
    yield f"{logs}. To retry these runs, fix the cause, then rerun the same command{again}{more}"

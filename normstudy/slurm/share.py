"""What runs in a job: a share of a sweep's batches, on workers of its own, as on any machine."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from normstudy.slurm import ask
from normstudy.study import locks, records, schema, tables
from normstudy.workers import pool, progress
from normstudy.workers.signals import SIGNALS, WARNING, Stop, print_error
from normstudy.workers.task import Task

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

PATIENCE_SECONDS = 3600.0  # for the lock: a submission holds it until it is through, a compaction for minutes


@dataclass(frozen=True)
class Share:
    """Trains tasks; submitit calls it in a job, and again each time that the job is requeued.

    Asked to end (SIGTERM), it saves its runs and ends the job with an exit code. Warned of the time limit, or asked to
    end because the job makes room for another, it saves them and has submitit put the job back into the queue. command:
    of the sweep; tried: how often a run had crashed when the job was submitted.
    """

    study_dir: Path
    tasks: list[Task]
    workers: int
    max_tries: int
    command: str
    tried: Mapping[str, int]

    def __call__(self) -> None:
        requeue = signal.getsignal(WARNING)  # submitit's own: it keeps what `checkpoint` gives, and requeues the job
        tasks: list[Task] = []
        with Stop((*SIGNALS, WARNING), patient=True) as stop:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {WARNING})  # __main__.py blocked it
            with locks.hold_study(self.study_dir, self.command, shared=True, patience=PATIENCE_SECONDS) as held:
                tasks = self.left()
                if tasks and stop.number is None:
                    self.train(tasks, held, stop)
                left = self.left()
        if not left:
            print_error("every run of this job is through")
        elif stop.number == WARNING and tasks and tasks[0].device != "cpu" and _runs(left) == _runs(tasks):
            print_error(
                "no run ended within the time of this job, and on a GPU none is saved: give more execution.minutes, or "
                "fewer execution.runs_per_batch"
            )
            sys.exit(128 + WARNING)
        elif callable(requeue) and (stop.number == WARNING or (stop.number == signal.SIGTERM and ask.is_preempted())):
            why = "the time of this job is over" if stop.number == WARNING else "this job makes room for another"
            print_error(f"{why}: the rest goes on when it comes to its turn again")
            requeue(WARNING, None)
        else:
            sys.exit(128 + (stop.number or 0))

    def checkpoint(self) -> DelayedSubmission:
        """What submitit calls when the job comes to its turn again: the same, as all that has changed is in files."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def left(self) -> list[Task]:
        """The tasks without the runs that are finished, or have crashed since: a requeued job tries none again.

        Nothing is left in a study that was sealed meanwhile.
        """
        if (self.study_dir / schema.SEALED).exists():
            return []
        statuses, tries = tables.finished_ids(self.study_dir), records.tries_of(self.study_dir)

        def is_left(run_id: str) -> bool:
            crashed = statuses.get(run_id) == "failed" and tries[run_id] > self.tried.get(run_id, 0)
            return statuses.get(run_id) != "done" and not crashed

        parts = [(task, [i for i in task.run_ids if is_left(i)]) for task in self.tasks]
        return [replace(task.only(ids), number=n) for n, (task, ids) in enumerate(p for p in parts if p[1])]

    def train(self, tasks: list[Task], held: int, stop: Stop) -> None:
        """Train tasks until they are through, or this job is to end."""
        run_steps = sum(config.schedule.n_steps for task in tasks for config in task.configs)
        messages = pool.run(tasks, self.workers, inherited=held, stop=stop, max_tries=self.max_tries)
        with contextlib.closing(messages):
            progress.follow(messages, self.study_dir, [task.run_ids for task in tasks], run_steps)


def _runs(tasks: Sequence[Task]) -> int:
    return sum(len(task.run_ids) for task in tasks)

"""Train one Slurm job's share of a sweep's batches."""

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from normstudy.slurm import ask
from normstudy.study import locks, records, schema, tables
from normstudy.workers import progress
from normstudy.workers.signals import SIGNALS, WARNING, Stop, print_error
from normstudy.workers.task import Task

PATIENCE_SECONDS = 3600.0  # longest wait for the study's lock, which a compaction may hold for minutes


@dataclass(frozen=True)
class Share:
    """The work of one job. submitit calls this object each time the job starts, including restarts after a requeue.

    On Slurm's time-limit warning, and on SIGTERM during preemption, the job saves its runs and is requeued. On any
    other SIGTERM the job saves its runs and exits with a nonzero code.
    """

    study_dir: Path
    tasks: list[Task]
    workers: int
    max_tries: int
    command: str  # the sweep's command line
    tried: Mapping[str, int]  # run_id -> number of crashes before the job was submitted

    def __call__(self) -> None:
        requeue = signal.getsignal(WARNING)  # submitit's handler stores the result of `checkpoint` and requeues the job
        with Stop((*SIGNALS, WARNING), patient=True) as stop:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {WARNING})  # __main__.py blocked this signal
            with locks.hold_study(self.study_dir, self.command, shared=True, patience=PATIENCE_SECONDS) as held:
                tasks = self.left()
                if tasks and stop.number is None:
                    progress.train(tasks, self.workers, held=held, stop=stop, max_tries=self.max_tries)
                left = self.left()
        if not left:
            print_error("every run of this job has ended")
        elif stop.number == WARNING and left == tasks and tasks[0].device != "cpu":
            print_error(
                "no run ended within the time limit of this job, and on a GPU no checkpoints are saved: increase "
                "execution.minutes or decrease execution.runs_per_batch"
            )
            sys.exit(128 + WARNING)
        elif callable(requeue) and (stop.number == WARNING or (stop.number == signal.SIGTERM and ask.is_preempted())):
            why = "this job reached its time limit" if stop.number == WARNING else "this job is preempted"
            print_error(f"{why}, so Slurm requeues the job, which then resumes its remaining runs")
            requeue(WARNING, None)
        else:
            sys.exit(128 + (stop.number or 0))

    def checkpoint(self) -> object:
        """Return what submitit stores for the requeued job: this object unchanged, because all progress is in files."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def left(self) -> list[Task]:
        """Return the tasks, each with its unfinished runs that have not crashed in this job; [] for a sealed study."""
        if (self.study_dir / schema.SEALED).exists():
            return []
        statuses, tries = tables.statuses(self.study_dir), records.tries_of(self.study_dir)
        crashed = {i for i, status in statuses.items() if status == "failed" and tries[i] > self.tried.get(i, 0)}
        ended = crashed.union(i for i, status in statuses.items() if status == "done")
        parts = [(task, [i for i in task.run_ids if i not in ended]) for task in self.tasks]
        return [replace(task.only(ids), number=n) for n, (task, ids) in enumerate(p for p in parts if p[1])]

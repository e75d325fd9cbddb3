"""Manage a pool of worker processes, each connected to this process by a pipe. This module never imports torch.

The standard library's pool loses every task when one worker is killed. This pool loses only the steps that the killed
worker's batch took since its last checkpoint, and resumes the batch in a new worker.
"""

import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait

from normstudy.errors import ConfigError, StorageError
from normstudy.processes import GROUP_SIGNALS, WORKER_ENVIRONMENT, Child, environment_with
from normstudy.study import checkpoints, records, tables
from normstudy.workers import worker
from normstudy.workers.signals import Stop
from normstudy.workers.task import Message, Task

# Tolerate so many consecutive workers that die before they begin their batch. One more counts as a crash of the batch.
FALSE_STARTS = 10


class Slot:
    """A worker process and its task. lock: the file descriptor of the study's lock, which the worker also holds."""

    def __init__(self, lock: int, *, forked: bool) -> None:
        # Blocked signals cannot end the worker before it has set its handlers. SIGUSR2 stays blocked, because
        # Slurm sends this signal to every process of a job, and only the parent reacts.
        self.process = Child(
            worker.serve, environment=environment_with(WORKER_ENVIRONMENT), keep=[lock], blocked=GROUP_SIGNALS,
            prepare=worker.prepare if forked else None,
        )  # fmt: skip
        self.pipe = self.process.pipe
        self.give(None)

    def give(self, task: Task | None) -> bool:
        """Send the worker a task, or mark it as idle if `task` is None; returns False if the worker has ended."""
        self.task = task
        self.begun = False
        self.ended: set[str] = set()
        self.taken = self.resumed = 0
        self.saved = {i: checkpoints.head_of(task.study_dir, i).step for i in task.run_ids} if task is not None else {}
        try:
            if task is not None:
                self.pipe.send(task)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True


class _Pool:
    """The workers and the waiting tasks of one call of `run`. lock: the file descriptor of the study's lock."""

    def __init__(self, tasks: Sequence[Task], workers: int, lock: int, max_tries: int) -> None:
        self.queue, self.slots = deque(tasks), list[Slot]()
        self.workers, self.lock, self.max_tries = workers, lock, max_tries
        self.forked = all(task.device == "cpu" for task in tasks)  # CUDA does not work in a forked process
        self.fatal: str | None = None
        self.false_starts = 0
        self.stopping = False

    def fill(self) -> None:
        """Send waiting tasks to idle workers. If none is idle, start new workers, but at most `self.workers` in all."""
        while self.queue:
            slot = next((slot for slot in self.slots if slot.task is None), None)
            is_new = slot is None
            if slot is None:
                if len(self.slots) >= self.workers:
                    return
                slot = Slot(self.lock, forked=self.forked)
                self.slots.append(slot)
            # If a new worker has already died, `replace` later requeues its task and counts the death.
            if slot.give(self.queue[0]) or is_new:
                self.queue.popleft()
            else:
                self.slots.remove(slot)  # this worker was killed between two batches, so no work is lost
                slot.process.close()

    def stop(self, fatal: str | None = None) -> None:
        """Send no more tasks, and ask every worker to save its runs. fatal: the error that stops the sweep, if any."""
        self.fatal = self.fatal or fatal
        if not self.stopping:
            self.stopping = True
            self.queue.clear()
            for slot in self.slots:
                slot.process.process.send_signal(signal.SIGTERM)

    def hear(self, slot: Slot) -> Iterator[Message]:
        """Yield a worker's next message and react to the message. If the worker has ended, replace the worker."""
        try:
            message: Message = slot.pipe.recv()
        except (EOFError, OSError):  # the worker has ended, perhaps while it was sending a message
            yield from self.replace(slot, kill=False)
            return
        slot.begun = True
        slot.taken += message.run_steps
        slot.resumed += message.resumed
        slot.ended.update(message.ended, message.failed)
        yield message
        if message.fatal is not None:
            self.stop(message.fatal)
        if message.over:
            slot.give(None)
        elif message.stopped and not self.stopping:  # another process asked this worker to stop
            yield from self.replace(slot, kill=True)

    def replace(self, slot: Slot, *, kill: bool) -> Iterator[Message]:
        """Drop a worker and requeue the unfinished part of its task. kill: whether to kill the worker first."""
        self.slots.remove(slot)
        slot.process.close(kill=kill)
        self.false_starts = 0 if slot.begun else self.false_starts + 1
        if 0 < self.false_starts <= FALSE_STARTS and slot.task is not None and not self.stopping:
            self.queue.appendleft(slot.task)
            return
        try:
            message, again = _after_death(slot, self.max_tries, stopping=self.stopping)
        except ConfigError as error:  # the failure cannot be recorded, or a `runs` row cannot be read
            self.stop(str(error))
            return
        self.queue.extendleft(reversed(again))
        yield message


def run(
    tasks: Sequence[Task], workers: int, *, inherited: int, stop: Stop, max_tries: int
) -> Generator[Message, None, None]:
    """Train the tasks in order on up to `workers` worker processes. Yield the workers' messages until all tasks end.

    When another process kills or stops a worker, a new worker resumes the batch from the last checkpoint. If the batch
    had begun but saved no progress, it may be too large, so its runs are trained as two batches. A batch of one run is
    retried until the run has crashed max_tries times. When this process is asked to stop, the workers save their runs.
    If results can no longer be written or read, the workers stop, and StorageError is raised.
    inherited: the file descriptor of the study's lock, which the workers also hold.
    """
    pool = _Pool(tasks, workers, inherited, max_tries)
    finished = False
    try:
        pool.fill()
        while busy := [slot for slot in pool.slots if slot.task is not None]:
            ready = wait([*(slot.pipe for slot in busy), stop.reader])
            if stop.reader in ready:
                stop.acknowledge()
                pool.stop()
            for slot in busy:
                if slot.pipe in ready:
                    yield from pool.hear(slot)
            pool.fill()
        if pool.fatal is not None:
            raise StorageError(pool.fatal)
        finished = True
    finally:
        for slot in pool.slots:  # end every worker before waiting for any, so that they end at the same time
            if not finished:
                slot.process.process.send_signal(signal.SIGKILL)
            slot.pipe.close()
        for slot in pool.slots:
            slot.process.wait()


def _after_death(slot: Slot, max_tries: int, *, stopping: bool) -> tuple[Message, list[Task]]:
    """Return the message about a worker that ended during its task, and the tasks that replace the worker's task.

    stopping: whether the worker had been asked to stop; if so, its task is dropped. Raises ConfigError on disk errors.
    """
    task, ended = slot.task, slot.process.how_it_ended()
    assert task is not None
    unended = [i for i in task.run_ids if i not in slot.ended]
    left = [i for i in unended if not tables.is_done(task.study_dir, i)]
    gone = tuple(i for i in unended if i not in left)  # the worker died before it reported that these runs had ended
    n_steps = task.configs[0].schedule.n_steps
    lost = (len(slot.ended) + len(gone)) * n_steps - slot.taken
    report = Message(task.number, lost, -slot.resumed, ended=gone)
    if not left:
        return report, []
    runs = "run" if len(left) == 1 else f"{len(left)} runs"
    if stopping:
        # Exit code 0 means that the batch had not begun. On a GPU, a run has no checkpoint from which it could resume.
        if slot.process.wait() == 0 or task.device != "cpu":
            return report, []
        do = "rerun the command to resume from the last checkpoint"
        return replace(report, notes=(f"a worker process {ended} before saving its {runs}: {do}",)), []
    saved = {i: checkpoints.head_of(task.study_dir, i).step for i in left}
    has_progressed = bool(gone or slot.ended) or any(saved[i] > slot.saved[i] for i in left)
    if len(left) > 1 or has_progressed:
        parts = [task.only(left)] if has_progressed else task.halves(left)
        in_two_batches = "" if has_progressed else " in two batches"
        note = f"a worker process {ended}: resuming its {runs}{in_two_batches}"
        return replace(report, notes=(note,)), parts
    error = f"the worker process {ended}"
    tried = records.record_failure(task.study_dir, left[0], task.only(left).configs[0], f"{error}\n")
    if tried < max_tries:
        note = f"the worker process of {left[0]} {ended}: trying the run again"
        return replace(report, notes=(note,)), [task.only(left)]
    return replace(report, run_steps=lost + n_steps, failed=(left[0],), error=error), []

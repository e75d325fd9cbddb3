"""A small pool of worker processes, each connected to this process by a pipe.

The standard library's pool loses every task when one worker is killed. This pool loses only the steps that the killed
worker's batch took since its last checkpoint, and resumes the batch in a new worker. This module never imports torch.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import wait

from normstudy.errors import ConfigError, StorageError
from normstudy.processes import WORKER_ENVIRONMENT, Child, environment_with
from normstudy.study import checkpoints, records, tables
from normstudy.workers import worker
from normstudy.workers.signals import SIGNALS, WARNING, Stop
from normstudy.workers.task import Message, Task

# How many consecutive workers may die before they begin their batch; after one more, the batch counts as the cause.
FALSE_STARTS = 10


class Slot:
    """A worker process, its task and its reports. lock: descriptor of the study's lock; forked: whether to use fork."""

    def __init__(self, lock: int, *, forked: bool) -> None:
        # The signals stay blocked until the worker has set its handlers, so that a signal to the whole process group
        # cannot end the worker earlier. Slurm sends WARNING to every process of a job; only the parent reacts to it.
        self.process = Child(
            worker.serve, environment=environment_with(WORKER_ENVIRONMENT), keep=[lock], blocked=(*SIGNALS, WARNING),
            prepare=worker.prepare if forked else None,
        )  # fmt: skip
        self.pipe = self.process.pipe
        self.give(None)

    def give(self, task: Task | None) -> bool:
        """Assign a task, None for no task, and send it to the worker; returns False if the worker has ended."""
        self.task = task
        self.begun = False
        self.ended: set[str] = set()
        self.taken = self.resumed = 0
        self.saved = _saved(task, task.run_ids) if task is not None else {}
        try:
            if task is not None:
                self.pipe.send(task)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self) -> Message | None:
        """Receive the worker's next message and count its steps; None if the worker ended, even within a message."""
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self.begun = True
        self.taken += message.run_steps
        self.resumed += message.resumed
        self.ended.update(message.ended, message.failed)
        return message

    @property
    def lost_steps(self) -> int:
        """The number of reported run-steps that belong to runs that have not ended."""
        return self.taken - (len(self.ended) * self.task.configs[0].schedule.n_steps if self.task else 0)

    def left(self) -> list[str]:
        """Return the run_ids of the task's runs that have not ended."""
        return [i for i in self.task.run_ids if i not in self.ended] if self.task else []

    def has_progressed(self) -> bool:
        """Whether, since the worker got its task, a run of the task has ended or has saved a later checkpoint."""
        if self.task is None:
            return False
        now = _saved(self.task, self.left())
        return bool(self.ended) or any(step > self.saved[run_id] for run_id, step in now.items())

    def ask_to_stop(self) -> None:
        """Ask the worker to finish its step, save its runs and report; an idle worker ends at once."""
        self.process.process.send_signal(signal.SIGTERM)


class _Pool:
    """The state of the function `run`. lock: the file descriptor of the study's lock."""

    def __init__(self, tasks: Sequence[Task], workers: int, lock: int, max_tries: int) -> None:
        self.queue, self.slots = deque(tasks), list[Slot]()
        self.workers, self.lock, self.max_tries = workers, lock, max_tries
        self.forked = all(task.device == "cpu" for task in tasks)  # with CUDA, each worker starts as a new interpreter
        self.fatal: str | None = None
        self.false_starts = 0
        self.stopping = False

    def fill(self) -> None:
        """Send the next tasks to idle workers, and start new workers for the rest, up to the requested number."""
        while self.queue:
            slot = next((slot for slot in self.slots if slot.task is None), None)
            is_new = slot is None
            if slot is None:
                if len(self.slots) >= self.workers:
                    return
                slot = Slot(self.lock, forked=self.forked)
                self.slots.append(slot)
            if slot.give(self.queue[0]) or is_new:  # if a new worker has ended, `replace` counts a false start
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
                slot.ask_to_stop()

    def hear(self, slot: Slot) -> Iterator[Message]:
        """Receive a worker's next message, yield it and act on it; replace the worker if it has ended."""
        message = slot.receive()
        if message is not None:
            yield message
            if message.fatal is not None:
                self.stop(message.fatal)
            if message.over:
                slot.give(None)
        if message is None:
            yield from self.replace(slot, kill=False)
        elif message.stopped and not message.over and not self.stopping:  # another process asked this worker to stop
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
    """Train the tasks in order on up to `workers` worker processes; yields the workers' messages until all tasks end.

    When a worker is killed, its batch resumes from its last checkpoint in a new worker. If the batch had begun but made
    no saved progress, it may have been too large, so its runs are trained as two batches; a single run is retried until
    it has crashed max_tries times. A worker that another process asks to stop counts as killed. When this process is
    asked to stop, it sends no more tasks, and the workers save their runs. inherited: the file descriptor of the
    study's lock, which the workers also hold. Raises StorageError, after the workers have ended, if results can no
    longer be written or read.
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
    """Return the message about a worker that ended during its task, and the tasks that replace the task.

    stopping: whether the worker had been asked to stop; then no task replaces it. Raises ConfigError for disk errors.
    """
    task, code, how = slot.task, slot.process.wait(), slot.process.how_it_ended()
    assert task is not None
    left = [i for i in slot.left() if not tables.is_done(task.study_dir, i)]  # a run may have ended without a message
    gone = tuple(i for i in slot.left() if i not in left)
    n_steps = task.configs[0].schedule.n_steps
    lost = len(gone) * n_steps - slot.lost_steps
    if not left:
        return Message(task.number, lost, -slot.resumed, ended=gone), []
    runs = "its run resumes" if len(left) == 1 else f"its {len(left)} runs resume"
    if stopping:
        note = f"a worker process {how} before it had saved: {runs} from the checkpoints before"
        unsaved = code != 0 and task.device == "cpu"  # code 0: the batch had not begun; on a GPU nothing is ever saved
        return Message(task.number, lost, -slot.resumed, ended=gone, notes=(note,) if unsaved else ()), []
    has_progressed = bool(gone) or slot.has_progressed()
    if len(left) > 1 or has_progressed:
        parts = [task.only(left)] if has_progressed else task.halves(left)
        note = f"a worker process {how}: {runs}{'' if has_progressed else ' as two batches'}"
        return Message(task.number, lost, -slot.resumed, ended=gone, notes=(note,)), parts
    details = f"the worker process {how}\n"
    tried = records.record_failure(task.study_dir, left[0], task.only(left).configs[0], details)
    if tried < max_tries:
        note = f"the worker process of {left[0]} {how}: trying the run again"
        return Message(task.number, lost, -slot.resumed, ended=gone, notes=(note,)), [task.only(left)]
    error = f"the worker process {how}"
    return Message(task.number, lost + n_steps, -slot.resumed, ended=gone, failed=(left[0],), error=error), []


def _saved(task: Task, run_ids: Sequence[str]) -> dict[str, int]:
    """Return run_id -> step of the run's checkpoint, 0 without a checkpoint."""
    heads = {run_id: checkpoints.head_of(task.study_dir, run_id) for run_id in run_ids}
    return {run_id: 0 if head is None else head.step for run_id, head in heads.items()}

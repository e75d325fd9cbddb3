"""A small pool of spawned worker processes, one pipe each.

A library's pool loses every future when one worker is killed; this one loses that worker's batch and goes on with a
new process. Never imports torch: the workers' environment must be set before they do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

from normstudy.errors import ConfigError, StorageError
from normstudy.processes import environment
from normstudy.study import checkpoints, records, tables
from normstudy.workers import worker
from normstudy.workers.signals import SIGNALS, WARNING, Stop
from normstudy.workers.task import Message, Task

# Workers that may be killed one after the other before any has begun with its batch: then the batch is not to blame.
FALSE_STARTS = 10


class Inherited:
    """A file descriptor that a spawned process gets too, as it is pickled among its arguments."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[object, ...]:
        return _keep, (reduction.DupFd(self.fd),)


class _Duplicate(Protocol):
    def detach(self) -> int: ...


def _keep(duplicate: _Duplicate) -> int:
    return duplicate.detach()


class Slot:
    """One worker process, its pipe, the task it has, which of its runs have ended, and the run-steps it has told of."""

    def __init__(self, inherited: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, Inherited(inherited))
        self.process: SpawnProcess = context.Process(target=worker.serve, args=arguments, daemon=True)
        # Both inherit the mask. Slurm warns each process of a job, and this one decides.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {WARNING})
        try:
            resource_tracker.ensure_running()
            # A signal to the whole group must not end a worker before it has said what to do about signals.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            with environment():
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.give(None)

    def give(self, task: Task | None) -> bool:
        """Send the next task, if there is one; False where the process is gone."""
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

    def note(self, message: Message) -> None:
        """Keep count of what the worker says."""
        self.begun = True
        self.taken += message.run_steps
        self.resumed += message.resumed
        self.ended.update(message.ended, message.failed)

    @property
    def lost_steps(self) -> int:
        """Run-steps told of that belong to runs which have not ended."""
        return self.taken - (len(self.ended) * self.task.configs[0].schedule.n_steps if self.task else 0)

    def left(self) -> list[str]:
        """The runs of the task that have not ended."""
        return [i for i in self.task.run_ids if i not in self.ended] if self.task else []

    def has_got_further(self) -> bool:
        """Whether the task has a run more, or a later checkpoint, than when the worker took it."""
        if self.task is None:
            return False
        now = _saved(self.task, self.left())
        return bool(self.ended) or any(step > self.saved[run_id] for run_id, step in now.items())

    def ask_to_stop(self) -> None:
        """Have the worker finish its step, save its runs and say so; one that cannot hear yet just ends."""
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGTERM)

    def end(self, *, kill: bool) -> None:
        """Tell the process to end: at once, or by closing its pipe."""
        if kill:
            self.process.kill()
        self.pipe.close()

    def close(self, *, kill: bool) -> None:
        """End the process and wait for it."""
        self.end(kill=kill)
        self.process.join()


def run(
    tasks: Sequence[Task], workers: int, *, inherited: int, stop: Stop, max_tries: int
) -> Generator[Message, None, None]:
    """Give the tasks, in order, to as many workers; yields what they say. Ends when every task is over.

    A worker that is killed costs what its batch did since its checkpoint. Where it had begun and nothing of the batch
    had been saved, it may have been too large: its runs go on as two batches, and a single one is tried again until it
    has crashed max_tries times. Else it was killed for another reason, and the batch goes on as it was. One that
    somebody else asks to stop counts as killed. Once this process is asked to stop, no task is given any more and the
    workers save what they have. inherited: the descriptor of the study's lock, which the workers hold with their
    parent.

    Raises StorageError when the results can no longer be written or read, after the workers are through.
    """
    queue, slots = deque(tasks), list[Slot]()
    fatal: str | None = None
    false_starts = 0
    stopping = finished = False

    def stop_all() -> None:
        nonlocal stopping
        stopping = True
        queue.clear()
        for slot in slots:
            slot.ask_to_stop()

    try:
        _fill(slots, queue, workers, inherited)
        while busy := [s for s in slots if s.task is not None]:
            ready = wait([*(s.pipe for s in busy), stop.reader])
            if stop.reader in ready:
                stop_all()
                stop.acknowledge()
            for slot in busy:
                if slot.pipe not in ready:
                    continue
                try:
                    message: Message | None = slot.pipe.recv()
                except (EOFError, OSError):  # a pipe ends with its process, perhaps within a message
                    message = None
                if message is not None:
                    slot.note(message)
                    yield message
                    if message.fatal is not None:
                        fatal = fatal or message.fatal
                        if not stopping:
                            stop_all()
                    if message.over:
                        slot.give(None)
                if message is None or (message.stopped and not stopping and not message.over):
                    slots.remove(slot)
                    slot.close(kill=message is not None)  # which somebody else asked to stop: another one goes on
                    false_starts = 0 if slot.begun else false_starts + 1
                    if 0 < false_starts <= FALSE_STARTS and slot.task is not None and not stopping:
                        queue.appendleft(slot.task)
                        continue
                    try:
                        told, again = _after_death(slot, max_tries, stopping=stopping)
                    except ConfigError as error:  # nothing can be written, or a row cannot be read
                        fatal = fatal or str(error)
                        stop_all()
                        continue
                    queue.extendleft(reversed(again))
                    yield told
            _fill(slots, queue, workers, inherited)
        if fatal is not None:
            raise StorageError(fatal)
        finished = True
    finally:
        for slot in slots:
            slot.end(kill=not finished)
        for slot in slots:  # ended all first: they end at the same time
            slot.process.join()


def _fill(slots: list[Slot], queue: deque[Task], workers: int, inherited: int) -> None:
    """Give the next tasks to workers that have none, and to new ones while there are fewer than `workers`."""
    while queue:
        idle = next((slot for slot in slots if slot.task is None), None)
        is_new = idle is None
        if idle is None:
            if len(slots) >= workers:
                return
            idle = Slot(inherited)
            slots.append(idle)
        if idle.give(queue[0]) or is_new:  # a new one that is gone already is found as a false start
            queue.popleft()
        else:
            slots.remove(idle)  # killed between two batches: this one has lost nothing
            idle.close(kill=True)


def _after_death(slot: Slot, max_tries: int, *, stopping: bool) -> tuple[Message, list[Task]]:
    """What to say of a worker that was killed, or crashed below Python, and which tasks take the place of its own.

    stopping: it was asked to stop; then there are none. Raises ConfigError where the results cannot be read or written.
    """
    task, code = slot.task, slot.process.exitcode
    assert task is not None
    how = f"killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    left = [i for i in slot.left() if not tables.is_done(task.study_dir, i)]  # it may have died before it said so
    gone = tuple(i for i in slot.left() if i not in left)
    n_steps = task.configs[0].schedule.n_steps
    lost = len(gone) * n_steps - slot.lost_steps
    if not left:
        return Message(task.number, lost, -slot.resumed, ended=gone), []
    if stopping:
        runs = "its run goes" if len(left) == 1 else f"its {len(left)} runs go"
        note = f"a worker process was {how} before it had saved: {runs} on from what was saved before"
        unsaved = code != 0 and task.device == "cpu"  # one that ends well had not begun, and a GPU saves nothing
        return Message(task.number, lost, -slot.resumed, ended=gone, notes=(note,) if unsaved else ()), []
    further = bool(gone) or slot.has_got_further()
    if len(left) > 1 or further:
        parts = [task.only(left)] if further else task.halves(left)
        goes_on = "the run goes on" if len(left) == 1 else f"its {len(left)} runs go on"
        note = f"a worker process was {how}: {goes_on}{' as two batches' if not further else ''}"
        return Message(task.number, lost, -slot.resumed, ended=gone, notes=(note,)), parts
    details = f"the worker process was {how}\n"
    tried = records.record_failure(task.study_dir, left[0], task.only(left).configs[0], details)
    if tried < max_tries:
        note = f"the worker process of {left[0]} was {how}: it is tried again"
        return Message(task.number, lost, -slot.resumed, ended=gone, notes=(note,)), [task.only(left)]
    error = f"the worker process was {how}"
    return Message(task.number, lost + n_steps, -slot.resumed, ended=gone, failed=(left[0],), error=error), []


def _saved(task: Task, run_ids: Sequence[str]) -> dict[str, int]:
    """run_id -> the step of its checkpoint, 0 where there is none."""
    heads = {run_id: checkpoints.head_of(task.study_dir, run_id) for run_id in run_ids}
    return {run_id: 0 if head is None else head.step for run_id, head in heads.items()}

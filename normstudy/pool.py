"""A small pool of spawned worker processes, one pipe each.

A library's pool loses every future when one worker is killed; this one loses that worker's batch and goes on with a
new process. Never imports torch: the workers' environment must be set before they do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from normstudy import worker
from normstudy.worker import Message, Task

# MKL_CBWR: without it the matrix products of a run depend on what it is batched with. MALLOC_*: glibc otherwise
# returns large blocks to the system at every free, which costs up to 40 % of a step.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "AUTO,STRICT",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class Slot:
    """One worker process, its pipe, and the task it has."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=worker.serve, args=(theirs,), daemon=True)
        with _environment():
            self.process.start()
        theirs.close()
        self.task: Task | None = None

    def give(self, task: Task | None) -> None:
        """Send the next task, if there is one."""
        self.task = task
        if task is not None:
            self.pipe.send(task)

    def close(self, *, kill: bool) -> None:
        """End the process: at once, or by closing its pipe."""
        if kill:
            self.process.kill()
        self.pipe.close()
        self.process.join()


def run(tasks: Sequence[Task], workers: int) -> Iterator[Message]:
    """Give the tasks, in order, to as many workers; yields what they say. Ends when every task is over."""
    queue = list(tasks)
    slots: list[Slot] = []
    finished = False
    try:
        while queue and len(slots) < workers:
            slots.append(Slot())
            slots[-1].give(queue.pop(0))
        while busy := [s for s in slots if s.task is not None]:
            ready = wait([s.pipe for s in busy])
            for slot in busy:
                if slot.pipe not in ready:
                    continue
                try:
                    message: Message = slot.pipe.recv()
                except (EOFError, ConnectionResetError):  # a pipe ends with its process
                    slots.remove(slot)
                    yield _died(slot)
                    if queue:
                        slots.append(Slot())
                        slots[-1].give(queue.pop(0))
                    continue
                yield message
                if message.over:
                    slot.give(queue.pop(0) if queue else None)
        finished = True
    finally:
        for slot in slots:
            slot.close(kill=not finished)


def _died(slot: Slot) -> Message:
    """A worker that was killed, or crashed below Python: its batch failed."""
    slot.close(kill=False)
    task, code = slot.task, slot.process.exitcode
    assert task is not None
    how = f"killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    worker.report_failure(task.study_dir, task.run_ids, task.configs, f"the worker process was {how}\n")
    return Message(task.number, over=True, error=f"the worker process was {how}")

"""A small pool of spawned worker processes, one pipe each.

A library's pool loses every future when one worker is killed; this one loses that worker's batch and goes on with a
new process. Never imports torch: the workers' environment must be set before they do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

from normstudy import worker
from normstudy.worker import Message, Task

# What is set for the workers; None takes a variable away. MKL_CBWR: without it torch's products, which a tied
# unembedding and a user's block make, depend on what a run is batched with. OPENBLAS_*: a run's bits are those of its
# CPU, whatever a shell asks for. MALLOC_*: glibc otherwise returns large blocks to the system at every free, which
# costs up to 40 % of a step.
WORKER_ENVIRONMENT: dict[str, str | None] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "AUTO,STRICT",
    "OPENBLAS_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "OPENBLAS_CORETYPE": None,
    "OPENBLAS_L2_SIZE": None,
    "OPENBLAS_BLOCK_FACTOR": None,
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """The environment of the workers, for processes that are started inside."""
    before = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
    set_environment(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        set_environment(before)


def set_environment(values: Mapping[str, str | None]) -> None:
    """Set variables of this process, or take them away where the value is None."""
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


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
    """One worker process, its pipe, and the task it has."""

    def __init__(self, inherited: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, Inherited(inherited))
        self.process: SpawnProcess = context.Process(target=worker.serve, args=arguments, daemon=True)
        with environment():
            self.process.start()
        theirs.close()
        self.task: Task | None = None

    def give(self, task: Task | None) -> bool:
        """Send the next task, if there is one; False where the process is gone."""
        self.task = task
        try:
            if task is not None:
                self.pipe.send(task)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end(self, *, kill: bool) -> None:
        """Tell the process to end: at once, or by closing its pipe."""
        if kill:
            self.process.kill()
        self.pipe.close()

    def close(self, *, kill: bool) -> None:
        """End the process and wait for it."""
        self.end(kill=kill)
        self.process.join()


def run(tasks: Sequence[Task], workers: int, *, inherited: int) -> Iterator[Message]:
    """Give the tasks, in order, to as many workers; yields what they say. Ends when every task is over.

    inherited: the descriptor of the study's lock, which the workers hold with their parent.
    """
    queue = list(tasks)
    slots: list[Slot] = []
    finished = False
    try:
        while queue and len(slots) < workers:
            slots.append(_start(queue.pop(0), inherited))
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
                        slots.append(_start(queue.pop(0), inherited))
                    continue
                yield message
                if message.over and not slot.give(task := queue.pop(0) if queue else None):
                    slots.remove(slot)  # killed between two batches: this one has lost nothing
                    slot.close(kill=True)
                    slots.append(_start(task, inherited))
        finished = True
    finally:
        for slot in slots:
            slot.end(kill=not finished)
        for slot in slots:  # ended all first: they end at the same time
            slot.process.join()


def _start(task: Task | None, inherited: int) -> Slot:
    slot = Slot(inherited)
    slot.give(task)  # where it is gone already, its pipe says so at the next recv
    return slot


def _died(slot: Slot) -> Message:
    """A worker that was killed, or crashed below Python: its batch failed."""
    slot.close(kill=False)
    task, code = slot.task, slot.process.exitcode
    assert task is not None
    how = f"killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    worker.report_failure(task.study_dir, task.run_ids, task.configs, f"the worker process was {how}\n")
    return Message(task.number, over=True, error=f"the worker process was {how}")

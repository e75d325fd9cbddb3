"""The child process of a sweep: takes one batch after the other, and survives what a batch does.

It imports torch only after its parent's watcher runs. Its environment (one thread, reproducible matrix products,
memory kept by the allocator) is set by pool.py before it starts: torch, NumPy's BLAS and glibc read it once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from normstudy.errors import ConfigError, StorageError
from normstudy.processes import die_with_parent
from normstudy.study import locks, records
from normstudy.workers.signals import SIGNALS
from normstudy.workers.task import Message, Task

# What torch says instead of raising its OutOfMemoryError: on a CPU, within the capture of a graph, in a library.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "STREAM_CAPTURE_INVALIDATED", "ALLOC_FAILED")
# After these every further call gives the same error, until the process is another (CUDA's runtime API, cudaError).
DEVICE_LOST = (
    "an illegal memory access", "an illegal instruction", "device-side assert", "hardware stack error",
    "invalid program counter", "misaligned address", "operation not supported on global/shared address space",
    "the launch timed out", "uncorrectable ECC error", "unspecified launch failure",
)  # fmt: skip
LOOK_SECONDS = 0.5  # between two looks at runs that another process trains


class DeviceLost(Exception):
    """This process can no longer use its device; the text says why."""


def serve(pipe: Connection, lock: int) -> None:
    """Train the tasks that come through the pipe until it closes; never outlive the parent.

    SIGTERM asks to finish the step, write checkpoints and stop; the other SIGNALS reach the whole process group, and
    the parent decides. lock: descriptor of the study's lock. It is only held: open until the process ends, so that
    nobody takes the study while a worker may still write.
    """
    asked = waiting = False  # plain names: the lock of an Event could be held by the code that a signal interrupts

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        if waiting:
            os._exit(0)

    signal.signal(signal.SIGTERM, ask)  # SIG_IGN, even for a moment, would lose one that is waiting since the start
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # pool.py blocked them for the time until here
    threading.Thread(target=die_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # the collector need not look through all of torch again and again: 3 % of a step
    while not asked:
        waiting = True
        try:
            task: Task = pipe.recv()
        except EOFError:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # taking torch down in order takes half a second, and nothing is left to do
        waiting = False
        try:
            pipe.send(Message(task.number))  # from here on it may be the batch that this process dies of
            for message in train_alone(task, lambda: asked):
                pipe.send(message)
            over = Message(task.number, over=True)
        except DeviceLost as error:
            pipe.send(Message(task.number, notes=(str(error),)))
            os._exit(1)  # which the parent takes for a crash, and has another process go on
        except ConfigError as error:  # a StorageError, or a row that cannot be read
            over = Message(task.number, over=True, fatal=str(error))
        except BrokenPipeError:
            os._exit(1)  # the parent is gone, and the watcher was about to say so
        pipe.send(over)
    os._exit(0)


def train_alone(task: Task, stopping: Callable[[], bool]) -> Iterator[Message]:
    """Train a batch, each run of it only while no other process does.

    Those that another one has are waited for, when the others are through and this process has none: two that wait for
    each other would wait for ever. Raises StorageError, and DeviceLost.
    """
    left, told = task.run_ids, False
    while left:
        with locks.hold_runs(task.study_dir, left) as mine:
            if mine:
                yield from train_halving(task.only(mine), stopping)
        left = [run_id for run_id in left if run_id not in mine]
        if left and stopping():
            yield Message(task.number, stopped=True)
            return
        if left and not told:
            what = left[0] if len(left) == 1 else f"{len(left)} runs"
            told = True
            yield Message(task.number, notes=(f"waiting for another process, which is training {what}",))
        if left:
            time.sleep(LOOK_SECONDS)


def train_halving(task: Task, stopping: Callable[[], bool]) -> Iterator[Message]:
    """Train a batch; where it crashes, train its runs in two halves, one after the other, until one alone crashes.

    Then only that one has failed. What they wrote so far is theirs, and on a CPU the number of runs that are trained
    together changes no result. Raises StorageError, and DeviceLost where another process has to go on.
    """
    from normstudy.workers import recording

    taken, resumed, ended = 0, 0, set[str]()
    try:
        for message in recording.train_task(task, stopping):
            taken += message.run_steps
            resumed += message.resumed
            ended.update(message.ended)
            yield message
        return
    except StorageError:
        raise
    except Exception as error:
        left = [run_id for run_id in task.run_ids if run_id not in ended]
        no_memory, details = is_out_of_memory(error), traceback.format_exc()
        no_device = task.device == "cuda" and loses_device(error)
        line = f"{type(error).__name__}: {error}".splitlines()[0]
    # Outside of the handler, which held the traceback and with it all that the batch had allocated.
    if not no_device:
        free_cached_memory(task.device)
    n_steps = task.configs[0].schedule.n_steps
    lost = len(ended) * n_steps - taken  # for the bar: the steps of those left are taken again
    if len(left) == 1:
        records.record_failure(task.study_dir, left[0], task.only(left).configs[0], details)
        yield Message(task.number, lost + n_steps, -resumed, failed=(left[0],), error=line)
        parts = []
    else:
        parts = task.halves(left)
        yield Message(task.number, lost, -resumed, smaller=len(parts[0].run_ids) if no_memory else None)
    if no_device:
        raise DeviceLost(f"no process that met this error can use its GPU again: {line}")
    for part in parts:
        if stopping():
            yield Message(task.number, stopped=True)
            return
        yield from train_halving(part, stopping)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error, or one that led to it, says that the device's memory, or the machine's, did not suffice."""
    import torch

    return any(
        isinstance(one, torch.OutOfMemoryError | MemoryError) or any(words in str(one) for words in OUT_OF_MEMORY)
        for one in _with_causes(error)
    )


def loses_device(error: Exception) -> bool:
    """Whether an error, or one that led to it, leaves its process without a GPU."""
    return any(f"CUDA error: {words}" in str(one) for one in _with_causes(error) for words in DEVICE_LOST)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def free_cached_memory(device: str) -> None:
    """Give back what torch keeps for later, which may be cut in the wrong sizes."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()

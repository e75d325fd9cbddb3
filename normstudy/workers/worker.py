"""Train one batch after another in a worker process of a sweep, and continue after a batch that crashes."""

import contextlib
import gc
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from normstudy.errors import ConfigError, StorageError
from normstudy.processes import leave
from normstudy.study import locks, records
from normstudy.workers.signals import SIGNALS
from normstudy.workers.task import Message, Task

# An error whose message contains one of these texts is an out-of-memory error, even if its class is not
# OutOfMemoryError. The CPU's allocator, CUDA graphs and CUDA libraries raise errors of other classes.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "STREAM_CAPTURE_INVALIDATED", "ALLOC_FAILED")
# CUDA errors (cudaError in CUDA's runtime API) after which every further CUDA call of the process fails.
DEVICE_LOST = (
    "an illegal memory access", "an illegal instruction", "device-side assert", "hardware stack error",
    "invalid program counter", "misaligned address", "operation not supported on global/shared address space",
    "the launch timed out", "uncorrectable ECC error", "unspecified launch failure",
)  # fmt: skip
RETRY_SECONDS = 0.5  # seconds between two attempts to lock runs that another process is training


class DeviceLost(Exception):
    """Raised when this process can no longer use its GPU; the message contains the original error."""


def prepare() -> None:
    """Import the modules that training needs; workers forked from this process inherit the imports."""
    gc.disable()  # garbage collection would take a seventh of the imports' time and free nothing
    import torch

    from normstudy.workers import recording  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # the garbage collector then skips torch's objects, which saves 3 % of a step's time
    gc.enable()


def serve(pipe: Connection) -> None:
    """Train the tasks received through the pipe until the parent closes the pipe.

    SIGTERM asks the worker to finish its step, write checkpoints and stop. SIGINT and SIGHUP are left to the parent.
    """
    # Use plain variables: a handler that sets a threading.Event may wait forever for a lock of the interrupted code.
    asked = waiting = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        if waiting:
            os._exit(0)

    signal.signal(signal.SIGTERM, ask)  # before SIG_UNBLOCK, so that `ask` handles a SIGTERM that is already pending
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # pool.py blocked SIGNALS before starting this process
    prepare()
    while not asked:
        waiting = True
        try:
            task: Task = pipe.recv()
        except (EOFError, ConnectionError):  # the parent has ended, perhaps without reading this worker's messages
            leave(0)
        waiting = False
        try:
            pipe.send(Message(task.number))  # the parent then knows that a later crash may be due to this batch
            for message in train_alone(task, lambda: asked):
                pipe.send(message)
            over = Message(task.number, over=True)
        except DeviceLost as error:
            pipe.send(Message(task.number, notes=(str(error),)))
            os._exit(1)  # the parent treats this as a crash and sends the remaining runs to a new worker
        except ConfigError as error:  # results cannot be written (StorageError), or a row of `runs` cannot be read
            over = Message(task.number, over=True, fatal=str(error))
        except BrokenPipeError:
            os._exit(1)  # the parent has ended
        with contextlib.suppress(ConnectionError):  # if the parent has ended, the loop ends at pipe.recv
            pipe.send(over)
    os._exit(0)


def train_alone(task: Task, stopping: Callable[[], bool]) -> Iterator[Message]:
    """Train a batch, but never a run that another process is training. Raises StorageError and DeviceLost.

    Train the unlocked runs first. To prevent a deadlock, hold no lock while waiting for the others.
    """
    left, is_reported = task.run_ids, False
    while left:
        with locks.hold_runs(task.study_dir, left) as mine:
            if mine:
                yield from train_halving(task.only(mine), stopping)
        left = [run_id for run_id in left if run_id not in mine]
        if left and stopping():
            yield Message(task.number, stopped=True)
            return
        if left and not is_reported:
            what = left[0] if len(left) == 1 else f"{len(left)} runs"
            is_reported = True
            yield Message(task.number, notes=(f"waiting for another process, which is training {what}",))
        if left:
            time.sleep(RETRY_SECONDS)


def train_halving(task: Task, stopping: Callable[[], bool]) -> Iterator[Message]:
    """Train a batch. If a batch of several runs crashes, split it into two halves and train each half the same way.

    A run fails only if it crashes when trained alone. After a crash, the other runs resume from their checkpoints; on a
    GPU, they start from step 0. Raises StorageError, and DeviceLost if this process can no longer use its GPU.
    """
    import torch

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
    # Free memory only after the except block, because inside it the traceback keeps the batch's memory allocated.
    if not no_device:
        gc.collect()
        if task.device == "cuda":
            torch.cuda.empty_cache()  # a smaller batch may be unable to reuse the memory that torch has cached
    n_steps = task.configs[0].schedule.n_steps
    # Subtract the unfinished runs' steps from the progress bar, because the next attempts count their steps again.
    lost = len(ended) * n_steps - taken
    if len(left) == 1:
        records.record_failure(task.study_dir, left[0], task.only(left).configs[0], details)
        yield Message(task.number, lost + n_steps, -resumed, failed=(left[0],), error=line)
        parts = []
    else:
        parts = task.halves(left)
        yield Message(task.number, lost, -resumed, smaller=len(parts[0].run_ids) if no_memory else None)
    if no_device:
        raise DeviceLost(f"a worker process can no longer use its GPU after this error: {line}")
    for part in parts:
        if stopping():
            yield Message(task.number, stopped=True)
            return
        yield from train_halving(part, stopping)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error, or one of its causes, means that the GPU or the machine is out of memory."""
    import torch

    return any(
        isinstance(one, torch.OutOfMemoryError | MemoryError) or any(words in str(one) for words in OUT_OF_MEMORY)
        for one in _with_causes(error)
    )


def loses_device(error: Exception) -> bool:
    """Return whether an error, or one of its causes, leaves this process unable to use its GPU."""
    return any(f"CUDA error: {words}" in str(one) for one in _with_causes(error) for words in DEVICE_LOST)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""Child processes that a row of the benchmark starts once and asks often."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Generic, TypeVar

from normstudy.bench.samples import Sample

Job = TypeVar("Job")
Answer = TypeVar("Answer")
Work = Callable[[int], Answer]  # does so much of its work, and returns what came out
_work: list[Callable[[int], object]] = []  # of a child process, its own


@contextlib.contextmanager
def environment(*, of_worker: bool) -> Iterator[None]:
    """Start processes with the environment of a sweep's workers, or without any of its variables."""
    from normstudy.pool import WORKER_ENVIRONMENT, set_environment

    before = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
    set_environment(WORKER_ENVIRONMENT if of_worker else dict.fromkeys(WORKER_ENVIRONMENT))
    try:
        yield
    finally:
        set_environment(before)


class Child(Generic[Answer]):
    """A process that prepares its work once, as `start(job)`, and then does as much of it as it is asked for."""

    def __init__(self, start: Callable[[Job], Work[Answer]], job: Job, *, like_worker: bool, threads: int = 1) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _settle, (like_worker, threads))
        with environment(of_worker=like_worker):  # its process starts with its first task
            self.ready = self.pool.submit(_prepare, start, job)

    def close(self) -> None:
        """End the process when it has done what it was asked for."""
        self.pool.shutdown(cancel_futures=True)


def _settle(like_worker: bool, threads: int) -> None:
    from normstudy.worker import die_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its children
    threading.Thread(target=die_with_parent, daemon=True).start()
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    # torch's threads do not count for NumPy's BLAS, which would take every core and keep it busy after each product.
    threadpool_limits(threads, "blas")
    if like_worker:
        gc.freeze()  # as worker.serve does


def _prepare(start: Callable[[Job], Work[Answer]], job: Job) -> None:
    _work.append(start(job))


def _do(amount: int) -> object:
    return _work[0](amount)


def together(children: Sequence[Child[Answer]], amount: int) -> tuple[float, list[Answer]]:
    """Have all work at once; the seconds from the common start to the last finish, and what they answer.

    Raises what a child raised, and BrokenProcessPool where one was killed.
    """
    for child in children:
        child.ready.result()
    started = time.perf_counter()
    asked = [child.pool.submit(_do, amount) for child in children]
    answers = [one.result() for one in asked]
    return time.perf_counter() - started, answers  # type: ignore[return-value]


def in_worker(function: Callable[[Job], Iterator[Sample]], job: Job) -> Iterator[Sample]:
    """The samples of function(job), taken in a process like a sweep's workers: one thread, their environment."""
    with contextlib.closing(Child(_next_sample, (function, job), like_worker=True)) as child:
        while (sample := together([child], 1)[1][0]) is not None:
            yield sample


def _next_sample(job: tuple[Callable[[Job], Iterator[Sample]], Job]) -> Work[Sample | None]:
    samples = job[0](job[1])
    return lambda _: next(samples, None)

"""Child processes that the rows of the benchmark start once and ask often."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from normstudy.bench.samples import Sample

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Job = TypeVar("Job")
Answer = TypeVar("Answer")
Work = Callable[[int], Answer]  # does so much of its work, and says what came out


class ChildFailed(Exception):
    """A measuring process raised an error or was killed; the text says how."""


@contextlib.contextmanager
def environment(*, of_worker: bool) -> Iterator[None]:
    """The environment of a sweep's workers, or without any of its variables, for processes that are started inside."""
    from normstudy.processes import WORKER_ENVIRONMENT, environment_with

    before = dict(os.environ)
    inside = environment_with(WORKER_ENVIRONMENT if of_worker else dict.fromkeys(WORKER_ENVIRONMENT))
    os.environ.clear()
    os.environ.update(inside)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Child(Generic[Answer]):
    """A process that makes its work ready once, as `start(job)`, and then does as much of it as it is asked for."""

    def __init__(self, start: Callable[[Job], Work[Answer]], job: Job, *, like_worker: bool, threads: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, like_worker, threads, start, job), daemon=True)
        with environment(of_worker=like_worker):
            self.process.start()
        theirs.close()

    def ask(self, amount: int) -> None:
        """Have it do some work."""
        self.pipe.send(amount)

    def answer(self) -> Answer:
        """Wait for what it was asked. Raises ChildFailed."""
        try:
            answer, error = self.pipe.recv()
        except (EOFError, ConnectionResetError):  # a pipe ends with its process
            self.process.join()
            raise ChildFailed(f"a measuring process ended with exit code {self.process.exitcode}") from None
        if error is not None:
            raise ChildFailed(f"a measuring process failed: {error}")
        done: Answer = answer
        return done

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def serve(pipe: Connection, like_worker: bool, threads: int, start: Callable[[Job], Work[Answer]], job: Job) -> None:
    """Work whenever the pipe says so, until it closes, be it that the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its children
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    # torch's threads do not count for NumPy's BLAS, which would take every core and keep it busy after each product.
    blas = threadpool_limits(threads, "blas")  # noqa: F841  # as long as it lives
    if like_worker:
        gc.freeze()  # as worker.serve does
    work: Work[Answer] | None = None
    while True:
        try:
            amount: int = pipe.recv()
        except EOFError:
            return
        try:
            work = work or start(job)
            pipe.send((work(amount), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))


def together(children: Sequence[Child[Answer]], amount: int) -> tuple[float, list[Answer]]:
    """Have all work at once; the seconds from the common start to the last finish, and what they answer."""
    started = time.perf_counter()
    for child in children:
        child.ask(amount)
    answers = [child.answer() for child in children]
    return time.perf_counter() - started, answers


def in_worker(function: Callable[[Job], Iterator[Sample]], job: Job) -> Iterator[Sample]:
    """The samples of function(job), taken in a process like a sweep's workers: one thread, their environment."""
    child = Child(_next_sample, (function, job), like_worker=True)
    try:
        while True:
            child.ask(1)
            sample = child.answer()
            if sample is None:
                return
            yield sample
    finally:
        child.close()


def _next_sample(job: tuple[Callable[[Job], Iterator[Sample]], Job]) -> Work[Sample | None]:
    function, argument = job
    samples = function(argument)
    return lambda _: next(samples, None)

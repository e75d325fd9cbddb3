"""Measure on several cores, in single-threaded worker processes. Only these processes import torch."""

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait

from normstudy.errors import Failed
from normstudy.processes import WORKER_ENVIRONMENT, Child, environment_with, leave
from normstudy.reproductions.entry import Job, Reading
from normstudy.workers.worker import prepare


class MeasuringFailed(Failed):
    """Raised if a worker process fails or is killed. The message says why."""


def run(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, list[Reading]]]:
    """Send the jobs in order to worker processes. Yield each job with the job's readings when the job is done.

    Raises MeasuringFailed at the first job that fails. No worker outlives this generator or the parent process.
    """
    queue = list(jobs)
    busy: dict[Connection, Child] = {}
    try:
        for job in queue[:workers]:
            child = Child(serve, environment=environment_with(WORKER_ENVIRONMENT), prepare=prepare)
            busy[child.pipe] = child
            child.pipe.send(job)
        del queue[:workers]
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                try:
                    job, rows, error = pipe.recv()
                except (EOFError, ConnectionResetError):  # the process has ended, which closes its pipe
                    how = f"a measuring process {busy[pipe].how_it_ended()}"
                    raise MeasuringFailed(f"{how}: rerun the same command, or use fewer --workers") from None
                if error is not None:
                    model = f"{job.kind} of model {job.variant.name} at depth {job.depth}"
                    raise MeasuringFailed(f"measuring {model} failed. Report this error: {error}")
                if queue:
                    pipe.send(queue.pop(0))
                else:
                    busy.pop(pipe).close(kill=False)
                yield job, rows
    finally:
        for child in busy.values():
            child.close()


def serve(pipe: Connection) -> None:
    """Measure the jobs that arrive through the pipe, until the pipe closes."""
    from normstudy.reproductions.measure import measure

    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended or closed the pipe
        while True:
            job: Job = pipe.recv()
            try:
                rows, error = measure(job), None
            except Exception:
                rows, error = [], traceback.format_exc()
            pipe.send((job, rows, error))
    leave(0)

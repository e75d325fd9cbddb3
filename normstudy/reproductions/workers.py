"""Measuring on several cores: single-threaded worker processes, and the jobs that they are given.

Never imports torch but in the workers: their environment must be set before they do.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from normstudy.processes import die_with_parent, environment
from normstudy.reproductions.entry import Job, Row


class MeasuringFailed(Exception):
    """A worker raised an error or was killed; the text says how."""


def run(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, list[Row]]]:
    """Measure the jobs, handed out in order; yields each with its rows as it is done.

    Raises MeasuringFailed at the first that fails. No worker outlives this generator, nor its parent.
    """
    context = multiprocessing.get_context("spawn")
    queue = list(jobs)
    busy: dict[Connection, SpawnProcess] = {}
    try:
        for job in queue[:workers]:
            pipe, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs,), daemon=True)
            with environment():
                process.start()
            theirs.close()
            busy[pipe] = process
            pipe.send(job)
        del queue[:workers]
        while busy:
            ready = wait(list(busy))
            for pipe in [p for p in busy if p in ready]:
                done, rows = _receive(pipe, busy[pipe])
                if queue:
                    pipe.send(queue.pop(0))
                else:
                    pipe.close()
                    busy.pop(pipe).join()
                yield done, rows
    finally:
        for pipe, process in busy.items():
            process.kill()
            process.join()
            pipe.close()


def _receive(pipe: Connection, process: SpawnProcess) -> tuple[Job, list[Row]]:
    try:
        job, rows, error = pipe.recv()
    except (EOFError, ConnectionResetError):  # a pipe ends with its process
        process.join()
        code = process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise MeasuringFailed(f"a measuring process {how}") from None
    if error is not None:
        raise MeasuringFailed(f"{job.kind} of {job.variant.name} at depth {job.depth} failed: {error}")
    return job, rows


def serve(pipe: Connection) -> None:
    """Measure what comes through the pipe until it closes; never outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    threading.Thread(target=die_with_parent, daemon=True).start()
    import torch

    from normstudy.reproductions.measure import measure

    torch.set_num_threads(1)
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((job, measure(job), None))
        except Exception:
            pipe.send((job, [], traceback.format_exc()))

"""Signals that stop a sweep: the first Ctrl-C, SIGTERM or SIGHUP asks it to stop, the second ends it at once.

A job of a cluster also gets a warning before its time limit, and may get the request to end several times.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WARNING = signal.SIGUSR2  # Slurm sends it to each process of a job, some time before the time limit
Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class Interrupted(KeyboardInterrupt):
    """A signal stopped a sweep after its runs were saved. code: the exit code of the command."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


class Stop:
    """A context in which the first of the signals makes `reader` readable, and the second ends this process.

    When this process ends, its workers end too. A signal that is ignored, like SIGHUP under nohup, stays ignored. Only
    the main thread can set handlers; in another thread the context changes nothing. patient: ignore the second signal.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS, *, patient: bool = False) -> None:
        self.signals, self.patient = signals, patient
        self.number: int | None = None  # the first signal
        self.reader, self._writer = os.pipe()
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.reader)
        os.close(self._writer)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if self.patient:
                return
            os._exit(128 + number)
        self.number = number
        os.write(self._writer, b"x")

    def acknowledge(self) -> None:
        """Print that the sweep stops, and make `reader` unreadable again."""
        os.read(self.reader, 1)
        if self.number == signal.SIGHUP:  # the terminal has gone: printing would be an error
            say_no_more()
        again = "" if self.patient else "; a second signal ends the sweep at once"
        print_error(f"\nstopping: every run finishes its step and is saved{again}")


@contextlib.contextmanager
def later() -> Iterator[None]:
    """A context during which the signals wait; processes that are started inside ignore the signals for good.

    Blocking alone is not enough: Ctrl-C reaches the child processes too, and would end a child that unblocks it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}  # they stay pending
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def print_error(line: str) -> None:
    """Print to standard error. A closed standard error is no failure: the runs must be saved all the same."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        say_no_more()


def say_no_more() -> None:
    """From now on discard standard output and standard error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)

"""How a sweep is stopped: Ctrl-C, SIGTERM and SIGHUP once ask for it, a second one ends everything at once.

A job of a cluster is also warned of its time limit, and what tells it to end may say so several times.
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
WARNING = signal.SIGUSR2  # Slurm's, some time before the limit of a job: to each of its processes
Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class Interrupted(KeyboardInterrupt):
    """A sweep was stopped by a signal, and what it had is kept. code: the exit code of the command."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


class Stop:
    """While it is entered, the first of the signals makes `reader` readable; the second ends this process.

    Workers end with their parent. One that is ignored, as SIGHUP is under nohup, stays so. Only the main thread of a
    process can be told of signals: elsewhere nothing is changed. patient: the second one is not heard.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS, *, patient: bool = False) -> None:
        self.signals, self.patient = signals, patient
        self.number: int | None = None  # the signal that asked
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
        """Say what happens now, and make `reader` wait again."""
        os.read(self.reader, 1)
        if self.number == signal.SIGHUP:  # the terminal is gone: to write there would be an error
            say_no_more()
        again = "" if self.patient else ". Once more ends it at once"
        print_error(f"\nstopping: every run finishes its step and is saved{again}")


@contextlib.contextmanager
def later() -> Iterator[None]:
    """Signals of a stop wait until this is left, and processes that are started in it never hear of them.

    Ctrl-C reaches those too. A child that only had them blocked would die as soon as it lets them in.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}  # blocked ones still wait here
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def print_error(line: str) -> None:
    """Say something on standard error, if anybody still reads it: what is to be saved must not depend on that."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        say_no_more()


def say_no_more() -> None:
    """What is printed from here on goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)

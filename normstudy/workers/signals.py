"""Handle signals that stop a sweep: the first Ctrl-C, SIGTERM or SIGHUP asks the sweep to stop, the second ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from normstudy.errors import printable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WARNING = signal.SIGUSR2  # sent by Slurm to each process of a job some time before the job's time limit


class Interrupted(KeyboardInterrupt):
    """Raised when a signal has stopped a sweep and its runs are saved. code: the command's exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


class Stop:
    """A context in which the first signal makes the pipe `reader` readable, and a second signal ends this process.

    A signal that this process already ignores, such as SIGHUP under nohup, stays ignored. Outside the main thread the
    context does nothing. patient: whether to ignore every signal after the first.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS, *, patient: bool = False) -> None:
        self.signals, self.patient = signals, patient
        self.number: int | None = None  # the first signal received
        self.reader, self._writer = os.pipe()
        self._before: dict[int, Any] = {}  # number of a signal -> the handler to restore

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.reader)
        os.close(self._writer)

    def _handle(self, number: int, _: object) -> None:
        if self.number is not None:
            if self.patient:
                return
            os._exit(128 + number)
        self.number = number
        os.write(self._writer, b"x")

    def acknowledge(self) -> None:
        """Read the byte that the first signal wrote to the pipe `reader`, and print that the sweep is stopping."""
        os.read(self.reader, 1)
        if self.number == signal.SIGHUP:  # the terminal is closed, so printing would fail
            say_no_more()
        again = "" if self.patient else "; a second signal ends the sweep at once"
        print_error(f"stopping: every run finishes its step and is saved{again}")


def print_error(line: str) -> None:
    """Print a line to standard error, above any progress bar. If this stream is closed, discard all further output."""
    try:
        tqdm.write(printable(line), sys.stderr)
    except OSError:  # continue, because the runs must still be saved
        say_no_more()


def say_no_more() -> None:
    """Redirect standard output and standard error to /dev/null."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)

"""End the processes of a launcher other than normstudy's when the process that launched them is killed.

A launcher's helpers and idle processes run no code of normstudy, but inherit a mark in their environment. So the
processes that train end them too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import threading
import time
from pathlib import Path

from normstudy.processes import CHECK_SECONDS

MARK = "NORMSTUDY_LAUNCHED_BY"


def mark() -> str:
    """Return the mark of the processes that this process starts: its host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


@functools.cache
def end_with_launcher() -> None:
    """Watch the process that launched this one; does nothing in that process itself or on another machine."""
    inherited = os.environ.get(MARK, "")  # a cluster may start its jobs with an empty environment
    if inherited != mark() and inherited.startswith(f"{socket.gethostname()}:"):
        threading.Thread(target=_watch, args=(inherited,), daemon=True).start()


def _watch(inherited: str) -> None:
    """Wait until the launching process has ended, then kill every process with its mark, this process last."""
    launcher, word = inherited.rpartition(":")[2], f"{MARK}={inherited}".encode()
    with contextlib.suppress(OSError):
        while Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(CHECK_SECONDS)
    for pid in {int(name) for name in os.listdir("/proc") if name.isdecimal()} - {os.getpid()}:
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

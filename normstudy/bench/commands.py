"""Commands of normstudy in processes of their own: what they print, how long they take, and their memory."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NORMSTUDY = (sys.executable, "-m", "normstudy")
LOOK_SECONDS = 0.02  # between two readings of a command's memory
Looks = list[tuple[float, dict[int, tuple[int, int]]]]  # seconds since the start, pid -> memory and its peak, in kB


def timed(command: Sequence[str], code: int = 0) -> tuple[float, str]:
    """Seconds of a process from start to end, and what it printed. Raises where its exit code is another."""
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - began
    _check(command, ended.returncode, code, ended.stdout + ended.stderr)  # a crash must not be taken for a fast answer
    return took, ended.stdout + ended.stderr


def watched(command: Sequence[str], text: Path) -> tuple[int, float, Looks]:
    """The process id of a command, its seconds, and the memory of all its processes at times LOOK_SECONDS apart.

    What it prints goes to the file `text`. Raises where it fails.
    """
    looks: Looks = []
    with open(text, "wb") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            while process.returncode is None:
                looks.append((time.perf_counter() - began, family(process.pid)))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
            took = time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
    _check(command, process.returncode, 0, text.read_text())
    return process.pid, took, looks


def peak(command: Sequence[str], text: Path) -> tuple[float, float]:
    """Seconds of a command, and 10^9 bytes: the sum of the peaks of its processes, which need not have come at once."""
    _, took, looks = watched(command, text)
    peaks = {pid: most for _, found in looks for pid, (_, most) in found.items()}  # the last: a peak never falls
    return took, sum(peaks.values()) * 1024 / 1e9


def family(pid: int) -> dict[int, tuple[int, int]]:
    """pid -> memory and its peak of a process and of all that it and they have started."""
    try:
        said = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        found = {pid: (int(said["VmRSS"].split()[0]), int(said["VmHWM"].split()[0]))}
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
    except (OSError, KeyError):  # it has just ended
        return {}
    for task in tasks:
        with contextlib.suppress(OSError):  # a thread that has just ended
            for child in (task / "children").read_text().split():
                found |= family(int(child))
    return found


def _check(command: Sequence[str], ended: int, code: int, said: str) -> None:
    if ended != code:
        raise RuntimeError(f"{shlex.join(command[1:])} ended with {ended}, not {code}\n{said[-2000:]}")

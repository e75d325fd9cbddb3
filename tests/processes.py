"""Helpers for tests of real commands: start them, find their workers, and wait for conditions."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO

CLI = [sys.executable, "-m", "normstudy"]
# The command without the figures of a sweep, which take most of a short sweep's time and change none of its tables.
WITHOUT_FIGURES = [
    sys.executable, "-c",
    "import sys, types; from normstudy.figures import together; "
    "together.plot = lambda *args, **options: types.SimpleNamespace(skipped=[]); "
    "sys.argv[0] = 'normstudy'; from normstudy.cli.main import main; sys.exit(main())",
]  # fmt: skip
# Some seconds of training in steps of a millisecond; windows of 200 steps.
SWEEP = [
    "sweep", "data=synthetic", "study=long", "model.n_layers=1", "model.d_model=16", "model.n_heads=2",
    "data.seq_len=8", "data.batch_size=1", "eval.windows=4", "probe.dense_steps=5", "probe.every=50",
    "execution.device=cpu",
]  # fmt: skip
# Three steps of the smallest model.
TINY = [
    "data=synthetic", "model=tiny", "data.seq_len=16", "schedule.n_steps=3", "eval.windows=4", "execution.workers=1",
]  # fmt: skip
# Behind the words of a sweep: the fastest way to train it, to the same bits.
AT_ONCE = ["execution.workers=2", "execution.runs_per_batch=8", "execution.checkpoint_seconds=1000"]


def start(
    words: Sequence[str],
    cwd: Path,
    prefix: Sequence[str] = (),
    stderr: int | IO[str] = subprocess.PIPE,
    *,
    figures: bool = False,
) -> subprocess.Popen[str]:
    """Start the real command in its own process group. figures: whether a sweep draws its figures at its end."""
    command = WITHOUT_FIGURES if words[0] in ("sweep", "critical") and not figures else CLI
    return subprocess.Popen(
        [*prefix, *command, *words], cwd=cwd, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True,
        preexec_fn=_hear_hangups,
    )  # fmt: skip


def _hear_hangups() -> None:
    """Under nohup the tests ignore SIGHUP, and their children would inherit that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def finish(words: Sequence[str], cwd: Path, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    running = start(words, cwd, prefix)
    out, err = running.communicate(timeout=300)
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def workers_of(pid: int) -> list[int]:
    """The live children that a process has started, or had forked by its template, without the template."""
    found = []
    for child in children_of(pid):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{child}/cmdline").read_text()
            if "_serve_forks" in command:
                found += children_of(child)
            elif "normstudy.processes" in command:
                found.append(child)
    return found


def templates_of(pid: int) -> list[int]:
    """The live templates of a process: children that import torch once and fork its workers."""
    found = []
    for child in children_of(pid):
        with contextlib.suppress(OSError):
            if "_serve_forks" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


def children_of(pid: int) -> list[int]:
    """The live children of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(entry.name))
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextlib.contextmanager
def on_terminal(lines: int, columns: int) -> Iterator[SimpleNamespace]:
    """A terminal: `stream` is for standard error, of this process or of a child; at the end, `seen` is what it got."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    seen = bytearray()

    def look() -> None:
        with contextlib.suppress(OSError):  # a terminal whose other end has closed
            while part := os.read(master, 4096):
                seen.extend(part)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    with open(slave, "w") as stream:
        terminal = SimpleNamespace(stream=stream)
        yield terminal
    looking.join()
    os.close(master)
    terminal.seen = seen.decode()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)

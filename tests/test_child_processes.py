"""Child processes: what they get from their parent, how their ends are noticed, and that none outlives its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from processes import is_gone, wait_for, workers_of

from normstudy.processes import Child, _Template


def prepare() -> None:
    """Nothing slow: a template of its own for these tests."""


def tell(pipe: Connection, *arguments: object) -> None:
    """Send what this process got, then wait for the end of the pipe."""
    path = [entry for entry in sys.path if "marker" in entry]
    held = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # of the listing itself
            held.append(os.readlink(f"/proc/self/fd/{fd}"))
    blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    pipe.send((arguments, os.getcwd(), path, os.environ.get("MARKER"), held, blocked, signal.getsignal(2)))
    print("printed", flush=True)
    with pytest.raises(EOFError):
        pipe.recv()


def fail(pipe: Connection) -> None:
    raise ValueError("on purpose")


def wait_for_ever(pipe: Connection) -> None:
    pipe.send(os.getpid())
    time.sleep(600)


ways = pytest.mark.parametrize("way", [None, prepare], ids=["own process", "forked"])


@ways
def test_what_a_child_gets(
    way: Callable[[], None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of its parent as it is now, also where the template was started before."""
    if way is not None:
        Child(tell, prepare=way).close()
        capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "marker"))
    monkeypatch.setenv("MARKER", "mine")
    with open(tmp_path / "lock", "w") as lock:
        child = Child(tell, 1, "two", keep=[lock.fileno()], blocked=[signal.SIGTERM], prepare=way)
    arguments, folder, path, marker, held, blocked, on_ctrl_c = child.pipe.recv()
    assert (arguments, folder, path, marker) == ((1, "two"), str(tmp_path), [str(tmp_path / "marker")], "mine")
    assert str(tmp_path / "lock") in held
    assert sum(name.startswith("socket:") for name in held) == 1  # its own end of its own pipe
    assert blocked == [signal.SIGTERM]
    assert on_ctrl_c == signal.SIG_IGN
    child.close(kill=False)
    assert capfd.readouterr().out == "printed\n"


@ways
def test_how_a_child_ended(way: Callable[[], None] | None, capfd: pytest.CaptureFixture[str]) -> None:
    child = Child(fail, prepare=way)
    assert child.how_it_ended() == "ended with exit code 1"
    assert "ValueError: on purpose" in capfd.readouterr().err
    child.close()
    child = Child(wait_for_ever, prepare=way)
    pid = child.pipe.recv()
    assert workers_of(os.getpid()) == [pid]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EOFError):  # at once, though the template lives on
        child.pipe.recv()
    assert child.how_it_ended() == "was killed by signal 9"
    child.close()
    assert workers_of(os.getpid()) == []


def template() -> int:
    found = [
        t.child.process.pid for (_, way, _), t in _Template.known.items() if way is prepare and not t.child.pipe.closed
    ]
    assert len(found) == 1
    return found[0]


def test_a_template_keeps_nothing_of_a_request(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as lock:
        child = Child(wait_for_ever, keep=[lock.fileno()], prepare=prepare)
    child.pipe.recv()
    held = [os.readlink(fd) for fd in Path(f"/proc/{template()}/fd").iterdir()]
    child.close()
    assert str(tmp_path / "lock") not in held
    assert sum(name.startswith("socket:") for name in held) == 1


def test_after_its_template_was_killed_a_child_ends_and_another_template_serves() -> None:
    child = Child(wait_for_ever, prepare=prepare)
    pid, killed = child.pipe.recv(), template()
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(EOFError):
        child.pipe.recv()
    assert child.how_it_ended() == "ended with exit code 1"
    wait_for(lambda: is_gone(pid))
    child.close()
    again = Child(wait_for_ever, prepare=prepare)
    assert again.pipe.recv() != pid
    assert template() != killed
    again.close()


def test_a_request_that_is_interrupted_ends_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C may: the next request must not get the rest of its answer."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    Child(tell, prepare=prepare).close()
    before = template()
    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.reduction.send_handle", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Child(tell, prepare=prepare)
    assert is_gone(before)
    child = Child(wait_for_ever, prepare=prepare)
    child.pipe.recv()
    child.close()


def test_a_variable_that_libraries_read_when_loaded_asks_for_another_template(monkeypatch: pytest.MonkeyPatch) -> None:
    Child(tell, prepare=prepare).close()
    before = template()
    monkeypatch.setenv("MARKER", "another")
    Child(tell, prepare=prepare).close()
    assert template() == before
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    Child(tell, prepare=prepare).close()
    both = {t.child.process.pid for (_, way, _), t in _Template.known.items() if way is prepare}
    assert len(both - {before}) >= 1


PARENT = """
import os, sys
sys.path[:0] = ["tests"]
import test_child_processes as here
children = [here.Child(here.wait_for_ever, prepare=way) for way in (None, here.prepare)]
print(*(child.pipe.recv() for child in children), here.template(), flush=True)
os.fork()  # a copy of this process that holds all its pipes
here.time.sleep(600)
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    yield running
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()


def test_no_child_outlives_its_parent(parent: subprocess.Popen[str]) -> None:
    """Though a copy of the parent keeps every pipe open, so that no child reads an end of file."""
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3
    assert not any(map(is_gone, pids))
    os.kill(parent.pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: all(map(is_gone, pids)), 10)
    assert time.monotonic() - killed < 5  # some tenths of a second, were the machine idle


def test_a_child_whose_parent_leaves_an_answer_unread_ends_without_a_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Closing a socket with unread data resets the connection, which the child's next read reports."""
    from normstudy.reproductions import workers as measuring  # here: every child imports this module, and this is slow

    child = Child(measuring.serve)
    child.pipe.send("no job")
    assert child.pipe.poll(60)
    child.close(kill=False)
    assert child.wait() == 0
    assert capfd.readouterr().err == ""

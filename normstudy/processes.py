"""Child processes: how each one starts, what it gets from its parent, and that it ends with its parent.

A child runs `target(pipe, *arguments)` in a new interpreter, which imports neither the user's script nor modules from
the working directory. Its pipe ends when the child ends, so a parent that waits for the pipe notices a death at once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import ClassVar, NamedTuple, NoReturn

# The environment of a process that trains; None unsets a variable. MKL_CBWR: without it the products that torch makes
# (a tied unembedding, a user's block) depend on the number of runs in a batch. OPENBLAS_*: the bits of a run depend on
# its CPU, not on the user's shell. MALLOC_*: otherwise glibc returns large blocks to the system at every free, which
# costs up to 40 % of a step.
WORKER_ENVIRONMENT: dict[str, str | None] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "AUTO,STRICT",
    "OPENBLAS_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "OPENBLAS_CORETYPE": None,
    "OPENBLAS_L2_SIZE": None,
    "OPENBLAS_BLOCK_FACTOR": None,
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}
# Prefixes of the variables that a library or the interpreter reads only once, when it is loaded.
READ_AT_START = (
    "ATEN_", "BLIS_", "DNNL_", "GLIBC_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "NPY_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "PYTHON", "PYTORCH_", "TORCH", "VECLIB_",
)  # fmt: skip
CHECK_SECONDS = 0.1  # between two checks that the parent is alive
WAIT_SECONDS = 0.002  # between two checks whether a forked child has ended
# Signals that may be sent to a whole process group or Slurm job.
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
BOOT = (
    "import sys; from multiprocessing.connection import Connection; pipe = Connection(int(sys.argv[2])); "
    "sys.path[:] = pipe.recv(); from normstudy.processes import begin; begin(pipe, int(sys.argv[3]))"
)


def environment_with(changes: Mapping[str, str | None]) -> dict[str, str]:
    """The environment of this process with some variables set, and those whose value is None unset."""
    merged = {**os.environ, **changes}
    return {key: value for key, value in merged.items() if value is not None}


# ---- in the parent ----------------------------------------------------------------------------------------


class Child:
    """A child process and the parent's end of its pipe. Raises OSError when the system has no room for a process.

    The child ignores Ctrl-C, which reaches the whole process group: its parent reacts. environment: all variables of
    the child, by default those of this process; keep: descriptors that the child holds open until it ends; blocked:
    signals that wait until the target unblocks them; prepare: a function that does the slow imports. With `prepare`,
    the child is forked from a template process that has called the function once.
    """

    def __init__(
        self,
        target: Callable[..., None],
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        keep: Sequence[int] = (),
        blocked: Collection[signal.Signals] = (),
        prepare: Callable[[], None] | None = None,
    ) -> None:
        work = pickle.dumps((target, arguments))
        variables = dict(os.environ if environment is None else environment)
        self.process: subprocess.Popen[bytes] | _Forked
        ours, theirs = socket.socketpair()
        self.pipe = Connection(ours.detach())
        with theirs:
            if prepare is not None:
                template = _Template.of(prepare, variables)
                request = _Request(work, sys.path, variables, frozenset(blocked), len(keep), _standard_streams())
                self.process = template.fork(request, [theirs.fileno(), *keep])
                return
            name = target.__qualname__
            self.process = _start(theirs.fileno(), name, variables, keep, {signal.SIGINT, *blocked})
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was killed: reading its pipe shows that
            self.pipe.send(sys.path)
            self.pipe.send_bytes(work)

    def wait(self) -> int:
        """Wait for the end of the process; its exit code, or minus the number of the signal that ended it."""
        return self.process.wait()

    def how_it_ended(self) -> str:
        """Wait for the end of the process, and describe it."""
        return f"ended with exit code {code}" if (code := self.wait()) >= 0 else f"was killed by signal {-code}"

    def close(self, *, kill: bool = True) -> None:
        """End the process, at once or else by closing its pipe, and wait for its end."""
        if kill:
            self.process.send_signal(signal.SIGKILL)
        self.pipe.close()
        self.wait()


def _start(
    pipe: int, name: str, environment: dict[str, str], keep: Sequence[int], blocked: Collection[signal.Signals]
) -> subprocess.Popen[bytes]:
    # The child inherits the mask: a Ctrl-C while it imports must not end it with a traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, name, str(pipe), str(os.getpid())],
            stdin=subprocess.DEVNULL, env=environment, pass_fds=[pipe, *keep],
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _standard_streams() -> list[int]:
    """The descriptors of standard output and error, except one that was closed and now belongs to another file."""
    return [fd for fd in (1, 2) if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)]


class _Request(NamedTuple):
    """A child to fork. Its descriptors follow: the working directory, standard streams, its pipe, those to keep."""

    work: bytes
    path: list[str]
    environment: dict[str, str]
    blocked: frozenset[signal.Signals]
    kept: int
    streams: list[int]


class _Template:
    """A child that calls `prepare` once and then, on each request, forks a child of its own within milliseconds.

    The template closes the descriptors of a request right after forking, so that only the forked child holds its pipe
    and locks. A template lives as long as this process. Other values of the variables READ_AT_START need another one.
    """

    known: ClassVar[dict[object, _Template]] = {}

    @classmethod
    def of(cls, prepare: Callable[[], None], environment: dict[str, str]) -> _Template:
        """The template for such children, started when there is none."""
        read = {key: value for key, value in environment.items() if key.startswith(READ_AT_START)}
        key = os.getpid(), prepare, frozenset(read.items())  # a template belongs to one process, not to its forks
        if key not in cls.known or cls.known[key].is_gone:
            cls.known[key] = cls(prepare, environment)
        return cls.known[key]

    def __init__(self, prepare: Callable[[], None], environment: dict[str, str]) -> None:
        self.child = Child(_serve_forks, prepare, environment=environment, blocked=GROUP_SIGNALS)
        self.lock, self.owner, self.is_gone = threading.RLock(), os.getpid(), False
        self.unread: deque[_Forked] = deque()  # children whose process ids have not been read
        atexit.register(self.end)

    def end(self) -> None:
        """End the template, and with it its children."""
        if os.getpid() == self.owner:
            self.child.close()

    def fork(self, request: _Request, descriptors: Sequence[int]) -> _Forked:
        """Request a child. Its process id is read only when it is needed: the template may still be importing."""
        child = _Forked(self)
        folder = os.open(os.curdir, os.O_PATH | os.O_CLOEXEC)  # unlike a path, it works for a deleted folder
        try:
            with self.noticing_its_end():
                self.child.pipe.send(request)
                for descriptor in (folder, *request.streams, *descriptors):
                    reduction.send_handle(self.child.pipe, descriptor, self.child.process.pid)
                self.unread.append(child)
        finally:
            os.close(folder)
        return child

    def read_pids(self) -> None:
        """Read the process ids of all requested children."""
        with self.noticing_its_end():
            while self.unread:
                self.unread[0].pid = self.child.pipe.recv()
                self.unread.popleft()

    def wait(self, child: _Forked) -> None:
        """Wait for the end of a child and set its code, which is 1 when the template was killed."""
        with self.noticing_its_end():
            self.read_pids()
            if child.pid is not None and not self.is_gone:
                self.child.pipe.send(child.pid)
                child.code = self.child.pipe.recv()
        if child.code is None:
            child.code = 1

    @contextlib.contextmanager
    def noticing_its_end(self) -> Iterator[None]:
        """A context for one request at a time. It sets `is_gone` when the template has ended.

        After another error, such as a Ctrl-C, the rest of an answer may be unread; then it ends the template.
        """
        with self.lock:
            try:
                yield
            except BaseException as error:
                self.is_gone = True
                self.unread.clear()
                self.child.close()
                if not isinstance(error, EOFError | OSError):
                    raise


class _Forked:
    """A child of a template, with the methods of Popen that Child and its users call."""

    def __init__(self, template: _Template) -> None:
        self.template = template
        self.pid: int | None = None
        self.code: int | None = None

    def send_signal(self, number: int) -> None:
        self.template.read_pids()
        if self.pid is not None and self.code is None and not self.template.is_gone:
            os.kill(self.pid, number)  # the system does not reuse the id before `wait`

    def wait(self) -> int:
        if self.code is None:
            self.template.wait(self)
        assert self.code is not None
        return self.code


# ---- in the child -----------------------------------------------------------------------------------------


class _Watch(threading.Thread):
    """A thread that ends this process when its parent has ended."""

    def __init__(self, parent: int) -> None:
        super().__init__(daemon=True)
        self.parent, self.over = parent, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(CHECK_SECONDS):
            _end_without(self.parent)

    def stop(self) -> None:
        self.over.set()
        self.join()


def _end_without(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)


def leave(code: int) -> NoReturn:
    """Flush what was printed, and end this process at once: an orderly exit would spend half a second on torch."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # it is closed
            stream.flush()
    os._exit(code)


def begin(pipe: Connection, parent: int) -> None:
    """The first function of every child that is not forked: watch the parent, then do the work that it sends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    watch = _Watch(parent)
    target, arguments = pickle.loads(pipe.recv_bytes())
    if target is _serve_forks:
        _serve_forks(pipe, *arguments, watch)
    target(pipe, *arguments)


def _serve_forks(pipe: Connection, prepare: Callable[[], None], watch: _Watch) -> NoReturn:
    """The work of a template. It forks without a second Python thread, whose locks would stay locked in the child."""
    prepare()
    watch.stop()
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended
        while True:
            while not pipe.poll(CHECK_SECONDS):
                _end_without(watch.parent)
            request = pipe.recv()
            pipe.send(_fork(pipe, request) if isinstance(request, _Request) else _exit_code(request, watch.parent))
    os._exit(0)


def _fork(pipe: Connection, request: _Request) -> int | None:
    """Fork a child; its process id, or None when the system has no room for another process."""
    count = 2 + len(request.streams) + request.kept
    descriptors = [reduction.recv_handle(pipe) for _ in range(count)]
    template, pid = os.getpid(), None
    with contextlib.suppress(OSError):
        pid = os.fork()
    if pid == 0:
        pipe.close()
        _work_forked(request, descriptors, template)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def _exit_code(pid: int, parent: int) -> int:
    """Wait for a child's end, as long as the parent lives."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        _end_without(parent)
        time.sleep(WAIT_SECONDS)


def _work_forked(request: _Request, descriptors: list[int], template: int) -> NoReturn:
    """The work of a forked child: take over the parent's folder, streams and variables, call the target, and end."""
    code = 1
    try:
        _Watch(template)
        folder, *rest = descriptors
        os.fchdir(folder)
        os.close(folder)
        for stream, descriptor in zip(request.streams, rest, strict=False):
            os.dup2(descriptor, stream)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request.environment)
        sys.path[:] = request.path
        signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked)
        target, arguments = pickle.loads(request.work)
        target(Connection(rest[len(request.streams)]), *arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    leave(code)

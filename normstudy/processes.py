"""Start child processes, which end when their parent ends.

A child runs `target(pipe, *arguments)` in a new interpreter, which imports neither the user's script nor modules from
the working directory. When the child ends, its pipe closes, so a parent that waits for the pipe notices immediately.
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

# Environment variables of a process that trains; None unsets a variable. Without MKL_CBWR, the matrix products that
# torch computes (for a tied unembedding or a user's block) would depend on the number of runs in a batch. Without
# MALLOC_*, glibc would return large blocks of memory at every free. This would take up to 40 % of a step's time.
WORKER_ENVIRONMENT: dict[str, str | None] = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT",
    "OPENBLAS_NUM_THREADS": "1", "BLIS_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**28),
}  # fmt: skip
# Prefixes of environment variables that select a library's instructions or algorithms, which would change a run's bits.
CLEARED = (
    "BLIS_", "CUBLAS_WORKSPACE", "DNNL_", "GLIBC_TUNABLES", "MKL_DEBUG", "MKL_ENABLE", "NPY_DISABLE", "NPY_ENABLE",
    "NVIDIA_TF32", "ONEDNN_", "OPENBLAS_", "TORCH_ALLOW_TF32", "TORCH_BLAS", "VECLIB_",
)  # fmt: skip
# Prefixes of environment variables that the interpreter or a library reads only when it is loaded.
READ_AT_START = (
    "ATEN_", "BLIS_", "DNNL_", "GLIBC_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "NPY_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "PYTHON", "PYTORCH_", "TORCH", "VECLIB_",
)  # fmt: skip
CHECK_SECONDS = 0.1  # seconds between two checks whether the parent is alive
WAIT_SECONDS = 0.002  # seconds between two checks whether a forked child has ended
# Signals that a terminal or Slurm may send to a parent and to its children. Only the parent reacts to these signals.
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
# A child imports normstudy from the folder where the parent found it, and other modules from `search_path`.
BOOT = (
    "import importlib.util, sys; from multiprocessing.connection import Connection; "
    "pipe = Connection(int(sys.argv[2])); sys.path[:] = pipe.recv(); "
    "spec = importlib.util.spec_from_file_location('normstudy', sys.argv[4]); "
    "sys.modules['normstudy'] = package = importlib.util.module_from_spec(spec); spec.loader.exec_module(package); "
    "from normstudy.processes import begin; begin(pipe, int(sys.argv[3]))"
)
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__init__.py")


def search_path() -> list[str]:
    """Return sys.path with the working directory and the script's folder last, so that libraries are found first."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    last = {"", os.path.dirname(script or "")}
    with contextlib.suppress(FileNotFoundError):  # the working directory was removed
        last |= {os.getcwd(), os.path.dirname(os.path.abspath(script or "x"))}
    return sorted(sys.path, key=last.__contains__)


def environment_with(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return this process's environment without CLEARED variables, with `changes` applied; None unsets a variable."""
    merged = {key: value for key, value in os.environ.items() if not key.startswith(CLEARED)} | {**changes}
    return {key: value for key, value in merged.items() if value is not None}


class Child:
    """A child process, connected to this process by a pipe. Raises OSError if the system cannot start another process.

    The child ignores Ctrl-C. The terminal also sends Ctrl-C to the parent, which decides what to do.

    environment: the child's environment variables (default: the variables of this process).
    keep: file descriptors that the child holds open until it ends.
    blocked: signals that stay blocked until `target` unblocks them.
    prepare: a function that does slow imports. A template process calls the function once, then forks the children.
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
                self.process = template.fork(work, variables, frozenset(blocked), [theirs.fileno(), *keep])
                return
            # The child inherits this signal mask, which blocks Ctrl-C during the child's imports to avoid a traceback.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *blocked})
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", BOOT, target.__qualname__, str(theirs.fileno()), str(os.getpid()),
                     HERE],
                    stdin=subprocess.DEVNULL, env=variables, pass_fds=[theirs.fileno(), *keep],
                )  # fmt: skip
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # if the child has died, the next read fails
            self.pipe.send(search_path())
            self.pipe.send_bytes(work)

    def wait(self) -> int:
        """Wait for the process to end; returns its exit code, or minus the number of the signal that killed it."""
        return self.process.wait()

    def how_it_ended(self) -> str:
        """Wait for the process to end, and describe how it ended."""
        return f"ended with exit code {code}" if (code := self.wait()) >= 0 else f"was killed by signal {-code}"

    def close(self, *, kill: bool = True) -> None:
        """Kill the process if `kill` is true, close the pipe, and wait for the process to end."""
        if kill:
            self.process.send_signal(signal.SIGKILL)
        self.pipe.close()
        self.wait()


class _Request(NamedTuple):
    """A message that asks a template to fork a child. File descriptors for the child follow in separate messages."""

    work: bytes  # the pickled target and arguments
    path: list[str]  # the requesting process's search_path()
    environment: dict[str, str]
    blocked: frozenset[signal.Signals]  # signals that stay blocked until the target unblocks them
    streams: list[int]  # standard streams (1, 2 or both) that the child takes over from the requesting process
    sent: int  # number of file descriptors that are sent after this message


class _Template:
    """A child process that calls `prepare` once and then, on each request, forks another child within milliseconds.

    For each child, the template receives the file descriptors of a pipe and of locks. It closes them after the fork,
    because they would otherwise stay open after the child has ended. A template lives as long as this process.
    """

    known: ClassVar[dict[object, _Template]] = {}

    @classmethod
    def of(cls, prepare: Callable[[], None], environment: dict[str, str]) -> _Template:
        """Return the template with this `prepare` and these READ_AT_START variables; start it, if there is none."""
        read = {key: value for key, value in environment.items() if key.startswith(READ_AT_START)}
        key = os.getpid(), prepare, frozenset(read.items())  # getpid: a fork of this process needs its own template
        if key not in cls.known or cls.known[key].child.pipe.closed:  # closed: the template has ended
            cls.known[key] = cls(prepare, environment)
        return cls.known[key]

    def __init__(self, prepare: Callable[[], None], environment: dict[str, str]) -> None:
        self.child = Child(_serve_forks, prepare, environment=environment, blocked=GROUP_SIGNALS)
        self.lock, self.owner = threading.RLock(), os.getpid()
        self.unread: deque[_Forked] = deque()  # requested children whose process ids have not been received
        atexit.register(self.end)

    def end(self) -> None:
        """Kill the template. Every child that the template forked notices this within CHECK_SECONDS and ends."""
        if os.getpid() == self.owner:  # a fork of this process also calls this function when it exits
            self.child.close()

    def fork(
        self, work: bytes, environment: dict[str, str], blocked: frozenset[signal.Signals], descriptors: Sequence[int]
    ) -> _Forked:
        """Request a child. Do not wait for the child's process id, because the template may still run `prepare`.

        descriptors: the child's end of its pipe, then the file descriptors that the child holds open until it ends.
        """
        child = _Forked(self)
        # Send stdout and stderr only if they are open. A later file may have their numbers, but is not inheritable.
        streams = [fd for fd in (1, 2) if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)]
        folder = os.open(os.curdir, os.O_PATH | os.O_CLOEXEC)  # unlike a path, a descriptor works for a deleted folder
        sent = [folder, *streams, *descriptors]
        try:
            with self.noticing_its_end():
                self.child.pipe.send(_Request(work, search_path(), environment, blocked, streams, len(sent)))
                for descriptor in sent:
                    reduction.send_handle(self.child.pipe, descriptor, self.child.process.pid)
                self.unread.append(child)
        finally:
            os.close(folder)
        return child

    def read_pids(self) -> None:
        """Receive the process ids of all requested children."""
        with self.noticing_its_end():
            while self.unread:
                self.unread[0].pid = self.child.pipe.recv()
                self.unread.popleft()

    @contextlib.contextmanager
    def noticing_its_end(self) -> Iterator[None]:
        """A context for one exchange of messages with the template. Other threads wait meanwhile.

        Any exception in the `with` block, such as a Ctrl-C, ends the template and closes its pipe, because half a
        message may be left in the pipe. EOFError and OSError mean that the template has ended, and are suppressed.
        """
        with self.lock:
            try:
                yield
            except BaseException as error:
                self.child.pipe.close()  # first, because a second Ctrl-C may interrupt the next line
                self.child.close()
                if not isinstance(error, EOFError | OSError):
                    raise


class _Forked:
    """A child process forked by a template process. It has the methods `send_signal` and `wait` of subprocess.Popen."""

    def __init__(self, template: _Template) -> None:
        self.template = template
        self.pid: int | None = None
        self.code: int | None = None

    def send_signal(self, number: int) -> None:
        self.template.read_pids()
        if self.pid is not None and self.code is None and not self.template.child.pipe.closed:
            os.kill(self.pid, number)  # the system does not reuse the process id before `wait` returns

    def wait(self) -> int:
        """Wait for this process to end; returns its exit code, or 1 if the template was killed."""
        if self.code is None:
            code = 1
            with self.template.noticing_its_end():
                self.template.read_pids()
                if self.pid is not None:
                    self.template.child.pipe.send(self.pid)
                    code = self.template.child.pipe.recv()
            self.code = code
        return self.code


class _Watch(threading.Thread):
    """A thread that ends this process when the parent process has ended."""

    def __init__(self, parent: int) -> None:
        super().__init__(daemon=True)
        self.parent, self.over = parent, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(CHECK_SECONDS):
            _end_without(self.parent)


def _end_without(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)


def leave(code: int) -> NoReturn:
    """Flush the standard streams and end this process now. With torch imported, a normal exit takes 0.5 s longer."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # the stream may be closed
            stream.flush()
    os._exit(code)


def begin(pipe: Connection, parent: int) -> None:
    """Watch the parent, and call the target that the parent sends. Every child that is not forked starts here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    watch = _Watch(parent)
    target, arguments = pickle.loads(pipe.recv_bytes())
    if target is _serve_forks:
        _serve_forks(pipe, *arguments, watch)
    target(pipe, *arguments)


def _serve_forks(pipe: Connection, prepare: Callable[[], None], watch: _Watch) -> NoReturn:
    """Serve fork requests in a template. First end the thread `watch`: a fork may copy a lock that the thread holds."""
    prepare()
    watch.over.set()
    watch.join()
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended
        while True:
            while not pipe.poll(CHECK_SECONDS):
                _end_without(watch.parent)
            request = pipe.recv()
            pipe.send(_fork(pipe, request) if isinstance(request, _Request) else _exit_code(request, watch.parent))
    os._exit(0)


def _fork(pipe: Connection, request: _Request) -> int | None:
    """Fork a child; returns its process id, or None if the system cannot start another process."""
    descriptors = [reduction.recv_handle(pipe) for _ in range(request.sent)]
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
    """Wait for a child to end and return its exit code; end this process if the parent ends first."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        _end_without(parent)
        time.sleep(WAIT_SECONDS)


def _work_forked(request: _Request, descriptors: list[int], template: int) -> NoReturn:
    """In a forked child, take over the requesting process's folder, streams and environment, and call the target."""
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

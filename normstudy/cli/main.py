"""Dispatch the `normstudy` command line, and turn errors into exit codes and one-line messages.

At module level, `cli` imports only the standard library and `normstudy.errors`, so that help texts appear at once.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable

from normstudy.cli import commands, manual
from normstudy.errors import ConfigError, Failed, MissingRows, nearest, short

COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    **{name: functools.partial(commands.train, name) for name in ("run", "sweep", "critical")},
    "plot": commands.plot, "compare": commands.compare, "report": commands.report, "sensitivity": commands.sensitivity,
    "status": commands.status, "cancel": commands.cancel, "check": commands.check, "compact": commands.compact,
    "export": commands.export, "reproduce": commands.reproduce, "bench": commands.bench,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit code: 0 success, 1 a run crashed, 2 a bad request, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    if argv is None:  # if another program calls this function, leave its garbage collection as it is
        gc.set_threshold(100_000)  # with the default of 700, collecting takes a seventh of a short command's time
    _prepare_streams()
    # A command started from a notebook inherits MPLBACKEND. If this names a backend that is not installed, matplotlib
    # cannot be imported. Figures need no backend: unset the variable, except in the notebook's own process.
    backend = None if {"matplotlib", "IPython"} & sys.modules.keys() else os.environ.pop("MPLBACKEND", None)
    # Pause garbage collection, which takes an eighth of the drawing time and frees little memory.
    paused = words[:1] in (["plot"], ["compare"], ["report"], ["sensitivity"])
    if paused:
        gc.disable()
    hook, sys.unraisablehook = sys.unraisablehook, functools.partial(_interrupt_again, sys.unraisablehook)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", MissingRows)
            warnings.showwarning = functools.partial(_show, set(), warnings.showwarning)
            code = _dispatch(words)
        sys.stdout.flush()  # raises here, instead of at exit, if the pipe is closed
    except KeyboardInterrupt as stop:
        return int(getattr(stop, "code", 130))
    except BrokenPipeError:
        if _stdout_is_open():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # the exit code of a process killed by SIGPIPE
    except Exception as error:
        if isinstance(error, ConfigError):
            line = str(error)
        elif isinstance(error, OSError) and error.strerror:
            line = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        else:
            raise  # a bug
        with contextlib.suppress(OSError):  # a full disk
            print(f"error: {short(line)}", file=sys.stderr, flush=True)
        return 2
    finally:
        sys.unraisablehook = hook
        if paused:
            gc.enable()
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return code


def _interrupt_again(others: Callable[..., None], ignored: sys.UnraisableHookArgs) -> None:
    """Interrupt again if Python ignored a Ctrl-C in a destructor or callback. others: the hook for other exceptions."""
    if ignored.exc_type is KeyboardInterrupt:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        others(ignored)


def _show(
    shown: set[str], others: Callable[..., None], message: Warning, category: type[Warning], *where: object
) -> None:
    """Print a MissingRows warning as one line, unless `shown` contains the line. others: prints all other warnings."""
    if category is not MissingRows:
        others(message, category, *where)
    elif (line := short(str(message))) not in shown:
        shown.add(line)
        print(f"warning: {line}", file=sys.stderr)


def _prepare_streams() -> None:
    """Connect closed standard streams to /dev/null, and escape characters that an output stream cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if (stream := getattr(sys, name)) is None:
            number = os.open(os.devnull, os.O_RDWR)  # takes the closed stream's descriptor, so that no file does
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _stdout_is_open() -> bool:
    """Return whether standard output still has a reader. In a pipe to `head`, the reader may have ended."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def _dispatch(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("help", [])
    if command in ("-h", "--help", "help"):
        print(manual.help_of(None), end="")
    elif command in ("-sc", "--shell-completion"):
        commands.complete(rest, list(COMMANDS))
    elif command == "--version":
        from importlib.metadata import version

        print(f"normstudy {version('normstudy')}")
    elif command not in COMMANDS:
        kind = "flag" if command.startswith("-") else "command"
        raise ConfigError(f"unknown {kind} {command!r}: use one of {', '.join(COMMANDS)}.{nearest(command, COMMANDS)}")
    elif "-h" in rest or "--help" in rest:
        print(manual.help_of(command), end="")
    else:
        try:
            return COMMANDS[command](rest) or 0
        except Failed as error:
            print(f"error: {short(str(error))}", file=sys.stderr)
            return 1
    return 0

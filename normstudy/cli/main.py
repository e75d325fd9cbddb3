"""The `normstudy` command: help texts, dispatch, and the arguments of plot, compare and the others.

Only the standard library is imported here, and each command's own modules when it is chosen, so that every
help text and every misspelt command answers at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

from normstudy.cli import manual

if typing.TYPE_CHECKING:
    import argparse


def main(argv: list[str] | None = None) -> int:
    """The console command; returns the exit code: 0 done, 1 a run crashed, 2 a bad request, 130 stopped."""
    words = sys.argv[1:] if argv is None else argv
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # so that a reader who has gone shows here and not at exit
    except KeyboardInterrupt as stop:
        return int(getattr(stop, "code", 130))
    except BrokenPipeError:
        if _stdout_is_open():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as if ended by SIGPIPE
    except Exception as error:
        line = _user_error(error)
        if line is None:
            raise
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)  # one line, whatever a file is called
        print(f"error: {shown}", file=sys.stderr)
        return 2
    return code


def _stdout_is_open() -> bool:
    """Whether anybody still reads what is printed: `| head` may have seen enough."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def _user_error(error: Exception) -> str | None:
    """The line for what a user can mend: a wrong request, a file or folder that cannot be used."""
    from normstudy.errors import ConfigError

    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return None


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(manual.HELP, end="")
        return 0
    command, rest = words[0], words[1:]
    if command in ("-sc", "--shell-completion"):
        return _complete(rest)
    if command == "--version":
        from importlib.metadata import version

        print(f"normstudy {version('normstudy')}")
        return 0
    if command not in COMMANDS:
        from normstudy.errors import ConfigError, nearest

        kind = "flag" if command.startswith("-") else "command"
        raise ConfigError(f"unknown {kind} {command!r}: use {', '.join(COMMANDS)}.{nearest(command, COMMANDS)}")
    text, call = COMMANDS[command]
    if "-h" in rest or "--help" in rest:
        print(text, end="")
        return 0
    return call(rest)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, imports too: a command that ends soon has little garbage, and looking for it among
    millions of objects takes an eighth of the figures' time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _run(argv: list[str]) -> int:
    from normstudy.app import main as app

    return app.main("run", argv)


def _sweep(argv: list[str]) -> int:
    from normstudy.app import main as app

    return app.main("sweep", argv)


def _plot(argv: list[str]) -> int:
    parser = _parser("plot")
    _where_option(parser)
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png")
    parser.add_argument("--out", type=_out)
    parser.add_argument("--only")
    args = parser.parse_args(argv)
    where = _where(args.where)
    only = None if args.only is None else _names("--only", args.only)
    study = _study(args.study)
    with _uncollected():
        from normstudy.figures import together

        result = together.plot(study, where=where, fmt=args.format, out=args.out, only=only)
    for path in result.paths:
        print(path)
    for line in result.skipped:
        print(f"skipped {line}")
    return 0


def _compare(argv: list[str]) -> int:
    parser = _parser("compare")
    _where_option(parser)
    parser.add_argument("--by", required=True)
    parser.add_argument("--baseline")
    parser.add_argument("--format", choices=("table", "csv", "json", "markdown"), default="table")
    args = parser.parse_args(argv)
    where = _where(args.where)
    study = _study(args.study)
    with _uncollected():
        from normstudy.analysis.compare import compare_study, render

        print(render(compare_study(study, by=args.by, baseline=args.baseline, where=where), args.format))
    return 0


def _compact(argv: list[str]) -> int:
    parser = _parser("compact")
    parser.add_argument("--seal", action="store_true")
    args = parser.parse_args(argv)
    study = _study(args.study)
    from normstudy.study import paths
    from normstudy.upkeep.compact import compact_study

    paths.check_own_folders(study)
    print(compact_study(study, seal=args.seal))
    return 0


def _reproduce(argv: list[str]) -> int:
    from normstudy.config import ConfigError

    parser = _parser("reproduce", study=False)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tier", type=int)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=_out)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--format", choices=("table", "markdown"), default="table")
    args = parser.parse_args(argv)
    if args.tier is not None and args.names:
        raise ConfigError(f"--tier {args.tier} and names are given: give one of the two")
    if args.tier is None and not args.names and not args.list:
        raise ConfigError("nothing is asked for: give --tier 0, or names out of normstudy reproduce --list")
    from normstudy.reproductions import run, workers
    from normstudy.reproductions.registry import REPRODUCTIONS

    names = run.check_names(args.names) or list(REPRODUCTIONS)
    if args.tier is not None:
        names = run.names_of(args.tier)
    if args.list:
        print(run.listing(names))
        return 0
    out = run.OUT if args.out is None else args.out
    try:
        report = run.reproduce(names, out, again=args.again, processes=args.workers)
    except workers.MeasuringFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(run.render(report.findings, args.format))
    if args.format == "table":
        print(f"\n{run.summary(report, out)}")
    return 0


def _bench(argv: list[str]) -> int:
    from normstudy.config import ConfigError

    parser = _parser("bench", study=False)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--rows")
    parser.add_argument("--out", type=_out)
    parser.add_argument("--format", choices=("table", "markdown"), default="table")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args(argv)
    if args.show and args.device is not None:
        raise ConfigError(f"--show measures nothing: leave out --device {args.device}")
    names = None if args.rows is None else _names("--rows", args.rows)
    from normstudy.bench import run

    mode = "full" if args.full or (args.show and not args.quick) else "quick"
    out = run.OUT[mode] if args.out is None else args.out
    if args.show:
        text = run.show(names, out, args.format)
    else:
        text = run.bench(names, out, mode=mode, device=args.device or "cpu", fmt=args.format)
    if text:
        print(text)
    return 0


def _status(argv: list[str]) -> int:
    from normstudy.config import ConfigError

    parser = _parser("status")
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--every", type=float)
    args = parser.parse_args(argv)
    if args.every is not None and not args.watch:
        raise ConfigError(f"--every {args.every:g} belongs to --watch: add --watch")
    if args.every is not None and not 0.1 <= args.every <= 86_400:
        raise ConfigError(f"--every {args.every:g} is out of range: give seconds from 0.1 to 86400")
    study = _study(args.study)
    from normstudy.upkeep import status, status_text

    if args.watch:
        status_text.watch(study, 5.0 if args.every is None else args.every)
    else:
        print(status_text.render(status.look(study)))
    return 0


def _cancel(argv: list[str]) -> int:
    study = _study(_parser("cancel").parse_args(argv).study)
    from normstudy.sweep import on_slurm

    print(on_slurm.cancel(study))
    return 0


def _check(argv: list[str]) -> int:
    study = _study(_parser("check").parse_args(argv).study)
    from normstudy.upkeep.check import check_study

    report = check_study(study)
    print(report.text)
    return 0 if report.sound else 1


def _export(argv: list[str]) -> int:
    parser = _parser("export")
    _where_option(parser)
    parser.add_argument("--to", required=True)
    parser.add_argument("--out", type=_out)
    args = parser.parse_args(argv)
    where = _where(args.where)
    study = _study(args.study)
    from normstudy.exports.export import export_study

    print(export_study(study, to=args.to, out=args.out, where=where))
    return 0


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "run": (manual.RUN_HELP, _run),
    "sweep": (manual.SWEEP_HELP, _sweep),
    "plot": (manual.PLOT_HELP, _plot),
    "compare": (manual.COMPARE_HELP, _compare),
    "status": (manual.STATUS_HELP, _status),
    "cancel": (manual.CANCEL_HELP, _cancel),
    "check": (manual.CHECK_HELP, _check),
    "compact": (manual.COMPACT_HELP, _compact),
    "export": (manual.EXPORT_HELP, _export),
    "reproduce": (manual.REPRODUCE_HELP, _reproduce),
    "bench": (manual.BENCH_HELP, _bench),
}


# ---- arguments ----------------------------------------------------------------------------------------


def _parser(command: str, *, study: bool = True) -> argparse.ArgumentParser:
    import argparse

    from normstudy.config import ConfigError

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise ConfigError(f"{message}: see normstudy {command} --help")

    parser = Parser(prog=f"normstudy {command}", add_help=False, allow_abbrev=False)
    if study:
        parser.add_argument("study", metavar="STUDY")
    return parser


def _where_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE")


def _where(given: list[str]) -> dict[str, str]:
    """`["placement=pre,norm=rmsnorm"]` -> `{"placement": "pre", "norm": "rmsnorm"}`."""
    from normstudy.config import ConfigError

    out: dict[str, str] = {}
    for word in ",".join(given).split(",") if given else []:
        column, equals, value = (part.strip() for part in word.partition("="))
        if not (column and equals and value):
            raise ConfigError(f"--where {word!r} is not COLUMN=VALUE: write --where placement=pre,warmup_steps=0")
        if column in out:
            raise ConfigError(f"--where gives {column} twice, {out[column]} and {value}: give one value")
        out[column] = value
    return out


def _names(flag: str, given: str) -> list[str]:
    from normstudy.config import ConfigError

    names = [name.strip() for name in given.split(",")]
    if not all(names):
        raise ConfigError(f"{flag} {given!r} has an empty name: write {flag} NAME,NAME")
    return names


def _out(given: str) -> Path:
    """The place of --out: not empty, and not among a study's own files."""
    from normstudy.config import ConfigError
    from normstudy.study import paths as places

    if not given or not given.isprintable():
        raise ConfigError(f"--out {given!r} is not a path: give the place of what is made")
    places.check_outside_of_studies(Path(given), "another --out")
    return Path(given)


def _study(given: str) -> Path:
    from normstudy.config import ConfigError

    folder = Path(given)
    if folder.is_dir():
        return folder
    under = Path("results") / given
    hint = f" Did you mean {under}?" if under.is_dir() else " Give the folder of a study, such as results/warmup."
    raise ConfigError(f"{given}: no such folder.{hint}")


# ---- shell completion ---------------------------------------------------------------------------------


def _complete(words: list[str]) -> int:
    """Answer `normstudy -sc query=SHELL`, or print the script of `-sc install=SHELL`.

    Hydra completes a command line that has no subcommand, so run and sweep are dropped from COMP_LINE. For
    the other commands nothing is printed, and the shell falls back to file names.
    """
    if len(words) != 1 or words[0].split("=")[0] not in ("query", "install", "uninstall"):
        from normstudy.config import ConfigError

        raise ConfigError("-sc takes one word: install=bash, uninstall=bash or query=bash (or zsh, fish)")
    if words[0].startswith("query="):
        line = os.environ.get("COMP_LINE", "")
        program, *typed = line.split() or [""]
        if not typed or (len(typed) == 1 and not line.endswith(" ")):
            print(" ".join(c for c in COMMANDS if c.startswith("".join(typed))))
            return 0
        if typed[0] not in ("run", "sweep"):
            return 0
        many = ["--multirun"] if typed[0] == "sweep" else []  # or a comma list would be an error
        ours = ("--dry-run", "--detach", "--retry-failed", "--no-retry-failed")
        kept = [word for word in typed[1:] if word not in ours]
        blank = " " if line.endswith(" ") else ""
        os.environ["COMP_LINE"] = " ".join([program, *many, *kept]) + blank
    from normstudy.app import main as app

    app.complete(words[0])
    return 0

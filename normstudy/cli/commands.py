"""Run the commands. Each command's function parses the arguments and returns an exit code, or None for code 0."""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from normstudy.errors import ConfigError, nearest, printable, say

if typing.TYPE_CHECKING:
    import argparse

TABLES = ("table", "csv", "json", "markdown")
OUR_FLAGS = ("--dry-run", "--detach", "--retry-failed", "--no-retry-failed")  # unknown to Hydra's completion


def parser(
    command: str,
    *flags: str,
    study: bool = True,
    where: bool = False,
    required: str | None = None,
    **options: Callable[[str], object] | tuple[str, ...],
) -> argparse.ArgumentParser:
    """Return a command's parser, whose errors are ConfigErrors.

    flags: options without a value. study, where: whether the command has STUDY and --where. required: an option that
    must be given. options: name -> a function that converts the option's text, or the allowed texts, the default first.
    """
    import argparse

    class CommandParser(argparse.ArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise ConfigError(f"{message}: see normstudy {command} --help")

    made = CommandParser(prog=f"normstudy {command}", add_help=False, allow_abbrev=False)
    if study:
        made.add_argument("study", metavar="STUDY", type=study_folder)
    if where:
        made.add_argument("--where", action="append", default=[])
    if required:
        made.add_argument(f"--{required}", required=True)
    for flag in flags:
        made.add_argument(flag, action="store_true")
    for name, kind in options.items():
        if isinstance(kind, tuple):
            made.add_argument(f"--{name}", choices=kind, default=kind[0])
        else:
            made.add_argument(f"--{name}", type=kind)
    return made


def name_list(given: str) -> list[str]:
    """Split a list of names: `a,b` -> `["a", "b"]`."""
    found = [name.strip() for name in given.split(",")]
    if not all(found):
        raise ConfigError(f"{given!r} contains an empty name: write NAME,NAME")
    return found


def out_path(given: str) -> Path:
    """Return the path of --out. Raises a ConfigError if the path is empty or lies among a study's own files."""
    from normstudy.config import places
    from normstudy.study import paths

    if not given or not given.isprintable():
        raise ConfigError(f"--out {given!r} is not a path: name the file or folder to write")
    path = Path(places.expanded(given, "--out"))
    paths.check_outside_of_studies(path, "another --out")
    return path


def study_folder(given: str) -> Path:
    """Return the folder STUDY. Raises a ConfigError, which suggests a similar path, if the folder does not exist."""
    from normstudy.config import places

    path = Path(places.expanded(given, "STUDY"))
    if path.is_dir():
        return path
    studies = {runs.parents[1] for root in (Path("results"), path.parent) for runs in root.glob("*/tables/runs")}
    hint = nearest(path.name, (), {study.name.lower(): str(study) for study in sorted(studies)})
    raise ConfigError(f"{given}: no such folder.{hint or ' Name the folder of a study, such as results/warmup.'}")


def train(command: str, argv: list[str]) -> int:
    """Run `normstudy run`, `sweep` or `critical`, whose arguments Hydra reads."""
    from normstudy.app import main

    return main.train(command, argv)[0]


def complete(words: Sequence[str], commands: Sequence[str]) -> None:
    """Run `normstudy -sc`. `query=SHELL` prints completions; `install=SHELL` prints shell code to enable completion."""
    if len(words) != 1 or words[0].split("=")[0] not in ("query", "install", "uninstall"):
        raise ConfigError("-sc needs one word: install=bash, uninstall=bash or query=bash (zsh and fish work too)")
    if words[0].startswith("query="):
        line = os.environ.get("COMP_LINE", "")  # the typed line; remove the command from it, because Hydra has none
        program, *typed = line.split() or [""]
        if not typed or (len(typed) == 1 and not line.endswith(" ")):
            print(" ".join(c for c in commands if c.startswith("".join(typed))))
            return
        if typed[0] not in ("run", "sweep", "critical"):
            return
        many = [] if typed[0] == "run" else ["--multirun"]  # otherwise Hydra rejects comma-separated values
        kept = [word for word in typed[1:] if word not in OUR_FLAGS]
        blank = " " if line.endswith(" ") else ""
        os.environ["COMP_LINE"] = " ".join([program, *many, *kept]) + blank
    from normstudy.app import main

    main.complete(words[0])


def plot(argv: list[str]) -> None:
    given = parser("plot", "--no-title", where=True, format=("png", "svg", "pdf"), out=out_path, only=name_list)
    for name, default in (("--module", "mlp_out"), ("--quantity", "grad_norm"), ("--width", "7in")):
        given.add_argument(name, default=default)
    args = given.parse_args(argv)
    from normstudy.figures import together
    from normstudy.figures.paper import Paper, inches

    paper = Paper(inches(args.width), not args.no_title, args.module, args.quantity)
    result = together.plot(args.study, where=args.where, fmt=args.format, out=args.out, only=args.only, paper=paper)
    for name, path in result.found.items():
        if not isinstance(path, str):
            say(printable(str(path)))
            if args.no_title:
                say(printable(f"  {result.captions[name]}"))
    for line in result.skipped:
        say(line)


def compare(argv: list[str]) -> None:
    args = parser("compare", where=True, required="by", baseline=str, margin=float, format=TABLES).parse_args(argv)
    from normstudy.analysis.compare import compare_study, render

    found = compare_study(args.study, by=args.by, baseline=args.baseline, margin=args.margin, where=args.where)
    say(render(found, args.format))


def report(argv: list[str]) -> None:
    given = parser("report", study=False, where=True, out=out_path)
    given.add_argument("studies", metavar="STUDY", nargs="+", type=study_folder)
    args = given.parse_args(argv)
    from normstudy.report.make import report

    say(printable(str(report(args.studies, args.where).save(args.out))))


def sensitivity(argv: list[str]) -> None:
    args = parser("sensitivity", where=True, format=TABLES).parse_args(argv)
    from normstudy.analysis.sensitivity import render, sensitivity_study

    found, alone = sensitivity_study(args.study, args.where)
    say(render(found, args.format))
    for cell in alone:  # not on standard output, where csv and json may be read by another program
        print(f"{printable(cell)} is left out, because it has only one learning rate", file=sys.stderr)


def export(argv: list[str]) -> None:
    args = parser("export", "--join", where=True, required="to", out=out_path).parse_args(argv)
    from normstudy.exports.export import export_study

    say(export_study(args.study, to=args.to, out=args.out, where=args.where, join=args.join))


def status(argv: list[str]) -> None:
    args = parser("status", "--watch", every=float).parse_args(argv)
    if args.every is not None and not args.watch:
        raise ConfigError(f"--every {args.every:g} needs --watch: add --watch")
    if args.every is not None and not 0.1 <= args.every <= 86_400:
        raise ConfigError(f"--every {args.every:g} is out of range: choose 0.1 to 86400 seconds")
    from normstudy.upkeep import status

    if args.watch:
        status.watch(args.study, 5.0 if args.every is None else args.every)
    else:
        say(repr(status.look(args.study)))


def cancel(argv: list[str]) -> None:
    study = parser("cancel").parse_args(argv).study
    from normstudy.sweep.on_slurm import cancel

    say(cancel(study))


def check(argv: list[str]) -> int:
    study = parser("check").parse_args(argv).study
    from normstudy.upkeep.check import check_study

    report = check_study(study)
    say(report.text)
    return 0 if report.sound else 1


def compact(argv: list[str]) -> None:
    args = parser("compact", "--seal").parse_args(argv)
    from normstudy.study import paths
    from normstudy.upkeep.compact import compact_study

    paths.check_own_folders(args.study)
    say(compact_study(args.study, seal=args.seal))


def reproduce(argv: list[str]) -> None:
    formats = ("table", "markdown")
    given = parser("reproduce", "--list", "--again", study=False, tier=int, out=out_path, workers=int, format=formats)
    given.add_argument("names", nargs="*", metavar="NAME")
    args = given.parse_args(argv)
    if args.tier is not None and args.names:
        raise ConfigError(f"--tier {args.tier} and names of predictions exclude each other: leave out one of the two")
    if args.tier is None and not args.names and not args.list:
        raise ConfigError(
            "there is nothing to measure: add --tier 0, or names from the output of normstudy reproduce --list"
        )
    from normstudy.reproductions import run

    if args.tier not in (None, run.TIER):
        raise ConfigError(f"--tier {args.tier} does not exist: give --tier {run.TIER}")
    names = run.check_names(args.names) or list(run.REPRODUCTIONS)
    if args.list:
        print(run.listing(names))
        return
    out = run.OUT if args.out is None else args.out
    findings, measured = run.reproduce(names, out, again=args.again, processes=args.workers)
    print(run.render(findings, args.format))
    if args.format == "table":
        print(f"\n{run.summary(len(findings), len(measured), out)}")


def bench(argv: list[str]) -> None:
    given = parser("bench", "--show", study=False, rows=name_list, out=out_path, format=("table", "markdown"))
    given.add_argument("--device", choices=("cpu", "cuda"))
    size = given.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    args = given.parse_args(argv)
    if args.show and args.device is not None:
        raise ConfigError(f"--show measures nothing: leave out --device {args.device}")
    from normstudy.bench import run

    mode = "full" if args.full or (args.show and not args.quick) else "quick"
    folder = run.OUT[mode] if args.out is None else args.out
    if args.show:
        text = run.show(args.rows, folder, args.format)
    else:
        text = run.bench(args.rows, folder, mode=mode, device=args.device or "cpu", fmt=args.format)
    if text:
        print(text)

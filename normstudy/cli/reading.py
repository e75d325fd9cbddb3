"""Run the commands that read a study's tables: `normstudy plot`, `compare`, `report`, `sensitivity` and `export`."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

from normstudy.cli import arguments
from normstudy.errors import printable, say


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause garbage collection, which takes an eighth of the drawing time and frees little memory."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def plot(argv: list[str]) -> int:
    parser = arguments.parser("plot", where=True)
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png")
    parser.add_argument("--out", type=arguments.out)
    parser.add_argument("--only", type=arguments.names)
    parser.add_argument("--module", default="mlp_out")
    parser.add_argument("--quantity", default="grad_norm")
    parser.add_argument("--width", default="7in")
    parser.add_argument("--no-title", action="store_true")
    args = parser.parse_args(argv)
    with _without_garbage_collection():
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
    return 0


def compare(argv: list[str]) -> int:
    parser = arguments.parser("compare", where=True)
    parser.add_argument("--by", required=True)
    parser.add_argument("--baseline")
    parser.add_argument("--margin", type=float)
    parser.add_argument("--format", choices=("table", "csv", "json", "markdown"), default="table")
    args = parser.parse_args(argv)
    with _without_garbage_collection():
        from normstudy.analysis.compare import compare_study, render

        found = compare_study(args.study, by=args.by, baseline=args.baseline, margin=args.margin, where=args.where)
        say(render(found, args.format))
    return 0


def report(argv: list[str]) -> int:
    parser = arguments.parser("report", study=False, where=True)
    parser.add_argument("studies", metavar="STUDY", nargs="+", type=arguments.folder)
    parser.add_argument("--out", type=arguments.out)
    args = parser.parse_args(argv)
    with _without_garbage_collection():
        from normstudy.report.make import report

        say(printable(str(report(args.studies, args.where).save(args.out))))
    return 0


def sensitivity(argv: list[str]) -> int:
    parser = arguments.parser("sensitivity", where=True)
    parser.add_argument("--format", choices=("table", "csv", "json", "markdown"), default="table")
    args = parser.parse_args(argv)
    with _without_garbage_collection():
        from normstudy.analysis.sensitivity import render, sensitivity_study

        found, alone = sensitivity_study(args.study, args.where)
        say(render(found, args.format))
    for cell in alone:  # not on standard output, where csv and json may be read by another program
        print(f"left out, because it has only one learning rate: {printable(cell)}", file=sys.stderr)
    return 0


def export(argv: list[str]) -> int:
    parser = arguments.parser("export", where=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--out", type=arguments.out)
    parser.add_argument("--join", action="store_true")
    args = parser.parse_args(argv)
    from normstudy.exports.export import export_study

    say(export_study(args.study, to=args.to, out=args.out, where=args.where, join=args.join))
    return 0

"""Run the commands that measure something and need no study: `normstudy reproduce` and `normstudy bench`."""

from __future__ import annotations

import sys

from normstudy.cli import arguments
from normstudy.errors import ConfigError, short


def reproduce(argv: list[str]) -> int:
    parser = arguments.parser("reproduce", study=False)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tier", type=int)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=arguments.out)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--format", choices=("table", "markdown"), default="table")
    args = parser.parse_args(argv)
    if args.tier is not None and args.names:
        raise ConfigError(f"--tier {args.tier} and names of predictions exclude each other: leave out one of the two")
    if args.tier is None and not args.names and not args.list:
        raise ConfigError(
            "there is nothing to measure: add --tier 0, or names from the output of normstudy reproduce --list"
        )
    from normstudy.reproductions import run, workers

    names = run.check_names(args.names) or list(run.REPRODUCTIONS)
    if args.tier is not None:
        names = run.names_of(args.tier)
    if args.list:
        print(run.listing(names))
        return 0
    out = run.OUT if args.out is None else args.out
    try:
        report = run.reproduce(names, out, again=args.again, processes=args.workers)
    except workers.MeasuringFailed as error:
        print(f"error: {short(str(error))}", file=sys.stderr)
        return 1
    print(run.render(report.findings, args.format))
    if args.format == "table":
        print(f"\n{run.summary(report, out)}")
    return 0


def bench(argv: list[str]) -> int:
    parser = arguments.parser("bench", study=False)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=arguments.names)
    parser.add_argument("--out", type=arguments.out)
    parser.add_argument("--format", choices=("table", "markdown"), default="table")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args(argv)
    if args.show and args.device is not None:
        raise ConfigError(f"--show measures nothing: leave out --device {args.device}")
    from normstudy.bench import run

    mode = "full" if args.full or (args.show and not args.quick) else "quick"
    out = run.OUT[mode] if args.out is None else args.out
    if args.show:
        text = run.show(args.rows, out, args.format)
    else:
        text = run.bench(args.rows, out, mode=mode, device=args.device or "cpu", fmt=args.format)
    if text:
        print(text)
    return 0

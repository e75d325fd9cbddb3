"""Run the commands that inspect or maintain a study: `normstudy status`, `cancel`, `check` and `compact`."""

from __future__ import annotations

from normstudy.cli import arguments
from normstudy.errors import ConfigError, say


def status(argv: list[str]) -> int:
    parser = arguments.parser("status")
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--every", type=float)
    args = parser.parse_args(argv)
    if args.every is not None and not args.watch:
        raise ConfigError(f"--every {args.every:g} needs --watch: add --watch")
    if args.every is not None and not 0.1 <= args.every <= 86_400:
        raise ConfigError(f"--every {args.every:g} is out of range: choose 0.1 to 86400 seconds")
    from normstudy.upkeep import status

    if args.watch:
        status.watch(args.study, 5.0 if args.every is None else args.every)
    else:
        say(repr(status.look(args.study)))
    return 0


def cancel(argv: list[str]) -> int:
    study = arguments.parser("cancel").parse_args(argv).study
    from normstudy.sweep.on_slurm import cancel

    say(cancel(study))
    return 0


def check(argv: list[str]) -> int:
    study = arguments.parser("check").parse_args(argv).study
    from normstudy.upkeep.check import check_study

    report = check_study(study)
    say(report.text)
    return 0 if report.sound else 1


def compact(argv: list[str]) -> int:
    parser = arguments.parser("compact")
    parser.add_argument("--seal", action="store_true")
    args = parser.parse_args(argv)
    from normstudy.study import paths
    from normstudy.upkeep.compact import compact_study

    paths.check_own_folders(args.study)
    say(compact_study(args.study, seal=args.seal))
    return 0

"""The command line of `normstudy run` and `normstudy sweep`: flags and overrides, checked before Hydra sees them."""

from __future__ import annotations

import argparse
import re
import typing
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, QuotedString

from normstudy.app.compose import conf_dir
from normstudy.config import CONF_GROUPS, ConfigError

RETRY_KEY = "execution.retry_failed"  # also --retry-failed and --no-retry-failed
CHOICES = ("experiment", *CONF_GROUPS)  # keys whose value is the name of a file
OUTSIDE = re.compile(r"(^|/)(\.\.)?(/|$)|[\\\0-\37]")  # of its folder: an absolute path, `..`; and control characters
NOT_SWEPT = ("experiment", "study", "results_dir")  # one sweep has one experiment and fills one study


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}: see normstudy run --help and normstudy sweep --help")


def parser() -> argparse.ArgumentParser:
    parser = get_args_parser()
    parser.__class__ = Parser  # Hydra builds it itself: only its way to fail is changed
    parser.allow_abbrev = False
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("--retry-failed", action="append_const", const=True, dest="retry_failed")
    parser.add_argument("--no-retry-failed", action="append_const", const=False, dest="retry_failed")
    return parser


def check_flags(command: str, args: argparse.Namespace) -> None:
    if args.multirun and command == "run":
        raise ConfigError("--multirun is normstudy sweep: normstudy run trains one run")
    if args.run and command == "sweep":
        raise ConfigError("--run is normstudy run: normstudy sweep trains many")
    if args.dry_run and command == "run":
        raise ConfigError("--dry-run is a flag of normstudy sweep: normstudy run --cfg job shows a run's config")
    if args.detach and command == "run":
        raise ConfigError("--detach is a flag of normstudy sweep: normstudy run trains where it is given")
    if args.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun reads a pickle and is not supported: repeat the command")
    if args.config_path is not None:
        raise ConfigError(f"--config-path would replace normstudy's own conf/: use --config-dir {args.config_path}")
    if args.resolve and args.cfg is None:
        raise ConfigError("--resolve belongs to --cfg: add --cfg job")
    if args.package is not None and args.cfg is None:
        raise ConfigError("--package belongs to --cfg: add --cfg job")
    if args.cfg is not None and args.info is not None:
        raise ConfigError("--cfg and --info exclude each other: give one")
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        raise ConfigError(f"--config-dir {args.config_dir} is not a folder")


def flags_of(args: argparse.Namespace) -> list[str]:
    """The flags for Hydra's own parser, which reads overrides and flags in one order only."""
    flags = []
    for name in ("cfg", "info", "package", "config_dir", "config_name"):
        if getattr(args, name) is not None:
            flags += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return flags + [f"--{n.replace('_', '-')}" for n in ("resolve", "hydra_help") if getattr(args, n)]


def check_overrides(command: str, words: list[str], shows: bool) -> None:
    for override in OverridesParser.create().parse_overrides(words):
        line, key = str(override.input_line), override.key_or_group
        if key in CHOICES or key.startswith("hydra/"):
            _check_choice(override)
        if key == "hydra.launcher.n_jobs" and override.value() == 0:
            raise ConfigError(f"{line}: no job would train anything: give 1 or more, or -1 for one a core")
        if override.is_hydra_override():
            continue
        if override.type is not OverrideType.CHANGE:
            raise ConfigError(f"{line}: normstudy's keys are fixed, + and ~ are for hydra's: write key=value")
        if not override.is_sweep_override():
            if key in CONF_GROUPS and override.value() in (None, ""):
                raise ConfigError(f"{line}: the group {key} cannot be empty: choose {_options(key)}")
        elif key in NOT_SWEPT:
            raise ConfigError(not_swept(line))
        elif shows:
            raise ConfigError(f"{line} is a sweep, and --cfg and --info show one config: give one value")
        elif command == "run":
            raise ConfigError(f"{line} is a sweep, and normstudy run trains one run: use normstudy sweep")


def _check_choice(override: Override) -> None:
    """Raise a ConfigError where a file would be chosen that lies outside of the folder of its group."""
    value = override.value()
    given = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    for one in given:
        name = one.text if isinstance(one, QuotedString) else one
        if isinstance(name, str) and name and OUTSIDE.search(name):
            raise ConfigError(f"{override.key_or_group} {name!r} is a path: give the name of a file in its folder")


def with_retries(words: list[str], flags: list[bool]) -> list[str]:
    """The words with execution.retry_failed as --retry-failed or --no-retry-failed asks; flags: True or False each.

    Raises ConfigError where they or the words contradict them.
    """
    if not flags:
        return words
    if len(set(flags)) > 1:
        raise ConfigError("--retry-failed and --no-retry-failed exclude each other: give one")
    section, _, leaf = RETRY_KEY.partition(".")
    given = "--retry-failed" if flags[0] else "--no-retry-failed"
    for override in OverridesParser.create().parse_overrides(words):
        value = override.value()
        if override.key_or_group == section and isinstance(value, dict):
            value = next((v for k, v in value.items() if str(k) == leaf), flags[0])
        elif override.key_or_group != RETRY_KEY:
            continue
        if value is not flags[0]:
            raise ConfigError(f"{given} and {override.input_line} contradict each other: give one")
    return [*words, f"{RETRY_KEY}={str(flags[0]).lower()}"]


def not_swept(line: str) -> str:
    """The line for a swept experiment, study or results_dir."""
    return f"{line}: one sweep fills one study; {', '.join(NOT_SWEPT)} are not swept: give one value"


def _options(group: str) -> str:
    return ", ".join(sorted(p.stem for p in (conf_dir() / group).glob("*.yaml")))

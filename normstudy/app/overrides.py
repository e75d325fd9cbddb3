"""Check the flags and overrides of `normstudy run` and `normstudy sweep` before Hydra reads them."""

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

RETRY_KEY = "execution.retry_failed"  # also set by --retry-failed and --no-retry-failed
CHOICES = ("experiment", *CONF_GROUPS)  # keys whose value is the name of a config file
NOT_A_NAME = re.compile(r"(^|/)(\.\.)?(/|$)|[\\\0-\37]")  # an absolute path, `..`, or a control character
NOT_SWEPT = ("experiment", "study", "results_dir")  # a sweep has one experiment and fills one study


# ---- flags --------------------------------------------------------------------------------------------


class FlagParser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}: see normstudy run --help and normstudy sweep --help")


def parser() -> argparse.ArgumentParser:
    """Return Hydra's argument parser with normstudy's flags added; its errors are one-line ConfigErrors."""
    made = get_args_parser()
    made.__class__ = FlagParser  # Hydra constructs the parser, so only its class can be replaced
    made.allow_abbrev = False
    made.add_argument("--dry-run", action="store_true")
    made.add_argument("--detach", action="store_true")
    made.add_argument("--retry-failed", action="append_const", const=True, dest="retry_failed")
    made.add_argument("--no-retry-failed", action="append_const", const=False, dest="retry_failed")
    return made


def check_flags(command: str, args: argparse.Namespace) -> None:
    """Raise a ConfigError for flags that the command does not accept and for contradictory flags."""
    run, folder = command == "run", args.config_dir
    for wrong, line in (
        (args.multirun and run, "--multirun belongs to normstudy sweep: normstudy run trains one run"),
        (args.run and not run, "--run belongs to normstudy run: normstudy sweep trains many runs"),
        (args.dry_run and run, "--dry-run is a flag of normstudy sweep: normstudy run --cfg job shows a run's config"),
        (args.detach and run, "--detach is a flag of normstudy sweep: normstudy run submits no jobs"),
        (
            args.experimental_rerun is not None,
            "--experimental-rerun reads a pickle and is not supported: repeat the command",
        ),
        (
            args.config_path is not None,
            f"--config-path would replace normstudy's own conf/: use --config-dir {args.config_path}",
        ),
        (args.resolve and args.cfg is None, "--resolve belongs to --cfg: add --cfg job"),
        (args.package is not None and args.cfg is None, "--package belongs to --cfg: add --cfg job"),
        (args.cfg and args.info, "--cfg and --info exclude each other: give one"),
        (folder is not None and not Path(folder).is_dir(), f"--config-dir {folder} is not a folder"),
    ):
        if wrong:
            raise ConfigError(line)


def flags_of(args: argparse.Namespace) -> list[str]:
    """Rebuild Hydra's own flags in a fixed order; Hydra's parser requires them after all overrides."""
    flags = []
    for name in ("cfg", "info", "package", "config_dir", "config_name"):
        if getattr(args, name) is not None:
            flags += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return flags + [f"--{n.replace('_', '-')}" for n in ("resolve", "hydra_help") if getattr(args, n)]


# ---- overrides ----------------------------------------------------------------------------------------


def check_overrides(command: str, words: list[str], shows: bool) -> None:
    """Raise a ConfigError for overrides that the command does not accept. shows: whether --cfg or --info is given."""
    for override in OverridesParser.create().parse_overrides(words):
        line, key = str(override.input_line), override.key_or_group
        if key in CHOICES or key.startswith("hydra/"):
            _check_choice(override)
        if key == "hydra.launcher.n_jobs" and override.value() == 0:
            raise ConfigError(f"{line}: this leaves no job to train the runs: give 1 or more, or -1 for one per core")
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
    """Raise a ConfigError if a chosen config file would lie outside its group's folder."""
    value = override.value()
    given = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    for one in given:
        name = one.text if isinstance(one, QuotedString) else one
        if isinstance(name, str) and name and NOT_A_NAME.search(name):
            raise ConfigError(f"{override.key_or_group} {name!r} is a path: give the name of a file in its folder")


def not_swept(line: str) -> str:
    """Return the error line for several values of experiment, study or results_dir."""
    return f"{line}: one sweep fills one study; {', '.join(NOT_SWEPT)} take one value each: give one value"


def _options(group: str) -> str:
    return ", ".join(sorted(p.stem for p in (conf_dir() / group).glob("*.yaml")))


def with_retries(words: list[str], flags: list[bool]) -> list[str]:
    """Append execution.retry_failed to the overrides if a flag sets it.

    flags: one True per --retry-failed, one False per --no-retry-failed. Raises a ConfigError for a contradiction.
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

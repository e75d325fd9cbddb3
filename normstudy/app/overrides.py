"""Check the flags and overrides of `normstudy run`, `sweep` and `critical` before Hydra reads them."""

import argparse
import re
import typing
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, QuotedString

from normstudy.app.compose import conf_dir
from normstudy.config import CONF_GROUPS
from normstudy.errors import ConfigError

RETRY_KEY = "execution.retry_failed"  # also set by --retry-failed and --no-retry-failed
CHOICES = ("experiment", *CONF_GROUPS)  # keys whose value is the name of a config file
NOT_A_NAME = re.compile(r"(^|/)(\.\.)?(/|$)|[\\\0-\37]")  # matches an absolute path, `..`, or a control character
PATH, HOME = re.compile(r"(results_dir|data\.path)=[^'\"]+$"), re.compile(r"(?<=[=,])~[^,]*")
NOT_SWEPT = ("experiment", "study", "results_dir")  # a sweep has one experiment and fills one study


class FlagParser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}: see normstudy run --help, normstudy sweep --help or normstudy critical --help")


def parser() -> argparse.ArgumentParser:
    """Return an argument parser for Hydra's and normstudy's flags. A wrong flag raises a one-line ConfigError."""
    made = FlagParser(parents=[get_args_parser()], add_help=False, allow_abbrev=False)
    made.add_argument("--dry-run", action="store_true")
    made.add_argument("--detach", action="store_true")
    made.add_argument("--of")
    retry = made.add_mutually_exclusive_group()
    retry.add_argument("--retry-failed", action="store_true", default=None)
    retry.add_argument("--no-retry-failed", action="store_false", dest="retry_failed")
    return made


def check_flags(command: str, args: argparse.Namespace) -> None:
    """Raise a ConfigError for flags that the command does not accept and for contradictory flags."""
    run, given = command == "run", args.config_dir
    for wrong, line in (
        (
            args.of is not None and command != "critical",
            f"--of {args.of} needs normstudy critical: leave out --of, or use normstudy critical",
        ),
        (args.detach and command == "critical", "normstudy critical waits for each round: leave out --detach"),
        (args.multirun and run, "normstudy run trains one run: use normstudy sweep instead of --multirun"),
        (args.run and not run, f"normstudy {command} trains many runs: use normstudy run instead of --run"),
        (args.dry_run and run, "--dry-run needs normstudy sweep: to print a run's config, use normstudy run --cfg job"),
        (args.detach and run, "--detach needs Slurm jobs, but normstudy run submits none: use normstudy sweep"),
        (
            args.experimental_rerun is not None,
            "--experimental-rerun would load a pickle, which can run any code: repeat the original command instead",
        ),
        (args.config_path is not None, f"--config-path would replace conf/: use --config-dir {args.config_path}"),
        (args.resolve and args.cfg is None, "--resolve needs --cfg: add --cfg job"),
        (args.package is not None and args.cfg is None, "--package needs --cfg: add --cfg job"),
        (args.cfg and args.info, "--cfg and --info exclude each other: choose one"),
        (given == "" or not Path(given or ".").is_dir(), f"--config-dir {given!r} is not a folder: correct the path"),
    ):
        if wrong:
            raise ConfigError(line)


def flags_of(args: argparse.Namespace) -> list[str]:
    """Return the flags that Hydra itself understands, as words. Hydra requires that they follow the overrides."""
    flags = []
    for name in ("cfg", "info", "package", "config_dir", "config_name"):
        if getattr(args, name) is not None:
            flags += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return flags + [f"--{n.replace('_', '-')}" for n in ("resolve", "hydra_help") if getattr(args, n)]


def check_overrides(command: str, words: list[str], shows: bool) -> None:
    """Raise a ConfigError for overrides that the command does not accept. shows: the command only prints a config."""
    for override in OverridesParser.create().parse_overrides(words):
        line, key = str(override.input_line), override.key_or_group
        if key in CHOICES or key.startswith("hydra/"):
            _check_choice(override)
        if key == "hydra.launcher.n_jobs" and override.value() == 0:
            raise ConfigError(f"{line} starts no process: set it to 1 or more, or to -1 (one process per core)")
        if override.is_hydra_override():
            continue
        if override.type is not OverrideType.CHANGE or override.package is not None:
            raise ConfigError(f"{line} adds, removes or moves a key, but normstudy's keys are fixed: write key=value")
        if key.partition(".")[0] == "search" and not shows and (command != "critical" or override.is_sweep_override()):
            raise ConfigError(f"{line} is refused: use search keys only with normstudy critical, one value per key")
        if not override.is_sweep_override():
            if key in CONF_GROUPS and override.value() in (None, ""):
                names = ", ".join(sorted(p.stem for p in (conf_dir() / key).glob("*.yaml")))
                raise ConfigError(f"{line} is not allowed, because {key} cannot be empty: choose one of {names}")
        elif key in NOT_SWEPT:
            raise ConfigError(not_swept(line))
        elif shows:
            raise ConfigError(f"{line} has several values, but --cfg and --info show one config: choose one value")
        elif command == "run":
            raise ConfigError(f"{line} has several values, but normstudy run trains one run: use normstudy sweep")


def _check_choice(override: Override) -> None:
    """Raise a ConfigError if a chosen config file would lie outside its group's folder."""
    value = override.value()
    given = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    for one in given:
        name = one.text if isinstance(one, QuotedString) else one
        if isinstance(name, str) and name and NOT_A_NAME.search(name):
            raise ConfigError(f"{override.key_or_group} {name!r} is a path: use the name of a file without its folder")


def not_swept(line: str) -> str:
    """Return the error message for an override that gives experiment, study or results_dir several values."""
    return f"{line} has several values, but one sweep fills one study: choose one value"


def with_retries(words: list[str], flag: bool | None) -> list[str]:
    """Append execution.retry_failed=FLAG, unless flag is None. Raises a ConfigError if an override contradicts it."""
    if flag is None:
        return words
    section, _, leaf = RETRY_KEY.partition(".")
    given = "--retry-failed" if flag else "--no-retry-failed"
    for override in OverridesParser.create().parse_overrides(words):
        value = override.value()
        if override.key_or_group == section and isinstance(value, dict):
            value = next((v for k, v in value.items() if str(k) == leaf), flag)
        elif override.key_or_group != RETRY_KEY:
            continue
        if value is not flag:
            raise ConfigError(f"{given} and {override.input_line} contradict each other: remove one of the two")
    return [*words, f"{RETRY_KEY}={str(flag).lower()}"]

"""The Hydra door: `normstudy run` and `normstudy sweep`. Hydra's DictConfig ends here.

Everything that a user can get wrong becomes a ConfigError of one line before anything is written. torch is
imported only behind `normstudy.sweep`, which does it in its workers.
"""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import os
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from normstudy import doors, places
from normstudy.config import CONF_GROUPS, ConfigError, RunConfig
from normstudy.hydra_errors import first_line, one_line

RETRY_KEY = "execution.retry_failed"  # also --retry-failed and --no-retry-failed
CHOICES = ("experiment", *CONF_GROUPS)  # keys whose value is the name of a file
OUTSIDE = re.compile(r"(^|/)(\.\.)?(/|$)|[\\\0-\37]")  # of its folder: an absolute path, `..`; and control characters
NOT_SWEPT = ("experiment", "study", "results_dir")  # one sweep has one experiment and fills one study

SCHEMA = OmegaConf.structured(RunConfig)
OmegaConf.set_struct(SCHEMA.execution.sbatch, False)  # whose keys are Slurm's
ConfigStore.instance().store(name="normstudy_schema", node=SCHEMA, provider="normstudy")


def conf_dir() -> Path:
    """The folder of the shipped YAML files: in the package (wheel) or beside it (checkout)."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"conf/config.yaml is neither in {package} nor beside it: install normstudy again")


@dataclass(frozen=True)
class Task:
    """What Hydra calls per run: for `normstudy run`, and for one job of a launcher that is not ours.

    Our own launcher never calls it: it takes the whole sweep and reads `command`, `dry_run` and `detach` from here.
    """

    command: str  # the command line, as recorded beside the results
    dry_run: bool = False
    detach: bool = False

    def request(self, overrides: object) -> dict[str, object]:
        """What sweep.py keeps beside the results; `overrides` is Hydra's list, with interpolations as typed."""
        return {"command": self.command, "overrides": OmegaConf.to_container(overrides, resolve=False)}

    def __call__(self, cfg: DictConfig) -> float:
        job = HydraConfig.get()
        alone = job.mode == RunMode.RUN
        request = self.request(job.overrides.task)
        ignored = _ignored_axes(job.sweeper, request["overrides"]) if alone else ""
        _known_start_method()
        try:
            return self._train(cfg, request, ignored)
        except Exception as error:
            if alone or one_line(error) is not None:
                raise PastHydra(error) from error
            raise  # the other jobs go on

    def _train(self, cfg: DictConfig, request: dict[str, object], ignored: str) -> float:
        from normstudy import planning, sweep

        config = to_run_config(cfg)
        if self.dry_run:
            sweep.run_sweep([config], dry_run=True, request=request)
            return math.nan
        if ignored:
            planning.check([config])  # so that an error stays one line
            print(f"One run, at the base values. Only normstudy sweep follows the axes {ignored}.")
        return as_float(sweep.run_one(config, request=request))


class PastHydra(BaseException):
    """Carries a run's error past Hydra, which would print lines of its own about it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _known_start_method() -> None:
    """Let our workers start inside joblib's: those name a start method, loky, that a spawned child refuses."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method("spawn", force=True)


def as_float(loss: float | None) -> float:
    """A number for Hydra's sweepers, which call float() on it: nan where a run has no final loss."""
    return math.nan if loss is None else loss


def _ignored_axes(sweeper: object, overrides: object) -> str:
    given = {str(line).split("=")[0] for line in overrides} if isinstance(overrides, list) else set()
    axes = getattr(sweeper, "params", None) or {}
    return " ".join(f"{key}={values}" for key, values in axes.items() if key not in given)


def to_run_config(cfg: DictConfig) -> RunConfig:
    """The composed config as a validated RunConfig."""
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, RunConfig):
        raise ConfigError("this config is not a run: begin its defaults list with normstudy_schema or config")
    places.check_study(config.results_dir, config.study)
    return config


# ---- the command line ---------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}: see normstudy run --help and normstudy sweep --help")


def _parser() -> argparse.ArgumentParser:
    parser = get_args_parser()
    parser.__class__ = Parser  # Hydra builds it itself: only its way to fail is changed
    parser.allow_abbrev = False
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("--retry-failed", action="append_const", const=True, dest="retry_failed")
    parser.add_argument("--no-retry-failed", action="append_const", const=False, dest="retry_failed")
    return parser


def main(command: str, argv: list[str]) -> int:
    """Run `normstudy run` or `normstudy sweep` (`command`) with `argv`; returns the exit code.

    Raises ConfigError for everything a user can mend.
    """
    typed = shlex.join(["normstudy", command, *argv])
    try:
        args = _parser().parse_intermixed_args(argv)
    except SystemExit as stop:  # --version
        return int(stop.code or 0)
    _check_flags(command, args)
    shows = args.cfg is not None or args.info is not None or args.hydra_help
    flags = _flags(args) if shows or command == "run" else [*_flags(args), "--multirun"]
    with _full_errors() as user_wants_traceback:
        try:
            _check_overrides(command, args.overrides, shows)
            words = _with_retries(args.overrides, args.retry_failed or [])
            _call_hydra(Task(typed, args.dry_run, args.detach), [*words, *flags])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
            return 2 if shows and code == 1 else code  # a --package that does not exist
        except PastHydra as carrier:
            return _fail(carrier.error, user_wants_traceback)
        except Exception as error:
            return _fail(error, user_wants_traceback)
    return 0


def _fail(error: Exception, user_wants_traceback: bool) -> int:
    """Exit code 1 for crashed runs, a ConfigError for what a user can mend; any other error as it is."""
    line = one_line(error)
    if line is not None and not isinstance(error, ConfigError) and not user_wants_traceback:
        raise ConfigError(line) from error
    if line is not None:
        raise error
    from normstudy.sweep import RunsFailed

    if isinstance(error, RunsFailed):
        print(f"error: {error}", file=sys.stderr)
        return 1
    raise error


def complete(query: str) -> None:
    """Answer `-sc query=SHELL`, or print the script of `-sc install=SHELL` (`query` is that word).

    A query never fails: a line that cannot be completed yet has no completions.
    """
    quiet = query.startswith("query=")
    try:
        with _full_errors(), redirect_stderr(io.StringIO() if quiet else sys.stderr):
            _call_hydra(Task("normstudy"), [query, "--shell-completion"])
    except (Exception, SystemExit) as error:
        if not quiet:
            raise ConfigError(first_line(error)) from error


def _call_hydra(task: Task, argv: list[str]) -> None:
    door = hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)
    saved = sys.argv
    sys.argv = [saved[0], *argv]  # hydra.main reads its flags from there and nowhere else
    try:
        with doors.closed():
            door()
    finally:
        sys.argv = saved


@contextmanager
def _full_errors() -> Iterator[bool]:
    """Make Hydra raise instead of printing; yields whether the user had asked for tracebacks."""
    saved = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield saved == "1"
    finally:
        if saved is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved


def _check_flags(command: str, args: argparse.Namespace) -> None:
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


def _flags(args: argparse.Namespace) -> list[str]:
    """The flags for Hydra's own parser, which reads overrides and flags in one order only."""
    flags = []
    for name in ("cfg", "info", "package", "config_dir", "config_name"):
        if getattr(args, name) is not None:
            flags += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return flags + [f"--{n.replace('_', '-')}" for n in ("resolve", "hydra_help") if getattr(args, n)]


def _check_overrides(command: str, words: list[str], shows: bool) -> None:
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


def _with_retries(words: list[str], flags: list[bool]) -> list[str]:
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

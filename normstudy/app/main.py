"""Start the Hydra application of `normstudy run`, `sweep` and `critical`. This module does not import torch."""

import functools
import io
import math
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from normstudy.app import reading
from normstudy.app.compose import checked, conf_dir, to_run_config
from normstudy.app.errors import first_line, one_line
from normstudy.app.overrides import HOME, PATH, check_flags, check_overrides, flags_of, parser, with_retries
from normstudy.config import places
from normstudy.errors import ConfigError, say
from normstudy.processes import CHECK_SECONDS

MARK = "NORMSTUDY_LAUNCHED_BY"  # environment variable of launched processes: host and process id of their launcher


def train(command: str, argv: list[str]) -> tuple[int, list[Path]]:
    """Run `command` (run, sweep, critical) with `argv`. Return the exit code and the studies' folders.

    Raises ConfigError for a user's mistake, and RunsFailed if runs crashed.
    """
    typed = shlex.join(["normstudy", command, *argv])
    try:
        args = parser().parse_intermixed_args(argv)
    except SystemExit as stop:  # argparse exits after it has printed the version
        return int(stop.code or 0), []
    # Quote each ~, which Hydra would refuse. The code that uses the path replaces ~ by the home folder.
    args.overrides = [HOME.sub(r'"\g<0>"', word) if PATH.match(word) else word for word in args.overrides]
    args.config_dir = args.config_dir and places.expanded(args.config_dir, "--config-dir")
    check_flags(command, args)
    shows = args.cfg is not None or args.info is not None or args.hydra_help
    flags = flags_of(args) if shows or command == "run" else [*flags_of(args), "--multirun"]
    with (
        _variable("HYDRA_FULL_ERROR", "1") as users,  # makes Hydra raise errors
        reading.as_written(),
        checked(shows, command == "critical") as folders,
    ):
        try:
            check_overrides(command, args.overrides, shows)
            words = with_retries(args.overrides, args.retry_failed)
            if args.of is not None:
                from normstudy.search.settings import find  # imports pyarrow

                words = [*words, f"search.of={find(args.of).column}"]
            # Hide Hydra's message about an unknown --package. The ConfigError below says it in one line.
            with redirect_stderr(io.StringIO()) if args.package else nullcontext():
                _call_hydra(Application(typed, args.dry_run, args.detach, command == "critical"), [*words, *flags])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
            if args.package and code == 1:
                raise ConfigError(f"--package {args.package} is not in the config: choose a key of it") from stop
            return 2 if shows and code == 1 else code, folders
        except (PastHydra, Exception) as error:
            cause = error.args[0] if isinstance(error, PastHydra) else error
            line = one_line(cause)
            if line is not None and not isinstance(cause, ConfigError) and users != "1":
                raise ConfigError(line) from cause
            raise cause from cause.__cause__
    return 0, folders


def complete(query: str) -> None:
    """Print the setup script for `install=SHELL`, or the completions for `query=SHELL`, if Hydra finds any."""
    quiet = query.startswith("query=")
    try:
        with _variable("HYDRA_FULL_ERROR", "1"), redirect_stderr(io.StringIO() if quiet else sys.stderr):
            _call_hydra(Application("normstudy"), [query, "--shell-completion"])
    except (Exception, SystemExit) as error:
        if not quiet:
            raise ConfigError(first_line(error)) from error


@dataclass(frozen=True)
class Application:
    """The function that Hydra calls to train one run. normstudy's launcher does not call it, but reads its fields."""

    command: str  # the command line, which is recorded with the results
    dry_run: bool = False
    detach: bool = False
    searches: bool = False  # whether the jobs are cells of a search for critical values

    def request(self, overrides: object) -> dict[str, object]:
        """Return what is recorded with the results: the command line, and Hydra's overrides as typed."""
        return {"command": self.command, "overrides": OmegaConf.to_container(overrides, resolve=False)}

    def __call__(self, cfg: DictConfig) -> float:
        _end_with_launcher()
        job = HydraConfig.get()
        alone = job.mode == RunMode.RUN
        request = self.request(job.overrides.task)
        ignored = _ignored_axes(job.sweeper, request["overrides"]) if alone else ""
        try:
            # Paths are relative to the user's working directory. Return to it, because hydra.job.chdir=true leaves it.
            with chdir(job.runtime.cwd):
                return as_float(self._train(cfg, request, ignored), job.sweeper)
        except Exception as error:
            if alone or one_line(error) is not None:
                raise PastHydra(error) from error
            raise  # Hydra records the error and continues with the other jobs

    def _train(self, cfg: DictConfig, request: dict[str, object], ignored: str) -> float | None:
        from normstudy.sweep import planning, run

        config = to_run_config(cfg)
        if self.dry_run:
            run.run_sweep([config], dry_run=True, request=request)
            return None
        if ignored:
            planning.check([config])  # checked before printing, so that a refused run prints only an error
            say(f"Training one run, without sweeping any key. To train every value of {ignored}, use normstudy sweep.")
        return run.run_one(config, request=request)


class PastHydra(BaseException):
    """Carry a run's error through Hydra as a BaseException, because Hydra prints several lines for an Exception."""


def as_float(loss: float | None, sweeper: object) -> float:
    """Return the float that Hydra's sweepers require: the final loss, or the worst possible one if the run diverged."""
    # The worst loss depends on the sweeper: Optuna's may maximize the loss.
    worst = -math.inf if "maximize" in str(getattr(sweeper, "direction", None)) else math.inf
    return worst if loss is None else loss


def _ignored_axes(sweeper: object, overrides: object) -> str:
    given = {str(line).split("=")[0] for line in overrides} if isinstance(overrides, list) else set()
    axes = getattr(sweeper, "params", None) or {}
    return " ".join(f"{key}={values}" for key, values in axes.items() if key not in given)


def _call_hydra(application: Application, argv: list[str]) -> None:
    base = "critical" if application.searches else "config"
    theirs = dict(Singleton._instances)
    for kind in (GlobalHydra, HydraConfig):  # so that a Hydra application can call normstudy
        Singleton._instances.pop(kind, None)
    try:
        # hydra.main reads only sys.argv. Set the variable MARK only here, so that later child processes do not get it.
        with reading.replaced(sys, "argv", [sys.argv[0], *argv]), _variable(MARK, _mark()):
            hydra.main(config_path=str(conf_dir()), config_name=base, version_base="1.3")(application)()
    finally:
        Singleton._instances.update(theirs)


@contextmanager
def _variable(name: str, value: str) -> Iterator[str | None]:
    """Set an environment variable in the caller's `with` block; yield its previous value."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield before
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _mark() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@functools.cache
def _end_with_launcher() -> None:
    """If a launcher other than normstudy's started this process, end it when the `normstudy` process has ended."""
    inherited = os.environ.get(MARK, "")  # a cluster may start its jobs with an empty environment
    if inherited != _mark() and inherited.startswith(f"{socket.gethostname()}:"):
        threading.Thread(target=_watch, args=(inherited,), daemon=True).start()


def _watch(inherited: str) -> None:
    """Wait until the launching process has ended. Then kill all processes with the mark `inherited`, this one last."""
    launcher, word = inherited.rpartition(":")[2], f"{MARK}={inherited}".encode()
    with suppress(OSError):
        while Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(CHECK_SECONDS)
    for pid in {int(name) for name in os.listdir("/proc") if name.isdecimal()} - {os.getpid()}:
        with suppress(OSError):
            if word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

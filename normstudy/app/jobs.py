"""From the jobs of a Hydra sweep to one list of RunConfig: expand the axes, compose once, hand over.

A composition takes about 90 ms. A sweep needs one per distinct choice of groups: within it only values
differ, and what differs from one run to the next is set in place on that one config: well below 1 ms a run.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from normstudy.app import compose, main
from normstudy.app.errors import one_line
from normstudy.app.overrides import NOT_SWEPT, not_swept
from normstudy.config import ConfigError, RunConfig

MAX_RUNS = 100_000  # a sweep beyond this is a typing error: range(0,1e9)


# ---- axes -> jobs -------------------------------------------------------------------------------------


def expand(params: Mapping[str, str], arguments: Iterable[str], loader: ConfigLoader) -> list[list[str]]:
    """Every job's overrides: the product of the experiment's axes and the command line, which wins by key."""
    parser = OverridesParser.create(config_loader=loader)
    axes = parser.parse_overrides([f"{key}={values}" for key, values in params.items()])
    typed = parser.parse_overrides(list(arguments))
    if not axes and not any(override.is_sweep_override() for override in typed):
        words = " ".join(["normstudy run", *(str(override.input_line) for override in typed)])
        raise ConfigError(
            "an empty sweep: nothing has several values. Choose an experiment that has axes, or give values "
            f"as in seed=0,1,2; {words} trains one run"
        )
    for axis in axes:
        if isinstance(axis.value(), list):
            raise ConfigError(
                f"hydra.sweeper.params.{axis.input_line}: write an axis as one text, as in 0,1, not as a list"
            )
    values = {o.get_key_element(): _values(o.get_key_element(), o) for o in (*axes, *typed)}  # the last one wins
    n_runs = 1
    for one in values.values():
        n_runs *= len(one)
    if n_runs > MAX_RUNS:
        raise ConfigError(f"this sweep has {n_runs} runs or more, at most {MAX_RUNS} are allowed: take fewer values")
    return [list(job) for job in itertools.product(*values.values())]


def _values(key: str, override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if key in NOT_SWEPT:
        raise ConfigError(not_swept(str(override.input_line)))
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: an interval has no list of values: use range() or choice()")
    out = [f"{key}={v}" for v in itertools.islice(override.sweep_string_iterator(), MAX_RUNS + 1)]
    if not out:
        raise ConfigError(f"an empty sweep: {override.input_line} gives no value")
    return out


# ---- jobs -> RunConfigs -------------------------------------------------------------------------------


def plan(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[RunConfig]:
    """One validated RunConfig per job, in order.

    Raises a ConfigError that names the first illegal job by the overrides that distinguish it.
    """
    parsed = _parse_once(jobs)
    shared = set(jobs[0]).intersection(*jobs[1:]) if jobs else set()
    is_group: dict[str, bool] = {}
    parts: dict[str, str] = {}  # word -> what a composition depends on of it
    bases: dict[tuple[str, ...], Base] = {}
    configs = []
    for number, job in enumerate(jobs, start=1):
        overrides = [parsed[word] for word in job]
        try:
            for word in job:
                if word not in parts:
                    parts[word] = _signature(parsed[word], loader, is_group)
            signature = tuple(parts[word] for word in job)
            base = bases.get(signature)
            if base is None:
                base = bases[signature] = Base(_compose(loader, master, job))
            for override, part in zip(overrides, signature, strict=True):
                if part == override.key_or_group:  # a plain value: all else is in the base already
                    base.set(override)
            configs.append(base.run_config())
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            own = " ".join(word for word in job if word not in shared)
            member = f" (run {number} of {len(jobs)}: {own})" if own else ""
            raise ConfigError(f"{one_line(error)}{member}") from error
    places = sorted({f"{config.results_dir}/{config.study}" for config in configs})
    if len(places) > 1:
        raise ConfigError(f"one sweep fills one study, this one would fill {', '.join(places)}: give one value")
    return configs


class Base:
    """One composition, on which the values of one job after the other are set.

    Only what differs from the job before is set, and only its sections are made and checked anew: the runs of a sweep
    share the others.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.words: dict[str, str] = {}  # key -> the override that set it last
        self.last: RunConfig | None = None
        self.changed: set[str] = set()  # sections with another value than in `last`
        plain = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain, dict)
        # Made anew for every run: a run makes its data_seed of its seed, and an interpolation may follow any value.
        self.anew = {str(k) for k, v in plain.items() if not isinstance(v, dict) or _interpolates(v)}
        # To resolve ${seed} takes a third of a run's planning, and a run without a data_seed takes its seed.
        self.one_seed = plain.get("data_seed") == "${seed}"

    def set(self, override: Override) -> None:
        """Set a plain value."""
        key, line = override.key_or_group, str(override.input_line)
        if self.words.get(key) == line:
            return
        _set(self.config, override)
        self.words[key] = line
        self.one_seed &= key != "data_seed"
        section = key.partition(".")[0]
        self.changed.add(section)
        if _interpolates(override.value()):
            self.anew.add(section)

    def run_config(self) -> RunConfig:
        """The run at the present values, validated."""
        if self.last is None:
            config = compose.to_run_config(self.config)
        else:
            config = copy.copy(self.last)
            for field in dataclasses.fields(config):
                if field.name == "data_seed" and self.one_seed:
                    config.data_seed = None
                elif field.name in self.anew or field.name in self.changed:
                    value = self.config[field.name]
                    setattr(config, field.name, OmegaConf.to_object(value) if OmegaConf.is_config(value) else value)
            config.validate()
        self.last = config
        self.changed.clear()
        return config


def _interpolates(value: object) -> bool:
    return "${" in str(value)


def _parse_once(jobs: Sequence[Sequence[str]]) -> dict[str, Override]:
    words = list(dict.fromkeys(itertools.chain.from_iterable(jobs)))
    return dict(zip(words, OverridesParser.create().parse_overrides(words), strict=True))


def _signature(override: Override, loader: ConfigLoader, is_group: dict[str, bool]) -> str:
    """What a composition depends on: the whole override for a group or a container, else only its key."""
    key = override.key_or_group
    if key not in is_group:
        is_group[key] = bool(loader.get_group_options(key))
    if is_group[key] or isinstance(override.value(), dict | list):
        return str(override.input_line)  # a container is merged, so a second one would leave parts of the first
    return key


def _compose(loader: ConfigLoader, master: DictConfig, job: Sequence[str]) -> DictConfig:
    config = loader.load_sweep_config(master, list(job))
    with open_dict(config):
        del config["hydra"]
    return config


def _set(config: DictConfig, override: Override) -> None:
    try:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise HydraException(f"Error merging override {override.input_line}") from error


# ---- handing over -------------------------------------------------------------------------------------


def launch(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    jobs: Sequence[Sequence[str]],
    first: int,
) -> Sequence[JobReturn]:
    """Train all jobs of one call as one list of runs. Any other application's jobs run one by one."""
    if not isinstance(task, main.Task):
        basic = BasicLauncher()
        basic.setup(hydra_context=context, task_function=task, config=config)
        return basic.launch(jobs, first)
    from normstudy.sweep import run

    setup_globals()
    configs = plan(context.config_loader, config, jobs)
    request = task.request(config.hydra.overrides.task)
    losses = run.run_sweep(configs, dry_run=task.dry_run, detach=task.detach, request=request)
    returns, name = [], config.hydra.job.name
    for job, loss in zip(jobs, losses, strict=True):
        one = JobReturn(overrides=list(job), task_name=name, status=JobStatus.COMPLETED)
        one.return_value = main.as_float(loss)
        returns.append(one)
    return returns


def sweep(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    launcher: Launcher,
    params: Mapping[str, str],
    arguments: list[str],
) -> Sequence[JobReturn]:
    """Expand the axes and launch all jobs in one call, checked beforehand whatever the launcher is."""
    jobs = expand(params, arguments, context.config_loader)
    ours = type(launcher).__module__ == "hydra_plugins.normstudy"
    if isinstance(task, main.Task) and not ours:
        from normstudy.sweep import planning
        from normstudy.sweep import run as engine

        if task.detach:
            raise ConfigError(
                "--detach leaves jobs to Slurm, by normstudy's own launcher: add execution=slurm, leave out "
                "hydra/launcher"
            )
        configs = plan(context.config_loader, config, jobs)
        if task.dry_run:
            engine.run_sweep(configs, dry_run=True, request=task.request(config.hydra.overrides.task))
            return []
        planning.check(configs)
    returns = launcher.launch(jobs, 0)
    for one in returns:
        _raise_failure(one)
    return returns


def _raise_failure(one: JobReturn) -> None:
    """Raise what a job of a foreign launcher raised; a bug stays one, although its traceback is in another process."""
    from normstudy.sweep.execute import RunsFailed

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # Hydra prints the job's overrides before it raises
            _ = one.return_value
    except (ConfigError, RunsFailed):
        raise
    except Exception as error:
        raise RuntimeError(f"a job failed: {' '.join(one.overrides or [])}") from error

"""Expand a sweep's axes into jobs, and train all jobs in one call. The Hydra plugin calls these functions."""

import contextlib
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from normstudy.app import main
from normstudy.app.compose import OUR_SWEEPER
from normstudy.app.overrides import NOT_SWEPT, not_swept
from normstudy.app.plan import Planner
from normstudy.app.reading import as_written
from normstudy.errors import ConfigError, Failed

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
MAX_RUNS = 100_000  # a larger sweep is assumed to be a typing error, such as range(0,1e9)


def sweep(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    launcher: Launcher,
    params: Mapping[str, str],
    arguments: list[str],
) -> Sequence[JobReturn]:
    """Expand the axes into jobs and launch all in one call. Check all jobs first if another launcher trains them."""
    ours = type(launcher).__module__ == "hydra_plugins.normstudy"
    app = task if isinstance(task, main.Application) else None
    loader = context.config_loader
    jobs = expand(params, arguments, loader, may_be_one=app is not None and app.searches)

    def train(words: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
        returns = launcher.launch(words, 0)
        for one in returns:
            _raise_failure(one)
        return returns

    if app is None:
        return train(jobs)
    if app.detach and not ours:
        raise ConfigError(
            "--detach works only with normstudy's launcher, which submits Slurm jobs: add execution=slurm and leave "
            "out hydra/launcher"
        )
    request = app.request(config.hydra.overrides.task)
    if app.searches:
        from normstudy.app import critical

        critical.search(Planner(loader, config), jobs, None if ours else train, request, dry_run=app.dry_run)
        return []
    if not ours:
        from normstudy.sweep import planning, run

        configs = Planner(loader, config).plan(jobs)
        if app.dry_run:
            run.run_sweep(configs, dry_run=True, request=request)
            return []
        planning.check(configs)
    return train(jobs)


def launch(
    context: HydraContext, task: TaskFunction, config: DictConfig, jobs: Sequence[Sequence[str]], first: int
) -> Sequence[JobReturn]:
    """Train all jobs as one sweep. Jobs of a Hydra application other than normstudy are run one by one."""
    if not isinstance(task, main.Application):
        basic = BasicLauncher()
        basic.setup(hydra_context=context, task_function=task, config=config)
        return basic.launch(jobs, first)
    from normstudy.sweep import run

    sweeper = str(config.hydra.sweeper._target_)
    if task.dry_run and sweeper not in (OUR_SWEEPER, BASIC):
        raise ConfigError(
            f"--dry-run cannot know the runs of {sweeper}, which chooses runs by earlier results: leave out --dry-run"
        )
    setup_globals()
    configs = Planner(context.config_loader, config).plan(jobs)
    request = task.request(config.hydra.overrides.task)
    losses = run.run_sweep(configs, dry_run=task.dry_run, detach=task.detach, request=request)
    returns = [JobReturn(list(job), task_name=config.hydra.job.name, status=JobStatus.COMPLETED) for job in jobs]
    for one, loss in zip(returns, losses, strict=True):
        one.return_value = main.as_float(loss, config.hydra.sweeper)
    return returns


def _raise_failure(one: JobReturn) -> None:
    """Raise the error of a failed job; do nothing if the job succeeded."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # hides the overrides that Hydra prints before it raises
            _ = one.return_value
    except (ConfigError, Failed):
        raise
    except Exception as error:  # a bug: the user must see its traceback
        raise RuntimeError(
            f"the job with the overrides {' '.join(one.overrides or [])} failed: see the first error above"
        ) from error


def expand(
    params: Mapping[str, str], arguments: Iterable[str], loader: ConfigLoader, *, may_be_one: bool = False
) -> list[list[str]]:
    """Combine the axes `params` and the typed overrides `arguments` into jobs. may_be_one: allow a single job."""
    parser = OverridesParser.create(config_loader=loader)
    with as_written():
        axes = parser.parse_overrides([f"{key}={values}" for key, values in params.items()])
        typed = parser.parse_overrides(list(arguments))
    if not axes and not may_be_one and not any(override.is_sweep_override() for override in typed):
        words = " ".join(["normstudy run", *(str(override.input_line) for override in typed)])
        raise ConfigError(
            "this is an empty sweep, because no key has several values: choose an experiment that has axes, or write "
            f"several values, as in seed=0,1,2. To train one run, use {words}"
        )
    for axis in axes:
        if isinstance(axis.value(), list):
            raise ConfigError(f"hydra.sweeper.params.{axis.input_line} is a list: use comma-separated text, as in 0,1")
    # Typed values come last, so they replace the experiment's values of the same key. But a dictionary
    # such as model={n_layers:2} must not replace the choice model=tiny, which has the same key `model`: keep both.
    values = {(o.get_key_element(), _is_dict(o)): _values(o.get_key_element(), o) for o in (*axes, *typed)}
    n_runs = math.prod(map(len, values.values()))
    if n_runs > MAX_RUNS:
        raise ConfigError(f"this sweep has at least {n_runs} runs, but {MAX_RUNS} is the limit: use fewer values")
    return [list(job) for job in itertools.product(*values.values())]


def _is_dict(override: Override) -> bool:
    value = override.value()
    return all(isinstance(one, dict) for one in (value.list if isinstance(value, ChoiceSweep) else [value]))


def _values(key: str, override: Override) -> list[str]:
    """Return `key=value` for each value of an override."""
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if key in NOT_SWEPT:
        raise ConfigError(not_swept(str(override.input_line)))
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line} is an interval, not a list of values: use range() or choice()")
    if isinstance(found := override.value(), RangeSweep):  # count first: to shuffle a range, Hydra lists all values
        try:
            if sum(1 for _ in itertools.islice(found.range(), MAX_RUNS + 1)) > MAX_RUNS:
                raise ConfigError(f"{override.input_line} exceeds the limit of {MAX_RUNS} values: use fewer values")
        except ArithmeticError:
            raise ConfigError(f"{override.input_line} is no range of numbers: write range(START,STOP,STEP)") from None
    out = [f"{key}={v}" for v in itertools.islice(override.sweep_string_iterator(), MAX_RUNS + 1)]
    if not out:
        raise ConfigError(f"this is an empty sweep, because {override.input_line} has no values: write at least one")
    return out

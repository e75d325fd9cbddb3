"""Plan a sweep, train what is missing of it, and show what came out.

`plan` knows everything before anything is written: each run's id, which runs are there already, which belong
together in a batch. What is executed where never changes a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from normstudy import batching, data, failures, files, lock, own, pool, progress, provenance, sealed, store
from normstudy import config as cfg
from normstudy.cluster import arrays, options
from normstudy.config import ConfigError, ExecutionConfig, RunConfig
from normstudy.provenance import Request
from normstudy.stopping import Interrupted, Stop, print_error
from normstudy.worker import Task

SOME_GPU = 2**36  # bytes of memory
RETRY = "To try them again: execution.retry_failed=true execution.max_tries=N, with an N beyond their tries"


class RunsFailed(Exception):
    """Some runs crashed; its text is one line."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Runs of one shape that train as one program. seconds: estimated, on one core."""

    run_ids: list[str]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep comes to. runs: every distinct run in order; missing: those without a finished result.

    workers: processes that train at the same time, in all jobs together where it is submitted.
    """

    study_dir: Path
    ids: list[str]  # one a requested config, in order
    runs: dict[str, RunConfig]
    texts: dict[str, str]  # run_id -> sha256 of its text
    missing: list[str]
    batches: list[Batch]
    workers: int
    device: str
    is_sealed: bool
    given_up: list[str]  # missing ones that have crashed too often to be tried again
    execution: ExecutionConfig

    @property
    def on_slurm(self) -> bool:
        """Whether it is submitted as jobs."""
        return self.execution.cluster == "slurm"

    @property
    def seconds(self) -> float:
        """Estimated time, not measured: the batches handed to the workers in order."""
        loads = [0.0] * self.workers
        for batch in self.batches:
            loads[loads.index(min(loads))] += batch.seconds
        return max(loads)


# ---- planning -----------------------------------------------------------------------------------------


def plan(configs: Sequence[RunConfig]) -> Plan:
    """Plan the runs of one sweep. Raises a ConfigError for anything that could not be run; writes nothing."""
    if not configs:
        raise ConfigError("the sweep is empty: it has no runs")
    places = {(c.results_dir, c.study) for c in configs}
    if len(places) > 1:
        raise ConfigError(f"a sweep belongs to one study, and these runs name {len(places)}: {sorted(places)}")
    execution = configs[0].execution
    clusters = sorted({c.execution.cluster for c in configs})
    if len(clusters) > 1:
        raise ConfigError(f"a sweep is trained in one place, and these runs name {' and '.join(clusters)}: give one")
    study_dir = Path(configs[0].results_dir) / configs[0].study
    ids, texts = [], {}
    loaded: dict[tuple[object, ...], data.Text] = {}
    fitting: set[tuple[object, ...]] = set()
    for config in configs:
        d = config.data
        key = (d.name, d.path, d.tokenizer, d.vocab_size, d.source_seed)
        if key not in loaded:
            loaded[key] = data.load(d)  # which looks at every file of a folder each time
        text = loaded[key]
        if (window := (*key, d.seq_len, config.eval.windows)) not in fitting:
            data.check_fits(text, d, config.eval.windows)
            fitting.add(window)
        ids.append(cfg.run_id(config, text.sha256))
        texts[ids[-1]] = text.sha256
    runs = dict(zip(ids, configs, strict=True))
    statuses = store.finished_ids(study_dir)
    missing = [run_id for run_id in runs if statuses.get(run_id) != "done"]
    is_sealed = _refuse_if_sealed(study_dir, {i: runs[i] for i in missing}, texts)
    if execution.cluster == "slurm":
        device, workers = options.device_of(execution), execution.jobs * options.workers_of(execution)
    else:
        device = _device(execution.device)
        workers = execution.workers or (1 if device == "cuda" else len(os.sched_getaffinity(0)))
    _check_own([runs[i] for i in missing], device if execution.cluster == "local" else "cpu")
    given_up = _given_up(study_dir, missing, statuses, execution)
    batches = group({i: runs[i] for i in missing if i not in given_up}, workers, device)
    at_once = max(1, min(workers, len(batches)))
    return Plan(study_dir, ids, runs, texts, missing, batches, at_once, device, is_sealed, given_up, execution)


def _given_up(study_dir: Path, missing: list[str], statuses: dict[str, str], execution: ExecutionConfig) -> list[str]:
    """The failed runs that are not tried again."""
    tries = failures.tries(study_dir)
    return [
        i
        for i in missing
        if statuses.get(i) == "failed" and (not execution.retry_failed or tries[i] >= execution.max_tries)
    ]


def _refuse_if_sealed(study_dir: Path, missing: dict[str, RunConfig], texts: dict[str, str]) -> bool:
    """Whether a study is sealed; a ConfigError where it is and lacks runs."""
    if not (study_dir / store.SEALED).exists():
        return False
    if missing:
        raise ConfigError(sealed.refusal(study_dir, missing, texts))
    return True


def _check_own(configs: Iterable[RunConfig], device: str) -> None:
    """Try out every own block and norm, once a shape. Only for them the planner imports torch."""
    tried = set()
    for config in configs:
        model = config.model
        if not (own.is_own(model.placement) or own.is_own(model.norm)):
            continue
        shape = dataclasses.astuple(model), dataclasses.astuple(config.data)
        if shape not in tried:
            tried.add(shape)
            from normstudy import contract

            contract.check(config, data.load(config.data).vocab_size, device)


def check(configs: Sequence[RunConfig]) -> None:
    """Raise a ConfigError for anything that `plan` would refuse, and for jobs: these runs are trained one by one."""
    _refuse_jobs(plan(configs))


def _refuse_jobs(planned: Plan) -> None:
    if planned.on_slurm:
        raise ConfigError(
            "execution=slurm is for normstudy sweep with its own launcher: a single run, and the runs of another "
            "launcher, are trained where the command is given; leave it out"
        )


# What may differ between the runs of a batch: it rides on the run axis. Everything else is the batch's shape.
ON_THE_RUN_AXIS = {
    "seed", "data_seed", "init", "force_init", "unembed_std", "schedule", "peak_lr", "warmup_steps",
    "beta1", "beta2", "eps", "momentum", "weight_decay", "max_grad_norm",
}  # fmt: skip


def shape_key(config: RunConfig) -> tuple[tuple[str, object], ...]:
    """What runs must share to train as one program."""
    values = cfg.asked(config) | dataclasses.asdict(cfg.resolve(config.model))
    # A user's class may be made of any key of the model: then none of them rides on the run axis.
    of_own = {f.name for f in dataclasses.fields(config.model)} if own.is_own(config.model.placement) else set()
    return tuple((k, v) for k, v in values.items() if k not in ON_THE_RUN_AXIS - of_own)


def group(runs: dict[str, RunConfig], workers: int, device: str) -> list[Batch]:
    """Near-equal batches of one shape, largest cost first, of at most ceil(runs / workers) runs each.

    And of at most execution.runs_per_batch, or where that is null of as many as batching.py chooses for the shape.
    """
    shapes: dict[tuple[tuple[str, object], ...], list[str]] = {}
    for run_id, config in runs.items():
        shapes.setdefault(shape_key(config), []).append(run_id)
    batches = []
    for members in shapes.values():
        first = runs[members[0]]
        per_batch = first.execution.runs_per_batch or _fitting(first, device, workers)
        n = math.ceil(len(members) / min(per_batch, math.ceil(len(members) / workers)))
        edges = [len(members) * i // n for i in range(n + 1)]
        for low, high in itertools.pairwise(edges):
            part = members[low:high]
            batches.append(Batch(part, sum(batching.seconds_of(runs[i]) for i in part)))
    return sorted(batches, key=lambda b: -b.seconds)


def _fitting(config: RunConfig, device: str, workers: int) -> int:
    """The most runs of a config's shape that train together. Jobs have a machine, and its memory, each."""
    execution = config.execution
    if execution.cluster == "local":
        return batching.runs_per_batch(config, device, workers)
    free = None if execution.memory_gb is None else int(execution.memory_gb * 2**30)
    if device == "cuda":  # of which nothing is known here: a batch that is too large is halved there
        free = SOME_GPU
    return batching.runs_per_batch(config, device, options.workers_of(execution), free)


def _device(asked: str) -> str:
    """cpu or cuda. torch is imported only where a driver or the user says that there may be a GPU."""
    if asked == "cpu" or (asked == "auto" and not os.path.exists("/proc/driver/nvidia/version")):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise ConfigError("execution.device cuda: torch finds no CUDA device here; use cpu or auto")
    return "cpu"


# ---- execution ----------------------------------------------------------------------------------------


def run_sweep(
    configs: Sequence[RunConfig], *, dry_run: bool = False, detach: bool = False, request: Request
) -> list[float | None]:
    """Train what is missing of a sweep, draw its figures, print the comparison.

    Returns the final validation loss of each config in order, None for a run that failed or went non-finite.
    detach: return once its jobs are submitted. Raises a ConfigError before anything is trained, RunsFailed after the
    other runs are finished and shown.
    """
    planned = plan(configs)
    if detach and not planned.on_slurm:
        raise ConfigError("--detach leaves jobs to Slurm, and this sweep is trained here: add execution=slurm")
    _say_plan(planned, len(configs))
    if dry_run:
        return [None] * len(configs)
    failure = None
    if planned.is_sealed:
        print(
            f"{planned.study_dir} is sealed: all {len(planned.runs)} runs are there. To train them again: study=again"
        )
    else:
        try:
            if planned.on_slurm and not execute_on_slurm(planned, request, detach=detach):
                return [None] * len(configs)
            if not planned.on_slurm:
                execute(planned, request)
        except RunsFailed as error:
            failure = error
        _draw(planned.study_dir)
    _print_comparison(planned)
    print(f"tables, figures: {planned.study_dir}")
    if failure is not None:
        raise failure
    return _losses(planned)


def run_one(config: RunConfig, *, request: Request) -> float | None:
    """Train one run (nothing where it is finished already), say how it ended, return its final validation loss.

    Other commands may train runs of their own in the same study at the same time.
    """
    planned = plan([config])
    _refuse_jobs(planned)
    if not planned.is_sealed:
        execute(planned, request, shared=True)
    (run_id,) = planned.runs
    (loss,) = _losses(planned)
    final = "no final validation loss" if loss is None else f"final validation loss {loss:.4f} nats per token"
    print(f"{run_id}: {progress.outcomes_of(planned.study_dir, [run_id])[run_id]}, {final}")
    print(f"tables: {planned.study_dir}/tables    figures: normstudy plot {planned.study_dir}")
    return loss


def execute(planned: Plan, request: Request, *, shared: bool = False) -> None:
    """Train the missing runs of a plan here. Raises RunsFailed when a run crashed, after all others are finished.

    shared: let other shared holders of the study's lock in.
    """
    study_dir = planned.study_dir
    over = None if shared else arrays.refuse_while_alive(study_dir)
    with lock.hold(study_dir, _command(request), shared=shared) as held, Stop() as stop:
        if not shared:
            arrays.remove(study_dir, over)
            files.remove_parts(study_dir)
        tasks = _begin(planned, request)
        run_steps = sum(config.schedule.n_steps for task in tasks for config in task.configs)
        errors: dict[str, str] = {}
        if tasks:
            max_tries = planned.execution.max_tries
            messages = pool.run(tasks, planned.workers, inherited=held, stop=stop, max_tries=max_tries)
            with contextlib.closing(messages):  # whatever happens, no worker goes on alone
                errors = progress.follow(messages, study_dir, [task.run_ids for task in tasks], run_steps)
        statuses = store.finished_ids(study_dir)
        if stop.number is not None:
            done = sum(statuses.get(i) == "done" for i in planned.runs)
            where = "where they were saved" if planned.device == "cpu" else "from their start, as on any GPU"
            print_error(
                f"interrupted: {done} of {len(planned.runs)} runs of {study_dir} are finished: "
                f"with the same command the others go on {where}"
            )
            raise Interrupted(stop.number)
        _end(planned, errors, statuses, held)


def execute_on_slurm(planned: Plan, request: Request, *, detach: bool) -> bool:
    """The same in jobs; False where they are left to themselves. Raises RunsFailed also where jobs were killed."""
    from normstudy.cluster import submit, watch

    study_dir, command = planned.study_dir, _command(request)
    over = arrays.refuse_while_alive(study_dir)
    if planned.batches:
        submit.check(planned.execution)
    with lock.hold(study_dir, command), Stop() as stop:
        arrays.remove(study_dir, over)
        files.remove_parts(study_dir)
        since, tasks = store.now(), _begin(planned, request)
        if stop.number is not None:
            raise Interrupted(stop.number)
        array = submit.submit(study_dir, tasks, planned.execution, command, since) if tasks else None
    ended = 0
    if array is not None:
        print(watch.told(study_dir, array), flush=True)
        if stop.number is not None:
            raise Interrupted(stop.number)
        if detach:
            return False
        ended = watch.wait(study_dir, array).ended
    statuses = watch.statuses_of(study_dir, tasks, complete=not ended)
    with contextlib.ExitStack() as stack:
        held = None
        with contextlib.suppress(ConfigError):  # somebody else uses the study, and the next command does this
            held = stack.enter_context(lock.hold(study_dir, command, patience=watch.PATIENCE_SECONDS))
            statuses = store.finished_ids(study_dir)  # another command may have begun a run since
            arrays.remove(study_dir, array)
        errors, lost = watch.errors_of(study_dir, tasks, statuses)
        if lost:
            raise RunsFailed(watch.told_lost(study_dir, len(planned.runs), lost, errors))
        _end(planned, errors, statuses, held)
    return True


def _command(request: Request) -> str:
    return str(request.get("command", "normstudy"))


def _begin(planned: Plan, request: Request) -> list[Task]:
    """Make a study ready for its runs, and record what was asked: the tasks. Needs the study's lock."""
    study_dir = planned.study_dir
    batches = _still_missing(planned)
    try:
        store.prepare(study_dir)
        how = {"workers": str(planned.workers), "device": planned.device, "cluster": planned.execution.cluster}
        provenance.record(study_dir, request, batches, planned.runs, how)
    except OSError as error:
        raise ConfigError(f"{study_dir} cannot be written ({error.strerror}): give another results_dir") from None
    commit = provenance.git_commit()
    return [
        Task(
            n, study_dir, ids, [planned.runs[i] for i in ids], planned.texts[ids[0]], planned.device, commit,
            planned.execution.checkpoint_seconds,
        )
        for n, ids in enumerate(batches)
    ]  # fmt: skip


def _end(planned: Plan, errors: dict[str, str], statuses: dict[str, str], held: int | None) -> None:
    """Remove what a complete study no longer needs. Raises RunsFailed where a run of the plan crashed.

    errors: why runs failed now; held: the study's lock, None where somebody else has it.
    """
    if errors or planned.given_up:
        raise RunsFailed(_told_failures(planned, errors, statuses))
    submitted = (planned.study_dir / arrays.RECORD).exists()  # whose jobs may not have begun
    if set(statuses.values()) == {"done"} and not submitted and held is not None and lock.alone(held):
        # A command that starts at this moment may already hold a lock of its own there.
        shutil.rmtree(planned.study_dir / "state", ignore_errors=True)


def _told_failures(planned: Plan, errors: dict[str, str], statuses: dict[str, str]) -> str:
    """The line about runs that crashed now, or so often before that they were left out."""
    n = sum(statuses.get(i) != "done" for i in planned.runs)
    logs = f"tracebacks: {planned.study_dir}/{failures.LOGS}"
    if not errors:
        return f"{n} of {len(planned.runs)} runs failed before and were left out; {logs}. {RETRY}"
    left_out = _given_up(planned.study_dir, list(planned.runs), statuses, planned.execution)
    again = RETRY if left_out else "The same command tries them again"
    return f"{n} of {len(planned.runs)} runs failed ({next(iter(errors.values()))}); {logs}. {again}"


def _still_missing(planned: Plan) -> list[list[str]]:
    """The batches without the runs that another command finished since the plan was made. Needs the lock."""
    statuses = store.finished_ids(planned.study_dir)
    batches = [[i for i in batch.run_ids if statuses.get(i) != "done"] for batch in planned.batches]
    missing = {i: planned.runs[i] for ids in batches for i in ids}
    _refuse_if_sealed(planned.study_dir, missing, planned.texts)
    return [ids for ids in batches if ids]


# ---- what came out ------------------------------------------------------------------------------------


def _say_plan(planned: Plan, asked: int) -> None:
    n, finished = len(planned.runs), len(planned.runs) - len(planned.missing)
    line = f"{planned.study_dir.name}: {n} runs, {finished} finished, {len(planned.batches)} batches"
    if planned.batches:
        sizes = sorted({len(batch.run_ids) for batch in planned.batches})
        together = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
        line += f" of {together} on {planned.workers} workers ({planned.device})"
        line += f", about {progress.duration(planned.seconds)}"
    print(line, flush=True)
    if planned.given_up:
        print(f"{len(planned.given_up)} runs failed before and are left out. {RETRY}", flush=True)
    if asked > n:
        print(f"{asked - n} of the {asked} requested runs are the same as another, and are trained once", flush=True)


def _losses(planned: Plan) -> list[float | None]:
    runs = store.read(planned.study_dir, "runs", ["run_id", "final_val_loss"], list(planned.runs))
    found = {i: float(v) for i, v in zip(runs["run_id"], runs["final_val_loss"], strict=True) if not math.isnan(v)}
    return [found.get(i) for i in planned.ids]


def _draw(study_dir: Path) -> None:
    from normstudy.figures import plot_study

    try:
        for line in plot_study(study_dir).skipped:
            print(f"skipped {line}")
    except ConfigError as error:  # nothing that comes after the training makes it a bad request
        print(f"no figures: {error}")


def comparison_axis(runs: Iterable[RunConfig]) -> str | None:
    """The column a sweep is compared by: warmup_steps where it varies, else the first that does.

    Never the seeds, nor a column that stands for another text: losses on different texts do not compare.
    """
    from normstudy.analysis.pairs import comparable_columns

    columns = [cfg.asked(c) for c in runs]
    candidates = [k for k in comparable_columns() if k not in cfg.TEXT_COLUMNS]
    varying = [k for k in candidates if len({c[k] for c in columns}) > 1]
    return "warmup_steps" if "warmup_steps" in varying else next(iter(varying), None)


def _print_comparison(planned: Plan) -> None:
    from normstudy.analysis.compare import compare_study, render

    counts = Counter(progress.outcomes_of(planned.study_dir, list(planned.runs)).values())
    print(f"outcomes: {', '.join(f'{n} {outcome}' for outcome, n in sorted(counts.items())) or 'none'}")
    if counts["unfinished"]:
        print("unfinished: the loss was still falling when the run ended; more steps would tell")
    axis = comparison_axis(planned.runs.values())
    if axis is None:
        return
    try:
        print(render(compare_study(planned.study_dir, by=axis), "table"))
    except ConfigError as error:
        print(f"no comparison: {error}")

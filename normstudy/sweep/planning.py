"""Plan a sweep: each run's id, which runs are there already, which belong together in a batch.

All is known before anything is written. What is executed where never changes a result.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from normstudy import config as cfg
from normstudy.config import ConfigError, ExecutionConfig, RunConfig, sources
from normstudy.config import execution as options
from normstudy.data import texts as data
from normstudy.data.batches import check_fits
from normstudy.study import records, schema, seal, tables
from normstudy.sweep import batching

SOME_GPU = 2**36  # bytes of memory


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
            check_fits(text, d, config.eval.windows)
            fitting.add(window)
        ids.append(cfg.run_id(config, text.sha256))
        texts[ids[-1]] = text.sha256
    runs = dict(zip(ids, configs, strict=True))
    statuses = tables.finished_ids(study_dir)
    missing = [run_id for run_id in runs if statuses.get(run_id) != "done"]
    is_sealed = refuse_if_sealed(study_dir, {i: runs[i] for i in missing}, texts)
    if execution.cluster == "slurm":
        device, workers = options.device_of(execution), execution.jobs * options.workers_of(execution)
    else:
        device = _device(execution.device)
        workers = execution.workers or (1 if device == "cuda" else len(os.sched_getaffinity(0)))
    _check_own([runs[i] for i in missing], device if execution.cluster == "local" else "cpu")
    given_up = left_out(study_dir, missing, statuses, execution)
    batches = group({i: runs[i] for i in missing if i not in given_up}, workers, device)
    at_once = max(1, min(workers, len(batches)))
    return Plan(study_dir, ids, runs, texts, missing, batches, at_once, device, is_sealed, given_up, execution)


def left_out(study_dir: Path, missing: list[str], statuses: dict[str, str], execution: ExecutionConfig) -> list[str]:
    """The failed runs that are not tried again."""
    tries = records.tries_of(study_dir)
    return [
        i
        for i in missing
        if statuses.get(i) == "failed" and (not execution.retry_failed or tries[i] >= execution.max_tries)
    ]


def refuse_if_sealed(study_dir: Path, missing: dict[str, RunConfig], texts: dict[str, str]) -> bool:
    """Whether a study is sealed; a ConfigError where it is and lacks runs."""
    if not (study_dir / schema.SEALED).exists():
        return False
    if missing:
        raise ConfigError(seal.refusal(study_dir, missing, texts))
    return True


def _check_own(configs: Iterable[RunConfig], device: str) -> None:
    """Try out every own block and norm, once a shape. Only for them the planner imports torch."""
    tried = set()
    for config in configs:
        model = config.model
        if not (sources.is_own(model.placement) or sources.is_own(model.norm)):
            continue
        shape = dataclasses.astuple(model), dataclasses.astuple(config.data)
        if shape not in tried:
            tried.add(shape)
            from normstudy.model.contract import check as contract

            contract.check(config, data.load(config.data).vocab_size, device)


def check(configs: Sequence[RunConfig]) -> None:
    """Raise a ConfigError for anything that `plan` would refuse, and for jobs: these runs are trained one by one."""
    refuse_jobs(plan(configs))


def refuse_jobs(planned: Plan) -> None:
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
    of_own = {f.name for f in dataclasses.fields(config.model)} if sources.is_own(config.model.placement) else set()
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

"""Plan a sweep without writing anything: compute run ids, find the finished runs, group the others into batches."""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from normstudy import config as cfg
from normstudy.config import ExecutionConfig, RunConfig, sources
from normstudy.config import execution as options
from normstudy.data import texts as data
from normstudy.data.texts import check_fits
from normstudy.errors import ConfigError
from normstudy.study import records, schema, tables, whole
from normstudy.sweep import batching

RETRY = (
    "To try failed runs again, add execution.retry_failed=true execution.max_tries=N with N greater than the number "
    "of times that they have failed"
)
LARGEST = 2**44  # assumed largest memory of a cluster's machine in bytes

# column -> its cause, a column that normally determines it. If runs differ in both, the error names the cause.
IMPLIED_BY = {"data_seed": "seed", "data_sha256": "data"}


class Batch(NamedTuple):
    """Runs of one shape that train as one program. seconds: estimated time on one core."""

    run_ids: list[str]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of a sweep and how they are executed."""

    study_dir: Path
    ids: list[str]  # the run id of each requested config, in order
    runs: dict[str, RunConfig]  # run_id -> config of each distinct run, in order
    texts: dict[str, str]  # run_id -> sha256 of the run's text
    missing: list[str]  # ids of the runs that are not finished, or whose rows are incomplete
    batches: list[Batch]
    workers: int  # processes that train at the same time, summed over all jobs
    device: str
    is_sealed: bool
    given_up: list[str]  # ids of missing runs that crashed too often to be tried again
    lacking: dict[str, str]  # id of each finished run whose rows are incomplete -> which rows it lacks
    execution: ExecutionConfig

    @property
    def on_slurm(self) -> bool:
        return self.execution.cluster == "slurm"

    @property
    def seconds(self) -> float:
        """Estimate the seconds that the sweep takes if each batch goes to the first free worker."""
        loads = [0.0] * self.workers
        for batch in self.batches:
            loads[loads.index(min(loads))] += batch.seconds
        return max(loads)

    @property
    def memory(self) -> int:
        """Estimate how many bytes of memory the training needs at most, on this machine or in each Slurm job."""
        workers = options.workers_of(self.execution) if self.on_slurm else self.workers
        runs = [(len(batch.run_ids), self.runs[batch.run_ids[0]]) for batch in self.batches]
        sizes = sorted((batching.PROCESS + n * batching.bytes_of_run(run) for n, run in runs), reverse=True)
        return sum(sizes[:workers])


def plan(configs: Sequence[RunConfig]) -> Plan:
    """Plan one sweep without writing anything. Raises a ConfigError for runs that cannot be trained."""
    if not configs:
        raise ConfigError("the sweep has no runs: give every key at least one value")
    if len(places := sorted({f"{c.results_dir}/{c.study}" for c in configs})) > 1:
        raise ConfigError(f"one sweep fills one study, but this sweep would fill {', '.join(places)}: choose one study")
    execution = configs[0].execution
    if len(named := sorted({c.execution.cluster for c in configs})) > 1:
        raise ConfigError(f"a sweep has one execution.cluster, but these runs name {' and '.join(named)}: choose one")
    study_dir = Path(configs[0].results_dir) / configs[0].study
    ids, texts = [], {}
    loaded: dict[tuple[object, ...], data.Text] = {}
    fitting: set[tuple[object, ...]] = set()
    for config in configs:
        d = config.data
        key = (d.name, d.path, d.tokenizer, d.vocab_size, d.source_seed)
        if key not in loaded:
            loaded[key] = data.load(d)  # once per text, because loading a folder with many files is slow
        text = loaded[key]
        if (window := (*key, d.seq_len, config.eval.windows)) not in fitting:
            check_fits(text, d, config.eval.windows)
            fitting.add(window)
        ids.append(cfg.run_id(config, text.sha256))
        texts[ids[-1]] = text.sha256
    runs = dict(zip(ids, configs, strict=True))
    statuses = tables.statuses(study_dir, tables.damaged_and_unfinished(study_dir))
    lacking = whole.find(study_dir, [run_id for run_id in runs if statuses.get(run_id) == "done"])
    missing = [run_id for run_id in runs if statuses.get(run_id) != "done" or run_id in lacking]
    if lacking and (study_dir / schema.SEALED).exists():
        raise ConfigError(f"{study_dir} is sealed, but {whole.said(lacking)}: restore its files from a copy")
    if missing and tables.is_watched(study_dir):
        raise ConfigError(f"{study_dir} contains runs that normstudy.watch recorded: choose another study for a sweep")
    is_sealed = refuse_if_sealed(study_dir, {i: runs[i] for i in missing}, texts)
    if execution.cluster == "slurm":
        device = "cuda" if execution.gpus else "cpu"  # regardless of the submitting machine's devices
        workers = execution.jobs * options.workers_of(execution)
    else:
        device = _device(execution.device)
        workers = execution.workers or (1 if device == "cuda" else len(os.sched_getaffinity(0)))
    given_up = left_out(study_dir, missing, statuses, execution)
    batches = group({i: runs[i] for i in missing if i not in given_up}, workers, device)
    used = max(1, min(workers, len(batches)))
    planned = Plan(study_dir, ids, runs, texts, missing, batches, used, device, is_sealed, given_up, lacking, execution)
    _check_memory(planned)
    _check_own([runs[i] for i in missing], device if execution.cluster == "local" else "cpu")
    return planned


def _check_memory(planned: Plan) -> None:
    """Raise a ConfigError if the batches need more memory than this machine, or a Slurm job, has."""
    if planned.on_slurm:
        gigabytes = planned.execution.memory_gb
        limit, where = LARGEST if gigabytes is None else int(gigabytes * 2**30), " in a job"
    else:
        limit, where = batching.free_memory(planned.device, whole=True), ""
    if planned.memory > limit:
        raise ConfigError(
            f"training needs about {planned.memory / 1e9:,.3g} GB of memory, but there are only {limit / 1e9:.3g} "
            f"GB{where}: use a smaller model, data.batch_size or data.seq_len, or reduce execution.workers or "
            "execution.runs_per_batch"
        )


def left_out(study_dir: Path, missing: list[str], statuses: dict[str, str], execution: ExecutionConfig) -> list[str]:
    """Return the ids of the failed runs that this command does not try again."""
    tries = records.tries_of(study_dir)
    failed = [i for i in missing if statuses.get(i) == "failed"]
    return [i for i in failed if not execution.retry_failed or tries[i] >= execution.max_tries]


def refuse_if_sealed(study_dir: Path, missing: Mapping[str, RunConfig], texts: Mapping[str, str]) -> bool:
    """Return whether a study is sealed. Raises a ConfigError if it is sealed and lacks runs.

    missing: run_id -> config of the runs that the study lacks. texts: run_id -> sha256 of the run's training text.
    """
    is_sealed = (study_dir / schema.SEALED).exists()
    if not is_sealed or not missing:
        return is_sealed
    held = tables.read(study_dir, "runs")
    found: dict[str, dict[object, None]] = {}  # column -> values of requested runs that differ from the study
    for run_id, config in missing.items():
        row = {**schema.config_columns(config), "data_sha256": texts[run_id]}
        for column in _differences(held, row):
            found.setdefault(column, {})[row[column]] = None
    parts, name = [], study_dir.name
    for column, values in found.items():
        key = column.removeprefix("resolved_")
        if key == "data_sha256":
            parts.append("the training text differs from the study's (another file, or another version of Python)")
            name += "-text"
        else:
            theirs = sorted(held[column].dropna().unique().tolist())
            parts.append(f"{key} {_list(values)} (the study has {_list(theirs) or 'null'})")
            name += f"-{key}{_list(values)}" if len(values) == 1 else f"-{key}"
    what = "; ".join(parts) or "the normstudy version that trained the study computes different bits"
    lacks = f"lacks {len(missing)} of the requested runs" if len(missing) > 1 else "lacks the requested run"
    safe = "".join(c if (c.isascii() and c.isalnum()) or c in "_.+-" else "_" for c in name)[:80]
    raise ConfigError(f"{study_dir} is sealed and {lacks}: {what}. Train in a new study: study={safe}")


def _differences(held: pd.DataFrame, row: Mapping[str, object]) -> list[str]:
    """Return the columns in which a run differs from the most similar run in the study.

    If a key may be `auto`, only its resolved value is compared.
    """
    keys = [k for k in row if k in held and k not in ("study", "data_path") and f"resolved_{k}" not in row]
    same = pd.DataFrame({k: held[k].isna() if row[k] is None else held[k] == row[k] for k in keys})
    nearest = same.iloc[int(same.sum(axis=1).to_numpy().argmax())]
    different = [k for k in keys if not nearest[k]]
    return [k for k in different if IMPLIED_BY.get(k) not in different]


def _list(values: Iterable[object]) -> str:
    shown = [f"{v:g}" if isinstance(v, float) else "null" if v is None else str(v) for v in values]
    return ", ".join(shown[:6] + ["..."] * (len(shown) > 6))


def _check_own(configs: Iterable[RunConfig], device: str) -> None:
    """Test user-defined blocks and norms once per shape. Import torch only if there are any."""
    own = [config for config in configs if sources.is_own(config.model.placement) or sources.is_own(config.model.norm)]
    for config in {(dataclasses.astuple(c.model), dataclasses.astuple(c.data)): c for c in own}.values():
        from normstudy.model.contract import check as contract

        contract.check(config, data.load(config.data).vocab_size, device)


def check(configs: Sequence[RunConfig]) -> Plan:
    """Plan runs that will be trained one by one. Raises a ConfigError if a run cannot be trained or requests Slurm."""
    planned = plan(configs)
    refuse_slurm(planned)
    return planned


def refuse_slurm(planned: Plan) -> None:
    if planned.on_slurm:
        raise ConfigError(
            "execution=slurm needs the command normstudy sweep and normstudy's own launcher: leave execution=slurm out "
            "to train on this machine"
        )


# Columns in which the runs of a batch may differ. The values of all other columns define the batch's shape.
ON_THE_RUN_AXIS = {
    "seed", "data_seed", "init", "force_init", "unembed_std", "schedule", "peak_lr", "warmup_steps",
    "beta1", "beta2", "eps", "momentum", "weight_decay", "max_grad_norm",
}  # fmt: skip


def shape_key(config: RunConfig) -> tuple[tuple[str, object], ...]:
    """Return the (column, value) pairs that runs must share to train as one program."""
    values = cfg.asked(config) | dataclasses.asdict(cfg.resolve(config.model))
    # A user-defined block may read any model key when constructed, so all runs of its batch must share every model key.
    of_own = {f.name for f in dataclasses.fields(config.model)} if sources.is_own(config.model.placement) else set()
    return tuple((k, v) for k, v in values.items() if k not in ON_THE_RUN_AXIS - of_own)


def group(runs: dict[str, RunConfig], workers: int, device: str) -> list[Batch]:
    """Group runs into batches of one shape and nearly equal size, and sort the batches by cost, largest first.

    A batch has at most ceil(runs of its shape / workers) runs, and at most execution.runs_per_batch if this is set.
    """
    shapes: dict[tuple[tuple[str, object], ...], list[str]] = {}
    for run_id, config in runs.items():
        shapes.setdefault(shape_key(config), []).append(run_id)
    batches = []
    for members in shapes.values():
        first = runs[members[0]]
        per_batch = first.execution.runs_per_batch or batching.runs_per_batch(first, device, workers)
        n = math.ceil(len(members) / min(per_batch, math.ceil(len(members) / workers)))
        edges = [len(members) * i // n for i in range(n + 1)]
        for low, high in itertools.pairwise(edges):
            part = members[low:high]
            batches.append(Batch(part, sum(batching.seconds_of(runs[i]) for i in part)))
    return sorted(batches, key=lambda b: -b.seconds)


def _device(asked: str) -> str:
    """Choose cpu or cuda. Import torch only if a driver is installed or the user requests cuda."""
    if asked == "cpu" or (asked == "auto" and not os.path.exists("/proc/driver/nvidia/version")):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise ConfigError("execution.device is cuda, but torch finds no CUDA device here: use cpu or auto")
    return "cpu"

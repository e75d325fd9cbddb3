"""Plan a sweep, train what is missing of it, and show what came out.

`plan` knows everything before anything is written: each run's id, which runs are there already, which belong
together in a batch. What is executed where never changes a result.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from normstudy import config as cfg
from normstudy import data, lock, pool, store
from normstudy.config import ConfigError, RunConfig
from normstudy.worker import Message, Task

RUNS_PER_BATCH = {
    "cpu": 8,
    "cuda": 64,
}  # on a CPU core 8 is best at the studies' shapes, and 2 lose to a plain loop
PIPE_LINE_SECONDS = 30  # between two lines of progress where there is no terminal

Request = dict[str, object]  # "command": the command line, "overrides": list[str]


class RunsFailed(Exception):
    """Some runs crashed; its text is one line."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Runs of one shape that train as one program. seconds: estimated, on one core."""

    run_ids: list[str]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep comes to. runs: every distinct run in order; missing: those without a finished result."""

    study_dir: Path
    ids: list[str]  # one a requested config, in order
    runs: dict[str, RunConfig]
    texts: dict[str, str]  # run_id -> sha256 of its text
    missing: list[str]
    batches: list[Batch]
    workers: int
    device: str
    sealed: bool

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
    study_dir = Path(configs[0].results_dir) / configs[0].study
    ids, texts = [], {}
    for config in configs:
        text = data.load(config.data)
        data.check_fits(text, config.data, config.eval.windows)
        ids.append(cfg.run_id(config, text.sha256))
        texts[ids[-1]] = text.sha256
    runs = dict(zip(ids, configs, strict=True))
    statuses = store.finished_ids(study_dir)
    missing = [run_id for run_id in runs if statuses.get(run_id) != "done"]
    sealed = (study_dir / store.SEALED).exists()
    if sealed and missing:
        raise ConfigError(_differs_from_sealed(study_dir, {i: runs[i] for i in missing}))
    device = _device(execution.device)
    workers = execution.workers or (1 if device == "cuda" else len(os.sched_getaffinity(0)))
    per_batch = execution.runs_per_batch or RUNS_PER_BATCH[device]
    batches = group({i: runs[i] for i in missing}, per_batch, workers)
    return Plan(study_dir, ids, runs, texts, missing, batches, max(1, min(workers, len(batches))), device, sealed)


def check(configs: Sequence[RunConfig]) -> None:
    """Raise a ConfigError for anything that `plan` would refuse."""
    plan(configs)


# What may differ between the runs of a batch: it rides on the run axis. Everything else is the batch's shape.
ON_THE_RUN_AXIS = {
    "seed", "data_seed", "init", "schedule", "peak_lr", "warmup_steps",
    "beta1", "beta2", "eps", "momentum", "weight_decay", "max_grad_norm",
}  # fmt: skip


def shape_key(config: RunConfig) -> tuple[tuple[str, object], ...]:
    """What runs must share to train as one program."""
    values = cfg.asked(config) | dataclasses.asdict(cfg.resolve(config.model))
    return tuple((k, v) for k, v in values.items() if k not in ON_THE_RUN_AXIS)


def group(runs: dict[str, RunConfig], per_batch: int, workers: int) -> list[Batch]:
    """Near-equal batches of one shape, at most min(per_batch, ceil(runs / workers)) runs each, largest cost first."""
    shapes: dict[tuple[tuple[str, object], ...], list[str]] = {}
    for run_id, config in runs.items():
        shapes.setdefault(shape_key(config), []).append(run_id)
    batches = []
    for members in shapes.values():
        n = math.ceil(len(members) / min(per_batch, math.ceil(len(members) / workers)))
        edges = [len(members) * i // n for i in range(n + 1)]
        for low, high in itertools.pairwise(edges):
            part = members[low:high]
            batches.append(Batch(part, sum(seconds_of(runs[i]) for i in part)))
    return sorted(batches, key=lambda b: -b.seconds)


def seconds_of(config: RunConfig) -> float:
    """Rough time of one run on a CPU core: 6 flops a parameter and token at 50 GFLOP/s, 0.3 ms a layer and step."""
    m, d = config.model, config.data
    d_ff = cfg.resolve(m).d_ff
    per_token = m.n_layers * (4 * m.d_model**2 + 2 * m.d_model * d_ff + 2 * d.seq_len * m.d_model) + 256 * m.d_model
    flops = 6 * d.batch_size * d.seq_len * per_token
    return config.schedule.n_steps * (flops / 50e9 + 3e-4 * (m.n_layers + 1))


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


def _differs_from_sealed(study_dir: Path, strangers: dict[str, RunConfig]) -> str:
    """The line that says why a sealed study takes none of these runs, and the study name to use instead."""
    held = store.read(study_dir, "runs")
    config = next(iter(strangers.values()))
    row = store.config_columns(config) | {"data_sha256": data.load(config.data).sha256}
    keys = [k for k in row if k not in ("study", "data_path") and k in held]
    same = {k: held[k].isna() if row[k] is None else held[k] == row[k] for k in keys}
    nearest = sum(s.astype(int) for s in same.values()).argmax()  # type: ignore[union-attr]
    different = [k for k in keys if not same[k].iloc[nearest] and not k.startswith("resolved_")]
    name = study_dir.name
    parts = []
    for key in different:
        values = sorted(held[key].dropna().unique().tolist(), key=str)
        if key == "data_sha256":
            parts.append("the text is another (its sha256 differs: another Python version or file)")
        else:
            parts.append(f"{key} {_plain(row[key])} (the study holds {', '.join(map(_plain, values)) or 'null'})")
        name += "-text" if key == "data_sha256" else f"-{key}{_plain(row[key])}"
    name = "".join(c if c.isalnum() or c in "_.=+-" else "_" for c in name)[:80]
    what = "; ".join(parts) or "its numerics are of another version"
    count = f"{len(strangers)} of the requested runs are" if len(strangers) > 1 else "the requested run is"
    return f"{study_dir} is sealed and {count} not in it: {what}. Train it as a study of its own: study={name}"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


# ---- execution ----------------------------------------------------------------------------------------


def run_sweep(configs: Sequence[RunConfig], *, dry_run: bool = False, request: Request) -> list[float | None]:
    """Train what is missing of a sweep, draw its figures, print the comparison.

    Returns the final validation loss of each config in order, None for a run that failed or went non-finite.
    Raises a ConfigError before anything is written, RunsFailed after the other runs are finished.
    """
    planned = plan(configs)
    _say_plan(planned, len(configs))
    if dry_run:
        return [None] * len(configs)
    if planned.sealed:
        print(
            f"{planned.study_dir} is sealed: all {len(planned.runs)} runs are there. To train them again: study=again"
        )
    else:
        execute(planned, request)
        _draw(planned.study_dir)
    _print_comparison(planned)
    print(f"tables, figures: {planned.study_dir}")
    return _losses(planned)


def run_one(config: RunConfig, *, request: Request) -> float | None:
    """Train one run (nothing where it is finished already), say how it ended, return its final validation loss."""
    planned = plan([config])
    if not planned.sealed:
        execute(planned, request, shared=True)
    print(f"{planned.ids[0]}: {_outcomes(planned.study_dir, planned.ids)[planned.ids[0]]}, {_finals(planned)}")
    print(f"tables: {planned.study_dir}/tables    figures: normstudy plot {planned.study_dir}")
    return _losses(planned)[0]


def execute(planned: Plan, request: Request, *, shared: bool = False) -> None:
    """Train the missing runs of a plan. Raises RunsFailed when a run crashed, after all others are finished.

    shared: other commands may train runs of their own in the same study at the same time.
    """
    study_dir = planned.study_dir
    with lock.hold(study_dir, str(request.get("command", "normstudy")), shared=shared):
        try:
            store.prepare(study_dir)
            _record(planned, request)
        except OSError as error:
            raise ConfigError(f"{study_dir} cannot be written ({error.strerror}): give another results_dir") from None
        commit = _git_commit()
        tasks = [
            Task(
                n, study_dir, b.run_ids, [planned.runs[i] for i in b.run_ids],
                planned.texts[b.run_ids[0]], planned.device, commit,
            )
            for n, b in enumerate(planned.batches)
        ]  # fmt: skip
        try:
            errors = _follow(pool.run(tasks, planned.workers), planned) if tasks else {}
        except KeyboardInterrupt:
            done = sum(status == "done" for status in store.finished_ids(study_dir).values())
            print(f"interrupted: {done} runs of {study_dir} are finished, the same command goes on", file=sys.stderr)
            raise
        if errors:
            raise RunsFailed(
                f"{sum(len(planned.batches[n].run_ids) for n in errors)} of {len(planned.runs)} runs failed "
                f"({next(iter(errors.values()))}); tracebacks: {study_dir}/state/logs. "
                "The same command tries them again"
            )
        if not shared and set(store.finished_ids(study_dir).values()) == {"done"}:
            shutil.rmtree(study_dir / "state")


def _follow(messages: Iterable[Message], planned: Plan) -> dict[int, str]:
    """Show the progress of a sweep; returns the error of each batch that failed."""
    total = sum(planned.runs[i].schedule.n_steps for i in planned.missing)
    outcomes: Counter[str] = Counter()
    errors: dict[int, str] = {}
    done, said, began = 0, time.monotonic(), time.monotonic()
    with tqdm(total=total, unit="step", unit_scale=True, dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        for message in messages:
            bar.update(message.run_steps)
            done += message.run_steps
            if message.ended:
                outcomes.update(_outcomes(planned.study_dir, message.ended).values())
                bar.set_postfix_str(" ".join(f"{n} {o}" for o, n in sorted(outcomes.items())))
            if message.error:
                errors[message.number] = message.error
                tqdm.write(
                    f"a batch of {len(planned.batches[message.number].run_ids)} failed: {message.error}",
                    sys.stderr,
                )
            if bar.disable and time.monotonic() - said > PIPE_LINE_SECONDS and done * 50 > total:
                said = time.monotonic()
                left = (said - began) * (total - done) / max(done, 1)
                ended = sum(outcomes.values())
                print(
                    f"{ended}/{len(planned.missing)} runs, {100 * done // total} % of the steps, "
                    f"about {_duration(left)} left",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
    return errors


def _record(planned: Plan, request: Request) -> None:
    """Keep what was asked under sweeps/: one Parquet file, a row a planned run, the request in its metadata."""
    batch_of = {run_id: n for n, b in enumerate(planned.batches) for run_id in b.run_ids}
    overrides = request.get("overrides", [])
    asked = {
        "command": str(request.get("command", "")),
        "overrides": shlex.join(str(o) for o in overrides) if isinstance(overrides, list) else str(overrides),
        "python": platform.python_version(),
        "normstudy": version("normstudy"),
        "torch": version("torch"),
        "workers": str(planned.workers),
        "device": planned.device,
    }
    table = pa.table(
        {
            "run_id": pa.array(list(planned.runs), pa.string()),
            "batch": pa.array([batch_of.get(i) for i in planned.runs], pa.int32()),
        }
    ).replace_schema_metadata(asked)
    stamp = store.now().strftime("%Y%m%dT%H%M%S.%f")
    folder = planned.study_dir / "sweeps"
    folder.mkdir(exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.place(planned.study_dir, f"sweeps/{stamp}.parquet", bytes(sink.getvalue()))


def _git_commit() -> str | None:
    """The commit of this package's checkout, with -dirty where it has changes; None outside a checkout."""
    here = Path(__file__)

    def git(*words: str) -> str | None:
        try:
            out = subprocess.run(["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return out.stdout.strip() if out.returncode == 0 else None

    if git("ls-files", "--error-unmatch", here.name) is None:
        return None  # installed: a checkout around site-packages is another project's
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--", str(here.parent)) else commit


# ---- what came out ------------------------------------------------------------------------------------


def _say_plan(planned: Plan, asked: int) -> None:
    n, finished = len(planned.runs), len(planned.runs) - len(planned.missing)
    line = f"{planned.study_dir.name}: {n} runs, {finished} finished, {len(planned.batches)} batches"
    if planned.batches:
        line += f" on {planned.workers} workers ({planned.device}), about {_duration(planned.seconds)}"
    print(line, flush=True)
    if asked > n:
        print(
            f"{asked - n} of the {asked} requested runs are the same as another, and are trained once",
            flush=True,
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else str(datetime.timedelta(seconds=round(seconds))).removeprefix("0:")


def _outcomes(study_dir: Path, run_ids: Sequence[str]) -> dict[str, str]:
    from normstudy.analysis.outcomes import outcomes

    runs = store.read(study_dir, "runs", run_ids=run_ids)
    return {str(k): str(v) for k, v in outcomes(runs, store.read(study_dir, "steps", run_ids=run_ids)).items()}


def _losses(planned: Plan) -> list[float | None]:
    runs = store.read(planned.study_dir, "runs", ["run_id", "final_val_loss"], sorted(planned.runs))
    losses = {
        i: None if math.isnan(v) else float(v) for i, v in zip(runs["run_id"], runs["final_val_loss"], strict=True)
    }
    return [losses.get(i) for i in planned.ids]


def _finals(planned: Plan) -> str:
    loss = _losses(planned)[0]
    return "no final validation loss" if loss is None else f"final validation loss {loss:.4f} nats per token"


def _draw(study_dir: Path) -> None:
    from normstudy.figures import plot_study

    result = plot_study(study_dir)
    for line in result.skipped:
        print(line)


def comparison_axis(runs: Iterable[RunConfig]) -> str | None:
    """The column a sweep is compared by: warmup_steps where it varies, else the first that does, seeds excepted."""
    columns = [cfg.asked(c) for c in runs]
    varying = [
        k for k in columns[0]
        if k not in ("study", "seed", "data_seed", "data_path") and len({c[k] for c in columns}) > 1
    ]  # fmt: skip
    return "warmup_steps" if "warmup_steps" in varying else next(iter(varying), None)


def _print_comparison(planned: Plan) -> None:
    counts = Counter(_outcomes(planned.study_dir, sorted(planned.runs)).values())
    print("outcomes: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())))
    axis = comparison_axis(planned.runs.values())
    if axis is not None:
        from normstudy.analysis.compare import compare_study, render

        print(render(compare_study(planned.study_dir, by=axis), "table"))

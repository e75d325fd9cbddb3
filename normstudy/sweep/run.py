"""Train many runs (`run_sweep`) or a single run (`run_one`): print the plan before, and draw and compare afterwards."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from normstudy import config as cfg
from normstudy.analysis.compare import compare_study, render
from normstudy.analysis.outcomes import explained
from normstudy.analysis.pairs import comparable_columns
from normstudy.config import RunConfig
from normstudy.errors import ConfigError, Damaged, say
from normstudy.model import moments
from normstudy.study import tables, whole
from normstudy.study.records import Request
from normstudy.sweep import planning
from normstudy.sweep.execute import RunsFailed, execute
from normstudy.sweep.on_slurm import execute_on_slurm
from normstudy.sweep.planning import RETRY, Plan
from normstudy.workers import progress


def run_sweep(
    configs: Sequence[RunConfig], *, dry_run: bool = False, detach: bool = False, request: Request
) -> list[float | None]:
    """Train a sweep's missing runs, draw its figures and print the comparison.

    Returns the configs' final validation losses in order: None if a run has none, after a dry run, or while jobs train.
    Raises a ConfigError before training if a run cannot be trained, or if another command is training the study. If
    runs crash, raises RunsFailed after the other runs end. detach: whether to return once the Slurm jobs are submitted.
    """
    planned = planning.plan(configs)
    if detach and not planned.on_slurm:
        raise ConfigError("--detach needs Slurm jobs, but this sweep trains on this machine: add execution=slurm")
    print_plan(planned, len(configs))
    if dry_run:
        return [None] * len(configs)
    failure: Exception | None = None
    if planned.is_sealed:
        print(
            f"{planned.study_dir} is sealed and has all {len(planned.runs)} runs. "
            "To train them again, add study= with a new name"
        )
    else:
        try:
            if planned.on_slurm and not execute_on_slurm(planned, request, detach=detach):
                return [None] * len(configs)
            if not planned.on_slurm:
                execute(planned, request)
        except RunsFailed as error:
            failure = error
        damaged = draw(planned.study_dir)
        failure = failure or damaged
    print_comparison(planned)
    say(f"tables, figures: {planned.study_dir}    for one HTML page: normstudy report {planned.study_dir}")
    if failure is not None:
        raise failure
    return losses_of(planned)


def run_one(config: RunConfig, *, request: Request) -> float | None:
    """Train one run unless it is already finished, print its outcome, and return its final validation loss, if any."""
    planned = planning.check([config])
    print_remarks(planned)
    if not planned.is_sealed:
        execute(planned, request, shared=True)
    (run_id,) = planned.runs
    (loss,) = losses_of(planned)
    final = "no final validation loss" if loss is None else f"final validation loss {loss:.4f} nats per token"
    found = progress.outcomes_of(planned.study_dir, [run_id])[run_id]
    say("\n".join([f"{run_id}: {found}, {final}", *explained([found])]))
    say(f"tables: {planned.study_dir}/tables    to draw figures: normstudy plot {planned.study_dir}")
    return loss


def print_plan(planned: Plan, asked: int) -> None:
    n, finished = len(planned.runs), len(planned.runs) - len(planned.missing)
    line = f"{planned.study_dir.name}: {n} runs, {finished} already finished, {len(planned.batches)} batches"
    if planned.batches:
        sizes = sorted({len(batch.run_ids) for batch in planned.batches})
        together = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
        line += f" of {together} on {planned.workers} workers ({planned.device})"
        line += f", about {planned.memory / 1e9:.2g} GB of memory{' a job' if planned.on_slurm else ''}"
        line += f", estimated time {progress.duration(planned.seconds)}"
    print(line, flush=True)
    if planned.given_up:
        print(f"{len(planned.given_up)} runs failed before and are left out. {RETRY}", flush=True)
    if asked > n:
        print(f"{asked - n} of the {asked} requested runs repeat another run and are trained only once", flush=True)
    print_remarks(planned)


def print_remarks(planned: Plan) -> None:
    """Print which runs lack rows and are trained again. Warn if a norm_eps exceeds the variance of its norm's input."""
    if planned.lacking:
        print(f"{whole.said(planned.lacking)}: trained again", flush=True)
    found = [
        (read / config.model.norm_eps, read, norm, config.model)
        for batch in planned.batches  # the models of a batch differ only in their initialization
        for config in {planned.runs[i].model.init: planned.runs[i] for i in batch.run_ids}.values()
        for norm, read in moments.read_by_norms(config.model, config.data.seq_len).items()
    ]
    share, read, norm, model = min(found, key=lambda one: one[0], default=(1.0, 0.0, "", None))
    if model is not None and share < 1:
        rms = math.sqrt(share / (share + 1))
        print(
            f"model.norm_eps {model.norm_eps:g} exceeds the variance of {norm}'s input (about {read:.1g} at "
            f"initialization with placement {model.placement} and d_model {model.d_model}), so the norm's output has "
            f"an rms of {rms:.1g} instead of 1: lower model.norm_eps or raise model.d_model",
            flush=True,
        )


def losses_of(planned: Plan) -> list[float | None]:
    runs = tables.read(planned.study_dir, "runs", ["run_id", "final_val_loss"], list(planned.runs))
    found = {i: float(v) for i, v in zip(runs["run_id"], runs["final_val_loss"], strict=True) if not math.isnan(v)}
    return [found.get(i) for i in planned.ids]


def draw(study_dir: Path) -> Damaged | None:
    """Draw a study's figures. Return the error if a file is damaged."""
    from normstudy.figures import together

    try:
        for line in together.plot(study_dir).skipped:
            say(line)
    except Damaged as error:
        return error
    except ConfigError as error:  # missing figures do not change the sweep's exit code
        say(f"no figures: {error}")
    return None


def print_comparison(planned: Plan) -> None:
    """Print the outcomes, and compare the runs by warmup_steps if it varies, or else by the first varying column."""
    everyone = list(tables.statuses(planned.study_dir))  # also runs of earlier sweeps, as in the comparison
    counts = Counter(progress.outcomes_of(planned.study_dir, everyone).values())
    print(f"outcomes: {', '.join(f'{n} {outcome}' for outcome, n in sorted(counts.items())) or 'none'}")
    print("".join(f"{line}\n" for line in explained(counts)), end="")
    columns = [cfg.asked(c) for c in planned.runs.values()]
    candidates = [k for k in comparable_columns() if k not in cfg.TEXT_COLUMNS]  # losses on other texts do not compare
    varying = [k for k in candidates if len({c[k] for c in columns}) > 1]
    axis = "warmup_steps" if "warmup_steps" in varying else next(iter(varying), None)
    try:
        if axis is not None:
            say(render(compare_study(planned.study_dir, by=axis), "table"))
    except ConfigError as error:
        say(f"no comparison: {error}")

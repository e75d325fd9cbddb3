"""Start training: `run_sweep` trains many runs, and `run_one` a single run."""

from __future__ import annotations

from collections.abc import Sequence

from normstudy.analysis.outcomes import explained
from normstudy.config import RunConfig
from normstudy.errors import ConfigError, say
from normstudy.study.records import Request
from normstudy.sweep import planning
from normstudy.sweep.execute import RunsFailed, execute
from normstudy.sweep.on_slurm import execute_on_slurm
from normstudy.sweep.report import draw, losses_of, print_comparison, print_plan, print_remarks
from normstudy.workers import progress


def run_sweep(
    configs: Sequence[RunConfig], *, dry_run: bool = False, detach: bool = False, request: Request
) -> list[float | None]:
    """Train a sweep's missing runs, draw its figures and print the comparison.

    Returns the final validation loss of each config, in order, and None for a config whose run has no such loss. Raises
    a ConfigError before training starts if a run cannot be trained as requested, or if another command is training
    the study. If runs fail, raises RunsFailed after all other runs are finished and reported.
    detach: whether to return as soon as the sweep's Slurm jobs are submitted.
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
    say(f"tables, figures: {planned.study_dir}    as a page to send: normstudy report {planned.study_dir}")
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

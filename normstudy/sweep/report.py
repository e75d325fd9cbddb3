"""Print a sweep's plan before training, and draw its figures and print outcomes and comparison afterwards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from normstudy import config as cfg
from normstudy.analysis.compare import compare_study, render
from normstudy.analysis.outcomes import explained
from normstudy.analysis.pairs import comparable_columns
from normstudy.config import RunConfig
from normstudy.errors import ConfigError, Damaged, say
from normstudy.model import moments
from normstudy.study import tables, whole
from normstudy.sweep.planning import RETRY, Plan
from normstudy.workers import progress


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
    """Say which runs are trained again, and if model.norm_eps exceeds what it is added to, for the worst model."""
    if planned.lacking:
        print(f"{whole.said(planned.lacking)}: trained again", flush=True)
    found = [
        (read / config.model.norm_eps, read, norm, config.model)
        for batch in planned.batches  # whose models differ only in their initialization
        for config in {planned.runs[i].model.init: planned.runs[i] for i in batch.run_ids}.values()
        for norm, read in moments.read_by_norms(config.model, config.data.seq_len).items()
    ]
    share, read, norm, model = min(found, key=lambda one: one[0], default=(1.0, 0.0, "", None))
    if model is not None and share < 1:
        rms = math.sqrt(share / (share + 1))
        print(
            f"model.norm_eps {model.norm_eps:g} exceeds the variance that {norm} of placement {model.placement} reads "
            f"at initialization, about {read:.1g} with d_model {model.d_model}, so its output has an rms of {rms:.1g} "
            "instead of 1: lower model.norm_eps, or widen the model",
            flush=True,
        )


def losses_of(planned: Plan) -> list[float | None]:
    runs = tables.read(planned.study_dir, "runs", ["run_id", "final_val_loss"], list(planned.runs))
    found = {i: float(v) for i, v in zip(runs["run_id"], runs["final_val_loss"], strict=True) if not math.isnan(v)}
    return [found.get(i) for i in planned.ids]


def draw(study_dir: Path) -> Damaged | None:
    """Draw a study's figures; returns the error for a damaged file."""
    from normstudy.figures import together

    try:
        for line in together.plot(study_dir).skipped:
            say(line)
    except Damaged as error:
        return error
    except ConfigError as error:  # missing figures do not change the sweep's exit code
        say(f"no figures: {error}")
    return None


def comparison_axis(runs: Iterable[RunConfig]) -> str | None:
    """Return the column by which to compare a sweep: warmup_steps if it varies, else the first varying column or None.

    Seeds are excluded, because a comparison pairs runs with equal seeds. Columns that describe the text are excluded,
    because losses on different texts are not comparable.
    """
    columns = [cfg.asked(c) for c in runs]
    candidates = [k for k in comparable_columns() if k not in cfg.TEXT_COLUMNS]
    varying = [k for k in candidates if len({c[k] for c in columns}) > 1]
    return "warmup_steps" if "warmup_steps" in varying else next(iter(varying), None)


def print_comparison(planned: Plan) -> None:
    everyone = list(tables.statuses(planned.study_dir))  # as the comparison, also runs of earlier sweeps
    counts = Counter(progress.outcomes_of(planned.study_dir, everyone).values())
    print(f"outcomes: {', '.join(f'{n} {outcome}' for outcome, n in sorted(counts.items())) or 'none'}")
    print("".join(f"{line}\n" for line in explained(counts)), end="")
    axis = comparison_axis(planned.runs.values())
    if axis is None:
        return
    try:
        say(render(compare_study(planned.study_dir, by=axis), "table"))
    except ConfigError as error:
        say(f"no comparison: {error}")

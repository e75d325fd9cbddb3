"""Train what is missing of a sweep, and show what came out; planning.py says what that is."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from normstudy import config as cfg
from normstudy import failures, files, lock, planning, pool, progress, provenance, store
from normstudy.cluster import arrays
from normstudy.config import ConfigError, RunConfig
from normstudy.planning import Plan
from normstudy.provenance import Request
from normstudy.stopping import Interrupted, Stop, print_error
from normstudy.worker import Task

RETRY = "To try them again: execution.retry_failed=true execution.max_tries=N, with an N beyond their tries"


class RunsFailed(Exception):
    """Some runs crashed; its text is one line."""


# ---- execution ----------------------------------------------------------------------------------------


def run_sweep(
    configs: Sequence[RunConfig], *, dry_run: bool = False, detach: bool = False, request: Request
) -> list[float | None]:
    """Train what is missing of a sweep, draw its figures, print the comparison.

    Returns the final validation loss of each config in order, None for a run that failed or went non-finite.
    detach: return once its jobs are submitted. Raises a ConfigError before anything is trained, RunsFailed after the
    other runs are finished and shown.
    """
    planned = planning.plan(configs)
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
    planned = planning.plan([config])
    planning.refuse_jobs(planned)
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
    left_out = planning.left_out(planned.study_dir, list(planned.runs), statuses, planned.execution)
    again = RETRY if left_out else "The same command tries them again"
    return f"{n} of {len(planned.runs)} runs failed ({next(iter(errors.values()))}); {logs}. {again}"


def _still_missing(planned: Plan) -> list[list[str]]:
    """The batches without the runs that another command finished since the plan was made. Needs the lock."""
    statuses = store.finished_ids(planned.study_dir)
    batches = [[i for i in batch.run_ids if statuses.get(i) != "done"] for batch in planned.batches]
    missing = {i: planned.runs[i] for ids in batches for i in ids}
    planning.refuse_if_sealed(planned.study_dir, missing, planned.texts)
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
    from normstudy import drawing

    try:
        for line in drawing.plot(study_dir).skipped:
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

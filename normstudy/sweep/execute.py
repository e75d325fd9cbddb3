"""Train a plan's missing runs on this machine, and remove the files that a complete study no longer needs."""

import contextlib
import shutil
from collections.abc import Iterator

from normstudy.errors import ConfigError, Failed
from normstudy.search import settings as search
from normstudy.slurm import arrays, submit
from normstudy.study import files, locks, records, tables, whole
from normstudy.study.records import Request
from normstudy.sweep import planning
from normstudy.sweep.planning import Plan
from normstudy.upkeep import compact
from normstudy.workers import progress
from normstudy.workers.signals import Interrupted, Stop, print_error
from normstudy.workers.task import Task


class RunsFailed(Failed):
    """Raised after a sweep in which runs crashed."""


def execute(planned: Plan, request: Request, *, shared: bool = False, about: str = "") -> None:
    """Train a plan's missing runs on this machine. If a run crashes, raises RunsFailed after the other runs end.

    shared: whether other commands may train other runs at the same time. about: text before the progress.
    """
    study_dir = planned.study_dir
    with begin(planned, request, shared=shared) as (held, stop, tasks):
        errors: dict[str, str] = {}
        if tasks:
            most = planned.execution.max_tries
            errors = progress.train(tasks, planned.workers, held=held, stop=stop, max_tries=most, about=about)
        statuses = tables.statuses(study_dir)
        if stop.number is not None:
            done = sum(statuses.get(i) == "done" for i in planned.runs)
            do = "resume the other runs"
            if planned.device != "cpu":
                do = "train the other runs from step 0, because runs on a GPU save no checkpoints"
            what = f"interrupted: {done} of {len(planned.runs)} runs of {study_dir} are finished"
            print_error(f"{what}; rerun the same command to {do}")
            raise Interrupted(stop.number)
        end(planned, errors, statuses, held)


@contextlib.contextmanager
def begin(planned: Plan, request: Request, *, shared: bool = False) -> Iterator[tuple[int, Stop, list[Task]]]:
    """Hold the study's lock and catch stop signals. Yield the lock's file descriptor, the `Stop` context and tasks."""
    study_dir = planned.study_dir
    over = None if shared else arrays.refuse_while_alive(study_dir)
    if planned.on_slurm and planned.batches:
        submit.check(planned.execution)
    with locks.hold_study(study_dir, str(request["command"]), shared=shared) as held, Stop() as stop:
        if not shared:
            arrays.remove(study_dir, over)
            files.remove_parts(study_dir)
        yield held, stop, _tasks(planned, request, shared=shared)


def _tasks(planned: Plan, request: Request, *, shared: bool) -> list[Task]:
    """Prepare the study's folder, record the request and return the tasks."""
    study_dir = planned.study_dir
    try:
        tables.prepare(study_dir, shared=shared)
        for run_id in tables.damaged_and_unfinished(study_dir):
            (study_dir / "tables" / "runs" / f"{run_id}.parquet").unlink(missing_ok=True)
        if planned.lacking:
            with locks.hold_runs(study_dir, list(planned.lacking)) as mine:  # all but those that another command trains
                if lacking := whole.find(study_dir, mine):
                    compact.forget(study_dir, list(lacking), shared=shared)
        statuses = tables.statuses(study_dir)  # read again, because runs may have finished since the planning
        batches = [ids for batch in planned.batches if (ids := [i for i in batch.run_ids if statuses.get(i) != "done"])]
        missing = {i: planned.runs[i] for ids in batches for i in ids}
        planning.refuse_if_sealed(study_dir, missing, planned.texts)
        how = {"workers": str(planned.workers), "device": planned.device, "cluster": planned.execution.cluster}
        if request.get("search"):
            search.keep(study_dir, request["search"])
        records.record_request(study_dir, request, batches, planned.runs, **how)
    except OSError as error:
        raise ConfigError(f"{study_dir} cannot be written ({error.strerror}): choose another results_dir") from None
    shared_by_all = planned.device, records.git_commit(), planned.execution.checkpoint_seconds
    return [
        Task(n, study_dir, ids, [planned.runs[i] for i in ids], planned.texts[ids[0]], *shared_by_all)
        for n, ids in enumerate(batches)
    ]


def end(planned: Plan, errors: dict[str, str], statuses: dict[str, str], held: int | None) -> None:
    """Remove a complete study's state folder. Raises RunsFailed if a run crashed, or was left out.

    errors: run_id -> reason, for each run that crashed during this command.
    held: the file descriptor of the study's lock, or None if another command holds the lock.
    """
    if errors or planned.given_up:
        n = sum(statuses.get(i) != "done" for i in planned.runs)
        logs = f"tracebacks: {planned.study_dir}/{records.LOGS}"
        failed, again = "failed before and were left out", planning.RETRY
        if errors:
            failed = f"failed ({next(iter(errors.values()))})"
            if not planning.left_out(planned.study_dir, list(planned.runs), statuses, planned.execution):
                again = "Rerun the same command to try the failed runs again"
        raise RunsFailed(f"{n} of {len(planned.runs)} runs {failed}; {logs}. {again}")
    # Jobs that have been submitted may still start, and then need the state folder.
    submitted = (planned.study_dir / arrays.RECORD).exists()
    if set(statuses.values()) == {"done"} and not submitted and held is not None and locks.make_exclusive(held):
        # Ignore errors, because another command may just have created a lock file in the folder.
        shutil.rmtree(planned.study_dir / "state", ignore_errors=True)

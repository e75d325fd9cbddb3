"""Train tasks and show the progress: a bar on a terminal, otherwise one line every PIPE_LINE_SECONDS."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from normstudy.errors import ConfigError, bar_options
from normstudy.study import tables, whole
from normstudy.workers import pool
from normstudy.workers.heartbeat import seconds_left
from normstudy.workers.signals import Stop, print_error
from normstudy.workers.task import Task

PIPE_LINE_SECONDS = 30
READING_SHARE = 0.05  # maximum fraction of the sweep's time spent on reading the outcomes that the bar shows
FIRST_ESTIMATE = 0.02  # print no line until this fraction of the steps is done, because at first the rate is distorted


def train(tasks: Sequence[Task], workers: int, *, held: int, stop: Stop, max_tries: int) -> dict[str, str]:
    """Train one or more tasks with pool.run. Show steps, time left and outcomes on standard error.

    Returns run_id -> error for each failed run. held: the file descriptor of the study's lock.
    """
    study_dir = tasks[0].study_dir
    n_runs = sum(len(task.run_ids) for task in tasks)
    run_steps = sum(config.schedule.n_steps for task in tasks for config in task.configs)
    outcomes: Counter[str] = Counter()
    errors: dict[str, str] = {}
    ended: list[str] = []
    done, resumed, n_ended, printed, began = 0, 0, 0, time.monotonic(), time.monotonic()
    next_read = began
    with (
        # Closing the generator ends the workers, even after an exception.
        contextlib.closing(pool.run(tasks, workers, inherited=held, stop=stop, max_tries=max_tries)) as messages,
        tqdm(total=run_steps, unit="step", unit_scale=True, **bar_options()) as bar,
    ):

        def show_outcomes() -> None:
            if ended:
                try:
                    outcomes.update(outcomes_of(study_dir, ended).values())
                except ConfigError as error:  # a damaged file must not stop the training
                    print_error(str(error))
                ended.clear()
                bar.set_postfix_str(counted(outcomes))

        for message in messages:
            if not bar.disable:
                bar.initial += message.resumed  # the bar's rate then excludes steps of earlier processes
            bar.update(message.run_steps)
            done += message.run_steps
            resumed += message.resumed
            n_ended += len(message.ended)
            if not bar.disable:
                ended += message.ended
            if (before := time.monotonic()) >= next_read:
                show_outcomes()
                # Read seldom, because reading outcomes is slow in a large study and makes idle workers wait.
                next_read = time.monotonic() + (time.monotonic() - before) / READING_SHARE
            if n := message.smaller:
                print_error(
                    f"out of memory with {len(tasks[message.number].run_ids)} runs per batch: retrying with {n} "
                    f"(set execution.runs_per_batch={n} to start with {n})"
                )
            for run_id in message.failed:
                errors[run_id] = str(message.error)
                print_error(f"{run_id} failed: {message.error}")
            for note in message.notes:
                print_error(note)
            now = time.monotonic()
            if bar.disable and now - printed > PIPE_LINE_SECONDS and done - resumed > FIRST_ESTIMATE * run_steps:
                printed = now
                left = seconds_left(run_steps - done, (done - resumed) / (now - began))
                print_error(line_of(n_ended, n_runs, done, run_steps, left))
        show_outcomes()
    return errors


def line_of(ended: int, runs: int, steps_done: int, steps_planned: int | None, left: float | None) -> str:
    """Describe the progress, as in `3/40 runs, 12 % of the steps, about 5:00 left`. left: seconds until the end."""
    steps = f", {100 * steps_done // steps_planned} % of the steps" if steps_planned else ""
    return f"{ended}/{runs} runs{steps}" + (f", about {duration(left)} left" if left else "")


def duration(seconds: float) -> str:
    """Format a duration, e.g. `45 s`, `12:30` or `3:05:00`."""
    return f"{seconds:.0f} s" if seconds < 90 else str(datetime.timedelta(seconds=round(seconds))).removeprefix("0:")


def counted(outcomes: Counter[str]) -> str:
    """Format the number of runs with each outcome, e.g. `2 learned 1 stuck`."""
    return " ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))


def outcomes_of(study_dir: Path, run_ids: Sequence[str]) -> dict[str, str]:
    """Read the study's tables and return run_id -> outcome for each finished run in `run_ids`."""
    from normstudy.analysis.outcomes import RUN_COLUMNS, outcomes

    runs = tables.read(study_dir, "runs", sorted({*RUN_COLUMNS, *whole.COLUMNS}), run_ids)
    steps = whole.read(study_dir, "steps", runs, ["run_id", "step", "train_loss", "val_loss"])
    return {str(k): str(v) for k, v in outcomes(runs, steps).items()}

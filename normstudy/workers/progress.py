"""Show a sweep's progress: a bar on a terminal, otherwise one line every PIPE_LINE_SECONDS."""

from __future__ import annotations

import datetime
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from normstudy import terminal
from normstudy.errors import ConfigError
from normstudy.study import tables
from normstudy.workers.heartbeat import seconds_left
from normstudy.workers.signals import print_error, say_no_more
from normstudy.workers.task import Message

PIPE_LINE_SECONDS = 30
READING_SHARE = 0.05  # maximum share of the sweep's time spent on reading the outcomes that the bar shows
FIRST_ESTIMATE = 0.02  # share of all steps before the first line; until then, process start-up distorts the rate


def follow(
    messages: Iterable[Message], study_dir: Path, batches: Sequence[Sequence[str]], run_steps: int
) -> dict[str, str]:
    """Show run-steps, time left and outcomes until the messages end; returns run_id -> error for each failed run.

    batches: the run_ids of each batch; run_steps: the sum of n_steps over all runs to train.
    """
    n_runs = sum(len(batch) for batch in batches)
    outcomes: Counter[str] = Counter()
    errors: dict[str, str] = {}
    ended: list[str] = []
    done, resumed, n_ended, printed, began = 0, 0, 0, time.monotonic(), time.monotonic()
    next_read = began
    with tqdm(total=run_steps, unit="step", unit_scale=True, **terminal.fit()) as bar:

        def show_outcomes() -> None:
            if ended:
                try:
                    outcomes.update(outcomes_of(study_dir, ended).values())
                except ConfigError as error:  # a damaged file must not stop the training
                    print_line(str(error))
                ended.clear()
                bar.set_postfix_str(counted(outcomes))

        for message in messages:
            if not bar.disable:
                bar.initial += message.resumed  # excludes the steps taken by earlier processes from the bar's rate
            bar.update(message.run_steps)
            done += message.run_steps
            resumed += message.resumed
            n_ended += len(message.ended)
            if not bar.disable:
                ended += message.ended
            if (before := time.monotonic()) >= next_read:
                show_outcomes()
                # Reading outcomes lists whole folders, which is slow in a large study and delays idle workers.
                next_read = time.monotonic() + (time.monotonic() - before) / READING_SHARE
            if n := message.smaller:
                print_line(
                    f"out of memory with {len(batches[message.number])} runs per batch: retrying with {n} "
                    f"(set execution.runs_per_batch={n} to start there)"
                )
            for run_id in message.failed:
                errors[run_id] = str(message.error)
                print_line(f"{run_id} failed: {message.error}")
            for note in message.notes:
                print_line(note)
            now = time.monotonic()
            if bar.disable and now - printed > PIPE_LINE_SECONDS and done - resumed > FIRST_ESTIMATE * run_steps:
                printed = now
                left = seconds_left(run_steps - done, (done - resumed) / (now - began))
                line = f"{n_ended}/{n_runs} runs, {100 * done // run_steps} % of the steps"
                print_error(f"{line}, about {duration(left or 0)} left")
        show_outcomes()
    return errors


def print_line(line: str) -> None:
    """Print a line above the bar. If the terminal is closed, discard all further output and continue."""
    try:
        tqdm.write(line, sys.stderr)
    except OSError:
        say_no_more()


def duration(seconds: float) -> str:
    """Format a duration, e.g. `45 s`, `12:30` or `3:05:00`."""
    return f"{seconds:.0f} s" if seconds < 90 else str(datetime.timedelta(seconds=round(seconds))).removeprefix("0:")


def counted(outcomes: Counter[str]) -> str:
    """Format the number of runs with each outcome, e.g. `2 learned 1 stuck`."""
    return " ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))


def outcomes_of(study_dir: Path, run_ids: Sequence[str]) -> dict[str, str]:
    """Compute run_id -> outcome for the finished runs among `run_ids` from the study's tables."""
    from normstudy.analysis.outcomes import RUN_COLUMNS, outcomes

    runs = tables.read(study_dir, "runs", ["run_id", "status", *RUN_COLUMNS], run_ids)
    steps = tables.read(study_dir, "steps", ["run_id", "step", "train_loss", "val_loss"], run_ids)
    return {str(k): str(v) for k, v in outcomes(runs, steps).items()}

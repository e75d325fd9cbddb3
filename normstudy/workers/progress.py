"""The progress of a sweep: a bar on a terminal, a line now and then in a pipe."""

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
from normstudy.workers.signals import print_error, say_no_more
from normstudy.workers.task import Message

PIPE_LINE_SECONDS = 30  # between two lines where there is no terminal
READING_SHARE = 0.05  # of the time, at most, for reading the outcomes that the bar shows
FIRST_ESTIMATE = 0.02  # of the steps: before it the time left is a guess about how long a process takes to start


def follow(
    messages: Iterable[Message], study_dir: Path, batches: Sequence[Sequence[str]], run_steps: int
) -> dict[str, str]:
    """Show run-steps done, time left and outcomes so far until the messages end; returns run_id -> error of each run
    that failed.

    batches: the run ids of each; run_steps: the sum of n_steps over all runs to train.
    """
    n_runs = sum(len(batch) for batch in batches)
    outcomes: Counter[str] = Counter()
    errors: dict[str, str] = {}
    ended: list[str] = []
    done, resumed, n_ended, said, began = 0, 0, 0, time.monotonic(), time.monotonic()
    look = began
    with tqdm(total=run_steps, unit="step", unit_scale=True, **terminal.fit()) as bar:

        def show_outcomes() -> None:
            if ended:
                try:
                    outcomes.update(outcomes_of(study_dir, ended).values())
                except ConfigError as error:  # a damaged file: no reason to train less
                    print_line(str(error))
                ended.clear()
                bar.set_postfix_str(counted(outcomes))

        for message in messages:
            if not bar.disable:
                bar.initial += message.resumed  # steps of another process tell nothing of this one's rate
            bar.update(message.run_steps)
            done += message.run_steps
            resumed += message.resumed
            n_ended += len(message.ended)
            if not bar.disable:
                ended += message.ended
            if (before := time.monotonic()) >= look:
                show_outcomes()
                # Reading lists whole folders, while workers may wait for their next batch: a small share of the time.
                look = time.monotonic() + (time.monotonic() - before) / READING_SHARE
            if message.smaller:
                print_line(
                    f"out of memory with {len(batches[message.number])} runs together: goes on with {message.smaller}; "
                    f"execution.runs_per_batch={message.smaller} starts so"
                )
            for run_id in message.failed:
                errors[run_id] = str(message.error)
                print_line(f"{run_id} failed: {message.error}")
            for note in message.notes:
                print_line(note)
            now = time.monotonic()
            if bar.disable and now - said > PIPE_LINE_SECONDS and done - resumed > FIRST_ESTIMATE * run_steps:
                said = now
                left = (now - began) * (run_steps - done) / (done - resumed)
                line = f"{n_ended}/{n_runs} runs, {100 * done // run_steps} % of the steps"
                print_error(f"{line}, about {duration(left)} left")
        show_outcomes()
    return errors


def print_line(line: str) -> None:
    """A line above the bar; what is trained does not depend on whether anybody still reads it."""
    try:
        tqdm.write(line, sys.stderr)
    except OSError:
        say_no_more()


def duration(seconds: float) -> str:
    """`45 s`, `12:30` or `3:05:00`."""
    return f"{seconds:.0f} s" if seconds < 90 else str(datetime.timedelta(seconds=round(seconds))).removeprefix("0:")


def counted(outcomes: Counter[str]) -> str:
    """`2 learned 1 stuck`."""
    return " ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))


def outcomes_of(study_dir: Path, run_ids: Sequence[str]) -> dict[str, str]:
    """run_id -> outcome of those of the runs that are finished, from the stored series."""
    from normstudy.analysis.outcomes import RUN_COLUMNS, outcomes

    runs = tables.read(study_dir, "runs", ["run_id", "status", *RUN_COLUMNS], run_ids)
    steps = tables.read(study_dir, "steps", ["run_id", "step", "train_loss", "val_loss"], run_ids)
    return {str(k): str(v) for k, v in outcomes(runs, steps).items()}

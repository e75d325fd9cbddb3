"""Train tasks and show the progress: a bar on a terminal, otherwise one line every PIPE_LINE_SECONDS."""

import contextlib
import datetime
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from normstudy.analysis.likely_stuck import LikelyStuck
from normstudy.analysis.outcomes import RUN_COLUMNS, outcomes
from normstudy.errors import ConfigError, bar_options
from normstudy.study import tables, whole
from normstudy.workers import pool
from normstudy.workers.signals import Stop, print_error
from normstudy.workers.task import Message, Task

PIPE_LINE_SECONDS = 30
READING_SHARE = 0.05  # maximum fraction of the sweep's time spent on reading the outcomes that the bar shows
FIRST_ESTIMATE = 0.02  # print no line until this fraction of the steps is done, because at first the rate is distorted


class Bar(tqdm):  # type: ignore[type-arg]  # tqdm is generic only in its type stubs
    monitor_interval = 0  # do not start tqdm's monitor thread, which would not end with the bar


def train(
    tasks: Sequence[Task], workers: int, *, held: int, stop: Stop, max_tries: int, about: str = ""
) -> dict[str, str]:
    """Train tasks with pool.run, and show the progress. Returns run_id -> error for each failed run.

    held: the file descriptor of the study's lock. about: text to show before the progress.
    """
    n_runs = sum(len(task.run_ids) for task in tasks)
    run_steps = sum(config.schedule.n_steps for task in tasks for config in task.configs)
    errors: dict[str, str] = {}
    postfix = Postfix(tasks)
    done, resumed, n_ended, printed, began = 0, 0, 0, time.monotonic(), time.monotonic()
    next_read = began
    with (
        # Closing the generator ends the workers, even after an exception.
        contextlib.closing(pool.run(tasks, workers, inherited=held, stop=stop, max_tries=max_tries)) as messages,
        Bar(total=run_steps, unit="step", unit_scale=True, desc=about or None, **bar_options()) as bar,
    ):
        for message in messages:
            if not bar.disable:
                bar.initial += message.resumed  # the bar's rate then excludes steps of earlier processes
            bar.update(message.run_steps)
            done += message.run_steps
            resumed += message.resumed
            n_ended += len(message.ended)
            postfix.add(message)
            if (before := time.monotonic()) >= next_read and not bar.disable:
                bar.set_postfix_str(postfix.read())
                # Read outcomes seldom: in a large study, reading is slow, and idle workers get no task meanwhile. The
                # first reading does not count: it is slow only because it imports libraries.
                took = 0.0 if next_read == began else time.monotonic() - before
                next_read = time.monotonic() + took / READING_SHARE
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
                seconds_left = (run_steps - done) * (now - began) / (done - resumed)
                line = line_of(n_ended, n_runs, done, run_steps, seconds_left)
                print_error(f"{about}; {line}" if about else line)
        if not bar.disable:
            bar.set_postfix_str(postfix.read())
    return errors


class Postfix:
    """The text after the progress bar: the outcomes of runs that ended, and how many of the other runs look stuck."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._study_dir, self._outcomes, self._ended = tasks[0].study_dir, Counter[str](), list[str]()
        self._likely = LikelyStuck(self._study_dir)
        runs = ((i, c, c.schedule) for task in tasks for i, c in zip(task.run_ids, task.configs, strict=True))
        self._left = {
            i: (i, "", s.n_steps, c.model.n_layers, c.probe.dense_steps, c.probe.every, None, s.warmup_steps)
            for i, c, s in runs
        }

    def add(self, message: Message) -> None:
        """Note which runs ended. No file is read."""
        self._ended += message.ended
        for run_id in (*message.ended, *message.failed):
            self._left.pop(run_id, None)

    def read(self) -> str:
        """Return the text, updated from the files that runs have written since the last call."""
        if self._ended:
            try:
                self._outcomes.update(outcomes_of(self._study_dir, self._ended).values())
            except ConfigError as error:  # a damaged file must not stop the training
                print_error(str(error))
            self._ended.clear()
        return counted(self._outcomes, self._likely.count(self._left.values()))


def line_of(ended: int, runs: int, steps_done: int, steps_planned: int | None, left: float | None) -> str:
    """Describe the progress, as in `3/40 runs, 12 % of the steps, about 5:00 left`. left: seconds until the end."""
    steps = f", {100 * steps_done // steps_planned} % of the steps" if steps_planned else ""
    return f"{ended}/{runs} runs{steps}" + (f", about {duration(left)} left" if left else "")


def duration(seconds: float) -> str:
    """Format a duration, e.g. `45 s`, `12:30` or `3:05:00`."""
    return f"{seconds:.0f} s" if seconds < 90 else str(datetime.timedelta(seconds=round(seconds))).removeprefix("0:")


def counted(outcomes: Mapping[str, int], likely_stuck: int) -> str:
    """Format how many runs have each outcome, and how many look stuck, e.g. `2 learned 1 stuck, 3 likely stuck`."""
    ended = " ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))
    return ", ".join(filter(None, [ended, f"{likely_stuck:,} likely stuck" if likely_stuck else ""]))


def outcomes_of(study_dir: Path, run_ids: Sequence[str]) -> dict[str, str]:
    """Read the study's tables and return run_id -> outcome for each finished run in `run_ids`."""
    runs = tables.read(study_dir, "runs", sorted({*RUN_COLUMNS, *whole.COLUMNS}), run_ids)
    steps = whole.read(study_dir, "steps", runs, ["run_id", "step", "train_loss", "val_loss"])
    return {str(k): str(v) for k, v in outcomes(runs, steps).items()}

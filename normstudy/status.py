"""`normstudy status`: how far the sweep of a study is, from the files of its folder alone.

No lock is taken, not even for a moment: a sweep that starts just then would be refused. Who holds the study stands in
the kernel's list of locks. What is known of finished runs is kept between two looks, as it never changes.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from normstudy import failures, lock, store
from normstudy.analysis.outcomes import RUN_COLUMNS, counts_text, outcome_counts, outcomes
from normstudy.config import ConfigError, ExecutionConfig
from normstudy.progress import duration

CHECKPOINTS = "state/checkpoints"  # checkpoint.FOLDER and .FORMAT; that module imports torch
CHECKPOINT_FORMAT = b"normstudy checkpoint 1\n"
CRC_BYTES = 9  # eight hexadecimal digits and a newline
MOST_HEADER = 1 << 20  # bytes; more is no header of a checkpoint
LOCKS = Path("/proc/locks")
TRIES, WAIT = 4, 0.2  # a file that vanishes under a look is of a swap, which is over in a moment; seconds
AT_ONCE = 4_000_000  # run-steps whose outcomes are found in one go: some hundred megabytes
MOST_LINES = 10  # of a list
RECENT = 60.0, 600.0  # seconds between two looks that give a rate, at least and at most
COLUMNS = ("run_id", "status", "started_at", "finished_at", "wall_time_s", *RUN_COLUMNS)


@dataclass(frozen=True)
class Place:
    """Runs that are equally far, `step` of `n_steps` steps. run_id: the first of them."""

    run_id: str
    runs: int
    step: int
    n_steps: int


@dataclass(frozen=True)
class Failure:
    """A run that crashed, how often, and the last line of its newest traceback."""

    run_id: str
    tries: int
    reason: str


@dataclass(frozen=True)
class Status:
    """How far a study is. Of the planned runs each is in one of finished, running, interrupted, failed, not_begun.

    steps_planned: None where a run is not begun and an older version did not record its length. places, saved: of the
    running runs and of the interrupted ones, the most advanced first. holder: who holds the study; verified: whether
    that is known and not only written; silent: seconds since the last file known of. command: goes on with all that
    is interrupted. rate: run-steps per second; left: seconds.
    """

    study: str
    sealed: bool
    planned: int
    finished: int
    running: int
    interrupted: int
    failed: int
    not_begun: int
    steps_done: int
    steps_planned: int | None
    outcomes: dict[str, int]
    places: tuple[Place, ...]
    saved: tuple[Place, ...]
    failures: tuple[Failure, ...]
    holder: str | None
    verified: bool
    silent: float | None
    command: str | None
    rate: float | None
    left: float | None

    @property
    def over(self) -> bool:
        """Whether every planned run is finished or failed, and nobody is here who may try those again."""
        return 0 < self.planned == self.finished + self.failed and not (self.holder and self.verified)


def look(study: Path) -> Status:
    """How far a study is now. Raises ConfigError where that cannot be read."""
    return Looker(study).look()


def watch(study: Path, every: float) -> None:
    """Print how far a study is every `every` seconds, until every planned run is finished or failed."""
    looker = Looker(study)
    redraws, drawn = sys.stdout.isatty(), 0
    while True:
        status = looker.look()
        lines = render(status).splitlines()
        if redraws:
            width, height = shutil.get_terminal_size()
            if not status.over:  # what does not fit would leave a copy at each look
                lines = [line[: width - 1] for line in lines[: height - 1]]
            print(f"\x1b[{drawn}A\r\x1b[J" if drawn else "", end="")
            drawn = len(lines)
        else:
            lines += [] if status.over else [""]
        print("\n".join(lines), flush=True)
        if status.over:
            return
        time.sleep(every)


# ---- looking ------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What counts of a row of `runs`. taken: steps, fewer than n_steps where it diverged; times in seconds, or NaN."""

    status: str
    n_steps: int
    taken: int
    started: float
    finished: float
    seconds: float


class Mark(NamedTuple):
    """How far an unfinished run is. step: known to be taken, at `at`; saved: of its checkpoint, written at `saved_at`.

    seconds: that the run had taken at its checkpoint.
    """

    step: int = 0
    at: float = 0.0
    saved: int = 0
    saved_at: float = 0.0
    seconds: float = 0.0


class Plan(NamedTuple):
    """The newest record of a sweep: when it began, its command, and the runs that it had to train."""

    began: float
    command: str
    trains: frozenset[str]


class Holder(NamedTuple):
    """Who holds a study. since: in seconds, NaN where it is not told; alone: not one of several single runs."""

    text: str
    since: float
    alone: bool
    verified: bool


class Looker:
    """Looks at a study again and again, and reads of finished runs nothing twice."""

    def __init__(self, study: Path) -> None:
        self.study = study
        self._plans: set[str] = set()  # files read
        self._plan: Plan | None = None
        self._planned: dict[str, int | None] = {}  # run_id -> n_steps
        self._done: dict[str, Run] = {}
        self._outcomes: dict[str, str] = {}
        self._compacted: tuple[int, int] | None = None
        self._history: list[tuple[float, int]] = []  # time and run-steps taken until then, in order

    def look(self) -> Status:
        """How far the study is now. Raises ConfigError where that cannot be read."""
        error: Exception | None = None
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT)
            try:
                store.check_is_study(self.study)
            except ConfigError as why:
                if str(why) != store.SWAPPING.format(self.study):
                    raise
                error = why
                continue
            try:
                return self._look()
            except (ConfigError, OSError, pa.ArrowException) as why:
                error = why
        if isinstance(error, ConfigError):
            raise error
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{self.study} cannot be read ({told}): normstudy check {self.study} names the file")

    def _look(self) -> Status:
        before = holder_of(self.study)
        frame, compacted = self._read_rows()
        rows = dict(zip(frame["run_id"], runs_of(frame), strict=True))
        self._read_plans()
        holder = before or holder_of(self.study)  # a sweep that ends or begins meanwhile leaves nothing interrupted
        unfinished = {i: run for i, run in rows.items() if run.status != "done"}
        marks = marks_of(self.study, unfinished)
        self._find_outcomes(frame[frame["status"] == "done"])
        self._done.update((i, run) for i, run in rows.items() if run.status == "done")
        self._compacted = compacted

        now = time.time()
        lengths = {**self._planned, **{i: run.n_steps for i, run in (self._done | unfinished).items()}}
        running = {i for i, run in unfinished.items() if run.status == "running"}
        failed = sorted(unfinished.keys() - running)
        trains = self._trained_by(holder, running)
        interrupted = running - trains
        running &= trains
        # Those that nobody trains go on at their checkpoints, whatever windows lie beyond.
        steps = {i: mark.step if i in running else mark.saved for i, mark in marks.items()}
        plan = self._plan
        heard = max([*(run.finished for run in self._done.values()), *(mark.at for mark in marks.values())], default=0.0)
        rate, left = None, None
        if plan is not None and (running or trains):
            rate = self._rate(plan.began, {i: (unfinished[i], marks[i]) for i in running})
            rest = [(lengths[i], steps.get(i, 0)) for i in trains if i not in self._done and i not in failed]
            left = time_left(rest, rate, now - heard)
        known = [n for n in lengths.values() if n is not None]
        return Status(
            study=str(self.study),
            sealed=(self.study / store.SEALED).exists(),
            planned=len(lengths),
            finished=len(self._done),
            running=len(running),
            interrupted=len(interrupted),
            failed=len(failed),
            not_begun=len(lengths) - len(self._done) - len(unfinished),
            steps_done=sum(run.n_steps for run in self._done.values()) + sum(steps.values()),
            steps_planned=sum(known) if len(known) == len(lengths) else None,
            outcomes=outcome_counts(self._outcomes.values()),
            places=places_of(running, steps, unfinished),
            saved=places_of(interrupted, steps, unfinished),
            failures=tuple(failures_of(self.study, failed)),
            holder=None if holder is None else holder.text,
            verified=holder is not None and holder.verified,
            silent=max(0.0, now - heard) if heard else None,
            command=plan.command if plan is not None and plan.command and interrupted <= plan.trains else None,
            rate=rate,
            left=left,
        )

    def _read_rows(self) -> tuple[pd.DataFrame, tuple[int, int] | None]:
        """The rows of runs that are not known to be finished, and the identity of the compacted file."""
        folder = self.study / "tables" / "runs"
        try:
            there = (folder / store.COMPACTED_FILE).stat()
            compacted = (there.st_ino, there.st_mtime_ns)
        except FileNotFoundError:
            compacted = None
        ids = None
        if compacted == self._compacted:  # else it may hold runs whose files were never seen
            ids = [i for i in run_files(folder) if i not in self._done]
        return store.read(self.study, "runs", list(COLUMNS), ids), compacted

    def _read_plans(self) -> None:
        try:
            names = sorted(os.listdir(self.study / "sweeps"))
        except FileNotFoundError:
            return
        for name in names:
            if name in self._plans or (began := began_of(name)) is None:
                continue
            table = pq.ParquetFile(self.study / "sweeps" / name).read()
            ids = table["run_id"].to_pylist()
            lengths = table["n_steps"].to_pylist() if "n_steps" in table.column_names else [None] * len(ids)
            for run_id, n_steps in zip(ids, lengths, strict=True):
                if n_steps is not None or run_id not in self._planned:
                    self._planned[run_id] = n_steps
            trains = frozenset(i for i, n in zip(ids, table["batch"].to_pylist(), strict=True) if n is not None)
            command = (table.schema.metadata or {}).get(b"command", b"").decode()
            if self._plan is None or began > self._plan.began:
                self._plan = Plan(began, command, trains)
            self._plans.add(name)

    def _trained_by(self, holder: Holder | None, running: set[str]) -> set[str]:
        """The runs that the holder trains, or will. running: those whose rows say so."""
        if holder is None:
            return set()
        if not holder.alone or self._plan is None or math.isnan(holder.since):
            return set(running)
        # Its record follows its lock. Before that, and in a compaction, nothing is trained.
        return set(self._plan.trains) if self._plan.began >= holder.since else set()

    def _find_outcomes(self, done: pd.DataFrame) -> None:
        """Find the outcomes of runs that have none yet, a few at a time."""
        new = done[~done["run_id"].isin(self._outcomes)]
        for _, part in new.groupby(new["n_steps"].cumsum() // AT_ONCE):
            columns = ["run_id", "step", "train_loss", "val_loss"]
            steps = store.read(self.study, "steps", columns, list(part["run_id"]), text=False)
            self._outcomes.update((str(i), str(outcome)) for i, outcome in outcomes(part, steps).items())

    def _rate(self, began: float, running: Mapping[str, tuple[Run, Mark]]) -> float | None:
        """Run-steps per second: between two looks that are far enough apart, else over the last sweep."""
        taken, last = taken_since(began, self._done.values(), running.values())
        total = sum(run.taken for run in self._done.values()) + sum(mark.step for _, mark in running.values())
        if last > began:
            self._history = [*(h for h in self._history if h[1] < total and last - RECENT[1] <= h[0] < last)]
            self._history.append((last, total))
        since, before = self._history[0] if self._history else (last, total)
        if last - since >= RECENT[0]:
            return (total - before) / (last - since)
        return taken / (last - began) if last > began and taken > 0 else None


def began_of(name: str) -> float | None:
    """When the sweep of a record began, in seconds; None for a file that is none."""
    try:
        stamp = datetime.datetime.strptime(name, "%Y%m%dT%H%M%S.%f.parquet")
    except ValueError:
        return None
    return stamp.replace(tzinfo=datetime.UTC).timestamp()


def run_files(folder: Path) -> Iterator[str]:
    """The stems of the files of a table, without those that are not of one run."""
    for name in os.listdir(folder):
        if name.endswith(".parquet") and name not in (store.SCHEMA_FILE, store.COMPACTED_FILE):
            yield name.removesuffix(".parquet")


def runs_of(frame: pd.DataFrame) -> Iterator[Run]:
    """What counts of each row."""
    zero = pd.Timestamp(0, tz="UTC")
    started, finished = ((frame[name] - zero).dt.total_seconds() for name in ("started_at", "finished_at"))
    last = frame["nonfinite_step"].astype(float)
    taken = frame["n_steps"].where(last.isna(), last + 1).clip(upper=frame["n_steps"])
    for status, n_steps, steps, *times in zip(
        frame["status"], frame["n_steps"], taken, started, finished, frame["wall_time_s"].astype(float), strict=True
    ):
        yield Run(str(status), int(n_steps), int(steps), *times)

"""`normstudy status`: how far the sweep of a study is, from the files of its folder alone.

It takes no lock and changes nothing. Only where jobs were submitted it also asks Slurm for them. What is known of
finished runs is kept between two looks, as it never changes.
"""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from normstudy.analysis.outcomes import RUN_COLUMNS, outcome_counts, outcomes
from normstudy.config import ConfigError
from normstudy.slurm import arrays, ask
from normstudy.slurm.arrays import Array
from normstudy.study import parquet, records, schema, swap, tables
from normstudy.study.locks import Holder, holder_of
from normstudy.upkeep.marks import Mark, Place, Run, marks_of, places_of, runs_of, taken_since, time_left

TRIES, WAIT = 4, 0.2  # a file that vanishes under a look is of a compaction's swap, over in a moment; seconds
AT_ONCE = 4_000_000  # run-steps whose outcomes are found in one go: some hundred megabytes
RECENT = 60.0, 600.0  # seconds between two looks that tell a rate, at least and at most
MOST_LINES = 10  # of a list
COLUMNS = ("run_id", "status", "started_at", "finished_at", "wall_time_s", *RUN_COLUMNS)


@dataclass(frozen=True)
class Failure:
    """A run that crashed, how often, and the last line of its newest traceback."""

    run_id: str
    tries: int
    reason: str


@dataclass(frozen=True)
class Jobs:
    """What is submitted for a study, and how much of it is left; counts: None where Slurm cannot be asked, for why."""

    array: Array
    counts: ask.Counts | None
    why: str = ""
    looks: int = 0  # at the jobs, one after the other, that found none left

    @property
    def over(self) -> bool:
        """Whether none is left, as far as that is known."""
        return self.looks > 0

    @property
    def surely_over(self) -> bool:
        """The same, and that a second look said so: see arrays.AGAIN_SECONDS."""
        return self.looks > 1


@dataclass(frozen=True)
class Status:
    """How far a study is. Each planned run is one of finished, running, interrupted, failed, not_begun.

    steps_planned: None where a run is not begun and an older version did not record its length. running_at, saved_at:
    how far the running runs are, and the interrupted ones, the most advanced first. failures: of the first MOST_LINES.
    holder: who holds the study; verified: whether that is seen and not only written; silent: seconds since the last
    file that tells of steps. command: of the last sweep, where it goes on with all that is interrupted. rate: run-steps
    per second; left: seconds. jobs: of Slurm, until the next command finds them over.
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
    running_at: tuple[Place, ...]
    saved_at: tuple[Place, ...]
    failures: tuple[Failure, ...]
    holder: str | None
    verified: bool
    silent: float | None
    command: str | None
    rate: float | None
    left: float | None
    jobs: Jobs | None = None

    @property
    def over(self) -> bool:
        """Whether nobody is there who trains, and every planned run is finished or failed, or its jobs are over."""
        if self.holder and self.verified:
            return False
        if self.jobs is not None and self.jobs.counts is not None:
            return self.jobs.over
        return 0 < self.planned == self.finished + self.failed


def look(study: Path) -> Status:
    """How far a study is now. Raises ConfigError where that cannot be read."""
    return Looker(study).look()


class Plan(NamedTuple):
    """The newest record of a sweep: when it began, its command, and the runs that it had to train."""

    began: float
    command: str
    trains: frozenset[str]


class Looker:
    """Looks at a study again and again, and reads nothing of a finished run twice."""

    def __init__(self, study: Path) -> None:
        self.study = study
        self._records: set[str] = set()  # files of sweeps/ that are read
        self._planned: dict[str, int | None] = {}  # run_id -> n_steps
        self._plans: list[Plan] = []  # in the order of their times
        self._jobs: Jobs | None = None
        self._asked = -math.inf
        self._done: dict[str, Run] = {}
        self._outcomes: dict[str, str] = {}
        self._compacted: tuple[int, int] | None = None
        self._history: list[tuple[float, int]] = []  # times, and run-steps taken until then

    @property
    def _plan(self) -> Plan | None:
        """The newest one."""
        return self._plans[-1] if self._plans else None

    def look(self) -> Status:
        """How far the study is now. Raises ConfigError where that cannot be read."""
        error: Exception | None = None
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT)
            try:
                tables.check_is_study(self.study)
            except ConfigError as why:
                if str(why) != swap.SWAPPING.format(self.study):
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
        before, jobs = holder_of(self.study), self.jobs()
        frame, compacted = self._read_rows()
        rows = dict(zip(frame["run_id"], runs_of(frame), strict=True))
        self._read_records()
        # A sweep that ends or begins during this look leaves nothing interrupted.
        holder = holder_of(self.study) or before
        if jobs is not None and holder is not None and not holder.verified:
            holder = None  # one of the jobs, there or gone: Slurm knows better
        unfinished = {i: run for i, run in rows.items() if run.status != "done"}
        marks = marks_of(self.study, unfinished)
        self._find_outcomes(frame[frame["status"] == "done"])
        self._done.update((i, run) for i, run in rows.items() if run.status == "done")
        self._compacted = compacted  # last: what was not read to the end is read again

        now, plan = time.time(), self._plan
        lengths = self._planned | {i: run.n_steps for i, run in (self._done | unfinished).items()}
        running = {i for i, run in unfinished.items() if run.status == "running"}
        failed = sorted(unfinished.keys() - running)
        trained = self._trained(holder, running) | self._submitted(jobs)
        interrupted, running = running - trained, running & trained
        # A run that nobody trains goes on at its checkpoint, whatever windows lie beyond.
        steps = {i: mark.step if i in running else mark.saved for i, mark in marks.items()}
        times = [run.finished for run in self._done.values()] + [mark.at for mark in marks.values()]
        heard = max((t for t in times if t > 0), default=None)
        rate = left = None
        trains = holder is not None and plan is not None and _is_of(plan, holder)
        trains = trains or (jobs is not None and (jobs.counts is None or jobs.counts.running > 0))
        if trains and plan is not None and heard is not None:
            rate = self._rate(plan.began, {i: (unfinished[i], marks[i]) for i in running})
            rest = [(lengths[i], steps.get(i, 0)) for i in trained - self._done.keys() - set(failed)]
            left = time_left(rest, rate, now - heard)
        known = [n for n in lengths.values() if n is not None]
        return Status(
            study=str(self.study),
            sealed=(self.study / schema.SEALED).exists(),
            planned=len(lengths),
            finished=len(self._done),
            running=len(running),
            interrupted=len(interrupted),
            failed=len(failed),
            not_begun=len(lengths) - len(self._done) - len(unfinished),
            steps_done=sum(run.n_steps for run in self._done.values()) + sum(steps.values()),
            steps_planned=sum(known) if len(known) == len(lengths) else None,
            outcomes=outcome_counts(self._outcomes.values()),
            running_at=places_of(running, steps, unfinished),
            saved_at=places_of(interrupted, steps, unfinished),
            failures=tuple(failures_of(self.study, failed[:MOST_LINES])),
            holder=None if holder is None else holder.text,
            verified=holder is not None and holder.verified,
            silent=None if heard is None else max(0.0, now - heard),
            command=plan.command if plan is not None and plan.command and interrupted <= plan.trains else None,
            rate=rate,
            left=left,
            jobs=jobs,
        )

    def jobs(self) -> Jobs | None:
        """What is submitted; Slurm is asked anew where its last answer is not quite recent."""
        array = arrays.read(self.study)
        if array is None:
            self._jobs = None
        elif self._jobs is None or self._jobs.array != array or time.monotonic() - self._asked > arrays.AGAIN_SECONDS:
            before = self._jobs.looks if self._jobs is not None and self._jobs.array == array else 0
            try:
                counts = arrays.counts(self.study, array)
                self._jobs = Jobs(array, counts, looks=0 if counts.alive else before + 1)
            except ask.Unavailable as why:
                self._jobs = Jobs(array, None, str(why))
            self._asked = time.monotonic()
        return self._jobs

    def _read_rows(self) -> tuple[pd.DataFrame, tuple[int, int] | None]:
        """The rows of runs that are not known to be finished, and which compacted file there is."""
        folder = self.study / "tables" / "runs"
        try:
            there = (folder / schema.COMPACTED_FILE).stat()
            compacted = (there.st_ino, there.st_mtime_ns)
        except FileNotFoundError:
            compacted = None
        ids = None
        if compacted == self._compacted:  # another one may hold runs whose own files were never seen
            files = [name for name in os.listdir(folder) if name.endswith(".parquet")]
            ids = [i for i in (schema.run_of("runs", name) for name in files) if i not in self._done]
        return tables.read(self.study, "runs", list(COLUMNS), ids), compacted

    def _read_records(self) -> None:
        folder = self.study / "sweeps"
        for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
            if name in self._records or (began := began_of(name)) is None:
                continue
            table = parquet.read(folder / name)
            ids = table["run_id"].to_pylist()
            lengths = table["n_steps"].to_pylist() if "n_steps" in table.column_names else [None] * len(ids)
            for run_id, n_steps in zip(ids, lengths, strict=True):
                if n_steps is not None or run_id not in self._planned:
                    self._planned[run_id] = n_steps
            trains = frozenset(i for i, batch in zip(ids, table["batch"].to_pylist(), strict=True) if batch is not None)
            command = (table.schema.metadata or {}).get(b"command", b"").decode()
            self._plans.append(Plan(began, command, trains))
            self._records.add(name)

    def _trained(self, holder: Holder | None, running: set[str]) -> set[str]:
        """The runs that the holder trains, or will. running: those whose rows say that they are."""
        if holder is None:
            return set()
        if not holder.alone or self._plan is None or math.isnan(holder.since):
            return running
        # A sweep writes its record after it has the lock. Before that, and in a compaction, nothing is trained.
        return set(self._plan.trains) if _is_of(self._plan, holder) else set()

    def _submitted(self, jobs: Jobs | None) -> set[str]:
        """The runs that jobs train, or will."""
        if jobs is None or jobs.over:
            return set()
        return {run_id for plan in self._plans if plan.began >= jobs.array.began for run_id in plan.trains}

    def _find_outcomes(self, done: pd.DataFrame) -> None:
        """Find the outcomes of runs that have none yet, a few at a time."""
        new = done[~done["run_id"].isin(self._outcomes)]
        for _, part in new.groupby(new["n_steps"].cumsum() // AT_ONCE):
            columns = ["run_id", "step", "train_loss", "val_loss"]
            steps = tables.read(self.study, "steps", columns, list(part["run_id"]), text=False)
            self._outcomes.update((str(i), outcome) for i, outcome in outcomes(part, steps).items())

    def _rate(self, began: float, running: Mapping[str, tuple[Run, Mark]]) -> float | None:
        """Run-steps per second: between two looks that are far enough apart, else over the last sweep."""
        taken, first, last = taken_since(began, self._done.values(), running.values())
        if not (last > first and taken > 0):
            return None
        total = sum(run.taken for run in self._done.values()) + sum(mark.step for _, mark in running.values())
        self._history = [(t, n) for t, n in self._history if n < total and last - RECENT[1] <= t < last]
        self._history.append((last, total))
        since, before = self._history[0]
        return (total - before) / (last - since) if last - since >= RECENT[0] else taken / (last - first)


def _is_of(plan: Plan, holder: Holder) -> bool:
    """Whether a record may be of the command that holds the study; single runs do not tell when the first began."""
    return not holder.alone or plan.began >= holder.since


def began_of(name: str) -> float | None:
    """When the sweep of a record began, in seconds; None for a file that is none."""
    try:
        stamp = datetime.datetime.strptime(name, "%Y%m%dT%H%M%S.%f.parquet")
    except ValueError:
        return None
    return stamp.replace(tzinfo=datetime.UTC).timestamp()


def failures_of(study: Path, run_ids: Sequence[str]) -> Iterator[Failure]:
    """Why runs failed, from the ends of their newest tracebacks."""
    tries = records.tries_of(study)
    for run_id in run_ids:
        try:
            with open(study / records.LOGS / f"{run_id}-{tries[run_id]}.txt", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            text = ""
        lines = ("".join(filter(str.isprintable, line)).strip() for line in reversed(text.splitlines()))
        yield Failure(run_id, tries[run_id], next((line for line in lines if line), "its traceback is gone"))

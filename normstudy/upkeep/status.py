"""Read the progress of a study's runs for `normstudy status`, without a lock, and query Slurm for the study's jobs."""

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import pandas as pd
import pyarrow as pa

from normstudy.analysis import likely_stuck
from normstudy.analysis.outcomes import RUN_COLUMNS, UNJUDGED, outcome_counts, outcomes
from normstudy.config import places
from normstudy.errors import ConfigError
from normstudy.slurm import arrays, ask
from normstudy.study import files, locks, records, schema, tables, whole
from normstudy.study.checkpoints import FOLDER, NO_HEAD, head_of
from normstudy.upkeep.status_text import MOST_LINES, Failure, Group, Jobs, Status
from normstudy.workers import heartbeat

# The maximum number of attempts to read a study, and the seconds between attempts. An attempt fails while a
# compaction replaces the tables.
TRIES, WAIT = 4, 0.2
# Read about this many rows of the table `steps` at a time. They need a few hundred megabytes of memory.
AT_ONCE = 4_000_000
COLUMNS = ("finished_at", *sorted({*RUN_COLUMNS, *likely_stuck.COLUMNS}))


def look(study: Path) -> Status:
    """Read a study's status once. Raises ConfigError if its files cannot be read."""
    return Looker(study).look()


def watch(study: Path, every: float) -> None:
    """Print the status of a study every `every` seconds, until training has ended."""
    looker, redraws, back, drawn = Looker(study), sys.stdout.isatty(), "", 0
    while True:
        status = looker.look()
        if status.over and status.jobs is not None and status.jobs.looks < 2:
            time.sleep(arrays.AGAIN_SECONDS)
            continue
        lines = repr(status).splitlines()
        if redraws:
            width, height = shutil.get_terminal_size()
            if not status.over:  # crop the text, because lines that wrap or leave the screen cannot be erased
                lines = [line[: width - 1] for line in lines[: height - 1]]
            back, drawn = f"\x1b[{drawn}A\r\x1b[J" if drawn else "", len(lines)
        elif not status.over:
            lines.append("")
        print(back + "".join(f"{line}\n" for line in lines), end="", flush=True)  # one print: Ctrl-C cannot split it
        if status.over:
            return
        time.sleep(every)


class Looker:
    """Reads the status of one study repeatedly, but the files of each finished run only once."""

    def __init__(self, study: Path) -> None:
        self.study = study
        self._planned: dict[str, int | None] = {}  # run_id -> n_steps
        self._sweeps: dict[str, records.SweepRecord] = {}  # name of the file in sweeps/ -> record, oldest first
        self._jobs: Jobs | None = None
        self._asked = -math.inf
        self._done: dict[str, int] = {}  # run_id -> n_steps
        self._ended = 0.0  # when the last of these runs ended, in seconds since 1970
        self._outcomes: dict[str, str] = {}
        self._likely = likely_stuck.LikelyStuck(study)
        self._compacted: tuple[int, int] | None = None

    def look(self) -> Status:
        """Read the study's current status. Raises ConfigError if its files cannot be read."""
        error: Exception  # the error of the last attempt
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT)
            is_study = False
            try:
                tables.check_is_study(self.study)
                is_study = True
                return self._look()
            except (ConfigError, OSError, pa.ArrowException) as why:
                if not is_study and str(why) != files.SWAPPING.format(self.study):
                    raise
                error = why
        if isinstance(error, ConfigError):
            raise error
        raise ConfigError(f"{self.study} cannot be read ({files.damage(error)}): run normstudy check {self.study}")

    def _look(self) -> Status:
        before, jobs = locks.holder_of(self.study), self.jobs()
        # When a run ends, its `runs` row is written before its checkpoint and heartbeat are removed. Read the rows
        # last, so that a run whose checkpoint and heartbeat have already been removed is seen as finished.
        heartbeats = heartbeat.read_all(self.study)
        heads = {path.name: head_of(self.study, path.name) for path in (self.study / FOLDER).glob("*")}
        for i in [i for i, outcome in self._outcomes.items() if outcome == UNJUDGED]:
            del self._done[i], self._outcomes[i]  # read the run again: missing rows may have been restored
        frame, compacted = self._read_rows()
        self._read_records()
        # If a sweep begins or ends while the files are read, one of the two calls of holder_of finds the sweep.
        holder = locks.holder_of(self.study) or before
        if jobs is not None and holder is not None and not holder.verified:
            holder = None  # ignore a job on another machine, because Slurm knows whether the job is running
        done = frame[frame["status"] == "done"]
        unfinished = lengths_of(frame.drop(done.index))
        for i in unfinished:
            self._done.pop(i, None)  # the run lacked rows, so a sweep trains it again
        self._find_outcomes(done)
        self._done |= lengths_of(done)
        ended = (done["finished_at"] - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
        self._ended = max([self._ended, *ended.dropna()])
        self._compacted = compacted  # set last: if a line above raises an error, the next attempt reads all rows

        lengths = self._planned | self._done | unfinished
        running = set(lengths_of(frame[frame["status"] == "running"]))
        failed = sorted(unfinished.keys() - running)
        trained = self._trained(holder, running)
        if jobs is not None and not jobs.over:
            began = jobs.array.began
            trained = trained.union(*(sweep.trains for sweep in self._sweeps.values() if sweep.began >= began))
        interrupted, running = running - trained, running & trained
        now_trained = frame.loc[frame["run_id"].isin(running), list(likely_stuck.COLUMNS)]
        live = [beat for beat in heartbeats if beat.expires > time.time()]
        reached = {i: step for beat in live for i, (_, step) in beat.steps.items() if i in running}
        watched = tables.is_watched(self.study)
        steps = {i: max(heads.get(i, NO_HEAD).step, reached.get(i, 0)) for i in unfinished}
        steps = unfinished if watched else steps  # n_steps of a watched run is the number of its recorded steps
        times = [self._ended, *(head.written for head in heads.values()), *(beat.now for beat in heartbeats)]
        seen = max((t for t in times if t > 0), default=None)
        rate = heartbeat.rate_of(live) if running else None
        rest = [(lengths[i], steps.get(i, 0)) for i in trained - self._done.keys() - set(failed)]
        steps_left = [n_steps - step for n_steps, step in rest if n_steps is not None]
        known = [n for n in lengths.values() if n is not None]
        return Status(
            study=str(self.study), sealed=(self.study / schema.SEALED).exists(),
            planned=len(lengths), finished=len(self._done), running=len(running), interrupted=len(interrupted),
            failed=len(failed), not_begun=len(lengths) - len(self._done) - len(unfinished),
            steps_done=sum(self._done.values()) + sum(steps.values()),
            steps_planned=sum(known) if len(known) == len(lengths) and not watched else None,
            outcomes=outcome_counts(self._outcomes.values()),
            likely_stuck=self._likely.count(now_trained.itertuples(index=False, name=None)),
            running_at=groups_of(steps, lengths, running), saved_at=groups_of(steps, lengths, interrupted),
            failures=() if watched else tuple(failures_of(self.study, failed[:MOST_LINES])), watched=watched,
            holder=None if holder is None else holder.text, verified=holder is not None and holder.verified,
            silent=None if seen is None else max(0.0, time.time() - seen),
            commands=commands_for([*self._sweeps.values()], lengths.keys() - self._done.keys() - trained),
            left=sum(steps_left) / rate if rate and len(steps_left) == len(rest) else None,
            rate=rate, jobs=jobs,
        )  # fmt: skip

    def jobs(self) -> Jobs | None:
        """Return the study's Slurm jobs. Slurm's answer about a job array is reused for arrays.AGAIN_SECONDS."""
        array = arrays.read(self.study)
        if array is None:
            self._jobs = None
        elif self._jobs is None or self._jobs.array != array or time.monotonic() - self._asked > arrays.AGAIN_SECONDS:
            before = self._jobs.looks if self._jobs is not None and self._jobs.array == array else 0
            try:
                counts = arrays.counts(array)
                self._jobs = Jobs(array, counts, looks=0 if counts.alive else before + 1)
            except ask.Unavailable as why:
                self._jobs = Jobs(array, None, str(why))
            self._asked = time.monotonic()
        return self._jobs

    def _read_rows(self) -> tuple[pd.DataFrame, tuple[int, int] | None]:
        """Read the `runs` rows of runs that had not finished before; also returns the compacted file's _stamp()."""
        folder, compacted, ids = self.study / "tables" / "runs", self._stamp(), None
        # If the compacted file was replaced, it may have new runs. Then read all rows: leave `ids` at None.
        if compacted == self._compacted:
            ids = [i for name in tables.names_in(folder) if (i := schema.run_of("runs", name)) not in self._done]
        frame = tables.read(self.study, "runs", list(COLUMNS), ids)
        if self._stamp() != compacted:
            raise ConfigError(f"{self.study} was compacted while it was read: rerun the same command")
        return frame, compacted

    def _stamp(self) -> tuple[int, int] | None:
        with contextlib.suppress(FileNotFoundError):
            there = (self.study / "tables" / "runs" / schema.COMPACTED_FILE).stat()
            return there.st_ino, there.st_mtime_ns
        return None

    def _read_records(self) -> None:
        for path in records.paths_of(self.study):
            if path.name not in self._sweeps:
                self._sweeps[path.name], lengths = records.read_record(path)
                self._planned |= {i: n for i, n in lengths.items() if n is not None or i not in self._planned}

    def _trained(self, holder: locks.Holder | None, running: set[str]) -> set[str]:
        """Return the runs that the lock's holder is training or will train. running: runs with status `running`."""
        if holder is None:
            return set()
        if not holder.alone or not self._sweeps or math.isnan(holder.since):
            return running
        # A sweep takes the lock and then writes its record. If no record is newer than the lock, the holder trains
        # nothing: it is a compaction, or a sweep that has just begun.
        newest = next(reversed(self._sweeps.values()))
        return set(newest.trains) if newest.began >= holder.since else set()

    def _find_outcomes(self, done: pd.DataFrame) -> None:
        """Compute the outcomes of newly finished runs. To save memory, about AT_ONCE steps are read at a time."""
        new = done[~done["run_id"].isin(self._outcomes)]
        for _, part in new.groupby(new["n_steps"].cumsum() // AT_ONCE):
            steps = whole.read(self.study, "steps", part, ["run_id", "step", "train_loss", "val_loss"], text=False)
            self._outcomes.update((str(i), outcome) for i, outcome in outcomes(part, steps).items())


def commands_for(sweeps: Sequence[records.SweepRecord], run_ids: Set[str]) -> tuple[str, ...]:
    """Return the newest commands that together train all `run_ids`; () if some run has no recorded command."""
    found, left = dict[str, None](), set(run_ids)
    for sweep in reversed(sweeps):
        if sweep.command and left & sweep.trains:
            found[sweep.command] = None
            left -= sweep.trains
    return () if left else tuple(found)


def failures_of(study: Path, run_ids: Sequence[str]) -> Iterator[Failure]:
    """Yield, for each failed run, how often it was tried and why it failed (the last line of the newest traceback)."""
    tries = records.tries_of(study)
    for run_id in run_ids:
        log = b""
        with contextlib.suppress(FileNotFoundError):
            log = places.read(study / records.LOGS / f"{run_id}-{tries[run_id]}.txt")
        text = log[-4096:].decode(errors="replace")
        lines = ("".join(filter(str.isprintable, line)).strip() for line in reversed(text.splitlines()))
        yield Failure(run_id, tries[run_id], next((line for line in lines if line), "the traceback is missing"))


def lengths_of(runs: pd.DataFrame) -> dict[str, int]:
    """Return run_id -> n_steps of rows of the table `runs`."""
    return {str(i): int(n) for i, n in zip(runs["run_id"], runs["n_steps"], strict=True)}


def groups_of(steps: Mapping[str, int], lengths: Mapping[str, int | None], run_ids: Iterable[str]) -> tuple[Group, ...]:
    """Group the runs `run_ids` by current step and n_steps, most advanced first."""
    found: dict[tuple[int, int], list[str]] = {}
    for run_id in sorted(run_ids):
        found.setdefault((steps[run_id], lengths[run_id] or 0), []).append(run_id)
    return tuple(Group(ids[0], len(ids), *at) for at, ids in sorted(found.items(), reverse=True))

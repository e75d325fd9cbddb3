"""Kill a sweep at every point where it touches its files, once each, and compare it with an undisturbed one.

    harness.py FOLDER [--every K] [--offset I] [--mutation NAME]

A point lies in the middle of each write, and before and after each replace, rename, unlink and rmdir, in the order in
which the sweep comes by them. After one of them and before the next is one point, unless bytes are written or a
folder is made between the two. For each one a child process trains the sweep until SIGKILL ends it there; more children
with the same words follow, in other batches, until one is through. All file operations and the training are the real
ones. Only the pool is left out, so that a trial takes a tenth of a second: its batches are trained in the child.

Prints one JSON object: points, trials, failures (texts). --mutation then breaks the store and kills it at a few points;
what is then wrong is `mistaken`, which must not be empty.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from normstudy.study import files, schema
from normstudy.sweep import execute
from normstudy.workers.task import Message, Task

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from numerics import NUMERICS_ENV

if any(os.environ.get(k) != v for k, v in NUMERICS_ENV.items()):
    rest = {k: v for k, v in os.environ.items() if k not in NUMERICS_ENV}
    wanted = {k: v for k, v in NUMERICS_ENV.items() if v is not None}
    os.execve(sys.executable, [sys.executable, *sys.argv], rest | wanted)  # libraries read it once

import pandas as pd
import torch
from studies import REQUEST, assert_same_tables, tiny

from normstudy.config import RunConfig
from normstudy.data import texts
from normstudy.study import tables
from normstudy.sweep import planning
from normstudy.upkeep import compact
from normstudy.workers import pool, recording, worker

WINDOW, N_STEPS, RUNS = 2, 3, 2
MUTATED_EVERY = 28  # among these points are some at which each mutation shows
MOST_CALLS = 4  # of one sweep: one that was killed, and what may follow


def configs(root: Path, per_batch: int) -> list[RunConfig]:
    """Two runs of one shape, the second of which diverges, that save themselves after every step."""
    made = [
        tiny(root, d_model=8, seq_len=4, n_steps=N_STEPS, seed=s, optimizer="sgd", peak_lr=1e9 if s else 0.1)
        for s in range(RUNS)
    ]
    return [replace(c, execution=replace(c.execution, runs_per_batch=per_batch, checkpoint_seconds=0.0)) for c in made]


# ---- points -------------------------------------------------------------------------------------------


class Points:
    """Counts the points that a process comes by, and kills it at one of them."""

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.folder, self.kill_at, self.passed = str(folder), kill_at, 0
        self.unchanged = False  # since the last point

    def reach(self) -> None:
        if self.passed == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1
        self.unchanged = True

    def install(self) -> None:
        """From here on, in this process."""
        write = os.write

        def half_written(fd: int, data: Any) -> int:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith(self.folder):
                return write(fd, data)
            if self.passed == self.kill_at:
                write(fd, memoryview(data)[: len(data) // 2])
            self.reach()
            self.unchanged = False
            return write(fd, data)

        mkdir = os.mkdir

        def made(*args: Any, **kwargs: Any) -> None:
            self.unchanged = False
            mkdir(*args, **kwargs)

        os.write, os.mkdir = half_written, made
        for name in ("replace", "rename", "unlink", "rmdir"):
            setattr(os, name, self.around(getattr(os, name)))

    def around(self, function: Callable[..., None]) -> Callable[..., None]:
        def surrounded(*args: Any, **kwargs: Any) -> None:
            if not self.unchanged:
                self.reach()
            function(*args, **kwargs)
            self.reach()

        return surrounded


# ---- mutations ----------------------------------------------------------------------------------------


def straight_into_tables() -> None:
    """Files are written where readers look for them."""

    def place_all(study_dir: Path, contents: Any) -> None:
        (study_dir / "state").mkdir(parents=True, exist_ok=True)
        for relative, data in contents:
            files.write_bytes(study_dir / relative, data)

    files.place_all = place_all


def checkpoint_before_window() -> None:
    """A window is written only after the checkpoint that no longer holds its rows."""
    flush, save = recording.flush, recording.save
    held: list[Any] = []

    def later(study_dir: Path, series: Any, size: int) -> None:
        for s in series:
            copy = recording.Running(s.run_id, {}, s.eval_every)
            copy.step, copy.rows = s.step, s.rows
            held.append((study_dir, copy, size))
            s.rows = recording.no_rows()

    def save_first(*args: Any) -> None:
        save(*args)
        for study_dir, series, size in held:
            flush(study_dir, [series], size)
        held.clear()

    recording.flush, recording.save = later, save_first
    write_runs = tables.write_runs

    def after_windows(study_dir: Path, rows: Any) -> None:
        for folder, series, size in held:
            flush(folder, [series], size)
        held.clear()
        write_runs(study_dir, rows)

    tables.write_runs = after_windows


MUTATIONS = {"straight_into_tables": straight_into_tables, "checkpoint_before_window": checkpoint_before_window}


# ---- one sweep ----------------------------------------------------------------------------------------


def in_this_process(tasks: Sequence[Task], workers: int, **_: object) -> Iterator[Message]:
    """pool.run without processes. Raises AssertionError where a run cannot go on from its checkpoint, and says so."""
    for task in tasks:
        for message in worker.train_alone(task, lambda: False):
            assert not message.notes, message.notes
            assert not message.failed, message.error
            yield message


def child(work: Callable[[], None], folder: Path, kill_at: int | None) -> tuple[int, int]:
    """Do some work in a child: the signal that ended it (0: none), and the points that it came by.

    Raises RuntimeError where it fails.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            points = Points(folder, kill_at)
            points.install()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                work()
            os.write(writer, str(points.passed).encode())
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        os._exit(code)
    os.close(writer)
    with open(reader) as told:
        text = told.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(text)
    return (os.WTERMSIG(status), 0) if os.WIFSIGNALED(status) else (0, int(text))


def sweep_and_compact(root: Path, per_batch: int) -> Callable[[], None]:
    """The whole life of a study's files: trained, and gathered into one file a table."""

    def work() -> None:
        if files.swap_interrupted(root / "tiny"):  # what the sweep's own line asks for
            compact.compact_study(root / "tiny")
        execute.execute(planning.plan(configs(root, per_batch)), REQUEST)
        compact.compact_study(root / "tiny")

    return work


def check_readable(study: Path) -> set[str]:
    """The finished runs. Every table of a study that was killed can be read, by our reader and by a foreign one.

    A compaction that was killed at its swap is the one thing that the next command has to end.
    """
    if not (study / "tables" / "runs").exists() or (study / files.OLD_TABLES).exists():
        return set()
    for table in schema.TABLES:
        folder = study / "tables" / table
        if folder.exists() and any(folder.iterdir()):
            pd.read_parquet(folder)
    return {run_id for run_id, status in tables.statuses(study).items() if status == "done"}


def trial(whole: Path, root: Path, point: int) -> str | None:
    """Kill a sweep at a point, go on until it is through; what is wrong then, if anything is."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    finished: set[str] = set()
    try:
        for call in range(MOST_CALLS):
            ended, _ = child(sweep_and_compact(root, 1 + (point + call) % RUNS), root, point if call == 0 else None)
            now = check_readable(root / "tiny")
            if not ended:
                break
            if not finished <= now and now:
                return f"point {point}: finished runs were lost: {sorted(finished - now)}"
            finished |= now
        else:
            return f"point {point}: not through after {MOST_CALLS} calls"
        assert_same_tables(whole, root / "tiny")
    except Exception as error:
        return f"point {point}: {type(error).__name__}: {str(error)[-300:]}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutation", choices=MUTATIONS)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # 200 at least would be too many steps for so many trials.
    schema.window_size = lambda n_steps, source=None: WINDOW
    pool.run = in_this_process  # type: ignore[assignment]
    whole = args.folder / "whole"
    whole.mkdir(parents=True)
    texts.load(configs(whole, RUNS)[0].data)  # once, for all children
    child(sweep_and_compact(whole, RUNS), whole, None)
    told = trials(whole, args.folder / "sound", args.every, args.offset)
    if args.mutation is not None:
        MUTATIONS[args.mutation]()
        told["mistaken"] = trials(whole, args.folder / "mistaken", MUTATED_EVERY, 0)["failures"]
    print(json.dumps(told))


def trials(whole: Path, folder: Path, every: int, offset: int) -> dict[str, object]:
    """Kill a sweep at each `every`-th point from `offset` on."""
    folder.mkdir()
    _, points = child(sweep_and_compact(folder, 1), folder, None)
    chosen = range(offset, points, every)
    told = [trial(whole / "tiny", folder / "trial", point) for point in chosen]
    return {"points": points, "trials": len(chosen), "failures": [text for text in told if text]}


if __name__ == "__main__":
    main()

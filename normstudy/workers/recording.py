"""Train a batch of runs and write their tables and checkpoints.

A run's files never depend on how often it was stopped: a window is written once, as the rows of it are there, before
any checkpoint that no longer holds them; the `runs` row of a finished run after its last window; and only then its
checkpoint goes.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from normstudy.data import texts
from normstudy.model import processor, transformer
from normstudy.study import files, parquet, schema, tables
from normstudy.training import batch, probes
from normstudy.training.layout import Layout, layout_of
from normstudy.workers import checkpoint
from normstudy.workers.checkpoint import Checkpoint
from normstudy.workers.task import Message, Task

if TYPE_CHECKING:
    from normstudy.data.texts import Text
    from normstudy.training.batch import End, Record, Snapshot, Start
    from normstudy.training.probes import Modules

COMPUTED_BY = ("torch", "cpu_capability", "blas", "device")  # columns of `runs`: where they differ, bits may
Row = dict[str, object]
MESSAGE_SECONDS = 0.3  # between two words to the parent


@dataclass
class Running:
    """A run of a batch. row: of `runs`; has_row: it is there; seconds: it took before.

    note: why it does not go on from a checkpoint that is there, else None.
    """

    row: Row
    series: Series
    has_row: bool = False
    seconds: float = 0.0
    note: str | None = None


def train_task(task: Task, stopping: Callable[[], bool]) -> Iterator[Message]:
    """Train a batch: each window is written as it fills, each `runs` row as its run starts and ends.

    Runs that another process finished since they were planned are only told of. Every other goes on from its
    checkpoint, where there is one that belongs to it; one that does not is set aside and told of.
    Checkpoints are written every task.checkpoint_seconds, and when stopping() says so, after which nothing more is
    done. On a GPU there are none: a run that goes on in another batch would go on in other bits.
    """
    n_steps = task.configs[0].schedule.n_steps
    rows = {run_id: parquet.read_row(task.study_dir, run_id) for run_id in task.run_ids}
    if done := tuple(run_id for run_id, row in rows.items() if row is not None and row["status"] == "done"):
        yield Message(task.number, len(done) * n_steps, resumed=len(done) * n_steps, ended=done)
        task = task.only([run_id for run_id in task.run_ids if run_id not in done])
        if not task.run_ids:
            return
    text = texts.load(task.configs[0].data)
    if text.sha256 != task.data_sha256:
        raise RuntimeError("the text changed while the sweep was running")
    parameters = dict(transformer.build(task.configs[0], text.vocab_size).named_parameters())
    layout, modules = layout_of(parameters), probes.modules_of(list(parameters))
    computed_by = machine(task.device)
    head = computed_by | text_columns(text) | {
        "n_params": sum(p.numel() for p in parameters.values()),
        "git_commit": task.git_commit,
        "started_at": tables.now(),
    }  # fmt: skip
    clock = saved = told = time.monotonic()
    runs, starts = begin_all(task, rows, head, layout)
    tables.write_runs(task.study_dir, [run.row | {"status": "running"} for run in runs if not run.has_row])
    pending = sum(start.step for start in starts if start is not None)
    notes = tuple(run.note for run in runs if run.note is not None)
    if pending or notes:
        yield Message(task.number, pending, resumed=pending, notes=notes)
        pending = 0

    def between(snapshot: batch.Snapshot) -> bool:
        nonlocal saved
        stop = stopping()
        if task.device == "cpu" and (stop or time.monotonic() - saved >= task.checkpoint_seconds):
            save(task.study_dir, snapshot, runs, time.monotonic() - clock)
            saved = time.monotonic()
        return stop

    size = schema.window_size(n_steps)
    events = batch.train_batch(task.configs, text, task.device, starts=starts, between=between)
    del starts  # or they would stay in memory, beside the batch that they are copied into
    n_ended = 0
    for event in together(events):
        if isinstance(event, list):
            ended = [runs[end.run] for end in event]
            flush(task.study_dir, [run.series for run in ended], size)
            finals = [
                {
                    "final_val_loss": end.final_val_loss,
                    "final_train_loss": run.series.train_loss if end.nonfinite_step is None else None,
                    "nonfinite_step": end.nonfinite_step,
                    "wall_time_s": run.seconds + time.monotonic() - clock,
                    "finished_at": tables.now(),
                    "status": "done",
                }
                for end, run in zip(event, ended, strict=True)
            ]
            tables.write_runs(task.study_dir, [run.row | final for run, final in zip(ended, finals, strict=True)])
            checkpoint.remove(task.study_dir, [run.series.run_id for run in ended])
            # The steps that a run will never take count as taken, so that the bar reaches its end.
            pending += sum(n_steps - 1 - run.series.step for run in ended)
            yield Message(task.number, pending, ended=tuple(run.series.run_id for run in ended))
            pending, n_ended = 0, n_ended + len(ended)
            continue
        for place, r in enumerate(event.runs):
            runs[r].series.add(event, place, modules)
        if (event.step + 1) % size == 0:
            flush(task.study_dir, [runs[r].series for r in event.runs], size)
        pending += len(event.runs)
        if time.monotonic() - told > MESSAGE_SECONDS:
            yield Message(task.number, pending)
            pending, told = 0, time.monotonic()
    if n_ended < len(runs):
        yield Message(task.number, pending, stopped=True)


def begin_all(
    task: Task, rows: Mapping[str, Row | None], head: Row, layout: Layout
) -> tuple[list[Running], list[Start | None]]:
    """Where the runs of a batch go on. rows: of `runs` that are there; head: the columns that all runs share."""
    configs = zip(task.run_ids, task.configs, strict=True)
    new = ({"run_id": run_id, **schema.config_columns(config), **head} for run_id, config in configs)
    size = schema.window_size(task.configs[0].schedule.n_steps)
    begun = [begin(task.study_dir, row, rows[str(row["run_id"])], layout, size) for row in new]
    return [run for run, _ in begun], [start for _, start in begun]


def begin(
    study_dir: Path, row: Row, before: Row | None, layout: Layout, window_size: int
) -> tuple[Running, Start | None]:
    """Where a run goes on: at its checkpoint, or from zero, which is None.

    row: its row of `runs` as it would begin here; before: the one that is there. What an unfinished run left is
    removed where the bits to come may be others: it was computed elsewhere, or on a GPU, where the number of runs in
    a batch may choose other kernels.
    """
    run_id = str(row["run_id"])
    run = Running(row, Series(run_id))
    if before is not None:
        other = next((key for key in COMPUTED_BY if before.get(key) != row[key]), None)
        if other is not None and before.get(other) is not None:
            run.note = f"{run_id} was computed by {other} {before[other]}, here it is {row[other]}"
        if other is not None or row["device"] != "cpu":
            tables.remove_windows(study_dir, run_id)
    try:
        with files.storing(study_dir):
            found = checkpoint.read(study_dir, run_id, layout, {key: row[key] for key in COMPUTED_BY})
        if found is not None:
            check_windows(study_dir, run_id, found.start.step, window_size)
    except checkpoint.Refused as why:
        run.note = run.note or f"{run_id}: {why}"
        checkpoint.set_aside(study_dir, run_id)
        found = None
    if run.note is not None:
        run.note += "; it starts from zero"
    if found is None:
        return run, None
    run.seconds = found.wall_time_s
    run.series.go_on(found)
    if before is not None:
        run.row = row | {"started_at": before["started_at"]}
        run.has_row = before["status"] == "running"
    return run, found.start


def check_windows(study_dir: Path, run_id: str, step: int, size: int) -> None:
    """Raise Refused where the tables lack a window that a checkpoint at `step` no longer holds the rows of."""
    for table, window in itertools.product(schema.SERIES, range(step // size)):
        if not (study_dir / "tables" / table / schema.window_name(run_id, window)).exists():
            raise checkpoint.Refused(f"its checkpoint is at step {step}, and {table} lacks its window {window}")


def save(study_dir: Path, snapshot: Snapshot, runs: list[Running], seconds: float) -> None:
    """Write the checkpoints of the runs of a snapshot. seconds: that this process has trained them."""
    made = {
        runs[r].series.run_id: Checkpoint(
            snapshot.of(place), runs[r].series.rows, runs[r].series.train_loss, runs[r].seconds + seconds
        )
        for place, r in enumerate(snapshot.runs)
    }
    computed_by = {key: runs[0].row[key] for key in COMPUTED_BY}
    checkpoint.write(study_dir, made, snapshot.layout, computed_by)


def together(events: Iterator[Record | End]) -> Iterator[Record | list[End]]:
    """The events, those of runs that end at one step as one list: their files are then made durable together."""
    ends: list[End] = []
    try:
        for event in events:
            if isinstance(event, batch.End):
                ends.append(event)
                continue
            if ends:
                yield ends
                ends = []
            yield event
    except Exception:
        if ends:  # what crashes a batch takes nothing from the runs that ended before
            yield ends
        raise
    if ends:
        yield ends


class Series:
    """The rows of one run since its last window."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.step, self.train_loss = -1, 0.0
        self.rows = _no_rows()

    def go_on(self, found: Checkpoint) -> None:
        """Hold the rows of a checkpoint."""
        self.step, self.train_loss = found.start.step - 1, found.train_loss
        self.rows = {table: {name: [*values] for name, values in rows.items()} for table, rows in found.rows.items()}

    def add(self, record: Record, place: int, modules: Modules) -> None:
        """Add a step's rows; `place` is the run's in the record."""
        self.step, self.train_loss = record.step, float(record.train_loss[place])
        self._extend(
            "steps", [record.step], [self.train_loss], [None if record.val_loss is None else record.val_loss[place]],
            [record.lr[place]], [record.grad_norm[place]], [record.param_norm[place]], [record.update_norm[place]],
        )  # fmt: skip
        if (probe := record.probe) is not None:
            n = len(modules.name)
            norms = (x[:, place] for x in (probe.grad, probe.param, probe.update))
            self._extend("modules", [record.step] * n, modules.layer, modules.name, *norms)
            n = len(probe.rms)
            self._extend("residual", [record.step] * n, range(n), probe.rms[:, place], probe.residual_grad[:, place])

    def _extend(self, table: str, *columns: Iterable[object]) -> None:
        for column, values in zip(self.rows[table].values(), columns, strict=True):
            column.extend(values)


def flush(study_dir: Path, series: Iterable[Series], window_size: int) -> None:
    """Write the window of the rows that each of these runs holds, if there are any."""
    held = [s for s in series if s.rows["steps"]["step"]]
    tables.write_windows(study_dir, ((s.run_id, s.step // window_size, s.rows) for s in held))
    for s in held:
        s.rows = _no_rows()


def _no_rows() -> dict[str, dict[str, list[object]]]:
    return {t: {f.name: [] for f in schema.SCHEMAS[t] if f.name != "run_id"} for t in schema.SERIES}


def machine(device: str) -> dict[str, object]:
    """The columns of `runs` that say where a run was computed: no host name."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": processor.libraries(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def text_columns(text: Text) -> dict[str, object]:
    """The columns of `runs` that describe the text."""
    return {
        "resolved_vocab_size": text.vocab_size,
        "data_sha256": text.sha256,
        "bytes_per_token": text.bytes_per_token,
        "ln_vocab": text.ln_vocab,
        "unigram_entropy": text.unigram_entropy,
        "bigram_entropy": text.bigram_entropy,
        "source_entropy": text.source_entropy,
    }

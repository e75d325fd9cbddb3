"""Train a batch of runs and write tables and checkpoints. Results do not depend on how often the runs were stopped.

The rows of a run's steps are split into files, called windows, each for a fixed range of steps. A window is written
once, after its last step. Until then, checkpoints contain its rows. When a run ends, its last window is written first,
then its row in `runs`, and then its checkpoint is removed.
"""

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from normstudy.config import RunConfig, late_step
from normstudy.data import texts
from normstudy.model import processor, transformer
from normstudy.study import files, parquet, schema, tables, whole
from normstudy.training import batch
from normstudy.training.batch import End, Event, Record, ResumePoint, Snapshot
from normstudy.training.probes import Layout, Modules, layout_of
from normstudy.workers import checkpoint, heartbeat
from normstudy.workers.checkpoint import Buffered, Checkpoint
from normstudy.workers.task import Message, Task

COMPUTED_BY = ("torch", "cpu_capability", "blas", "device")  # columns of `runs` on which a run's bits may depend
Row = dict[str, object]
Grouped = Iterator[Record | list[End] | Snapshot]  # a batch's training events, consecutive End events as a list
MESSAGE_SECONDS = 0.5  # minimum seconds between two progress messages to the parent, and between two heartbeats


def no_rows() -> Buffered:
    return {table: {name: [] for name in names} for table, names in schema.RECORDED.items()}


@dataclass
class Running:
    """The state of one run in a batch."""

    run_id: str
    row: Row  # the run's `runs` row
    eval_every: int  # steps between two validation losses of the table `steps`
    has_row: bool = False  # whether the table `runs` already has the row
    step: int = -1  # the last step taken; -1 before the first
    train_loss: float = 0.0  # the last step's training loss
    late_val_loss: float | None = None  # the validation loss at late_step(n_steps), if it is not in the table `steps`
    rows: Buffered = field(default_factory=no_rows)  # rows that have been recorded but are not in the tables yet
    first: int = 0  # the step at which this process starts the run
    seconds: float = 0.0  # training time in earlier processes
    note: str | None = None  # why the run cannot resume; None if it resumes or is new

    def add(self, record: Record, place: int, modules: Modules) -> None:
        """Add the rows of one step. record: the values of all runs; place: the index of this run's values."""
        self.step, self.train_loss = record.step, float(record.train_loss[place])
        val_loss = None if record.val_loss is None else float(record.val_loss[place])
        if val_loss is not None and math.isnan(val_loss):
            val_loss = math.inf  # pandas would read NaN as a missing value
        if val_loss is not None and record.step % self.eval_every:
            self.late_val_loss, val_loss = val_loss, None
        self._extend(
            "steps", [record.step], [self.train_loss], [val_loss], [record.lr[place]], [record.grad_norm[place]],
            [record.param_norm[place]], [record.update_norm[place]],
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


def train_task(task: Task, stopping: Callable[[], bool]) -> Iterator[Message]:
    """Train a batch, resuming runs that have checkpoints. Runs that another process has finished are not trained again.

    Checkpoints are written every task.checkpoint_seconds. When stopping() returns True, they are written again, and the
    training ends. On a GPU there are no checkpoints: a run resumed in a batch of another size could get different bits.
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
        raise RuntimeError("the training text changed during the sweep: restore it, or start a sweep with the new text")
    clock = time.monotonic()
    runs, starts, modules = begin_all(task, text, rows)
    tables.write_runs(task.study_dir, [run.row | {"status": "running"} for run in runs if not run.has_row])
    resumed = sum(run.first for run in runs)
    notes = tuple(run.note for run in runs if run.note is not None)
    if resumed or notes:
        yield Message(task.number, resumed, resumed=resumed, notes=notes)
    events = batch.train_batch(task.configs, text, task.device, starts=starts, snapshots=True)
    del starts  # the batch has its own copy; keeping `starts` would double the memory for parameters and slots
    try:
        yield from record(task, runs, modules, grouped(events), stopping, clock)
    finally:
        heartbeat.remove(task.study_dir)


def record(
    task: Task, runs: list[Running], modules: Modules, events: Grouped, stopping: Callable[[], bool], clock: float
) -> Iterator[Message]:
    """Write the results of a batch. clock: the value of time.monotonic() when this process began the batch."""
    n_steps = task.configs[0].schedule.n_steps
    size = schema.window_size(n_steps)
    began = beat = time.time()
    saved, sent, pending = time.monotonic(), -math.inf, 0
    for event in events:
        if isinstance(event, Snapshot):
            stop = stopping()
            if task.device == "cpu" and (stop or time.monotonic() - saved >= task.checkpoint_seconds):
                save(task.study_dir, event, runs, time.monotonic() - clock)
                saved = time.monotonic()
            if stop:
                yield Message(task.number, pending, stopped=True)
                return
        elif isinstance(event, list):
            ended = [runs[end.run] for end in event]
            finish(task.study_dir, event, ended, size, clock)
            # Count the steps that a diverged run skips, so that the progress bar reaches 100 %.
            pending += sum(n_steps - 1 - run.step for run in ended)
            yield Message(task.number, pending, ended=tuple(run.run_id for run in ended))
            pending = 0
        else:
            for place, r in enumerate(event.runs):
                runs[r].add(event, place, modules)
            if (event.step + 1) % size == 0:
                flush(task.study_dir, [runs[r] for r in event.runs], size)
            pending += len(event.runs)
            if time.monotonic() - sent > MESSAGE_SECONDS:
                steps = {run.run_id: (run.first, run.step + 1) for run in runs}
                beat = heartbeat.write(task.study_dir, began, beat, steps)
                yield Message(task.number, pending)
                pending, sent = 0, time.monotonic()


def finish(study_dir: Path, ends: list[End], ended: list[Running], window_size: int, clock: float) -> None:
    """Write the last files of runs that have ended, and remove their checkpoints."""
    flush(study_dir, ended, window_size)
    tables.write_runs(study_dir, [
        run.row | {
            "final_val_loss": end.final_val_loss, "nonfinite_step": end.nonfinite_step, "status": "done",
            "final_train_loss": run.train_loss if end.nonfinite_step is None else None, "finished_at": tables.now(),
            "late_val_loss": run.late_val_loss, "wall_time_s": run.seconds + time.monotonic() - clock,
        }
        for end, run in zip(ends, ended, strict=True)
    ])  # fmt: skip
    checkpoint.remove(study_dir, [run.run_id for run in ended])


def begin_all(
    task: Task, text: texts.Text, rows: Mapping[str, Row | None]
) -> tuple[list[Running], list[ResumePoint | None], Modules]:
    """Prepare a batch's runs and read the runs' checkpoints. rows: run_id -> the run's row in `runs`, or None."""
    parameters = dict(transformer.build(task.configs[0], text.vocab_size).named_parameters())
    layout = layout_of(parameters)
    same_names = ("bytes_per_token", "ln_vocab", "unigram_entropy", "bigram_entropy", "source_entropy")
    shared = machine(task.device) | {name: getattr(text, name) for name in same_names} | {
        "resolved_vocab_size": text.vocab_size, "data_sha256": text.sha256, "git_commit": task.git_commit,
        "n_params": sum(p.numel() for p in parameters.values()), "started_at": tables.now(),
    }  # fmt: skip
    configs = dict(zip(task.run_ids, task.configs, strict=True))
    new = {i: {"run_id": i, **schema.config_columns(config), **shared} for i, config in configs.items()}
    begun = [begin(task.study_dir, config, new[i], rows[i], layout) for i, config in configs.items()]
    return [run for run, _ in begun], [start for _, start in begun], layout.modules


def begin(
    study_dir: Path, config: RunConfig, row: Row, before: Row | None, layout: Layout
) -> tuple[Running, ResumePoint | None]:
    """Prepare a run. Return the run and its saved state. The state is None if the run starts at step 0.

    row: the run's new row in the table `runs`. before: the row that the table has now, or None. On a GPU, or if a
    COMPUTED_BY column has changed, this process could compute other bits, so the run's windows are removed.
    """
    run_id = str(row["run_id"])
    run = Running(run_id, row, config.eval.every)
    if before is not None:
        key = next((key for key in COMPUTED_BY if before.get(key) != row[key]), None)
        if key is not None and before.get(key) is not None:
            run.note = f"{run_id} was computed with {key} {before[key]}, but this process has {row[key]}"
        if key is not None or row["device"] != "cpu":
            tables.remove_windows(study_dir, {run_id})
    try:
        with files.storing(study_dir):
            found = checkpoint.read(study_dir, run_id, layout, {key: row[key] for key in COMPUTED_BY})
        if found is not None:
            late = late_step(config.schedule.n_steps)
            if found.late_val_loss is None and found.start.step > late and late % config.eval.every:
                raise checkpoint.Refused(f"the checkpoint of an older version lacks the validation loss of step {late}")
    except checkpoint.Refused as why:
        run.note = run.note or f"{run_id}: {why}"
        checkpoint.set_aside(study_dir, run_id)
        found = None
    values = row | {"status": "running", "nonfinite_step": None}
    expected = whole.expected_of(study_dir, (values.get(column) for column in whole.COLUMNS))
    if what := whole.wrong_in_files(study_dir, expected, is_new=found is None and before is None):
        run.note = run.note or f"{run_id}: {what}"
        tables.remove_windows(study_dir, {run_id})
        if found is not None:
            checkpoint.set_aside(study_dir, run_id)
            found = None
    if run.note is not None:
        run.note += "; the run starts again from step 0"
    if found is None:
        return run, None
    run.first, run.step, run.seconds = found.start.step, found.start.step - 1, found.wall_time_s
    run.train_loss, run.late_val_loss, run.rows = found.train_loss, found.late_val_loss, found.rows
    if before is not None:
        run.row = row | {"started_at": before["started_at"]}
        run.has_row = before["status"] == "running"
    return run, found.start


def save(study_dir: Path, snapshot: Snapshot, runs: list[Running], seconds: float) -> None:
    """Write a checkpoint for each run in a snapshot. seconds: training time of the batch in this process."""
    made = {
        run.run_id: Checkpoint(snapshot.of(at), run.rows, run.train_loss, run.late_val_loss, run.seconds + seconds)
        for at, run in enumerate(runs[r] for r in snapshot.runs)
    }
    checkpoint.write(study_dir, made, snapshot.stacked.layout, {key: runs[0].row[key] for key in COMPUTED_BY})


def grouped(events: Iterator[Event]) -> Grouped:
    """Yield the training events. Join consecutive End events into a list, so that their files are fsynced together."""
    ends: list[End] = []
    try:
        for event in events:
            if isinstance(event, End):
                ends.append(event)
                continue
            if ends:
                joined, ends = ends, []
                yield joined
            yield event
    finally:  # also if the batch crashes, so that the results of runs that ended before are kept
        if ends:
            yield ends


def flush(study_dir: Path, runs: Iterable[Running], window_size: int) -> None:
    """Write the rows that are not in the tables yet. Each run gets one file per table, for its last window of steps."""
    filled = [run for run in runs if run.rows["steps"]["step"]]
    tables.write_windows(study_dir, ((run.run_id, run.step // window_size, run.rows) for run in filled))
    for run in filled:
        run.rows = no_rows()


def machine(device: str) -> dict[str, object]:
    """Return the `runs` columns that describe the machine and its software; the host name is not recorded."""
    return {
        "python": platform.python_version(), "torch": torch.__version__, "blas": processor.libraries(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }  # fmt: skip

"""The child process of a sweep: trains batches of runs and writes their tables.

It imports torch only after its parent's watcher runs. Its environment (one thread, reproducible matrix products,
memory kept by the allocator) is set by pool.py before it starts, since torch and glibc read it once.
"""

from __future__ import annotations

import gc
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from normstudy import store
from normstudy.config import RunConfig

if TYPE_CHECKING:
    from normstudy.data import Text
    from normstudy.probes import Modules
    from normstudy.train import Record

MESSAGE_SECONDS = 0.3  # between two words to the parent


@dataclass(frozen=True)
class Task:
    """One batch of runs of one shape on one text."""

    number: int
    study_dir: Path
    run_ids: list[str]
    configs: list[RunConfig]
    data_sha256: str
    device: str
    git_commit: str | None


@dataclass(frozen=True)
class Message:
    """What a worker says: run-steps done since the last message, runs ended, whether the batch is over, an error."""

    number: int
    run_steps: int = 0
    ended: tuple[str, ...] = ()
    over: bool = False
    error: str | None = None


def serve(pipe: Connection, lock: int) -> None:
    """Train the tasks that come through the pipe until it closes; never outlive the parent.

    lock: descriptor of the study's lock. It is only held: open until the process ends, so that nobody takes the
    study while a worker may still write.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=die_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # the collector need not look through all of torch again and again: 3 % of a step
    while True:
        try:
            task: Task = pipe.recv()
        except EOFError:
            return
        try:
            for message in train_task(task):
                pipe.send(message)
        except Exception as error:
            report_failure(task.study_dir, task.run_ids, task.configs, traceback.format_exc())
            pipe.send(Message(task.number, over=True, error=f"{type(error).__name__}: {error}".splitlines()[0]))
        else:
            pipe.send(Message(task.number, over=True))


def die_with_parent() -> None:
    """Wait for the parent's end, and end this process."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def train_task(task: Task) -> Iterator[Message]:
    """Train a batch, writing each window as it fills and each `runs` row as its run starts and ends."""
    from normstudy import data, probes, train

    text = data.load(task.configs[0].data)
    if text.sha256 != task.data_sha256:
        raise RuntimeError("the text changed while the sweep was running")
    parameters = dict(train.build(task.configs[0], text.vocab_size).named_parameters())
    modules = probes.modules_of(list(parameters))
    clock = time.monotonic()
    head = machine(task.device) | text_columns(text) | {
        "n_params": sum(p.numel() for p in parameters.values()),
        "git_commit": task.git_commit,
        "started_at": store.now(),
    }  # fmt: skip
    rows = [
        {"run_id": run_id, **store.config_columns(config), **head}
        for run_id, config in zip(task.run_ids, task.configs, strict=True)
    ]
    for row in rows:
        discard_foreign(task.study_dir, row)
        store.write_run(task.study_dir, {**row, "status": "running"})

    n_steps = task.configs[0].schedule.n_steps
    series = [Series(task.study_dir, run_id, n_steps) for run_id in task.run_ids]
    pending, told = 0, time.monotonic()
    for event in train.train_batch(task.configs, text, task.device):
        if isinstance(event, train.End):
            ended = series[event.run]
            ended.flush()
            finals = {
                "final_val_loss": event.final_val_loss,
                "final_train_loss": ended.train_loss if event.nonfinite_step is None else None,
                "nonfinite_step": event.nonfinite_step,
                "wall_time_s": time.monotonic() - clock,
                "finished_at": store.now(),
            }
            store.write_run(task.study_dir, {**rows[event.run], **finals, "status": "done"})
            # The steps that a run will never take count as taken, so that the bar reaches its end.
            yield Message(task.number, pending + n_steps - 1 - ended.step, ended=(ended.run_id,))
            pending = 0
            continue
        for place, r in enumerate(event.runs):
            series[r].add(event, place, modules)
        pending += len(event.runs)
        if time.monotonic() - told > MESSAGE_SECONDS:
            yield Message(task.number, pending)
            pending, told = 0, time.monotonic()


class Series:
    """The rows of one run since its last window."""

    def __init__(self, study_dir: Path, run_id: str, n_steps: int) -> None:
        self.study_dir, self.run_id = study_dir, run_id
        self.n_steps, self.window_size = n_steps, store.window_size(n_steps)
        self.step, self.train_loss = -1, 0.0
        self.rows = _no_rows()

    def add(self, record: Record, place: int, modules: Modules) -> None:
        """Add a step's rows; `place` is the run's in the record. Writes the window that the step completes."""
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
        if (record.step + 1) % self.window_size == 0:
            self.flush()

    def _extend(self, table: str, *columns: Iterable[object]) -> None:
        for column, values in zip(self.rows[table].values(), columns, strict=True):
            column.extend(values)

    def flush(self) -> None:
        """Write the window of the rows held, if there are any."""
        if self.rows["steps"]["step"]:
            store.write_window(self.study_dir, self.run_id, self.step // self.window_size, self.rows)
            self.rows = _no_rows()


def _no_rows() -> dict[str, dict[str, list[object]]]:
    return {t: {f.name: [] for f in store.SCHEMAS[t] if f.name != "run_id"} for t in store.SERIES}


def machine(device: str) -> dict[str, object]:
    """The columns of `runs` that say where a run was computed: no host name."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
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


def discard_foreign(study_dir: Path, row: dict[str, object]) -> None:
    """Remove what an unfinished run left that was computed elsewhere: its bits may differ from those to come."""
    path = study_dir / "tables" / "runs" / f"{row['run_id']}.parquet"
    if not path.exists():
        return
    before = store.read_row(path)
    if any(before[key] != row[key] for key in ("torch", "cpu_capability", "device")):
        for table in store.SERIES:
            for part in (study_dir / "tables" / table).glob(f"{row['run_id']}-*.parquet"):
                part.unlink()


def report_failure(study_dir: Path, run_ids: list[str], configs: list[RunConfig], details: str) -> None:
    """Give the unfinished runs of a batch the status `failed` and keep the traceback in state/logs."""
    logs = study_dir / "state" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for run_id, config in zip(run_ids, configs, strict=True):
        path = study_dir / "tables" / "runs" / f"{run_id}.parquet"
        before = store.read_row(path) if path.exists() else {}
        if before.get("status") == "done":
            continue
        store.write_run(
            study_dir,
            {
                **before,
                **store.config_columns(config),
                "run_id": run_id,
                "status": "failed",
                "finished_at": store.now(),
            },
        )
        (logs / f"{run_id}.txt").write_text(details)

"""The child process of a sweep: trains batches of runs and writes their tables.

It imports torch only after its parent's watcher runs. Its environment (one thread, reproducible matrix products,
memory kept by the allocator) is set by pool.py before it starts: torch, NumPy's BLAS and glibc read it once.
"""

from __future__ import annotations

import gc
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from normstudy import store
from normstudy.config import RunConfig

if TYPE_CHECKING:
    from normstudy.data import Text
    from normstudy.probes import Modules
    from normstudy.train import End, Record

# What torch says instead of raising its OutOfMemoryError: on a CPU, within the capture of a graph, in a library.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "STREAM_CAPTURE_INVALIDATED", "ALLOC_FAILED")
COMPUTED_BY = ("torch", "cpu_capability", "blas", "device")  # columns of `runs`: where they differ, bits may
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
    """What a worker says: run-steps done since the last message, runs ended, whether the batch is over, an error.

    smaller: the runs of a batch from now on, where the memory did not suffice for all.
    """

    number: int
    run_steps: int = 0
    ended: tuple[str, ...] = ()
    over: bool = False
    error: str | None = None
    smaller: int | None = None


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
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # taking torch down in order takes half a second, and nothing is left to do
        try:
            for message in train_halving(task):
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


def train_halving(task: Task) -> Iterator[Message]:
    """Train a batch; where memory does not suffice, train its runs in two halves, one after the other.

    On a CPU the number of runs that are trained together changes no result, and what they wrote so far is theirs.
    """
    taken, ended = 0, set[str]()
    try:
        for message in train_task(task):
            taken += message.run_steps
            ended.update(message.ended)
            yield message
        return
    except Exception as error:
        left = [(i, c) for i, c in zip(task.run_ids, task.configs, strict=True) if i not in ended]
        if not is_out_of_memory(error) or len(left) < 2:
            raise
    # Outside of the handler, which held the traceback and with it all that the batch had allocated.
    free_cached_memory(task.device)
    n_steps, half = task.configs[0].schedule.n_steps, len(left) // 2
    # The steps of those left are taken again, so for the bar they are not taken yet.
    yield Message(task.number, len(ended) * n_steps - taken, smaller=half)
    for part in (left[:half], left[half:]):
        yield from train_halving(replace(task, run_ids=[i for i, _ in part], configs=[c for _, c in part]))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error, or one that led to it, says that the device's memory, or the machine's, did not suffice."""
    import torch

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError) or any(w in str(cause) for w in OUT_OF_MEMORY):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def free_cached_memory(device: str) -> None:
    """Give back what torch keeps for later, which may be cut in the wrong sizes."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


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
    store.write_runs(task.study_dir, [{**row, "status": "running"} for row in rows])

    n_steps = task.configs[0].schedule.n_steps
    series = [Series(run_id) for run_id in task.run_ids]
    size = store.window_size(n_steps)
    pending, told = 0, time.monotonic()
    for event in together(train.train_batch(task.configs, text, task.device)):
        if isinstance(event, list):
            ended = [series[end.run] for end in event]
            flush(task.study_dir, ended, size)
            finals = [
                {
                    "final_val_loss": end.final_val_loss,
                    "final_train_loss": series[end.run].train_loss if end.nonfinite_step is None else None,
                    "nonfinite_step": end.nonfinite_step,
                    "wall_time_s": time.monotonic() - clock,
                    "finished_at": store.now(),
                    "status": "done",
                }
                for end in event
            ]
            store.write_runs(task.study_dir, [rows[e.run] | final for e, final in zip(event, finals, strict=True)])
            # The steps that a run will never take count as taken, so that the bar reaches its end.
            pending += sum(n_steps - 1 - s.step for s in ended)
            yield Message(task.number, pending, ended=tuple(s.run_id for s in ended))
            pending = 0
            continue
        for place, r in enumerate(event.runs):
            series[r].add(event, place, modules)
        if (event.step + 1) % size == 0:
            flush(task.study_dir, [series[r] for r in event.runs], size)
        pending += len(event.runs)
        if time.monotonic() - told > MESSAGE_SECONDS:
            yield Message(task.number, pending)
            pending, told = 0, time.monotonic()


def together(events: Iterator[Record | End]) -> Iterator[Record | list[End]]:
    """The events, those of runs that end at one step as one list: their files are then made durable together."""
    from normstudy import train

    ends: list[End] = []
    try:
        for event in events:
            if isinstance(event, train.End):
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
    store.write_windows(study_dir, ((s.run_id, s.step // window_size, s.rows) for s in held))
    for s in held:
        s.rows = _no_rows()


def _no_rows() -> dict[str, dict[str, list[object]]]:
    return {t: {f.name: [] for f in store.SCHEMAS[t] if f.name != "run_id"} for t in store.SERIES}


def machine(device: str) -> dict[str, object]:
    """The columns of `runs` that say where a run was computed: no host name."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": blas(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def blas() -> str:
    """What makes NumPy's matrix products, and for which CPU: 'openblas 0.3.31 SkylakeX'."""
    import numpy as np
    from threadpoolctl import threadpool_info

    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    # SciPy brings one of its own. Where NumPy was built with a system's, that is the only one.
    numpys = [one for one in found if Path(one["filepath"]).parent.name in ("numpy.libs", ".dylibs")] or found
    if len(numpys) != 1:
        return f"of numpy {np.__version__}"
    return " ".join(str(numpys[0][key]) for key in ("internal_api", "version", "architecture") if numpys[0].get(key))


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
    """Remove what an unfinished run left whose bits may differ from those to come.

    It was computed elsewhere, or on a GPU, where the number of runs in a batch may choose other kernels.
    """
    path = study_dir / "tables" / "runs" / f"{row['run_id']}.parquet"
    if not path.exists():
        return
    before = store.read_row(path)
    if row["device"] != "cpu" or any(before.get(key) != row[key] for key in COMPUTED_BY):
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

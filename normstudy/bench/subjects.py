"""What the rows about speed train: batches as a sweep's workers train them, and the plain loop of plain.py.

A subject is started in a child process (children.py), and from then on takes as many steps as it is asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from normstudy import config as cfg
from normstudy.bench.children import Work
from normstudy.config import RunConfig
from normstudy.study import schema

NORMSTUDY = "normstudy"

D_HEAD = 16  # at every width, the d_head of the default model: so 2, 4 and 8 heads at d_model 32, 64, 128
WARM_UP = 3  # steps before anything is timed
WINDOW_OF = 600  # n_steps of a run whose windows are those in which the tables are written


@dataclass(frozen=True)
class Case:
    """A shape of run."""

    d_model: int
    n_layers: int
    batch_size: int
    seq_len: int

    @property
    def name(self) -> str:
        """As in the table: d64 L6."""
        return f"d{self.d_model} L{self.n_layers}"


D32_L4, D64_L6 = Case(32, 4, 8, 32), Case(64, 6, 8, 64)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def runs_per_batch(config: RunConfig) -> int:
    """As many runs as a sweep on all cores trains as one program on each."""
    from normstudy.sweep import batching

    return batching.runs_per_batch(config, "cpu", cores())


def run_config(case: Case, seed: int = 0, *, probe: cfg.ProbeConfig | None = None) -> RunConfig:
    """A run of the default model that goes on for ever, beyond its dense first steps from the start, not evaluated."""
    return RunConfig(
        study="speed",
        seed=seed,
        model=cfg.ModelConfig(n_layers=case.n_layers, d_model=case.d_model, n_heads=case.d_model // D_HEAD),
        data=cfg.DataConfig(name="pydoc", seq_len=case.seq_len, batch_size=case.batch_size),
        schedule=cfg.ScheduleConfig(n_steps=cfg.INT_MAX),
        probe=probe or cfg.ProbeConfig(dense_steps=0),
        eval=cfg.EvalConfig(every=cfg.INT_MAX, windows=1),
    )


def start_normstudy(job: tuple[list[RunConfig], Path]) -> Work[float]:
    """A batch of runs, in steps, whose tables are written to a folder as a worker does; their CPU seconds."""
    from normstudy.data import texts
    from normstudy.model import transformer
    from normstudy.study import tables
    from normstudy.training import batch, probes
    from normstudy.workers import recording

    configs, folder = job
    text = texts.load(configs[0].data)
    records = batch.train_batch(configs, text)
    modules = probes.modules_of([name for name, _ in transformer.build(configs[0], text.vocab_size).named_parameters()])
    series = [recording.Running(f"run-{r}", {}) for r in range(len(configs))]
    window = schema.window_size(WINDOW_OF)
    tables.prepare(folder)

    def step() -> None:
        record = next(records)
        if not isinstance(record, batch.Record):
            raise AssertionError(f"the work is not constant: {record}")
        for place, r in enumerate(record.runs):
            series[r].add(record, place, modules)
        if (record.step + 1) % window == 0:
            recording.flush(folder, series, window)

    return lambda n_steps: cpu_seconds(step, n_steps)


def start_plain(config: RunConfig) -> Work[float]:
    """A run of the plain loop, in steps; their CPU seconds."""
    import torch

    from normstudy.bench import plain
    from normstudy.data import texts as data

    text = data.load(config.data)
    losses = plain.train(config, torch.from_numpy(text.train.tokens).long(), text.vocab_size)
    return lambda n_steps: cpu_seconds(lambda: next(losses), n_steps)


def cpu_seconds(step: Callable[[], object], times: int) -> float:
    """CPU time of this process, all its threads, for a number of calls."""
    before = time.process_time()
    for _ in range(times):
        step()
    return time.process_time() - before

"""What the rows about speed train: batches as a sweep's workers train them, and the loops of plain.py and recorded.py.

A subject is started in a child process (children.py), and then takes as many steps as it is asked for. What it answers
are the CPU seconds of those steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from normstudy import config as cfg
from normstudy.bench.children import Work
from normstudy.config import RunConfig

NORMSTUDY = "normstudy"
D_HEAD = 16  # at every width, the d_head of the default model: so 2, 4 and 8 heads at d_model 32, 64, 128
WARM_UP = 3  # steps before anything is timed
WINDOW_OF = 600  # n_steps of a run whose windows are those in which the tables are written


class Case(NamedTuple):
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


def runs_per_batch(case: Case) -> int:
    """As many runs as a sweep on all cores trains as one program on each."""
    from normstudy import batching

    return batching.runs_per_batch(run_config(case), "cpu", len(os.sched_getaffinity(0)))


def run_config(case: Case, seed: int = 0, *, probe: cfg.ProbeConfig | None = None) -> RunConfig:
    """A run of the default model that never ends and is not evaluated, by default without dense first steps."""
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
    """Train a batch of runs, and write their tables to a folder as a worker does."""
    from normstudy import data, probes, recording, store, train

    configs, folder = job
    text = data.load(configs[0].data)
    records = train.train_batch(configs, text)
    modules = probes.modules_of([name for name, _ in train.build(configs[0], text.vocab_size).named_parameters()])
    series = [recording.Series(f"run-{r}") for r in range(len(configs))]
    window = store.window_size(WINDOW_OF)
    store.prepare(folder)

    def step() -> None:
        record = next(records)
        if isinstance(record, train.End):
            raise AssertionError(f"run {record.run} ended at step {record.nonfinite_step}: the work is not constant")
        for place, r in enumerate(record.runs):
            series[r].add(record, place, modules)
        if (record.step + 1) % window == 0:
            recording.flush(folder, series, window)

    return lambda n_steps: cpu_seconds(step, n_steps)


def start_loop(job: tuple[str, RunConfig]) -> Work[float]:
    """Train one run by a plain loop, given by its name: plain, recorded or watched."""
    import torch

    from normstudy import data
    from normstudy.bench import plain, recorded

    loops = {"plain": plain.train, "recorded": recorded.train_recorded, "watched": recorded.train_watched}
    text = data.load(job[1].data)
    steps = loops[job[0]](job[1], torch.from_numpy(text.train.tokens).long(), text.vocab_size)
    return lambda n_steps: cpu_seconds(steps.__next__, n_steps)


def cpu_seconds(step: Callable[[], object], times: int) -> float:
    """CPU time of this process, all its threads, for a number of calls."""
    before = time.process_time()
    for _ in range(times):
        step()
    return time.process_time() - before

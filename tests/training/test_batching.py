"""The number of runs per batch: it depends on the shape and the memory, and no bit of a result depends on it."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from normstudy.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    RunConfig,
    ScheduleConfig,
)
from normstudy.data import texts
from normstudy.processes import WORKER_ENVIRONMENT, environment_with
from normstudy.sweep import batching
from normstudy.sweep.batching import CPU_RUNS, bytes_of_run, runs_per_batch
from normstudy.training import batch, step

torch.set_num_threads(1)


def shape(d_model: int, n_layers: int, batch_size: int, seq_len: int) -> RunConfig:
    return RunConfig(
        model=ModelConfig(d_model=d_model, n_layers=n_layers),
        data=DataConfig(name="synthetic", batch_size=batch_size, seq_len=seq_len),
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            shape(32, 4, 8, 32),
            32,
        ),  # 8,192 numbers in the residual stream of a run; 64 runs fit, more than 32 are no faster
        (shape(64, 6, 8, 64), 16),  # 32,768 numbers: 16 runs make 2^19
        (shape(128, 6, 16, 64), 4),  # 131,072 numbers: 4 runs make 2^19
        (shape(512, 2, 16, 64), 4),  # fewer runs would be slower than a plain loop
    ],
)
def test_on_a_cpu_the_shape_decides(config: RunConfig, expected: int) -> None:
    assert runs_per_batch(config, "cpu", workers=1) == expected


def test_a_batch_never_needs_more_than_its_share_of_the_free_memory() -> None:
    huge = shape(4096, 48, 64, 512)
    assert bytes_of_run(huge) > batching.free_memory("cpu")
    assert runs_per_batch(huge, "cpu", workers=2) == 1
    free = batching.free_memory("cpu")
    large = shape(512, 12, 32, 256)
    assert runs_per_batch(large, "cpu", workers=1) * bytes_of_run(large) <= free


MEMORY = """
import os, sys
import torch
from normstudy.data import texts
from normstudy.training import batch
from tests.training.test_batching import shape
torch.set_num_threads(1)
for n_runs in (2, 6):  # each in a fork, whose peak memory is its own
    if os.fork() == 0:
        runs = [shape(*map(int, sys.argv[1:])) for _ in range(n_runs)]
        steps = batch.train_batch(runs, texts.load(runs[0].data))
        for _ in range(3):
            next(steps)
        status = open("/proc/self/status")
        print(next(line.split()[1] for line in status if line.startswith("VmHWM")), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.bench
@pytest.mark.parametrize("sizes", [(64, 6, 8, 64), (32, 1, 1, 500)], ids=["training", "evaluation"])
def test_the_estimate_of_a_runs_memory(sizes: tuple[int, int, int, int]) -> None:
    """The estimate is within a factor of 1.7 of the growth of a process from 2 to 6 runs.

    With one long sequence per step, evaluation takes the most memory, for the attention weights.
    """

    words = [sys.executable, "-c", MEMORY, *map(str, sizes)]
    variables = environment_with(WORKER_ENVIRONMENT)
    out = subprocess.run(words, capture_output=True, text=True, check=True, env=variables)
    two, six = map(int, out.stdout.split())
    measured = (six - two) * 1024 / 4
    assert measured / 1.7 < bytes_of_run(shape(*sizes)) < measured * 1.7


TEXT = texts.load(DataConfig(name="synthetic"))


def small(seed: int, peak_lr: float = 1e-3, n_steps: int = 3) -> RunConfig:
    """A run whose wide MLP layer is computed 8 runs at a time; all other layers compute all runs at once."""
    return RunConfig(
        seed=seed,
        data_seed=seed,
        model=ModelConfig(n_layers=1, d_model=32, n_heads=2, d_ff=512),
        data=DataConfig(name="synthetic", seq_len=16, batch_size=8),
        schedule=ScheduleConfig(n_steps=n_steps, peak_lr=peak_lr),
        eval=EvalConfig(every=2, windows=3),
        probe=ProbeConfig(dense_steps=1, every=2),
    )


def numbers(configs: list[RunConfig], sync_every: int | None = None) -> dict[int, list[np.ndarray]]:
    """seed -> all numbers of the run, one array per event."""
    out: dict[int, list[np.ndarray]] = {c.seed: [] for c in configs}
    for item in batch.train_batch(configs, TEXT, sync_every=sync_every):
        if isinstance(item, batch.End):
            ends = (item.final_val_loss, item.nonfinite_step)
            out[configs[item.run].seed].append(np.array([np.nan if x is None else x for x in ends]))
            continue
        columns = [item.train_loss, item.val_loss, np.array(item.lr), item.grad_norm, item.param_norm, item.update_norm]
        rows = [np.full(len(item.runs), np.nan) if c is None else c for c in columns]
        if item.probe is not None:
            p = item.probe
            rows += [*p.grad, *p.param, *p.update, *p.rms, *p.residual_grad]
        for place, run in enumerate(item.runs):
            out[configs[run].seed].append(np.array([item.step, *(row[place] for row in rows)]))
    return out


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def test_any_number_of_runs_per_batch_gives_the_same_bits() -> None:
    """From 1 run to the largest batch, which is 32. Each batch holds run 0, at another position each time.

    The wide layer has every remainder after its groups of 8, with no, one and two full groups before it.
    """
    assert CPU_RUNS[1] == 32
    alone = numbers([small(0, n_steps=2)])[0]
    assert np.isfinite(alone[0]).all()
    for n in (*range(2, 25), 31, 32):
        seeds = list(range(1, n))
        seeds.insert(n // 2, 0)
        assert same(numbers([small(s, n_steps=2) for s in seeds])[0], alone), n


@pytest.mark.parametrize("sync_every", [1, 2, 7])
def test_runs_that_diverge_leave_the_others_their_bits(sync_every: int) -> None:
    """Also if results reach the host only every few steps, as on a GPU."""
    runs = [small(s, peak_lr=1e30 if s in (1, 3, 4) else 1e-3) for s in range(6)]
    together = numbers(runs, sync_every)
    for run in runs:
        assert same(together[run.seed], numbers([run])[run.seed]), run.seed
    assert together[1][-1][1] < 3 <= len(together[0])  # run 1 ended early, and run 0 continued


def test_a_limit_of_another_run_does_not_reach_a_run_that_diverges() -> None:
    """inf / inf is NaN: the last gradients of a run without a limit must not be scaled by it."""
    free = small(1, peak_lr=1e30)
    limited = replace(small(0), optimizer=OptimizerConfig(max_grad_norm=0.5))
    assert same(numbers([limited, free])[1], numbers([free])[1])
    factors = step.clip_factors(torch.full((2, 2), math.inf), torch.tensor([math.inf, 1.0]).double())
    assert factors.tolist() == [1, 0]


def test_a_step_needs_nothing_of_the_host() -> None:
    """Tensors on the meta device have no values. Reading a value, which on a GPU would wait for the device, raises."""
    configs = [small(0), small(1)]
    runs = batch.begin(configs, TEXT, "cpu")
    params, grads = runs.params.to("meta"), runs.grads.to("meta")
    meta = replace(runs, params=params, grads=grads, state={slot: t.to("meta") for slot, t in runs.state.items()})
    (inputs,) = step.inputs_of(range(1), configs, TEXT, meta.params)
    measured = step.step_(meta, inputs, probing=True, probed=True)
    (real,) = step.inputs_of(range(1), configs, TEXT, runs.params)
    expected = step.step_(runs, real, probing=True, probed=True)
    assert [m.shape for m in measured if m is not None] == [m.shape for m in expected if m is not None]
    with pytest.raises((RuntimeError, NotImplementedError)):
        measured.loss.tolist()


def test_without_probing_there_are_losses_alone_and_they_are_the_same() -> None:
    runs = [small(0), small(1)]
    with_norms, without = (
        [i for i in batch.train_batch(runs, TEXT, probing=p) if isinstance(i, batch.Record)] for p in (True, False)
    )
    for a, b in zip(with_norms, without, strict=True):
        assert np.array_equal(a.train_loss, b.train_loss)
        assert b.probe is None
        assert np.isnan([b.grad_norm, b.param_norm, b.update_norm]).all()
        assert np.isfinite([a.grad_norm, a.param_norm, a.update_norm]).all()

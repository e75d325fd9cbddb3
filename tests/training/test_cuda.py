"""Training on a GPU. Every test is skipped if torch finds no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from normstudy.config import DataConfig, EvalConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from normstudy.data import texts
from normstudy.sweep import batching
from normstudy.training import batch, probes
from normstudy.training.step import captured, inputs_of, stepper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")

TEXT = texts.load(DataConfig(name="synthetic"))


def config(seed: int, peak_lr: float = 1e-3, limit: float | None = None) -> RunConfig:
    return RunConfig(
        seed=seed,
        data_seed=seed,
        model=ModelConfig(n_layers=2, d_model=32, n_heads=2),
        data=DataConfig(name="synthetic", seq_len=16, batch_size=4),
        optimizer=OptimizerConfig(max_grad_norm=limit, eps=1e-5),
        schedule=ScheduleConfig(n_steps=30, peak_lr=peak_lr),
        eval=EvalConfig(every=10, windows=8),
    )


def records(configs: list[RunConfig], device: str) -> list[batch.Record]:
    return [i for i in batch.train_batch(configs, TEXT, device) if isinstance(i, batch.Record)]


@pytest.mark.parametrize("limit", [None, 0.5])
def test_numbers_are_those_of_the_cpu(limit: float | None) -> None:
    """Losses, norms, validation losses and probes of every step agree to the rounding of other kernels."""
    configs = [config(s, limit=limit if s else None) for s in range(3)]
    for here, there in zip(records(configs, "cpu"), records(configs, "cuda"), strict=True):
        assert here.runs == there.runs
        np.testing.assert_allclose(there.train_loss, here.train_loss, rtol=2e-3)
        np.testing.assert_allclose(there.grad_norm, here.grad_norm, rtol=2e-2)
        assert (here.probe is None) == (there.probe is None)
        if here.probe is not None and there.probe is not None and here.step == 0:
            np.testing.assert_allclose(there.probe.grad, here.probe.grad, rtol=2e-3, atol=1e-6)
            np.testing.assert_allclose(there.probe.residual_grad, here.probe.residual_grad, rtol=2e-3)


def test_a_diverged_run_ends_at_its_step_and_leaves_the_others() -> None:
    configs = [config(0), config(1, peak_lr=1e30), config(2)]
    items = list(batch.train_batch(configs, TEXT, "cuda"))
    (end,) = [i for i in items if isinstance(i, batch.End) and i.run == 1]
    assert end.nonfinite_step is not None
    steps = [i.step for i in items if isinstance(i, batch.Record) and 1 in i.runs]
    assert steps == list(range(end.nonfinite_step + 1))
    others = [i for i in items if isinstance(i, batch.Record)]
    assert len(others) == 30
    assert others[-1].runs == [0, 2]


def test_steps_never_wait_for_the_device() -> None:
    """After the capture, replays and the copies of inputs and outputs only queue work on the device."""
    configs = [config(0), config(1)]
    runs = batch.begin(configs, TEXT, "cuda")
    inputs = inputs_of(range(5), configs, TEXT, runs.params)
    take = stepper(runs, inputs[0], probing=True)
    torch.cuda.set_sync_debug_mode("error")  # every wait of the host for the device raises
    try:
        measured = [take(one, True) for one in inputs]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    losses = torch.stack([m.loss for m in measured]).cpu()
    assert torch.isfinite(losses).all()
    assert len(set(losses[:, 0].tolist())) == 5


def test_norms_whose_squares_leave_float32() -> None:
    """In a graph too, which cannot look at a norm to decide whether to take it again."""
    numbers = torch.tensor([1e-30, 1e30, 0.0, 1.0, torch.inf], device="cuda")[:, None].expand(5, 7)
    replay = captured(lambda x: [probes.norms_by_run([x, x[:, :1]])], [numbers.contiguous()], [])
    (norms,) = replay(numbers)
    torch.testing.assert_close(norms, torch.stack([numbers[:, 0] * 7**0.5, numbers[:, 0]]), rtol=1e-6, atol=0)


def test_a_captured_step_starts_from_what_was_there() -> None:
    """The warmup and the capture change no value."""
    x = torch.zeros(3, device="cuda")

    def step(add: torch.Tensor) -> list[torch.Tensor]:
        x.add_(add)
        return [x * 2]

    replay = captured(step, [torch.ones(3, device="cuda")], [x])
    assert x.tolist() == [0, 0, 0]
    (first,) = replay(torch.full((3,), 5.0, device="cuda"))
    (second,) = replay(torch.ones(3, device="cuda"))
    assert first.tolist() == [10, 10, 10]
    assert second.tolist() == [12, 12, 12]
    assert x.tolist() == [6, 6, 6]


def test_the_estimate_of_a_runs_memory() -> None:
    """The estimate is within a factor of 2 of the growth from 32 to 64 runs."""

    def peak(n: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        records([config(s) for s in range(n)], "cuda")
        return torch.cuda.max_memory_allocated()

    measured = (peak(64) - peak(32)) / 32
    assert measured / 2 < batching.bytes_of_run(config(0)) < measured * 2


def test_a_sweep_on_the_gpu(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "normstudy", "sweep", "experiment=smoke", f"results_dir={tmp_path}",
        "execution.device=cuda",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(cuda)" in done.stdout

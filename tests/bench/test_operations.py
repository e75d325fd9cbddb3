"""The limit that a step's operations set: that none is missed, counted twice, or changed by being watched."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from normstudy.bench import operations, products, subjects
from normstudy.bench.operations import Call, Recorder, recorded, seconds_alone
from normstudy.bench.subjects import Case, run_config
from normstudy.model import kernels, processor
from normstudy.study import tables as store

SMALL = Case(d_model=32, n_layers=2, batch_size=4, seq_len=16)
RUNS, STEPS = 3, 20


def recorded_steps(folder: Path) -> Recorder:
    recorder = Recorder()
    work = subjects.start_normstudy(([run_config(SMALL, seed) for seed in range(RUNS)], folder))
    work(1)  # which evaluates too
    with recorded(recorder):
        work(STEPS)
    return recorder


@pytest.mark.parametrize("by_mkl", [False, True])
def test_every_product_of_a_step_is_caught_once(by_mkl: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many floating point operations as are counted for the limit of the products."""
    monkeypatch.setattr(processor, "by_mkl", lambda: by_mkl)
    recorder = recorded_steps(tmp_path)
    flops = 0
    for kind, count in recorder.count.items():
        if isinstance(kind, tuple) and kind[0] in ("product", "aten.bmm.out"):
            a, b = recorder.calls[kind].args[:2]
            assert isinstance(a, torch.Tensor)
            assert isinstance(b, torch.Tensor)
            flops += count * 2 * a.numel() * b.shape[-1]
    expected = sum(piece.flops for piece in products.pieces(run_config(SMALL), 256))
    assert flops == expected * RUNS * STEPS


def test_operations_of_torch_are_caught_and_views_are_not(tmp_path: Path) -> None:
    names = {kind[0] for kind in recorded_steps(tmp_path).count if isinstance(kind, tuple)}
    assert {"aten.gelu.default", "aten.gelu_backward.default", "aten.lerp_.Tensor"} <= names
    assert not {"aten.view.default", "aten.slice.Tensor", "aten.detach.default"} & names


def test_being_watched_changes_nothing(tmp_path: Path) -> None:
    by_numpy = kernels._by_numpy
    tables = []
    for name in ("watched", "alone"):
        configs = [run_config(SMALL, seed) for seed in range(RUNS)]
        work = subjects.start_normstudy((configs, tmp_path / name))
        if name == "watched":
            with recorded(Recorder()):
                work(201)  # a window of rows, and more
        else:
            work(201)  # a window of rows, and more
        tables.append(store.read(tmp_path / name, "modules"))
    assert kernels._by_numpy is by_numpy
    assert len(tables[0]) > 0
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_slow_operation_shows_in_the_step_and_alone() -> None:
    def slow(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return x

    recorder = Recorder()
    recorder.record(Call(slow, (torch.ones(3),), {}, False), "slow")
    (call,) = recorder.calls.values()
    assert recorder.seconds >= 0.02
    assert seconds_alone(call, 0.0) >= 0.02


def test_an_operation_that_writes_finds_its_arguments_as_they_were() -> None:
    """Halved 1,000 times over, they would have become subnormal, which are slow."""
    seen = []

    def halve(x: torch.Tensor) -> None:
        seen.append(float(x[0]))
        x.mul_(0.5)

    seconds_alone(Call(halve, (torch.ones(5),), {}, True), 1e-3)
    assert len(seen) > 3
    assert set(seen) == {1.0}


def test_a_copy_leaves_out_what_lies_between_runs() -> None:
    """A bias of each run, a column of a matrix of all their parameters, is not copied with the whole matrix."""
    x = torch.arange(80_000.0).view(4, 20_000)[:, 100:110]
    copy = operations._copy(x)
    assert isinstance(copy, torch.Tensor)
    assert torch.equal(copy, x)
    assert copy.untyped_storage().nbytes() < 4 * 64


@pytest.mark.parametrize("x", [torch.ones(2, 3).mT, torch.ones(3)[:, None].expand(3, 4), torch.ones(4, 6)[:, ::2]])
def test_a_copy_has_the_layout_and_its_own_memory(x: torch.Tensor) -> None:
    copy = operations._copy(x)
    assert isinstance(copy, torch.Tensor)
    assert (copy.shape, copy.stride(), copy.data_ptr() == x.data_ptr()) == (x.shape, x.stride(), False)
    assert torch.equal(copy, x)


def test_times_are_of_one_run_step(tmp_path: Path) -> None:
    """Both are what is left of a step without its Python: shorter than the step, which is not watched here."""
    config = run_config(replace(SMALL, batch_size=16))
    job = [replace(config, seed=seed) for seed in range(RUNS)], tmp_path
    seconds = operations.start(job)(1)
    step = subjects.start_normstudy((job[0], tmp_path / "again"))
    step(5)
    whole = step(config.probe.every) / config.probe.every / RUNS
    assert 0.05 * whole < seconds.in_step < 3 * whole
    assert 0.05 * whole < seconds.alone < 3 * whole

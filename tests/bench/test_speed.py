"""Row a: that its subjects are what it says, that products are counted right, and that a child's end is told."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from normstudy.bench import children, plain, products, speed, subjects
from normstudy.bench.children import Child
from normstudy.bench.rows import Sample
from normstudy.bench.speed import Amount
from normstudy.bench.subjects import Case, run_config
from normstudy.pool import WORKER_ENVIRONMENT

TINY = Case(d_model=16, n_layers=1, batch_size=2, seq_len=8)
ROWS = ("speed", "probing", "scaling", "divergence")


def test_importing_a_row_imports_neither_torch_nor_pandas_nor_hydra() -> None:
    modules = ", ".join(f"normstudy.bench.{row}" for row in ROWS)
    code = f"import sys, {modules}; print([m for m in ('torch', 'pandas', 'hydra') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_goals_are_of_the_cases_and_of_what_is_measured(tmp_path: Path) -> None:
    amount = Amount(rounds=2, seconds=0.1, product_ms=1, operation_ms=0)
    samples = list(speed.measure_case(TINY, amount, 1, tmp_path, with_products=True))
    measured = {(s.subject, s.metric) for s in samples}
    for goal in speed.GOALS:
        assert goal.case in [case.name for case, _, _ in speed.GOALS_OF_CASES]
        assert (goal.subject, goal.metric) in measured
        assert goal.opponent is None or (goal.opponent, goal.metric) in measured
    values = {(s.subject, s.metric, s.round): s.value for s in samples}
    assert len(values) == len(samples) == 2 * len(measured)
    assert min(values.values()) > 0
    flops = sum(p.flops for p in products.pieces(run_config(TINY), 256))
    for number in range(2):
        rate = values[subjects.NORMSTUDY, "run_steps_per_s", number]
        rated = (subjects.NORMSTUDY, speed.BEST, products.BMM)
        gflops = {s: values[s, "product_gflop_per_s_core", number] for s in rated}
        assert gflops[subjects.NORMSTUDY] == pytest.approx(rate * flops / 1e9)
        assert gflops[speed.BEST] >= gflops[products.BMM]
        share, of_bmm = (values[subjects.NORMSTUDY, f"share_of_{of}", number] for of in ("limit", "torch_bmm"))
        assert share == pytest.approx(gflops[subjects.NORMSTUDY] / gflops[speed.BEST])
        assert of_bmm == pytest.approx(gflops[subjects.NORMSTUDY] / gflops[products.BMM])
        for subject in (subjects.NORMSTUDY, speed.ALL_THREADS, speed.PER_CORE):
            assert values[subject, "busy_cores", number] < 1.1


def test_a_span_of_normstudy_is_whole_periods_of_its_probes() -> None:
    """Each span has as many probed steps as another, wherever it begins."""
    from normstudy import data, train

    config = run_config(TINY)
    period = config.probe.every
    records = train.train_batch([config], data.load(config.data))
    probed = [isinstance(r, train.Record) and r.probe is not None for r in itertools.islice(records, 3 * period)]
    assert all(sum(probed[i : i + period]) == 1 for i in range(2 * period))


# ---- products -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [TINY, Case(32, 3, 4, 24)], ids=lambda case: case.name)
def test_the_products_have_the_flops_that_torch_counts(case: Case) -> None:
    """The plain model is the same one; its attention is written out here, which torch's counter can see."""
    config = run_config(case)
    model = plain.Decoder(config.model, 256, case.seq_len)
    x = torch.zeros(case.batch_size, case.seq_len, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        plain.loss_of(model, x, x).backward()
    assert sum(p.flops for p in products.pieces(config, 256)) == counter.get_total_flops()


def test_every_way_makes_the_same_product() -> None:
    layouts = set()
    for piece in products.pieces(run_config(TINY), 256):
        torch.manual_seed(0)
        made = {way: make() for way, make in products.ways(piece, run_config(TINY), runs=3).items()}
        wholes = made.pop(products.BMM)
        assert isinstance(wholes, list)
        for product, whole in zip(piece.products, wholes, strict=True):
            layouts.add(product.layout)
            assert whole.shape == (3 * product.batch, product.m, product.n)
        for by_numpy, whole in zip(made.pop(products.NUMPY), wholes, strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(torch.from_numpy(by_numpy), whole, rtol=1e-4, atol=1e-4)
        if "attention" in piece.name:
            assert made.keys() == {"fused"}
            continue
        assert {"torch.mm"} <= made.keys() <= {"torch.mm", "oneDNN", "oneDNN, transposed"}
        for way, parts in made.items():
            stacked = torch.stack(list(parts))  # type: ignore[call-overload]
            torch.testing.assert_close(stacked.mT if "transposed" in way else stacked, wholes[0], rtol=1e-4, atol=1e-4)
    assert layouts == {"nn", "nt", "tn"}


def test_the_fastest_way_of_each_product_counts() -> None:
    timed = [
        {("a", products.BMM): 3.0, ("a", "oneDNN"): 1.0, ("b", products.BMM): 2.0, ("b", "oneDNN"): 5.0},
        {("a", products.BMM): 2.5, ("a", "oneDNN"): 1.5, ("b", products.BMM): 4.0, ("b", "oneDNN"): 1.75},
    ]
    assert products.fastest(timed) == (1.0 + 1.75, 2.5 + 2.0)
    assert speed.mean_over_cores(timed)["b", "oneDNN"] == 3.375


def test_shares_are_of_the_time_of_a_run_step() -> None:
    flops = sum(p.flops for p in products.pieces(run_config(TINY), 256))
    samples = list(speed.shares(run_config(TINY), "c", 3, run_step=4e-3, best=1e-3, bmm=2e-3))
    assert {(s.row, s.case, s.round) for s in samples} == {("a", "c", 3)}
    values = {(s.subject, s.metric): s.value for s in samples}
    assert values[subjects.NORMSTUDY, "share_of_limit"] == 0.25
    assert values[subjects.NORMSTUDY, "share_of_torch_bmm"] == 0.5
    assert values[speed.BEST, "product_gflop_per_s_core"] == pytest.approx(flops / 1e6)


# ---- children -----------------------------------------------------------------------------------------


Settings = tuple[set[int], int, list[str | None]]
TELL, FAIL, DIE = 0, 1, 2


def start_anything(names: list[str]) -> Callable[[int], Settings]:
    """A child that tells its settings (torch's and BLAS's threads), fails at its work, or is killed at it."""

    def work(what: int) -> Settings:
        if what == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == FAIL:
            raise ValueError("out of luck")
        blas = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
        return {torch.get_num_threads(), *blas}, gc.get_freeze_count(), [os.environ.get(name) for name in names]

    return work


def test_children_have_their_environment_and_their_end_is_told() -> None:
    names = list(WORKER_ENVIRONMENT)
    before = dict(os.environ)
    assert before["OMP_NUM_THREADS"] == "1"  # conftest.py's: it must not reach the plain loop's processes
    like_worker = Child(start_anything, names, like_worker=True)
    plain_one = Child(start_anything, names, like_worker=False, threads=3)
    assert dict(os.environ) == before
    try:
        seconds, ((threads, frozen, environment), (plain_threads, plain_frozen, plain_environment)) = children.together(
            [like_worker, plain_one], TELL
        )
        with pytest.raises(children.ChildFailed, match="ValueError: out of luck"):
            children.together([like_worker], FAIL)
        with pytest.raises(children.ChildFailed, match="exit code -9"):
            children.together([like_worker], DIE)
    finally:
        like_worker.close()
        plain_one.close()
    assert seconds > 0
    assert (threads, environment) == ({1}, list(WORKER_ENVIRONMENT.values()))
    assert (plain_threads, plain_environment) == ({3}, [None] * len(names))
    assert frozen > 10_000 > plain_frozen
    assert plain_one.process.exitcode == -signal.SIGKILL


def test_writing_the_tables_is_part_of_what_is_timed(tmp_path: Path) -> None:
    work = subjects.start_normstudy(([run_config(TINY, 0), run_config(TINY, 1)], tmp_path))
    work(399)
    files = sorted(f.name for f in (tmp_path / "tables" / "residual").iterdir())
    assert files == ["0-schema.parquet", "run-0-000.parquet", "run-1-000.parquet"]


def test_a_run_that_ends_is_no_constant_work(tmp_path: Path) -> None:
    config = run_config(TINY)
    work = subjects.start_normstudy(([replace(config, schedule=replace(config.schedule, n_steps=2))], tmp_path))
    assert work(2) > 0
    with pytest.raises(AssertionError, match="run 0 ended"):
        work(1)


def stream(case: str) -> Iterator[Sample]:
    """Samples made in a worker."""
    for i in range(2):
        yield Sample("a", case, os.environ["MALLOC_TOP_PAD_"], "threads", "1", i, float(torch.get_num_threads()))


def test_samples_of_a_worker_come_in_order() -> None:
    pad = WORKER_ENVIRONMENT["MALLOC_TOP_PAD_"]
    expected = [Sample("a", "c", pad, "threads", "1", i, 1.0) for i in range(2)]
    assert list(children.in_worker(stream, "c")) == expected

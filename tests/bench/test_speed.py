"""Rows a, b, g and i: their subjects are what they say, products are counted right, and a child's end is reported."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from processes import WITHOUT_FIGURES
from threadpoolctl import threadpool_info
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from normstudy.bench import plain, products, speed, subjects
from normstudy.bench.rows import Sample, Scope
from normstudy.bench.speed import ALL_THREADS, DEFAULT, EQUAL, EVERY_STEP, HOOKS, OFF, PER_CORE
from normstudy.bench.subjects import D64_L6, NORMSTUDY, Case, Race, child, run_config, together
from normstudy.config import ProbeConfig
from normstudy.data import texts
from normstudy.processes import WORKER_ENVIRONMENT
from normstudy.search import simulate
from normstudy.search.settings import settings_of
from normstudy.training import batch as train

pytestmark = pytest.mark.bench

TINY = Case(d_model=16, n_layers=1, batch_size=2, seq_len=8)


@pytest.mark.parametrize(("row", "measure", "opponents"), [
    ("a", speed.against_plain, {ALL_THREADS, PER_CORE}),
    ("i", speed.equal_information, {EQUAL, HOOKS}),
])  # fmt: skip
def test_a_race_measures_what_its_goals_name(
    row: str, measure: Callable[[Race, int], Iterator[Sample]], opponents: set[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At a tiny shape, with the products of a3 too."""
    monkeypatch.setattr(speed, "D64_L6", TINY)
    with Race(row, TINY, 1, Scope(quick=True, folder=tmp_path)) as race:
        race.seconds = 0.1
        samples = list(measure(race, 2))
    values = {(s.subject, s.metric, s.round): s.value for s in samples}
    measured = {(subject, metric) for subject, metric, _ in values}
    assert len(values) == len(samples) == 2 * len(measured)
    assert min(values.values()) > 0
    for goal in speed.GOALS:
        if goal.row == row:
            assert (goal.subject, goal.metric) in measured
            assert goal.opponent is None or (goal.opponent, goal.metric) in measured
    for subject, number in itertools.product((NORMSTUDY, *opponents), range(2)):
        assert 0 < values[subject, "busy_cores", number] < 1.1


def test_row_j_measures_a_whole_search_and_a_grid_of_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("search.max_runs=10", "model.n_layers=1", "model.d_model=16", "model.n_heads=2", "data=pydoc")
    monkeypatch.setattr(speed, "SEARCH", (*words, "data.seq_len=8", "data.batch_size=2", "eval.windows=4"))
    monkeypatch.setattr(speed, "SEARCH_STEPS", 20)
    monkeypatch.setattr(speed, "D64_L6", TINY)
    monkeypatch.setattr(speed.commands, "NORMSTUDY", WITHOUT_FIGURES)
    samples = list(speed.searching(Scope(quick=True, folder=tmp_path)))
    (goal,) = (goal for goal in speed.GOALS if goal.row == "j")
    value = {(s.case, s.subject, s.metric): s.value for s in samples}
    runs = value[goal.case, goal.subject, "seconds"] * value[TINY.name, PER_CORE, "run_steps_per_s"] / 20
    assert runs == pytest.approx(speed.CELLS * simulate.expected(settings_of([run_config(TINY)])).grid_runs)
    assert value[goal.case, str(goal.opponent), "seconds"] > 0
    assert [path.name for path in tmp_path.iterdir()] == []


def test_the_goals_of_every_shape() -> None:
    """Ten of row a and the share of products; five of row i, and what its hooks cost without a goal."""
    found = [(g.row, g.case, g.opponent, g.limit) for g in speed.GOALS if g.metric == "run_steps_per_s"]
    for case, (a1, a2, equal, hooks) in speed.CASES.items():
        assert [f for f in found if f[1] == case.name] == [
            ("a", case.name, ALL_THREADS, a1), ("a", case.name, PER_CORE, a2), ("i", case.name, EQUAL, equal),
            ("i", case.name, HOOKS, hooks),
        ]  # fmt: skip
        assert (equal, hooks) == (1.0, None)
    (share,) = [g for g in speed.GOALS if g.metric == "share_of_limit"]
    assert (share.case, share.sense, share.limit) == (D64_L6.name, "at least", 0.6)
    assert len([g for g in speed.GOALS if g.row == "b" and (g.sense, g.limit) == ("at most", 1.05)]) == 4


def test_a_span_of_normstudy_is_whole_periods_of_its_probes() -> None:
    """Each span has as many probed steps as another, wherever it begins."""
    config = run_config(TINY)
    period = config.probe.every
    records = train.train_batch([config], texts.load(config.data))
    probed = [isinstance(r, train.Record) and r.probe is not None for r in itertools.islice(records, 3 * period)]
    assert all(sum(probed[i : i + period]) == 1 for i in range(2 * period))


def test_writing_the_tables_is_part_of_what_is_timed(tmp_path: Path) -> None:
    work = subjects.start_batch(([run_config(TINY, 0), run_config(TINY, 1)], tmp_path))
    work(200)
    files = sorted((tmp_path / "tables" / "steps").iterdir())
    assert [f.name for f in files] == ["0-schema.parquet", "run-0-000.parquet", "run-1-000.parquet"]
    assert pq.ParquetFile(files[1]).read(["step"])["step"].to_pylist() == list(range(200))  # a whole window
    assert (tmp_path / "tables" / "residual" / "run-1-000.parquet").exists()


def test_a_run_that_ends_is_no_constant_work(tmp_path: Path) -> None:
    config = run_config(TINY)
    work = subjects.start_batch(([replace(config, schedule=replace(config.schedule, n_steps=2))], tmp_path))
    work(2)
    with pytest.raises(AssertionError, match="a run must not end while its batch is timed"):
        work(1)


# ---- probes -------------------------------------------------------------------------------------------


def test_the_subjects_of_row_b_are_the_same_runs_and_differ_in_what_they_measure() -> None:
    period = ProbeConfig().every
    records = {name: list(itertools.islice(r, 2 * period)) for name, r in speed.probed(TINY, runs=2).items()}
    probed, losses = {}, {}
    for name, steps in records.items():
        assert all(isinstance(r, train.Record) for r in steps)
        probed[name] = sum(r.probe is not None for r in steps if isinstance(r, train.Record))
        losses[name] = np.stack([r.train_loss for r in steps if isinstance(r, train.Record)])
    assert probed == {OFF: 0, EVERY_STEP: 2 * period, DEFAULT: 2}
    assert np.array_equal(losses[OFF], losses[EVERY_STEP])
    assert np.array_equal(losses[OFF], losses[DEFAULT])


def test_every_subject_of_row_b_is_measured_in_every_round() -> None:
    samples = list(speed.probe_case((TINY, 2, 2)))
    assert {(s.case, s.metric, s.unit) for s in samples} == {("d16 L1", "ms_per_run_step", "ms")}
    assert sorted((s.subject, s.round) for s in samples) == sorted(
        itertools.product((OFF, EVERY_STEP, DEFAULT), range(2))
    )
    assert min(s.value for s in samples) > 0


# ---- products -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [TINY, Case(32, 3, 4, 24)], ids=lambda case: case.name)
def test_the_products_have_the_flops_that_torch_counts(case: Case) -> None:
    """The plain model is the same one; its attention is written out here, which torch's counter can see."""
    config = run_config(case)
    model = plain.Decoder(config.model, 256, case.seq_len)
    x = torch.zeros(case.batch_size, case.seq_len, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x, x)[0].backward()
    assert sum(p.flops for p in products.pieces(config, 256)) == counter.get_total_flops()


def test_every_way_makes_the_same_product() -> None:
    layouts = set()
    for piece in products.pieces(run_config(TINY), 256):
        torch.manual_seed(0)
        made = {way: make() for way, make in products.ways(piece, run_config(TINY), runs=3).items()}
        wholes = made.pop("torch.bmm")
        assert isinstance(wholes, list)
        for (batch, m, _, n, layout), whole in zip(piece.products, wholes, strict=True):
            layouts.add(layout)
            assert whole.shape == (3 * batch, m, n)
        for by_numpy, whole in zip(made.pop("NumPy"), wholes, strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(torch.from_numpy(by_numpy), whole, rtol=1e-4, atol=1e-4)
        if "attention" in piece.name:
            assert made.keys() == {"fused"}
            continue
        assert {"torch.mm"} <= made.keys() <= {"torch.mm", "oneDNN", "oneDNN, transposed"}
        for way, parts in made.items():
            stacked = torch.stack(list(parts))  # type: ignore[call-overload]
            torch.testing.assert_close(stacked.mT if "transposed" in way else stacked, wholes[0], rtol=1e-4, atol=1e-4)
    assert layouts == {"nn", "nt", "tn"}


def test_the_fastest_way_of_each_product_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 ms of a call for two runs, of which a run-step has six: 9 ms."""
    pieces = [products.Piece("a", ((1, 2, 2, 2, "nn"),), 6)]
    seconds = {"slow": 5e-3, "fast": 3e-3}
    monkeypatch.setattr(products, "pieces", lambda *_: pieces)
    monkeypatch.setattr(products, "ways", lambda *_: {way: lambda way=way: way for way in seconds})
    monkeypatch.setattr(products, "typical_seconds", lambda make, _: seconds[make()])
    assert products.start_products((run_config(TINY), 2))(1) == [pytest.approx(9e-3)]


# ---- children -----------------------------------------------------------------------------------------


TELL, FAIL, DIE = 0, 1, 2


def start_anything(names: list[str]) -> Callable[[int], object]:
    """A child that tells its settings (torch's and BLAS's threads), fails at its work, or is killed at it."""

    def work(what: int) -> object:
        if what == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == FAIL:
            raise ValueError("out of luck")
        blas = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
        return {torch.get_num_threads(), *blas}, gc.get_freeze_count(), [os.environ.get(name) for name in names]

    return work


def test_children_have_their_environment_and_their_end_is_reported() -> None:
    names = list(WORKER_ENVIRONMENT)
    before = dict(os.environ)
    assert before["OMP_NUM_THREADS"] == "1"  # conftest.py's: it must not reach the plain loop's processes
    with (
        contextlib.closing(child(start_anything, names, like_worker=True)) as like_worker,
        contextlib.closing(child(start_anything, names, like_worker=False, threads=3)) as plain_one,
    ):
        assert dict(os.environ) == before
        seconds, answers = together([like_worker, plain_one], TELL)
        with pytest.raises(ValueError, match="out of luck"):
            together([like_worker], FAIL)
        with pytest.raises(RuntimeError, match="a measuring process was killed by signal 9"):
            together([like_worker], DIE)
    (threads, frozen, environment), (plain_threads, plain_frozen, plain_environment) = answers  # type: ignore[misc]
    assert seconds > 0
    assert (threads, environment) == ({1}, list(WORKER_ENVIRONMENT.values()))
    assert (plain_threads, plain_environment) == ({3}, [None] * len(names))
    assert frozen > 10_000 > plain_frozen  # type: ignore[has-type]


def stream(case: str) -> Iterator[Sample]:
    """Samples made in a worker."""
    for i in range(2):
        yield Sample("a", case, os.environ["MALLOC_TOP_PAD_"], "threads", "1", i, float(torch.get_num_threads()))


def test_samples_of_a_worker_come_in_order() -> None:
    pad = WORKER_ENVIRONMENT["MALLOC_TOP_PAD_"]
    expected = [Sample("a", "c", str(pad), "threads", "1", i, 1.0) for i in range(2)]
    assert list(subjects.in_worker(stream, "c")) == expected


def test_importing_the_rows_imports_neither_torch_nor_pandas_nor_hydra() -> None:
    code = "import sys; from normstudy.bench import commands, scaling, speed\n"
    code += "print([m for m in ('torch', 'pandas', 'hydra') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""Row c of the benchmark: real sweeps of a few tiny runs, measured from outside."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from normstudy.bench import overhead
from normstudy.bench.rows import Scope


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "TINY", (*overhead.TINY, "execution.workers=1"))


def test_a_sweep_is_timed_to_its_tables_and_to_its_end_and_leaves_nothing(tmp_path: Path) -> None:
    few = overhead.sweep(tmp_path, 2, 2)
    assert 0 < few.to_tables < few.whole  # the comparison comes after the tables
    assert 20_000 < few.memory <= few.peak < 4_000_000  # kB: a Python with pandas, without the workers' torch
    assert [path.name for path in tmp_path.iterdir()] == ["overhead.txt"]


def test_what_a_failed_sweep_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 2") as caught:
        overhead.sweep(tmp_path, 2, 0)
    assert "schedule.n_steps 0 is below 1" in str(caught.value)
    with pytest.raises(subprocess.CalledProcessError):
        overhead.dry_run(tmp_path, "seed=0,x")


def test_a_dry_run_takes_longer_with_more_runs_and_writes_nothing(tmp_path: Path) -> None:
    assert overhead.dry_run(tmp_path, "seed=range(0,3000)") > overhead.dry_run(tmp_path, "seed=range(0,2)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_sample_has_a_line_and_every_goal_of_the_full_row_a_sample(
    quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FEW": 2, "MANY": 24, "MOST": 4, "QUICK_RUNS": 3, "ROUNDS": 1, "QUICK_ROUNDS": 1}.items():
        monkeypatch.setattr(overhead, name, value)
    samples = list(overhead.measure(Scope(quick=quick, device="cpu", folder=tmp_path)))
    measured = {(s.row, s.case, s.metric, s.subject) for s in samples}
    wanted = {(g.row, g.case, g.metric, g.subject) for g in overhead.GOALS if g.limit is not None}
    shown = {(g.row, g.case, g.metric, g.subject) for g in overhead.GOALS}
    assert measured <= shown
    if not quick:
        assert wanted <= measured
    value = {(s.case, s.metric): s.value for s in samples}
    assert value["1,000 runs, 24 choices of groups", "planning"] > 0
    if not quick:
        assert 0 < value["1,000 runs", "to_tables"] < value["1,000 runs", "whole"]
        assert value["1,000 runs", "memory"] <= (2**20) / 22  # kB a run

"""Rows c, d and f: real commands, measured from outside."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from processes import WITHOUT_FIGURES

from normstudy.bench import commands
from normstudy.bench.generated import Size
from normstudy.bench.rows import Sample, Scope

pytestmark = pytest.mark.bench

TORCH = re.compile(r"\|\s+(torch(?:\.\S+)?)$", re.MULTILINE)  # a line of -X importtime


def names(samples: list[Sample]) -> set[tuple[str, str, str, str]]:
    """What was measured, without the rounds."""
    return {(s.row, s.case, s.subject, s.metric) for s in samples}


def lines(row: str) -> set[tuple[str, str, str, str]]:
    """The samples that the goals of a row name."""
    subjects = [(g, s) for g in commands.GOALS if g.row == row for s in (g.subject, g.opponent) if s is not None]
    return {(g.row, g.case, subject, g.metric) for g, subject in subjects}


# ---- row c --------------------------------------------------------------------------------------------


def test_row_c_measures_what_its_goals_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FEW": 2, "MANY": 24, "MOST": 4}.items():
        monkeypatch.setattr(commands, name, value)
    monkeypatch.setattr(commands, "DEFAULT", (*commands.TINY, "seed=0,1"))
    monkeypatch.setitem(commands.ROUNDS, "c", (1, 1))
    monkeypatch.setattr(commands, "NORMSTUDY", WITHOUT_FIGURES)
    timed, sweep, said, swept = commands.timed, commands.sweep, [], []

    def spied(command: Sequence[str]) -> tuple[float, str]:
        seconds, text = timed(command)
        said.append(text)
        return seconds, text

    def watched(folder: Path, runs: int) -> tuple[float, float, int, int]:
        swept.append(sweep(folder, runs))
        return swept[-1]

    monkeypatch.setattr(commands, "timed", spied)
    monkeypatch.setattr(commands, "sweep", watched)
    samples = list(commands.sweeps(Scope(False, tmp_path)))
    assert names(samples) == lines("c")
    planned = [re.search(r": (\d+) runs, 0 already finished", text) for text in said]
    assert [int(found[1]) for found in planned if found] == [2, 24, 24, 4, 2, 2]
    for to_tables, whole, memory, peak in swept:
        assert 0 < to_tables < whole  # the comparison comes after the tables
        assert 20_000 < memory <= peak < 4_000_000  # kB: a Python with pandas, without the workers' torch
    value = {(s.case, s.subject, s.metric): s.value for s in samples}
    to_tables, whole, memory = (value["1,000 runs", "normstudy", m] for m in ("to_tables", "whole", "memory"))
    assert 0 < to_tables < whole
    assert memory <= 2**20 / 22  # kB a run
    assert value[commands.ESTIMATED, commands.TAKEN, "seconds"] > 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("said", "seconds"), [("45 s", 45), ("12:30", 750), ("3:05:07", 11107)])
def test_the_estimate_of_a_dry_run(said: str, seconds: float) -> None:
    line = f"warmup: 16 runs, 0 already finished, 2 batches of 8 on 2 workers (cpu), estimated time {said}\n"
    assert commands.estimated(line) == seconds


# ---- row d --------------------------------------------------------------------------------------------


def test_row_d_measures_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None imports torch, which takes a second. The study that row d sweeps for them gets no figures here.

    The first call of each command, which only loads its files into the page cache, is left out.
    """
    timed, said, called = commands.timed, [], set()

    def spied(command: Sequence[str], code: int = 0) -> tuple[float, str]:
        words = tuple(command[len(commands.NORMSTUDY) :])
        if words[0] == "sweep":
            return timed([*WITHOUT_FIGURES, *words], code)
        if words not in called:
            called.add(words)
            return math.nan, ""
        seconds, text = timed([sys.executable, "-X", "importtime", "-m", "normstudy", *words], code)
        said.append((words, text))
        return seconds, text

    monkeypatch.setitem(commands.ROUNDS, "d", (1, 1))
    monkeypatch.setattr(commands, "timed", spied)
    samples = list(commands.starts(Scope(quick=True, folder=tmp_path)))
    assert names(samples) == lines("d")
    assert all(s.value > 0 for s in samples)
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["headline.png"]
    assert len(said) == len(commands.STARTS)
    assert [words for words, text in said if "import time:" not in text or TORCH.findall(text)] == []


def torch_modules(words: list[str], code: int) -> list[str]:
    """The modules of torch that a command imports."""
    return TORCH.findall(commands.timed([sys.executable, "-X", "importtime", "-m", "normstudy", *words], code)[1])


def test_an_import_of_torch_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that only `execution.device=cuda` asks for, deep in a sweep's plan."""
    fake = tmp_path / "torch"
    (fake / "cuda").mkdir(parents=True)
    (fake / "__init__.py").write_text("from torch import cuda\n")
    (fake / "cuda" / "__init__.py").write_text("def is_available(): return False\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    words = ["sweep", "data=synthetic", "seed=0,1", "--dry-run", f"results_dir={tmp_path}"]
    assert sorted(torch_modules([*words, "execution.device=cuda"], 2)) == ["torch", "torch.cuda"]
    assert torch_modules([*words, "execution.device=cpu"], 0) == []


def test_a_command_that_ends_otherwise_than_it_must_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)exit code 2 instead of 0: .*no such folder"):
        commands.timed([*commands.NORMSTUDY, "compare", str(tmp_path / "none"), "--by", "seed"])
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        commands.watched([sys.executable, "-c", "raise SystemExit(3)"])


# ---- row f --------------------------------------------------------------------------------------------


def test_row_f_measures_what_its_goals_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one figure in the place of all."""
    monkeypatch.setitem(commands.LOOKS, "plot", ("--only", "headline"))
    size = Size(seeds=1, n_steps=200, n_layers=2)
    samples = list(commands.large_study(Scope(quick=True, folder=tmp_path), size))
    cases = {f"{size}, {form}": f"{commands.QUICK}, {form}" for form in commands.FORMS}
    found = {(s.row, cases[s.case], s.subject, s.metric) for s in samples}
    assert found == {name for name in lines("f") if name[1] in cases.values()}
    assert len(found) == len(samples)
    assert all(s.value > 0 and s.round == 0 for s in samples)
    assert len(list(tmp_path.rglob("figures/headline.png"))) == len(commands.FORMS)


def test_only_the_large_study_has_goals() -> None:
    cases = {f"1,000 runs x 2,000 steps x 12 layers, {form}" for form in commands.FORMS}
    of_row = [g for g in commands.GOALS if g.row == "f"]
    limits = {(g.subject, g.metric, g.limit) for g in of_row if g.case in cases and g.sense == "at most"}
    readers = {(reader, "seconds", 1.0) for reader in ("pandas", "polars", "duckdb")}
    assert limits == {("plot", "seconds", 20.0), ("plot", "gigabytes", 1.5), ("compare", "seconds", 3.0)} | readers
    assert all(g.limit is None and g.sense is None for g in of_row if g.case not in cases)


def test_peak_memory_is_the_commands_own() -> None:
    """Not that of the process that starts it, and in the unit that it says."""
    held = np.ones(40_000_000)
    assert held.nbytes == 0.32e9
    assert commands.peak([sys.executable, "-c", "pass"])[1] < 0.1
    seconds, gigabytes = commands.peak([sys.executable, "-c", "import time; b'1' * 200_000_000; time.sleep(0.2)"])
    assert 0.2 < gigabytes < 0.3
    assert 0.2 < seconds < 5
    # and with what it starts
    code = "import subprocess, sys, time; b'1' * 200_000_000; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    both = commands.peak([sys.executable, "-c", code, "import time; b'1' * 200_000_000; time.sleep(0.2)"])[1]
    assert 0.4 < both < 0.6

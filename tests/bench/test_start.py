"""Row d of the benchmark: real commands, timed, and searched for imports of torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from normstudy.bench import start
from normstudy.bench.rows import Scope
from normstudy.bench.start import Start


def test_an_import_of_torch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that only `execution.device=cuda` asks for, deep in a sweep's plan."""
    fake = tmp_path / "torch"
    (fake / "cuda").mkdir(parents=True)
    (fake / "__init__.py").write_text("from torch import cuda\n")
    (fake / "cuda" / "__init__.py").write_text("def is_available(): return False\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    words = ("sweep", "data=synthetic", "seed=0,1", "execution.device={}", "--dry-run", f"results_dir={tmp_path}")

    def on(device: str, code: int) -> list[str]:
        return start.torch_modules(Start("", tuple(word.format(device) for word in words), code, 0))

    assert sorted(on("cuda", 2)) == ["torch", "torch.cuda"]
    assert on("cpu", 0) == []


def test_a_command_that_ends_otherwise_than_it_must_is_not_timed(tmp_path: Path) -> None:
    assert start.seconds(Start("", ("--version",), 0, 0)) > 0
    with pytest.raises(RuntimeError, match=r"(?s)ended with 2, not 0.*no such folder"):
        start.seconds(Start("", ("compare", str(tmp_path / "none"), "--by", "seed"), 0, 0))


def test_every_command_is_timed_and_imports_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "QUICK_ROUNDS", 1)
    monkeypatch.setattr(start, "SEEDS", 1)
    samples = list(start.measure(Scope(quick=True, device="cpu", folder=tmp_path)))
    measured = [(s.row, s.case, s.metric, s.subject) for s in samples]
    assert sorted(measured) == sorted((g.row, g.case, g.metric, g.subject) for g in start.GOALS)
    assert [s.value for s in samples if s.metric == "torch_modules"] == [0] * 7
    assert all(s.value > 0 for s in samples if s.metric == "seconds")
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["headline.png"]

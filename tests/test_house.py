"""The order of the rooms: imports go down only, what reads and draws needs no torch, and sizes stay in their limits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import house
import pytest


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    words = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and of its contracts."""
    shutil.copytree(house.PACKAGE, tmp_path / "normstudy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(house.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_no_import_goes_up_and_nothing_is_ignored(copy: Path) -> None:
    assert "ignore_imports" not in (copy / "pyproject.toml").read_text()
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("study/files.py", "from normstudy.sweep import planning", "go down only BROKEN"),
        ("training/optim.py", "def f():\n    from normstudy.study import tables", "go down only BROKEN"),
        ("study/files.py", "def f():\n    import torch", "no torch BROKEN"),
        ("attic.py", '"""A module that no layer names."""', "attic"),
    ],
    ids=["up", "sibling", "torch", "no layer"],
)
def test_a_planted_import_is_found(copy: Path, module: str, line: str, contract: str) -> None:
    with open(copy / "normstudy" / module, "a") as file:
        file.write(f"\n\n{line}\n")
    done = lint(copy)
    assert done.returncode != 0
    assert contract in done.stdout


def test_there_is_no_circle_and_nothing_is_too_large(capsys: pytest.CaptureFixture[str]) -> None:
    code = house.main()
    assert code == 0, capsys.readouterr().out


def test_a_circle_is_found() -> None:
    assert house.circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(house.circle({"a": {"b"}, "b": {"a"}})) == {"a", "b"}
    assert house.floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3

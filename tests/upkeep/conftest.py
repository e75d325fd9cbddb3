"""A trained study and two hand-made ones for the tests of `normstudy check`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checked import WINDOW, train
from handmade import handmade_config, write_handmade_run

from normstudy.study import schema
from normstudy.upkeep.compact import compact_study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "window_size", lambda n_steps, source=None: WINDOW)
        train(root)
    return root / "tiny"


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(schema, "window_size", lambda n_steps, source=None: WINDOW)
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.fixture
def handmade(tmp_path: Path) -> Path:
    """Two runs, one window each."""
    for seed in (8, 9):
        write_handmade_run(tmp_path / "handmade", handmade_config(tmp_path, seed=seed))
    return tmp_path / "handmade"


@pytest.fixture
def compacted(handmade: Path) -> Path:
    compact_study(handmade)
    return handmade

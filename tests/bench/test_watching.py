"""Row l: every loop of it is measured, with a small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from normstudy.bench import speed
from normstudy.bench.rows import Scope
from normstudy.study import tables

pytestmark = [pytest.mark.packages, pytest.mark.filterwarnings("ignore")]  # the libraries' own deprecations


def test_row_l_measures_what_its_goals_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "GPT2", {**speed.GPT2, "n_embd": 16, "n_layer": 1})
    monkeypatch.setattr(speed, "GPT2_STEPS", (2, 2))
    monkeypatch.setenv("WANDB_SILENT", "true")
    samples = list(speed.watching(Scope(quick=True, folder=tmp_path)))
    assert {one.subject for one in samples} == {goal.subject for goal in speed.GOALS if goal.row == "l"} | {speed.BARE}
    assert min(one.value for one in samples) > 0
    for study in ("every1", "every10"):
        assert list(tables.statuses(tmp_path / study).values()) == ["done"]

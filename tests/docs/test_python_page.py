"""docs/python.md's example runs as it stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pages import fenced, page

import normstudy


@pytest.mark.usefixtures("without_figures")
def test_the_page_s_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(fenced(page("docs/python.md"), "python")[0], names)
    study, folder = names["study"], Path("results/first")
    assert repr(study) == repr(normstudy.status(folder))
    assert repr(study).startswith("results/first: 6 runs, all 6 finished\n")
    pd.testing.assert_frame_equal(study.compare("placement"), normstudy.compare(folder, "placement"))
    assert len(names["finals"]) == len(normstudy.load(folder).runs) == 6
    assert names["figure"].axes

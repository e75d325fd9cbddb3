"""What the disturbed sweeps of this folder are held against."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import finish


@pytest.fixture(scope="module")
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study that the module's WORDS make when nothing happens."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    done = finish(request.module.WORDS, cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "results" / "long"

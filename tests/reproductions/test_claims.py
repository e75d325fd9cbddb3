"""The claims need four complete studies; docs/test_claims_page.py tests their numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from normstudy.config import ConfigError
from normstudy.reproductions.claims import CELLS, findings

ROOT = Path(__file__).parents[2]


def test_a_study_without_the_runs_that_are_compared_is_refused(tmp_path: Path) -> None:
    for study in CELLS:
        (tmp_path / study).symlink_to(ROOT / "results" / ("rmsnorm" if study == "depth" else study))
    told = "depth has 0 runs with placement=pre n_layers=2 warmup_steps=0, but the claims need at least 2"
    with pytest.raises(ConfigError, match=re.escape(told)):
        findings(tmp_path)


def test_a_missing_study_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "scripts" / "claims.py", tmp_path]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: \S+/warmup does not exist\. .*\n", done.stderr)

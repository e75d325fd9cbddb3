"""The claims need seven complete studies; docs/test_claims_page.py tests their numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import normstudy
from normstudy.analysis.outcomes import FAILED
from normstudy.config import ConfigError
from normstudy.reproductions.claims import CELLS, findings

ROOT = Path(__file__).parents[2]


def test_a_study_without_the_runs_that_are_compared_is_refused(tmp_path: Path) -> None:
    for study in CELLS:
        (tmp_path / study).symlink_to(ROOT / "results" / ("rmsnorm" if study == "depth" else study))
    told = "depth has 0 runs with placement=pre n_layers=2 warmup_steps=0, but the claims need at least 2"
    with pytest.raises(ConfigError, match=re.escape(told)):
        findings(tmp_path)


def test_the_seeds_that_choose_the_best_cells_do_not_measure_them() -> None:
    runs = normstudy.load(ROOT / "results" / "best", join=True).runs
    cell = ["placement", "peak_lr", "warmup_steps"]
    first = runs[runs["seed"] < 30]
    mean = (
        first.groupby(cell).filter(lambda c: not set(FAILED) & set(c["outcome"])).groupby(cell)["final_val_loss"].mean()
    )
    best = {(str(p), *mean[p].idxmin()) for p in ("pre", "post")}
    others = runs[runs["seed"] >= 30]
    assert set(others[cell].itertuples(index=False, name=None)) == best
    loss = others.pivot_table(index="seed", columns="placement", values="final_val_loss")
    (found,) = (f for f in findings(ROOT / "results") if f.study == "best")
    assert found.value == pytest.approx((loss["post"] - loss["pre"]).mean())
    assert found.seeds == len(loss) == 10


def test_a_missing_study_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "scripts" / "claims.py", tmp_path]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: \S+/warmup does not exist\. .*\n", done.stderr)

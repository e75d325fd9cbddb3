"""Every shipped study composes, has its page, and trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from normstudy.cli import main
from normstudy.study import tables

ROOT = Path(__file__).parents[2]
STUDIES = sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml"))
RUNS = {
    "smoke": 8, "quickstart": 20, "warmup": 40, "depth": 100, "peak_lr": 120, "rmsnorm": 10, "placements": 280,
    "shallow": 60, "boundary": 40, "best": 160,
}  # fmt: skip
CELLS = {"critical_lr": 36, "critical_warmup": 6}  # of the studies that are searches
SHORT = [
    "model.d_model=16", "model.n_heads=2", "data=synthetic", "data.seq_len=16", "data.batch_size=2",
    "schedule.n_steps=2", "eval.windows=4", "seed=0", "execution.device=cpu", "execution.workers=1",
]  # fmt: skip
ONE_DEPTH = {"placements": ["model.n_layers=4"]}  # at twelve layers fourteen placements take half a minute
WARMUPS = {study: ["schedule.warmup_steps=0,1"] for study in STUDIES if study != "rmsnorm"}


def test_every_study_is_known_here() -> None:
    assert sorted(RUNS | CELLS) == STUDIES


@pytest.mark.parametrize("study", STUDIES)
def test_it_plans_what_its_pages_say(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, size = ("critical", f"{CELLS[study]} cells") if study in CELLS else ("sweep", str(RUNS[study]))
    assert main.main([command, f"experiment={study}", "--dry-run"]) == 0
    said = f"{size}, " if study in CELLS else f"{size} runs, 0 already finished"
    assert f"{study}: {said}" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []
    page = (ROOT / "experiments" / f"{study}.md").read_text()
    for heading in ("**Question.**", "**Prediction", "**Command.**", "**Finding.**"):
        assert heading in page
    table = (ROOT / "experiments" / "README.md").read_text()
    assert re.search(rf"\| \[{study}\]\({study}\.md\) \| .* \| {size} \|", table)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("study", ["placements", "depth"])
def test_it_trains_a_few_steps(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a shrunk copy of the study, with every axis but the seeds; all runs end.

    The other studies use nothing beyond these two. .ci/run trains half of quickstart for 100 steps and draws its
    figures, and test_committed.py draws those of the whole studies.
    """
    monkeypatch.chdir(tmp_path)
    assert main.main(["sweep", f"experiment={study}", *SHORT, *WARMUPS.get(study, []), *ONE_DEPTH.get(study, [])]) == 0
    statuses = tables.statuses(tmp_path / "results" / study)
    depths = 2 if study in ONE_DEPTH else 1
    assert list(statuses.values()) == ["done"] * (RUNS[study] // 5 // depths)

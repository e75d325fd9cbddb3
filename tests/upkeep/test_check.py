"""`normstudy check` on sound studies, and the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checked import AGAIN, flip, lacks, lines, notes
from handmade import handmade_config, write_handmade_run
from studies import after, task_of, tiny

from normstudy.cli import main
from normstudy.config import run_id
from normstudy.study import files, locks, records, tables
from normstudy.study.whole import Expected
from normstudy.upkeep import check
from normstudy.upkeep.check import check_study
from normstudy.upkeep.compact import compact_study
from normstudy.workers import worker

RESULTS = Path(__file__).parents[2] / "results"


def contents(study: Path) -> dict[str, tuple[bytes, int]]:
    files = (p for p in study.rglob("*") if p.is_file())
    return {p.relative_to(study).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_a_trained_study_is_sound_and_left_as_it_is(study: Path) -> None:
    """3 x 3 windows of each whole run, 3 of the diverged one, 3 rows, 4 files without rows."""
    before = contents(study)
    assert check_study(study) == check.CheckResult(f"{study}: 3 runs, 28 files, sound", True)
    assert contents(study) == before


def test_compacted_and_sealed_ones_are_sound(study: Path) -> None:
    for seal in (False, True):
        compact_study(study, seal=seal)
        assert check_study(study).text.splitlines()[0] == f"{study}: 3 runs, 8 files, sound"
    assert notes(study) == []


def test_runs_beside_the_compacted_ones_are_sound(handmade: Path) -> None:
    compact_study(handmade)
    write_handmade_run(handmade, handmade_config(handmade.parent, seed=3))
    assert check_study(handmade).text == f"{handmade}: 3 runs, 12 files, sound"


def test_windows_of_their_real_size(tmp_path: Path) -> None:
    write_handmade_run(tmp_path, handmade_config(tmp_path, n_steps=2010))
    assert check_study(tmp_path).text == f"{tmp_path}: 1 run, 35 files, sound"


@pytest.mark.parametrize("study_name", ["warmup", "depth", "peak_lr", "rmsnorm", "placements"])
def test_the_committed_studies_are_sound(study_name: str) -> None:
    assert notes(RESULTS / study_name) == []


def test_unfinished_and_failed_runs_are_told_and_sound(study: Path) -> None:
    stopped = tiny(study.parent, d_model=8, seq_len=4, seed=5)
    list(worker.train_halving(task_of([stopped]), after(8)))
    crashed = tiny(study.parent, seed=6)
    records.record_failure(study, run_id(crashed, "5" * 64), crashed, "Traceback")
    logs = study / "state/logs"
    assert notes(study) == [
        "note: the study has 1 unfinished run: rerun the same sweep to resume",
        f"note: the study has 1 failed run: the tracebacks are in {logs}; rerun the same sweep to retry",
    ]
    compact_study(study)
    assert len(notes(study)) == 2


def test_who_uses_a_study_is_told_and_only_while_it_runs(handmade: Path) -> None:
    write_handmade_run(handmade, handmade_config(handmade.parent, seed=3), "running")
    with locks.hold_study(handmade, "normstudy sweep x"):
        (handmade / "state/steps-x.parquet.host-1.part").write_bytes(b"half")
        (told,) = notes(handmade)
    assert told.startswith(f"note: the study is in use by `normstudy sweep x`, pid {os.getpid()} on ")
    assert told.endswith(", so files not written yet are not reported as missing")
    assert notes(handmade) == [
        "note: the study has 1 unfinished run: rerun the same sweep to resume",
        "note: a killed command left 1 file state/*.part, which the next sweep removes",
    ]
    shutil.copytree(handmade / "tables", handmade / files.OLD_TABLES)  # as if killed after the swap
    left = "1 file state/*.part and state/tables.old"
    assert notes(handmade)[1] == f"note: a killed command left {left}, which the next sweep removes"


def test_a_study_that_has_just_begun_is_sound(tmp_path: Path) -> None:
    (tmp_path / "tables/runs").mkdir(parents=True)
    assert check_study(tmp_path).text == f"{tmp_path}: 0 runs, 0 files, sound"
    tables.prepare(tmp_path)
    assert check_study(tmp_path).text == f"{tmp_path}: 0 runs, 4 files, sound"


def test_a_run_that_began_since_runs_was_read_is_no_finding(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = check._check_runs

    def then_another_begins(found: check.Found, names: list[str]) -> dict[str, Expected]:
        runs = real(found, names)
        write_handmade_run(study, handmade_config(study.parent), "running")
        return runs

    monkeypatch.setattr(check, "_check_runs", then_another_begins)
    assert notes(study) == []


def test_a_study_compacted_meanwhile_is_looked_at_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, times = check._check_runs, []

    def then_compacted(found: check.Found, names: list[str]) -> dict[str, Expected]:
        runs = real(found, names)
        if not times:
            compact_study(study)
        times.append(len(runs))
        return runs

    monkeypatch.setattr(check, "_check_runs", then_compacted)
    assert check_study(study).text == f"{study}: 3 runs, 8 files, sound"
    assert times == [3, 3]


def test_the_command_and_its_exit_codes(handmade: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["check", str(handmade)]) == 0
    assert capsys.readouterr() == (f"{handmade}: 2 runs, 12 files, sound\n", "")
    (handmade / "tables/steps/x").touch()
    assert main.main(["check", str(handmade)]) == 1
    assert capsys.readouterr().out.splitlines()[0] == f"{handmade}: 2 runs, 12 files, 1 finding"
    assert main.main(["check", str(handmade / "tables")]) == 2
    assert "is not a study" in capsys.readouterr().err


def test_a_path_with_a_space_is_quoted(handmade: Path) -> None:
    study = handmade.rename(handmade.with_name("my study"))
    run = next(iter(tables.statuses(study)))
    flip(study / "tables/steps" / f"{run}-000.parquet", 0.0)
    (line,) = lines(study)
    assert f": rm '{study}/tables/steps/{run}-000.parquet', then " in line
    subprocess.run(line[line.index(": rm ") + 2 : line.index(", then rerun")], shell=True, check=True)
    assert lines(study) == [f"{run}: {lacks('steps', 60, 60, 0)}: {AGAIN}"]


def test_it_needs_no_torch() -> None:
    code = "import sys; from normstudy.upkeep import check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

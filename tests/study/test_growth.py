"""A study that an older version of normstudy wrote, with fewer columns, and that a newer version goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from handmade import handmade_config, handmade_study, write_handmade_run
from studies import REQUEST, after, reproduced_runs, series_bytes, task_of, tiny
from test_store import assert_readers_agree

from normstudy.config import ConfigError
from normstudy.study import files, schema, tables
from normstudy.sweep import execute, planning
from normstudy.upkeep.check import check_study
from normstudy.upkeep.compact import compact_study
from normstudy.workers import worker

LATER = {"runs": ["late_val_loss", "placement_sha256", "first_block"], "residual": ["rms"]}


def make_older(study: Path) -> None:
    """Take columns away from all files of two tables."""
    for table, columns in LATER.items():
        for path in (study / "tables" / table).iterdir():
            pq.write_table(pq.ParquetFile(path).read().drop_columns(columns), path)


def columns_of(study: Path) -> set[tuple[str, ...]]:
    return {tuple(pq.read_schema(path).names) for table in LATER for path in (study / "tables" / table).iterdir()}


@pytest.mark.parametrize("compacted", [False, True])
def test_the_columns_are_added_and_nothing_else_changes(tmp_path: Path, compacted: bool) -> None:
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,))
    if compacted:
        compact_study(study)
    make_older(study)
    before = {table: tables.read(study, table) for table in schema.TABLES}
    tables.prepare(study)
    assert columns_of(study) == {tuple(schema.SCHEMAS[table].names) for table in LATER}
    for table, frame in before.items():
        assert tables.read(study, table).equals(frame)
    write_handmade_run(study, handmade_config(tmp_path, n_layers=6, seed=9))
    assert_readers_agree(study)
    assert check_study(study).sound
    assert set(tables.read(study, "runs")["first_block"]) == {"same"}  # what the older version implied
    again = {path: path.stat().st_mtime_ns for path in study.rglob("*.parquet")}
    tables.prepare(study)
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*.parquet")} == again


def test_a_killed_addition_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,))
    make_older(study)
    monkeypatch.setattr(tables, "FILES_AT_ONCE", 4)
    place_all, calls = files.place_all, []

    def killed(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        place_all(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files, "place_all", killed)
        with pytest.raises(KeyboardInterrupt):
            tables.prepare(study)
    assert len(columns_of(study)) > len(LATER)
    tables.prepare(study)
    assert columns_of(study) == {tuple(schema.SCHEMAS[table].names) for table in LATER}


def test_the_next_sweep_goes_on_where_no_run_is_finished(tmp_path: Path) -> None:
    """From its checkpoints, to the same bits."""
    for name in ("whole", "older"):
        configs = [tiny(tmp_path / name, seed=seed) for seed in (0, 1)]
        if name == "older":
            list(worker.train_halving(task_of(configs), after(7)))
            study = tmp_path / "older" / "tiny"
            assert set(tables.statuses(study).values()) == {"running"}
            for path in (study / "tables" / "runs").iterdir():
                pq.write_table(pq.ParquetFile(path).read().drop_columns(["late_val_loss"]), path)
        execute.execute(planning.plan(configs), REQUEST)
    whole = tmp_path / "whole" / "tiny"
    assert series_bytes(whole) == series_bytes(study)
    assert reproduced_runs(whole).equals(reproduced_runs(study))


def test_a_command_that_shares_the_study_changes_no_file(tmp_path: Path) -> None:
    """Another one may be writing a row at the same moment."""
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,))
    make_older(study)
    before = {path: path.read_bytes() for path in study.rglob("*.parquet")}
    with pytest.raises(ConfigError, match=r"older version of normstudy and lacks .*run its sweep"):
        tables.prepare(study, shared=True)
    assert {path: path.read_bytes() for path in study.rglob("*.parquet")} == before


def test_columns_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,))
    path = study / "tables" / "runs" / schema.SCHEMA_FILE
    content = pq.ParquetFile(path).read()
    pq.write_table(content.append_column("d_state", content["seed"]), path)
    with pytest.raises(ConfigError, match=r"runs has columns unknown to normstudy .*d_state.*Update normstudy"):
        tables.prepare(study)

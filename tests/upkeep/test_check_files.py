"""`normstudy check` on damaged files of tables: it reports each one, and the remedy that it names repairs the study."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import again, flip, ids, lines, notes, train
from studies import assert_same_tables

from normstudy.config import ConfigError
from normstudy.study import files, schema
from normstudy.study import tables as store
from normstudy.upkeep import check, compact
from normstudy.upkeep.check import check_study
from normstudy.upkeep.compact import compact_study


@pytest.mark.parametrize("table", schema.TABLES)
@pytest.mark.parametrize("damage", ["empty", "truncated", "first byte", "page", "footer"])
def test_a_damaged_file_is_told_and_mended_by_what_is_said(
    table: str, damage: str, study: Path, made: Path, tmp_path: Path
) -> None:
    run = ids(study)[0]
    name = f"{run}.parquet" if table == "runs" else f"{run}-001.parquet"
    path = study / "tables" / table / name
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        size, chunk = path.stat().st_size, pq.ParquetFile(path).metadata.row_group(0).column(0)
        start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
        in_page = (start + chunk.total_compressed_size - 2) / size
        flip(path, {"first byte": 0.0, "page": in_page, "footer": (size - 6) / size}[damage])
    (line,) = lines(study)
    assert line.startswith(f"{run}: tables/{table}/{name} is damaged (")
    assert line.endswith(f"): {again(study, f'{table}/{name}')}")
    if table == "modules" and damage == "page":
        mended(line, study, made)


def mended(line: str, study: Path, made: Path) -> None:
    """Follow the remedy in the line, and compare the study with the original."""
    command = line[line.index(": rm ") + 2 : line.index(", then rerun")]
    subprocess.run(command, shell=True, check=True)
    run = line.partition(":")[0]
    assert lines(study)[0].startswith(f"{run}: tables/modules lacks ")
    compact.forget(study, [run], shared=False)  # as a sweep does
    train(study.parent)
    assert check_study(study).text == f"{study}: 3 runs, 28 files, sound"
    assert_same_tables(study, made)


def test_no_flipped_bit_is_read_as_other_rows(handmade: Path) -> None:
    """Each flipped bit is reported or changes no row; the check itself never fails."""
    path = sorted((handmade / "tables/modules").glob("*-000.parquet"))[0]
    whole, good = path.read_bytes(), pq.ParquetFile(path).read()
    rng, told = np.random.default_rng(0), 0
    places = [597, 603, *rng.choice(len(whole), 60, replace=False)]  # the first two: an index beyond its dictionary
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        if check_study(handmade).sound:
            assert pq.ParquetFile(path).read().equals(good)
        else:
            told += 1
    assert told > len(places) / 2


def test_foreign_files_and_folders_are_to_be_moved_away(study: Path) -> None:
    tables, folder = study / "tables", f"{ids(study)[0]}-003.parquet"
    (tables / "steps" / "notes.txt").write_text("mine")
    (tables / "steps" / "copy.parquet").write_bytes((tables / "steps" / schema.SCHEMA_FILE).read_bytes())
    (tables / "runs" / "old").mkdir()
    shutil.copy(next((tables / "steps").glob("*-001.parquet")), tables / "runs")
    (tables / "mine").mkdir()
    (tables / "modules" / folder).mkdir()
    window = next((tables / "runs").glob("*-001.parquet")).name
    what = "does not belong to this table and can prevent other tools from reading the table: move it out of tables/"
    assert lines(study) == [
        "tables/mine: is not a table, so normstudy compact would delete it: move it out of tables/",
        *sorted(f"tables/runs/{name}: {what}" for name in (window, "old")),
        f"tables/steps/copy.parquet: {what}",
        f"tables/steps/notes.txt: {what}",
        f"tables/modules/{folder}: {what}",
    ]


def test_the_file_without_rows_is_asked_for(study: Path) -> None:
    makes = f"rerun the sweep or run normstudy compact {study}"
    for table in schema.SERIES:
        path = study / "tables" / table / schema.SCHEMA_FILE
        if table == "steps":
            path.unlink()
        elif table == "modules":
            shutil.copy(next(path.parent.glob("*-002.parquet")), path)
        else:
            path.write_bytes(path.read_bytes()[:-1])
    n = pq.ParquetFile(study / "tables/modules" / schema.SCHEMA_FILE).metadata.num_rows
    steps, modules, residual = lines(study)
    assert steps == f"tables/steps/0-schema.parquet: is missing: {makes}"
    path = study / "tables/modules/0-schema.parquet"
    assert modules == f"tables/modules/0-schema.parquet: has {n} rows instead of 0: rm {path}, then {makes}"
    assert residual.startswith("tables/residual/0-schema.parquet: is damaged (")
    for table in ("modules", "residual"):
        (study / "tables" / table / schema.SCHEMA_FILE).unlink()
    store.prepare(study)
    assert notes(study) == []


def test_a_table_that_is_gone_is_said_of_every_run(study: Path) -> None:
    shutil.rmtree(study / "tables/residual")
    missing, *of_runs = lines(study)
    assert missing.startswith("tables/residual/0-schema.parquet: is missing: ")
    assert [line.split(":")[0] for line in of_runs] == sorted(ids(study))


def test_an_older_schema_is_sound(study: Path) -> None:
    for path in (study / "tables/runs").iterdir():
        pq.write_table(pq.ParquetFile(path).read().drop_columns(["first_block", "git_commit"]), path)
    assert notes(study) == []
    path = study / "tables/runs" / schema.SCHEMA_FILE
    path.unlink()
    store.prepare(study)
    assert notes(study) == []
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["git_commit"]), path)
    what = f"tables/runs: not all files have the same columns: rerun the sweep or run normstudy compact {study}"
    assert lines(study) == [what]


def test_another_type_is_for_compact(study: Path) -> None:
    for path in (study / "tables/runs").iterdir():
        content = pq.ParquetFile(path).read()
        pq.write_table(content.set_column(2, "study", content["study"].cast(pa.large_string())), path)
    assert lines(study) == [f"tables/runs: another version of normstudy wrote 4 files: run normstudy compact {study}"]
    compact_study(study)
    assert notes(study) == []


def test_a_newer_schema_asks_for_an_update(study: Path) -> None:
    one, two, _ = ids(study)
    for table, name in (("runs", f"{one}.parquet"), ("steps", f"{two}-000.parquet")):
        path = study / "tables" / table / name
        content = pq.ParquetFile(path).read()
        pq.write_table(content.append_column("d_state", pa.nulls(content.num_rows, pa.int64())), path)
    what = "another version of normstudy wrote 1 file: update normstudy to read the columns d_state"
    assert lines(study) == [f"tables/runs: {what}", f"tables/steps: {what}"]


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a study"):
        check_study(tmp_path)


def test_a_compaction_ended_between_its_renames(study: Path) -> None:
    os.rename(study / "tables", study / files.OLD_TABLES)
    told = f"{study} has an interrupted compaction: to complete it, run normstudy compact {study}"
    assert check_study(study) == check.CheckResult(f"{study}: 1 finding\n{told}", False)
    compact_study(study)
    assert notes(study) == []

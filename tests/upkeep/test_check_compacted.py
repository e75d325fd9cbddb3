"""`normstudy check` on compacted files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from checked import RESTORE, first_rows_again, flip, lacks, lines, notes, remove, restore, rewrite
from handmade import handmade_config, write_handmade_run

from normstudy.study import schema, tables
from normstudy.upkeep.compact import compact_study


@pytest.mark.parametrize("table", schema.TABLES)
@pytest.mark.parametrize("damage", ["truncated", "first byte", "page"])
def test_a_damaged_compacted_file_is_one_finding(table: str, damage: str, compacted: Path) -> None:
    """The file is one finding, with no further finding for each of its runs."""
    path = compacted / "tables" / table / schema.COMPACTED_FILE
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        flip(path, 0.0 if damage == "first byte" else 0.25)
    (line,) = lines(compacted)
    assert line.startswith(f"tables/{table}/1-compacted.parquet: is damaged (")
    assert line.endswith(f"): {restore(compacted)}")


def test_a_compacted_file_that_is_gone(compacted: Path) -> None:
    (compacted / "tables/steps" / schema.COMPACTED_FILE).unlink()
    what = f"{lacks('steps', 60, 60, 0)}: {RESTORE}"
    assert lines(compacted) == sorted(f"{run}: {what}" for run in tables.statuses(compacted))


def test_runs_that_are_there_twice(handmade: Path) -> None:
    copy = Path(shutil.copytree(handmade, handmade.with_name("copy")))
    compact_study(handmade)
    one, two = tables.statuses(copy)
    shutil.copytree(copy / "tables", handmade / "tables", dirs_exist_ok=True)
    (handmade / "tables/runs" / f"{two}.parquet").unlink()
    row = f"tables/runs has the run's row in 1-compacted.parquet and also in {one}.parquet (and 3 more)"
    windows = "tables/steps has the run's rows in 1-compacted.parquet and also in 1 window (and 2 more)"
    first = remove(handmade, f"runs/{one}.parquet", *(f"{table}/{one}-000.parquet" for table in schema.SERIES))
    second = remove(handmade, *(f"{table}/{two}-000.parquet" for table in schema.SERIES))
    assert lines(handmade) == sorted([f"{one}: {row}: {first}", f"{two}: {windows}: {second}"])
    for run in (first, second):
        subprocess.run(run, shell=True, check=True)
    assert notes(handmade) == []


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("runs", first_rows_again, "tables/runs has two rows of this run"),
        ("runs", lambda t: t.slice(1), "tables/steps/1-compacted.parquet has rows of this run, but "
         "tables/runs lacks the run's row (and 2 more)"),
        ("steps", lambda t: pa.concat_tables([t.slice(0, 2), t]), "tables/steps/1-compacted.parquet has "
         "2 duplicate rows of this run"),
        ("steps", lambda t: t.slice(2), lacks("steps", 2, 60, 0)),
        ("modules", lambda t: t.slice(2), "tables/modules has 14 of 16 rows at step 0"),
        ("steps", lambda t: t.slice(60), lacks("steps", 60, 60, 0)),
        ("residual", lambda t: t.slice(1), "tables/residual has 2 of 3 rows at step 0"),
    ],
)  # fmt: skip
def test_rows_of_compacted_files(
    table: str, change: Callable[[pa.Table], pa.Table], what: str, compacted: Path
) -> None:
    one, two = tables.statuses(compacted)
    rewrite(compacted / "tables" / table / schema.COMPACTED_FILE, change)
    runs = (one, two) if change is first_rows_again else (one,)
    do = RESTORE if " at step " in what or " lacks " in what.partition(", but ")[0] else restore(compacted)
    assert lines(compacted) == [f"{run}: {what}: {do}" for run in runs]


def test_layers_that_lack_everywhere(compacted: Path) -> None:
    rewrite(compacted / "tables/residual" / schema.COMPACTED_FILE, lambda t: t.filter(pc.less(t["layer"], 2)))
    what = f"tables/residual has 2 of 3 rows at step 0: {RESTORE}"
    assert lines(compacted) == [f"{run}: {what}" for run in tables.statuses(compacted)]


def test_without_runs_nothing_is_said_of_the_rows_of_others(compacted: Path) -> None:
    run = write_handmade_run(compacted, handmade_config(compacted.parent, seed=3))
    (compacted / "tables/runs" / f"{run}.parquet").unlink()
    assert len(lines(compacted)) == 1
    path = compacted / "tables/runs" / schema.COMPACTED_FILE
    content = pq.ParquetFile(path).read()
    pq.write_table(content.append_column("d_state", pa.nulls(content.num_rows, pa.int64())), path)
    (line,) = lines(compacted)
    assert line.startswith("tables/runs: another version of normstudy wrote 1 file: ")
    path.write_bytes(path.read_bytes()[:-1])
    (line,) = lines(compacted)
    assert line.startswith("tables/runs/1-compacted.parquet: is damaged (")


def test_a_compacted_file_must_have_each_run_in_one_piece(compacted: Path) -> None:
    one, _ = tables.statuses(compacted)
    rewrite(compacted / "tables/steps" / schema.COMPACTED_FILE, lambda t: pa.concat_tables([t.slice(5), t.slice(0, 5)]))
    told = [line for line in lines(compacted) if line.startswith("tables/")]
    where = "tables/steps/1-compacted.parquet"
    assert told == [f"{where}: has rows of other runs between the rows of {one}: {restore(compacted)}"]


@pytest.mark.parametrize("rows", [7, 60, 100])
def test_runs_may_go_over_row_groups(rows: int, compacted: Path) -> None:
    for table in schema.SERIES:
        path = compacted / "tables" / table / schema.COMPACTED_FILE
        pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=rows)
        assert pq.ParquetFile(path).num_row_groups > 1
    assert notes(compacted) == []

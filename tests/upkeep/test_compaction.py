"""Compaction and seal change no rows, give the same bytes twice, and lose nothing when killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tomllib
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import handmade_config, handmade_study, write_handmade_run

import normstudy
from normstudy.config import ConfigError
from normstudy.study import files, locks, parquet
from normstudy.study import tables as store
from normstudy.study.schema import COMPACTED_FILE, SCHEMA_FILE, SCHEMAS, SEALED, SERIES, SORT, TABLES
from normstudy.upkeep.compact import compact_study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve runs, of which one diverged, one is stuck and one failed; the tests get copies."""
    return handmade_study(tmp_path_factory.mktemp("made"), n_layers=(2,), peak_lrs=(3e-3,))


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "handmade"))


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """Four runs, all done."""
    return handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,), seeds=(0,))


def frames(study: Path) -> dict[str, pd.DataFrame]:
    return {table: store.read(study, table) for table in TABLES}


def contents(study: Path) -> dict[str, bytes]:
    return {p.relative_to(study).as_posix(): p.read_bytes() for p in sorted(study.rglob("*")) if p.is_file()}


def tables(study: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(study).items() if name.startswith("tables/")}


def assert_same(one: dict[str, pd.DataFrame], two: dict[str, pd.DataFrame]) -> None:
    for table in TABLES:
        pd.testing.assert_frame_equal(one[table], two[table], check_exact=True)


def by_readers(study: Path, table: str) -> list[pa.Table]:
    """A table read by pandas, polars and DuckDB, sorted, with names as text."""
    folder = study / "tables" / table
    order = ", ".join(SORT[table])
    read = [
        pd.read_parquet(folder),
        pl.read_parquet(folder).to_pandas(),
        duckdb.sql(f"from '{folder}/*.parquet' order by {order}").to_arrow_table().to_pandas(),
    ]
    out = []
    for frame in read:
        for name in {"run_id", "module"} & set(frame):
            frame[name] = frame[name].astype(object).astype(str)
        out.append(frame.sort_values(SORT[table], ignore_index=True))
    return out


def test_reading_gives_the_same_frames(study: Path) -> None:
    before = frames(study)
    seen = {table: by_readers(study, table) for table in TABLES}
    compact_study(study)
    assert_same(before, frames(study))
    for table in TABLES:
        for old, new in zip(seen[table], by_readers(study, table), strict=True):
            pd.testing.assert_frame_equal(old, new, check_exact=True)


def test_one_file_per_table_and_the_unfinished_ones_beside_it(study: Path) -> None:
    running = write_handmade_run(study, handmade_config(study.parent, seed=9), "running")
    before = tables(study)
    failed = next(run for run, status in store.statuses(study).items() if status == "failed")
    told = compact_study(study)
    after = tables(study)
    kept = {f"tables/runs/{run}.parquet" for run in (running, failed)}
    kept |= {f"tables/{table}/{run}-000.parquet" for table in SERIES for run in (running, failed)}
    own = {f"tables/{t}/{name}" for t in TABLES for name in (SCHEMA_FILE, COMPACTED_FILE)}
    assert set(after) == kept | own
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert "11 finished runs" in told
    assert "the files of 2 unfinished or failed runs stay separate" in told
    assert "\n" not in told


def test_the_compacted_file_is_sorted_and_of_the_same_schema(study: Path) -> None:
    compact_study(study)
    for table in TABLES:
        content = pq.ParquetFile(study / "tables" / table / COMPACTED_FILE).read()
        assert content.schema.equals(SCHEMAS[table])
        frame = content.to_pandas()
        for name in {"run_id", "module"} & set(frame):
            frame[name] = frame[name].astype(object).astype(str)
        pd.testing.assert_frame_equal(frame, frame.sort_values(SORT[table], ignore_index=True))


def test_it_saves_space(study: Path) -> None:
    before = sum(map(len, tables(study).values()))
    compact_study(study)
    assert sum(map(len, tables(study).values())) < before / 2


def test_twice_gives_the_same_bytes(study: Path) -> None:
    compact_study(study)
    before = tables(study)
    compact_study(study)
    assert tables(study) == before


def test_the_order_in_which_runs_came_does_not_matter(tmp_path: Path) -> None:
    configs = [handmade_config(tmp_path, seed=s) for s in (0, 1, 2)]
    for config in configs:
        write_handmade_run(tmp_path / "one", config)
    write_handmade_run(tmp_path / "two", configs[2])
    compact_study(tmp_path / "two")
    for config in reversed(configs[:2]):
        write_handmade_run(tmp_path / "two", config)
    for place in ("one", "two"):
        compact_study(tmp_path / place)
    assert tables(tmp_path / "one") == tables(tmp_path / "two")


def test_later_runs_join_at_the_next_compaction(study: Path) -> None:
    compact_study(study)
    late = write_handmade_run(study, handmade_config(study.parent, seed=9))
    before = frames(study)
    assert "12 finished runs" in compact_study(study)
    assert_same(before, frames(study))
    assert late in set(pq.ParquetFile(study / "tables/runs" / COMPACTED_FILE).read()["run_id"].to_pylist())


def test_seal(complete: Path) -> None:
    before = frames(complete)
    told = compact_study(complete, seal=True)
    assert "sealed" in told
    assert_same(before, frames(complete))
    assert not (complete / "state").exists()
    seal = json.loads((complete / SEALED).read_text())
    assert seal == {
        "normstudy": normstudy.__version__,
        "runs": 4,
        "sha256": {
            name: hashlib.sha256(data).hexdigest()
            for name, data in tables(complete).items()
            if name.endswith(COMPACTED_FILE)
        },
    }
    assert len(seal["sha256"]) == 4


def test_a_sealed_study_stays_sealed_and_the_same(complete: Path) -> None:
    compact_study(complete, seal=True)
    before = contents(complete)
    for seal in (True, False):
        compact_study(complete, seal=seal)
        assert contents(complete) == before
        assert not (complete / "state").exists()


@pytest.mark.parametrize(
    ("fates", "words"),
    [(["running"], ["1 run unfinished, 0 failed"]), (["failed", "running"], ["1 run unfinished, 1 failed"])],
)
def test_no_seal_on_unfinished_or_failed_runs(complete: Path, fates: list[str], words: list[str]) -> None:
    for i, fate in enumerate(fates):
        write_handmade_run(complete, handmade_config(complete.parent, seed=5 + i), fate)
    before = tables(complete)
    with pytest.raises(ConfigError) as e:
        compact_study(complete, seal=True)
    assert all(word in str(e.value) for word in words)
    assert tables(complete) == before
    assert not (complete / SEALED).exists()


def test_bad_requests_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place, words in (("folder", "is not a study"), ("nowhere", "does not exist")):
        with pytest.raises(ConfigError, match=words):
            compact_study(tmp_path / place)
    assert [p.name for p in tmp_path.rglob("*")] == ["folder"]
    study = tmp_path / "s"
    write_handmade_run(study, handmade_config(tmp_path), "running")
    before = tables(study)
    with pytest.raises(ConfigError, match="no finished run"):
        compact_study(study)
    assert tables(study) == before


def test_a_study_in_use_is_left(study: Path) -> None:
    before = tables(study)
    with (
        locks.hold_study(study, "normstudy sweep experiment=warmup"),
        pytest.raises(ConfigError, match="normstudy sweep experiment=warmup"),
    ):
        compact_study(study)
    assert tables(study) == before


def test_an_older_schema_is_brought_up_to_date(study: Path) -> None:
    before = frames(study)
    folder = study / "tables" / "runs"
    for path in folder.iterdir():
        older = pq.ParquetFile(path).read().drop_columns(["source_entropy", "git_commit"])
        pq.write_table(older, path, store_schema=False)
    compact_study(study)
    before["runs"]["git_commit"] = pd.Series([None] * 12, dtype=before["runs"]["git_commit"].dtype)
    assert_same(before, frames(study))
    for path in folder.iterdir():  # also the files of unfinished runs
        assert pq.ParquetFile(path).schema_arrow.equals(SCHEMAS["runs"])


def test_tables_of_a_newer_version_are_left(study: Path) -> None:
    path = next(p for p in (study / "tables" / "runs").iterdir() if p.name != SCHEMA_FILE)
    content = pq.ParquetFile(path).read()
    pq.write_table(content.append_column("d_state", pa.array([1])), path, store_schema=False)
    before = tables(study)
    with pytest.raises(ConfigError, match="d_state"):
        compact_study(study)
    assert tables(study) == before
    # the leftovers of the failed compaction do not hinder the next one
    pq.write_table(content, path, store_schema=False)
    assert "11 finished runs" in compact_study(study)


def test_conform_leaves_a_table_of_this_schema() -> None:
    for table, schema in SCHEMAS.items():
        assert parquet.conform(table, schema.empty_table()).schema.equals(schema)


@pytest.mark.parametrize("point", ["new tables in part", "tables moved away", "tables swapped"])
def test_a_killed_compaction_loses_nothing(study: Path, point: str) -> None:
    before = frames(study)
    copy = study.parent / "copy"
    shutil.copytree(study, copy)
    compact_study(copy)
    whole = tables(copy)
    if point == "new tables in part":
        (study / files.NEW_TABLES / "runs").mkdir(parents=True)
        shutil.copy(copy / "tables/runs" / COMPACTED_FILE, study / files.NEW_TABLES / "runs")
    if point in ("tables moved away", "tables swapped"):
        os.rename(study / "tables", study / files.OLD_TABLES)
        os.rename(copy / "tables", study / files.NEW_TABLES)
    if point == "tables swapped":
        os.rename(study / files.NEW_TABLES, study / "tables")
    with locks.hold_study(study, "normstudy sweep"):  # as any next command does
        assert_same(before, frames(study))
        assert [p.name for p in (study / "state").iterdir()] == ["lock"]
    compact_study(study)
    assert tables(study) == whole


@pytest.fixture
def between(study: Path) -> Path:
    """The study after a kill between the two renames."""
    (study / files.NEW_TABLES).parent.mkdir(exist_ok=True)
    shutil.copytree(study / "tables", study / files.NEW_TABLES)
    os.rename(study / "tables", study / files.OLD_TABLES)
    return study


def test_compacting_goes_on_after_a_kill_between_the_renames(made: Path, between: Path) -> None:
    compact_study(between)
    assert_same(frames(made), frames(between))


def test_between_the_renames_nobody_takes_the_study_for_an_empty_one(between: Path) -> None:
    for ask in (store.statuses, store.check_is_study, normstudy.load):
        with pytest.raises(ConfigError, match="an interrupted compaction"):
            ask(between)
    with pytest.raises(ConfigError, match="an interrupted compaction"), locks.hold_study(between, "run", shared=True):
        pass
    assert (between / files.OLD_TABLES).is_dir()


def test_rowless_files_made_between_the_renames_hide_nothing(made: Path, between: Path) -> None:
    store.prepare(between)
    with locks.hold_study(between, "normstudy sweep"):
        assert_same(frames(made), frames(between))


def test_runs_written_between_the_renames_stop_everything(between: Path) -> None:
    write_handmade_run(between, handmade_config(between.parent, seed=9))
    before = contents(between)
    with pytest.raises(ConfigError, match="keep one of these"), locks.hold_study(between, "normstudy sweep"):
        pass
    assert {k: v for k, v in contents(between).items() if k != locks.LOCK} == before


def test_old_tables_alone_come_back(study: Path) -> None:
    before = tables(study)
    os.rename(study / "tables", study / files.OLD_TABLES)
    with locks.hold_study(study, "normstudy sweep"):
        assert tables(study) == before


def test_the_version_is_the_one_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert normstudy.__version__ == project["version"]

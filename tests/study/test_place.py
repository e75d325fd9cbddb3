"""Files written in a group have the same bytes as files written singly; none is moved before all are durable."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from handmade import handmade_config, handmade_rows

from normstudy.config import RunConfig
from normstudy.study import files, schema
from normstudy.study import tables as store

RUN = "run-000000000{}"  # run_ids
RUNS = 5


def files_of(study_dir: Path) -> dict[str, bytes]:
    """relative path -> bytes of every file of the tables."""
    tables = study_dir / "tables"
    return {str(p.relative_to(tables)): p.read_bytes() for p in sorted(tables.rglob("*.parquet"))}


def rows_of(config: RunConfig) -> list[dict[str, object]]:
    """Rows that differ in columns of every type; one row has a null."""
    return [
        {
            **schema.config_columns(config), "run_id": RUN.format(i), "seed": i,
            "status": "done" if i % 2 else "running",
            "peak_lr": 1e-3 / (i + 1), "tied": i % 2 == 0, "final_val_loss": None if i == 3 else float(i),
            "started_at": store.now(),
        }
        for i in range(RUNS)
    ]  # fmt: skip


def test_a_group_gives_the_bytes_of_one_by_one(tmp_path: Path) -> None:
    config = handmade_config(tmp_path)
    series = handmade_rows(config)[0]
    one, group = tmp_path / "one", tmp_path / "group"
    rows = rows_of(config)
    for study_dir in (one, group):
        store.prepare(study_dir)
    for i, row in enumerate(rows):
        store.write_windows(one, [(RUN.format(i), 0, series)])
        store.write_runs(one, [row])
    store.write_windows(group, [(RUN.format(i), 0, series) for i in range(RUNS)])
    store.write_runs(group, rows)
    assert len(files_of(one)) == 4 + 4 * RUNS
    assert files_of(group) == files_of(one)
    assert list((group / "state").iterdir()) == []


def test_a_group_leaves_windows_and_rows_that_are_there(tmp_path: Path) -> None:
    config = handmade_config(tmp_path)
    series = handmade_rows(config)[0]
    store.prepare(tmp_path)
    store.write_windows(tmp_path, [(RUN.format(1), 0, series)])
    store.write_runs(tmp_path, [{**schema.config_columns(config), "run_id": RUN.format(1), "status": "done"}])
    before = {p: p.stat().st_ino for p in (tmp_path / "tables").rglob(f"{RUN.format(1)}*")}
    store.write_windows(tmp_path, [(RUN.format(0), 0, series), (RUN.format(1), 0, series)])
    store.write_runs(tmp_path, [row | {"status": "running"} for row in rows_of(config)])
    assert {p: p.stat().st_ino for p in before} == before
    assert store.statuses(tmp_path) == {RUN.format(i): "done" if i == 1 else "running" for i in range(RUNS)}


def test_an_unknown_column_in_a_group_writes_none_of_it(tmp_path: Path) -> None:
    store.prepare(tmp_path)
    rows = rows_of(handmade_config(tmp_path))
    rows[-1]["perplexity"] = 1.0
    with pytest.raises(KeyError, match="perplexity"):
        store.write_runs(tmp_path, rows)
    assert store.statuses(tmp_path) == {}


def test_nothing_is_moved_before_all_is_written(tmp_path: Path) -> None:
    def breaks() -> Iterator[tuple[str, bytes]]:
        yield "tables/runs/a.parquet", b"a"
        yield "tables/steps/b.parquet", b"b"
        raise OSError(28, "No space left on device")

    store.prepare(tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        files.place_all(tmp_path, breaks())
    assert files_of(tmp_path) == before


def test_every_file_is_durable_before_any_is_moved_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record the real calls of fsync and replace, in order."""
    store.prepare(tmp_path)
    calls: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(fd: int) -> None:
        fsync(fd)
        found = os.fstat(fd)
        calls.append(("folder" if stat.S_ISDIR(found.st_mode) else "file", found.st_ino))

    def seen_replace(source: Path, target: Path) -> None:
        calls.append(("move", source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    names = [f"tables/{table}/run{i}.parquet" for i in range(RUNS) for table in schema.SERIES]
    files.place_all(tmp_path, [(name, name.encode()) for name in names])
    kinds = [kind for kind, _ in calls]
    assert kinds == ["file"] * len(names) + ["move"] * len(names) + ["folder"] * 3
    assert {i for kind, i in calls if kind == "file"} == {i for kind, i in calls if kind == "move"}
    assert {i for kind, i in calls if kind == "folder"} == {
        (tmp_path / "tables" / table).stat().st_ino for table in schema.SERIES
    }
    assert all((tmp_path / name).read_bytes() == name.encode() for name in names)


@pytest.mark.parametrize("what", [2, 3])
def test_a_failed_fsync_of_one_file_moves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: int) -> None:
    store.prepare(tmp_path)
    before = files_of(tmp_path)
    fsync = os.fsync

    def failing(fd: int) -> None:
        if os.fstat(fd).st_size == what:
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        files.place_all(tmp_path, [(f"tables/runs/{i}.parquet", b"x" * i) for i in range(1, 4)])
    assert files_of(tmp_path) == before


def test_parts_of_killed_commands_are_removed_from_an_out_folder(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    host, dead = os.uname().nodename, 2**22 + 1  # a larger process id than Linux has
    for name in (f"tables-a.parquet.{host}-{dead}.part", f"tables-a.parquet.{host}-{os.getppid()}.part", "mine.part"):
        (tmp_path / "state" / name).touch()
    files.place_output(tmp_path, "tables/a.parquet", b"x")
    assert {path.name for path in (tmp_path / "state").iterdir()} == {
        f"tables-a.parquet.{host}-{os.getppid()}.part", "mine.part",
    }  # fmt: skip
    (tmp_path / "state" / "mine.part").unlink()
    (tmp_path / "state" / f"tables-a.parquet.{host}-{os.getppid()}.part").unlink()
    files.place_output(tmp_path, "tables/a.parquet", b"y")
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]


def test_threads_may_place_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    def place(data: bytes) -> None:
        for _ in range(50):
            files.place(tmp_path, "tables/runs/one", data)

    (tmp_path / "tables/runs").mkdir(parents=True)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(place, [b"a", b"bb", b"ccc", b"dddd"]))
    assert (tmp_path / "tables/runs/one").read_bytes() in (b"a", b"bb", b"ccc", b"dddd")
    assert list((tmp_path / "state").iterdir()) == []

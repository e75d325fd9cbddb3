"""`normstudy check` on checkpoints, and on the seal."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from checked import flip, lines, notes, rewrite, set_column, swap
from handmade import handmade_config, write_handmade_run
from studies import after, never, task_of, tiny

from normstudy.errors import ConfigError
from normstudy.study import checkpoints, records, schema
from normstudy.upkeep import status
from normstudy.upkeep.compact import compact_study
from normstudy.workers import worker


def test_damaged_checkpoints(tmp_path: Path) -> None:
    runs = [tiny(tmp_path, seed=s) for s in range(5)]
    list(worker.train_halving(task_of(runs), after(6)))
    study = tmp_path / "tiny"
    paths = [next((study / "state/checkpoints").glob(f"*-s{s}-*")) for s in range(5)]
    unfinished = "note: the study has 5 unfinished runs: rerun the same sweep to resume"
    assert notes(study) == [unfinished]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    flip(paths[2], 0.5)
    flip(paths[3], 0.0)
    paths[4].write_bytes(paths[4].read_bytes() + b"x")
    whats = ["is damaged, or was written by another version of normstudy", *["is damaged (wrong checksum)"] * 2]
    do = "the next sweep moves the file to state/set_aside and restarts the run from step 0"
    expected = [f"state/checkpoints/{p.name}: {w}: {do}" for p, w in zip(paths, [*whats, *whats[:2]], strict=True)]
    assert lines(study) == [*expected, unfinished]
    list(worker.train_halving(task_of(runs), after(2)))  # follows the remedy
    what = "contains 5 unusable checkpoints, which no command needs: inspect or delete them"
    aside = f"note: {study}/state/set_aside {what}"
    assert notes(study) == [unfinished, aside]
    swap(paths[0], paths[1])
    assert lines(study)[:2] == [
        f"state/checkpoints/{a.name}: is the checkpoint of another run, {b.name}: {do}"
        for a, b in (paths[:2], paths[1::-1])
    ]


def test_checkpoints_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(worker.train_halving(task_of([tiny(tmp_path)]), after(6)))
    (path,) = (tmp_path / "tiny/state/checkpoints").iterdir()
    monkeypatch.setattr(checkpoints, "BLOCK", path.stat().st_size // 3)
    assert len(notes(tmp_path / "tiny")) == 1
    flip(path, 0.9)
    assert len(lines(tmp_path / "tiny")) == 2


@pytest.fixture
def sealed(compacted: Path) -> Path:
    compact_study(compacted, seal=True)
    return compacted


def reseal(study: Path) -> str:
    again = f"rm {study}/SEALED && normstudy compact {study} --seal"
    return f"restore the file from a copy, or seal the study again with {again}"


def test_a_broken_seal(sealed: Path) -> None:
    rewrite(sealed / "tables/steps" / schema.COMPACTED_FILE, set_column("grad_norm", 1.0))
    what = "has changed since the study was sealed"
    assert lines(sealed) == [f"tables/steps/1-compacted.parquet: {what}: {reseal(sealed)}"]
    (sealed / schema.SEALED).unlink()
    compact_study(sealed, seal=True)
    assert notes(sealed) == []


@pytest.mark.parametrize("text", [
    "", "{", "[]", '{"runs": 2}', '{"runs": "x", "sha256": {}}', '{"runs": 1e999, "sha256": {}}', "[" * 100_000, "\xff",
])  # fmt: skip
def test_a_damaged_seal(text: str, sealed: Path) -> None:
    (sealed / schema.SEALED).write_text(text)
    assert lines(sealed) == [f"SEALED: is damaged: {reseal(sealed)}"]


def test_a_seal_of_other_runs(sealed: Path) -> None:
    seal = json.loads((sealed / schema.SEALED).read_text())
    (sealed / schema.SEALED).write_text(json.dumps(seal | {"runs": 3}))
    assert lines(sealed) == [f"SEALED: records 3 runs, but the tables have 2: {reseal(sealed)}"]


def test_a_sealed_file_that_is_damaged_too(sealed: Path) -> None:
    path = sealed / "tables/runs" / schema.COMPACTED_FILE
    path.write_bytes(path.read_bytes()[:-1])
    damaged, seal = lines(sealed)
    assert damaged.startswith("tables/runs/1-compacted.parquet: is damaged (")
    assert seal.startswith("tables/runs/1-compacted.parquet: has changed since the study was sealed: ")


def test_a_sealed_file_that_is_gone(sealed: Path) -> None:
    (sealed / "tables/residual" / schema.COMPACTED_FILE).unlink()
    what = "is missing, although the study is sealed: restore the file from a copy"
    assert lines(sealed)[0] == f"tables/residual/1-compacted.parquet: {what}"


def test_further_files_in_a_sealed_study(sealed: Path) -> None:
    write_handmade_run(sealed, handmade_config(sealed.parent, seed=3))
    what = "the study is sealed, but has uncompacted files of 1 run"
    do = f"move these files away, or add them with normstudy compact {sealed}"
    assert lines(sealed) == [f"SEALED: {what}: {do}"]
    compact_study(sealed)
    assert notes(sealed) == []


@pytest.mark.parametrize("what", ["empty", "cut", "pipe", "other table", "bad text"])
def test_a_damaged_record_of_a_sweep(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` names it, and `status` says in one line that it cannot be read."""
    monkeypatch.setattr(status, "WAIT", 0.0)
    task = task_of([tiny(tmp_path)])
    list(worker.train_halving(task, never))
    records.record_request(task.study_dir, {"command": "sweep"}, [task.run_ids], {task.run_ids[0]: task.configs[0]})
    (path,) = records.paths_of(task.study_dir)
    assert notes(task.study_dir) == []
    data = path.read_bytes()
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "other table":
        shutil.copy(next((task.study_dir / "tables/runs").glob("*-s*.parquet")), path)
    else:
        name = task.run_ids[0].encode()
        changed = {"empty": b"", "cut": data[:-9], "bad text": data.replace(name, b"\xff" + name[1:])}
        path.write_bytes(changed[what])
    (line,) = lines(task.study_dir)
    assert line.startswith(f"sweeps/{path.name}: is damaged (")
    with pytest.raises(ConfigError, match=f"{path} cannot be read .*: run normstudy check {task.study_dir}"):
        status.look(task.study_dir)


def test_what_is_no_record_of_a_sweep(compacted: Path) -> None:
    folder = compacted / "sweeps"
    (folder / "20250101T000000.000000.parquet").mkdir(parents=True)
    for name in ("20250102T000000.000000 (1).parquet", "._20250102T000000.000000.parquet"):
        (folder / name).write_bytes(b"")
    (folder / "optimization_results.yaml").touch()  # Hydra's other sweepers may write files here
    assert [line.partition(": ")[2] for line in lines(compacted)] == [
        "is not a record of a sweep: move it out of sweeps/"
    ] * 3


def test_a_search_whose_settings_are_gone(compacted: Path) -> None:
    records.record_request(compacted, {"command": "normstudy critical seed=0"}, [], {})
    (line,) = lines(compacted)
    assert (
        line == "sweeps/search.json: is missing, so the settings of a search are lost: rerun normstudy critical seed=0"
    )

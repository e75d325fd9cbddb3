"""Every command that reads a damaged file names the file and the command that names the remedy, in one line."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import handmade_config, write_handmade_run

import normstudy
from normstudy.cli import main
from normstudy.config import ConfigError
from normstudy.study import schema, tables
from normstudy.upkeep import status
from normstudy.upkeep.compact import compact_study

READ_BY_ALL = {"runs": "final_val_loss", "steps": "train_loss"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("made") / "study"
    for seed, warmup in ((0, 0), (0, 20), (1, 0), (1, 20)):
        write_handmade_run(study, handmade_config(study.parent, seed=seed, warmup_steps=warmup))
    return study


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


def flip(path: Path) -> None:
    """Flip one bit in the last page of a column that every reader needs."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = (group.column(i) for i in range(group.num_columns))
    (column,) = (c for c in columns if c.path_in_schema == READ_BY_ALL[path.parent.name])
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    path.write_bytes(data)


def flip_footer(path: Path) -> None:
    """Flip a bit that makes pyarrow end the process: the physical type of the first column."""
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[data.index(b"\x18\x06run_id", footer) - 3] ^= 4
    path.write_bytes(data)


def retype(path: Path) -> None:
    """Give a column the type that one flipped bit of the footer gives it."""
    rows, name = pq.read_table(path), READ_BY_ALL[path.parent.name]
    kind = pa.float32() if pa.types.is_float64(rows[name].type) else pa.float64()
    pq.write_table(rows.set_column(rows.column_names.index(name), name, rows[name].cast(kind)), path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "cut at its page": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "flipped": flip,
    "flipped in its footer": flip_footer,
    "of another type": lambda path: retype(path),
    "not Parquet": lambda path: path.write_text("run_id,step\n" * 50),
}


def commands(study: Path) -> list[list[str]]:
    s = str(study)
    return [
        ["compare", s, "--by", "warmup_steps"], ["plot", s, "--only", "loss_curves"], ["status", s],
        ["export", s, "--to", "csv"], ["compact", s],
    ]  # fmt: skip


def check_line(code: int, told: tuple[str, str], path: Path, study: Path) -> None:
    out, err = told
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"error: {path} cannot be read (")
    assert err.endswith(f"): run normstudy check {study}\n")


@pytest.mark.parametrize("table", READ_BY_ALL)
@pytest.mark.parametrize(
    ("damage", "compacted"),
    [*((d, False) for d in DAMAGES), ("truncated", True), ("flipped", True), ("flipped in its footer", True)],
)
def test_every_reader_names_the_file_and_what_to_do(
    damage: str,
    table: str,
    compacted: bool,
    study: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status, "WAIT", 0.0)
    if compacted:
        compact_study(study)
    path = sorted((study / "tables" / table).iterdir())[1]
    assert (path.name == schema.COMPACTED_FILE) == compacted
    DAMAGES[damage](path)
    before = sorted(p for p in (study / "tables").rglob("*"))
    for words in commands(study):
        check_line(main.main(words), capsys.readouterr(), path, study)
    with pytest.raises(ConfigError, match="run normstudy check"):
        normstudy.load(study)
    assert sorted(p for p in (study / "tables").rglob("*")) == before
    assert main.main(["check", str(study)]) == 1
    assert f"tables/{table}/{path.name}" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["row", "schema"])
def test_a_sweep_trains_nothing_beside_a_damaged_file(
    place: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = schema.SCHEMA_FILE if place == "schema" else sorted((study / "tables/runs").iterdir())[1].name
    path = study / "tables" / ("steps" if place == "schema" else "runs") / name
    DAMAGES["truncated"](path)
    before = sorted(study.rglob("*.parquet"))
    words = [
        "sweep",
        "seed=0,1",
        "data=synthetic",
        "study=study",
        f"results_dir={study.parent}",
        "execution.device=cpu",
    ]
    code = main.main(words)
    out, err = capsys.readouterr()
    assert out.count("\n") == (place == "schema")  # the plan is printed, as it needs only `runs`
    check_line(code, ("", err), path, study)
    assert sorted(study.rglob("*.parquet")) == before


def test_a_damaged_record_of_a_sweep_is_found_by_check(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`normstudy status` refers the user to `normstudy check`."""
    monkeypatch.setattr(status, "WAIT", 0.0)
    path = study / "sweeps" / "20250101T000000.000000.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"run_id": ["a"], "batch": [0], "n_steps": [5]}), path)
    assert main.main(["check", str(study)]) == 0
    DAMAGES["truncated"](path)
    assert main.main(["status", str(study)]) == 2
    assert f": run normstudy check {study}\n" in capsys.readouterr().err
    assert main.main(["check", str(study)]) == 1
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert line.startswith(f"sweeps/{path.name}: is damaged (")
    subprocess.run(line[line.index(": rm ") + 2 : line.index(" (then normstudy")], shell=True, check=True)
    assert main.main(["check", str(study)]) == 0


def rows_or_line(study: Path) -> pd.DataFrame | str:
    try:
        return tables.read(study, "steps")
    except ConfigError as error:
        return str(error)


def test_no_flipped_bit_is_read_as_other_rows(study: Path) -> None:
    """Each flipped bit is reported in one line, or changes no row."""
    path = sorted((study / "tables/steps").iterdir())[1]
    whole, good = path.read_bytes(), tables.read(study, "steps")
    rng, told = np.random.default_rng(0), 0
    for place in rng.choice(len(whole), 40, replace=False):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        read = rows_or_line(study)
        if isinstance(read, str):
            assert str(path) in read
            told += 1
        else:
            assert read.equals(good)
    assert told > 20

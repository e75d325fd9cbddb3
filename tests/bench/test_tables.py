"""One file a row, written whole and in no other's way, read alike by every reader, and never read damaged."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from measured import AT, MACHINE, by_hand, content, write

from normstudy.bench import tables
from normstudy.bench.rows import Sample
from normstudy.errors import ConfigError

SAMPLES = [
    Sample("a", "d64 L6", subject, "run_steps_per_s", "1/s", number, value)
    for number in range(3)
    for subject, value in (("normstudy", 98.25 + number), ("plain", 40.5))
]
SHARED = {**MACHINE, "mode": "quick", "started_at": AT}
FROZEN = {
    "row": "dictionary", "case": "dictionary", "subject": "dictionary", "metric": "dictionary", "unit": "dictionary",
    "round": "int32", "value": "double", "mode": "dictionary", "python": "dictionary", "torch": "dictionary",
    "cpu": "dictionary", "n_cores": "int32", "cpu_capability": "dictionary", "blas": "dictionary",
    "device": "dictionary",
    "git_commit": "dictionary", "started_at": "timestamp",
}  # fmt: skip


def test_the_schema_is_frozen(tmp_path: Path) -> None:
    write(tmp_path, SAMPLES)
    schema = pq.ParquetFile(tmp_path / "a.parquet").schema_arrow
    assert {f.name: str(f.type).split("<")[0].split("[")[0] for f in schema} == FROZEN


def test_what_was_measured_is_read_in_its_order(tmp_path: Path) -> None:
    write(tmp_path, SAMPLES)
    stored = tables.read(tmp_path, ["a"])
    assert [Sample(*row) for row in stored.iloc[:, :7].itertuples(index=False, name=None)] == SAMPLES
    for column, value in {**MACHINE, "mode": "full", "started_at": pd.Timestamp(AT)}.items():
        assert set(stored[column]) == {value}
    write(tmp_path, SAMPLES, MACHINE | {"git_commit": None})
    assert list(tables.read(tmp_path, ["a"])["git_commit"]) == [None] * len(SAMPLES)


def test_a_row_replaces_its_own_file_and_no_other(tmp_path: Path) -> None:
    for row in "aci":
        write(tmp_path, [replace(s, row=row) for s in SAMPLES])
    before = content(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "c.parquet", "i.parquet"]  # no state/
    assert tables.stored_rows(tmp_path) == ["a", "c", "i"]
    write(tmp_path, [replace(s, row="c", value=7.0) for s in SAMPLES])
    after = content(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["c.parquet"]
    stored = tables.read(tmp_path, ["a", "c"])
    assert list(stored["row"]) == ["a"] * 6 + ["c"] * 6
    assert set(stored.loc[stored["row"] == "c", "value"]) == {7.0}


def test_pandas_polars_and_duckdb_read_the_same(tmp_path: Path) -> None:
    for row in "ac":
        write(tmp_path, [replace(s, row=row) for s in SAMPLES])
    (tmp_path / "bench.png").write_bytes(b"lies beside them")
    frames = [
        pd.concat([pd.read_parquet(p) for p in sorted(tmp_path.glob("*.parquet"))]),
        pl.read_parquet(tmp_path / "*.parquet").to_pandas(),
        duckdb.sql(f"from '{tmp_path}/*.parquet'").to_arrow_table().to_pandas(),
    ]
    first, *others = (
        frame.astype({n: str for n in FROZEN if FROZEN[n] in ("dictionary", "timestamp")})
        .sort_values(["row", "subject", "round"], ignore_index=True)
        .drop(columns="started_at")
        for frame in frames
    )
    assert len(first) == 12
    for other in others:
        pd.testing.assert_frame_equal(first, other, check_exact=True)


# ---- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_a_flipped_bit_is_seen(share: float, tmp_path: Path) -> None:
    """Anywhere in the pages of the numbers; the row is named, and how to measure it again."""
    samples = by_hand({"x": [float(i) ** 0.5 for i in range(20_000)]})
    write(tmp_path, samples)
    file = tmp_path / "a.parquet"
    meta = pq.ParquetFile(file).metadata.row_group(0).column(list(FROZEN).index("value"))
    data = bytearray(file.read_bytes())
    data[meta.data_page_offset + int(share * meta.total_compressed_size)] ^= 4
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"a\.parquet cannot be read: run normstudy bench --rows a again$"):
        tables.read(tmp_path, ["a"])


def test_half_a_file_and_another_schema(tmp_path: Path) -> None:
    write(tmp_path, SAMPLES)
    file = tmp_path / "a.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        tables.read(tmp_path, ["a"])
    file.write_bytes(whole)
    pq.write_table(pq.read_table(file).drop_columns("device"), file)
    with pytest.raises(ConfigError, match=r"another version of normstudy \(16 columns instead of 17\)"):
        tables.read(tmp_path, ["a"])


def test_a_file_that_cannot_be_moved_in_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet" / "in the way").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"a\.parquet cannot be written: Is a directory\. Choose another --out$"):
        write(tmp_path, SAMPLES)


def test_a_row_that_measures_nonsense_is_a_bug(tmp_path: Path) -> None:
    first = SAMPLES[0]
    wrong = [
        first, replace(first, row="b", round=9), replace(first, value=float("nan"), round=9),
        replace(first, value=float("inf"), round=9),
    ]  # fmt: skip
    for samples in ([], *([*SAMPLES, sample] for sample in wrong)):
        with pytest.raises(ValueError, match=r"^only \d of \d samples of row a are finite and unique: fix the rest$"):
            tables.write(tmp_path, "a", samples, SHARED)
    assert content(tmp_path) == {}
    tables.write(tmp_path, "a", [*SAMPLES, replace(first, round=9)], SHARED)


# ---- the machine --------------------------------------------------------------------------------------


def test_the_machine_is_named_and_its_host_is_not(tmp_path: Path) -> None:
    here = tables.machine("cpu")
    told = here["python"], here["torch"], here["device"]
    assert told == (platform.python_version(), version("torch"), "cpu")
    assert here["n_cores"] == len(os.sched_getaffinity(0))
    assert str(here["cpu"]) in Path("/proc/cpuinfo").read_text()
    write(tmp_path, SAMPLES, here)
    stored = " ".join(str(v) for v in pq.read_table(tmp_path / "a.parquet").to_pylist()[0].values())
    assert socket.gethostname() not in stored
    assert "/home" not in stored
    assert str(Path(tables.__file__).parents[2]) not in stored

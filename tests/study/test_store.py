"""The tables have frozen schemas, are written once, and read the same by pandas, polars and DuckDB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import Rows, handmade_config, handmade_rows, handmade_study, write_handmade_run
from studies import NOT_REPRODUCED

from normstudy import config as cfg
from normstudy.config import ConfigError, run_id
from normstudy.study import files, parquet, schema, tables
from normstudy.upkeep.compact import compact_study

SERIES_TYPES = {
    "steps": {
        "run_id": "name", "step": "int32", "train_loss": "float", "val_loss": "float", "lr": "float",
        "grad_norm": "float", "param_norm": "float", "update_norm": "float", "clip_factor": "float",
    },
    "modules": {
        "run_id": "name", "step": "int32", "layer": "int32", "module": "name", "grad_norm": "float",
        "param_norm": "float", "update_norm": "float",
    },
    "residual": {"run_id": "name", "step": "int32", "layer": "int32", "rms": "float", "grad_norm": "float"},
}  # fmt: skip

# The columns of `runs` as version 0.1 has them, with the types of its Arrow schema.
RUNS_TYPES = {
    "string": """run_id status study placement norm qk_norm init embed_init activation positions first_block final_norm
        data data_path tokenizer optimizer decay schedule resolved_init resolved_norm resolved_qk_norm placement_sha256
        norm_sha256 data_sha256 git_commit python torch cpu_capability blas device source
        config""",
    "int64": """seed data_seed n_layers d_model n_heads d_ff vocab_size seq_len batch_size source_seed warmup_steps
        n_steps probe_dense_steps probe_every eval_every eval_windows resolved_d_ff resolved_vocab_size n_params
        nonfinite_step identity_version numerics""",
    "double": """norm_eps rope_base
        embed_std unembed_std beta1 beta2 eps momentum weight_decay max_grad_norm peak_lr resolved_embed_std
        bytes_per_token ln_vocab unigram_entropy bigram_entropy source_entropy late_val_loss final_val_loss
        final_train_loss wall_time_s""",
    "bool": "force_init embed_norm biases tied resolved_final_norm",
    "timestamp[us, tz=UTC]": "started_at finished_at",
}


def three(study: Path, table: str) -> list[pd.DataFrame]:
    """A table read by pandas, polars and DuckDB, each in one call, in the form of plain_form."""
    folder = study / "tables" / table
    frames = [
        pd.read_parquet(folder),
        pl.read_parquet(folder).to_pandas(),
        duckdb.sql(f"from '{folder}/*.parquet'").to_arrow_table().to_pandas(),  # .df() warns under pandas 3.1
    ]
    return [plain_form(table, frame) for frame in frames]


def plain_form(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Names as text with None for null, numbers and truth values as floats, times in UTC without a zone, sorted."""
    out = {}
    for field in schema.SCHEMAS[table]:
        column = frame[field.name]
        if field.type in (pa.string(), pa.dictionary(pa.int32(), pa.string())):
            out[field.name] = column.astype(object).where(column.notna(), None)
        elif pa.types.is_timestamp(field.type):
            out[field.name] = pd.to_datetime(column, utc=True).dt.tz_localize(None).astype("datetime64[us]")
        else:
            out[field.name] = column.astype("float64")
    return pd.DataFrame(out).sort_values(schema.SORT[table], ignore_index=True)


def assert_readers_agree(study: Path) -> None:
    for table in schema.TABLES:
        ours = plain_form(table, tables.read(study, table))
        for theirs in three(study, table):
            pd.testing.assert_frame_equal(theirs, ours, check_dtype=False, check_exact=True)


def test_series_schemas_are_frozen() -> None:
    arrow = {"name": pa.dictionary(pa.int32(), pa.string()), "int32": pa.int32(), "float": pa.float32()}
    assert set(SERIES_TYPES) == set(schema.SERIES)
    for table, columns in SERIES_TYPES.items():
        assert schema.SCHEMAS[table].equals(pa.schema([(name, arrow[kind]) for name, kind in columns.items()]))


def test_the_runs_schema_is_frozen() -> None:
    wanted = {name: kind for kind, names in RUNS_TYPES.items() for name in names.split()}
    assert {f.name: str(f.type) for f in schema.SCHEMAS["runs"]} == wanted
    assert len(schema.SCHEMAS["runs"].names) == len(wanted)


def test_every_config_column_is_in_runs_once() -> None:
    names = schema.SCHEMAS["runs"].names
    assert len(set(names)) == len(names)
    assert [n for n in names if n in cfg.asked_types()] == list(cfg.asked_types())
    assert set(NOT_REPRODUCED) <= set(names)


def test_an_empty_study_has_its_columns_in_all_three_readers(tmp_path: Path) -> None:
    tables.prepare(tmp_path)
    for table in schema.TABLES:
        assert [p.name for p in (tmp_path / "tables" / table).iterdir()] == [schema.SCHEMA_FILE]
        for frame in three(tmp_path, table):
            assert len(frame) == 0
            assert list(frame) == schema.SCHEMAS[table].names
    assert tables.statuses(tmp_path) == {}


def test_preparing_twice_changes_nothing(tmp_path: Path) -> None:
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(1e-3,), warmups=(0,))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in study.rglob("*.parquet")}
    tables.prepare(study)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in study.rglob("*.parquet")} == before


def shifted(rows: Rows) -> Rows:
    """Rows with other losses."""
    steps = rows["steps"] | {"train_loss": [9.0 for _ in rows["steps"]["train_loss"]]}
    return rows | {"steps": steps}


def test_a_window_that_exists_is_left(tmp_path: Path) -> None:
    tables.prepare(tmp_path)
    config = handmade_config(tmp_path)
    rows, _, _ = handmade_rows(config)
    tables.write_windows(tmp_path, [("a", 0, rows)])
    before = {p: (p.read_bytes(), p.stat().st_ino) for p in tmp_path.rglob("a-*.parquet")}
    assert len(before) == 3
    tables.write_windows(tmp_path, [("a", 0, shifted(rows))])
    assert {p: (p.read_bytes(), p.stat().st_ino) for p in tmp_path.rglob("a-*.parquet")} == before


def test_the_name_of_a_window_that_exists_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that moved the file may have died before its fsync of the folder."""
    tables.prepare(tmp_path)
    rows, _, _ = handmade_rows(handmade_config(tmp_path))
    tables.write_windows(tmp_path, [("a", 0, rows)])
    synced: list[Path] = []
    fsync = files.fsync

    def kept(path: Path) -> None:
        synced.append(path)
        fsync(path)

    monkeypatch.setattr(files, "fsync", kept)
    tables.write_windows(tmp_path, [("a", 0, rows)])
    assert sorted(synced) == sorted(tmp_path / "tables" / table for table in schema.SERIES)


def test_a_window_that_was_written_in_part_is_completed(tmp_path: Path) -> None:
    tables.prepare(tmp_path)
    rows, _, _ = handmade_rows(handmade_config(tmp_path))
    tables.write_windows(tmp_path, [("a", 0, rows)])
    whole = {p: p.read_bytes() for p in tmp_path.rglob("a-*.parquet")}
    (tmp_path / "tables" / "residual" / "a-000.parquet").unlink()
    tables.write_windows(tmp_path, [("a", 0, rows)])
    assert {p: p.read_bytes() for p in tmp_path.rglob("a-*.parquet")} == whole


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for place in ("one", "two"):
        tables.prepare(tmp_path / place)
        tables.write_windows(tmp_path / place, [("a", 0, handmade_rows(handmade_config(tmp_path))[0])])
        files.append({p.relative_to(tmp_path / place): p.read_bytes() for p in (tmp_path / place).rglob("*.parquet")})
    assert files[0] == files[1]


def test_done_never_goes_back(tmp_path: Path) -> None:
    config = handmade_config(tmp_path)
    name = write_handmade_run(tmp_path, config)
    for status in ("running", "failed"):
        tables.write_runs(tmp_path, [{"run_id": name, "status": status, **schema.config_columns(config)}])
        assert tables.statuses(tmp_path) == {name: "done"}
    assert tables.read(tmp_path, "runs")["final_val_loss"].notna().all()


def test_a_failed_run_may_be_done_later(tmp_path: Path) -> None:
    config = handmade_config(tmp_path)
    for fate, status in (("running", "running"), ("failed", "failed"), ("learned", "done")):
        name = write_handmade_run(tmp_path, config, fate)
        assert tables.statuses(tmp_path) == {name: status}


def test_an_unknown_column_is_refused(tmp_path: Path) -> None:
    tables.prepare(tmp_path)
    with pytest.raises(KeyError, match="perplexity"):
        tables.write_runs(tmp_path, [{"run_id": "a", "status": "done", "perplexity": 1.0}])
    assert tables.statuses(tmp_path) == {}


def test_nothing_but_whole_parquet_files_lies_in_a_table(tmp_path: Path) -> None:
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(1e-3,))
    for table in schema.TABLES:
        for path in (study / "tables" / table).iterdir():
            assert pq.ParquetFile(path).schema_arrow.equals(schema.SCHEMAS[table])
    assert list((study / "state").iterdir()) == []  # no partial files are left


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    tables.prepare(tmp_path)
    tables.write_windows(tmp_path, [("a", 0, handmade_rows(handmade_config(tmp_path))[0])])
    path = tmp_path / "tables" / "steps" / "a-000.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(OSError, match=r"CRC|crc|checksum"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_three_readers_agree(tmp_path: Path) -> None:
    """The folder has the schema file, many files of one run, and nulls in columns of every type."""
    assert_readers_agree(handmade_study(tmp_path, n_layers=(2, 3), peak_lrs=(3e-3,)))


def test_three_readers_agree_on_compacted_and_later_files(tmp_path: Path) -> None:
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,))
    compact_study(study)
    clipped = handmade_config(tmp_path, n_layers=6, seed=9)
    clipped.model.d_ff = 100
    clipped.optimizer.max_grad_norm = 0.5
    write_handmade_run(study, clipped)
    names = {p.name for p in (study / "tables" / "runs").iterdir()}
    assert {schema.SCHEMA_FILE, schema.COMPACTED_FILE} < names
    assert_readers_agree(study)
    assert len(tables.read(study, "runs")) == 13


def test_columns_and_runs_can_be_chosen(tmp_path: Path) -> None:
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,))
    whole = tables.read(study, "modules")
    ids = sorted(set(whole["run_id"]))[2:5]
    for _ in range(2):  # first one file per run, then compacted
        part = tables.read(study, "modules", ["run_id", "grad_norm"], ids)
        expected = whole.loc[whole["run_id"].isin(ids), ["run_id", "grad_norm"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, expected)
        assert len(tables.read(study, "modules", ["grad_norm"], [])) == 0
        compact_study(study)


def test_rows_are_sorted_over_windows(tmp_path: Path) -> None:
    study = tmp_path / "s"
    write_handmade_run(study, handmade_config(tmp_path, n_steps=450))
    assert len(list((study / "tables" / "steps").iterdir())) == 1 + 3
    steps = tables.read(study, "steps")
    np.testing.assert_array_equal(steps["step"], np.arange(450))
    assert_readers_agree(study)


@pytest.mark.parametrize(("n_steps", "size"), [(1, 200), (2000, 200), (2001, 201), (4000, 400)])
def test_windows(n_steps: int, size: int) -> None:
    assert schema.window_size(n_steps) == size


def test_a_folder_that_has_no_file_yet_is_an_empty_table(tmp_path: Path) -> None:
    """A second command may see this while the first one creates the study's folders."""
    for table in schema.TABLES:
        (tmp_path / "tables" / table).mkdir(parents=True)
        assert list(tables.read(tmp_path, table)) == schema.SCHEMAS[table].names
    assert tables.statuses(tmp_path) == {}


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a study"):
        tables.read(tmp_path, "runs")
    with pytest.raises(ConfigError, match="does not exist"):
        tables.read(tmp_path / "nowhere", "runs")


def test_config_columns_cover_the_config(tmp_path: Path) -> None:
    config = handmade_config(tmp_path, placement="post")
    row = schema.config_columns(config)
    assert set(cfg.asked_types()) <= set(row) <= set(schema.SCHEMAS["runs"].names)
    assert (row["resolved_d_ff"], row["resolved_init"], row["resolved_final_norm"]) == (256, "xavier", False)
    assert run_id(config, "0").startswith("post-L2-lr1e-3-wu0-s0-")


def test_every_changed_bit_of_a_footer_is_found(tmp_path: Path) -> None:
    """Also of its length. A file of an older version, which wrote no checksum, is read as it is."""
    content = pa.table({"run_id": ["a"] * 50, "value": np.arange(50.0)})
    data = parquet.bytes_of(content)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for bit in range(8 * footer, 8 * (len(data) - 4)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="its footer does not match its checksum"):
            parquet.read(bytes(changed))
    older = data[: footer - 12] + data[footer:]
    (tmp_path / "file.parquet").write_bytes(data)
    for found in (parquet.read(older), pq.read_table(tmp_path / "file.parquet"), pl.read_parquet(data).to_arrow()):
        assert found.to_pydict() == content.to_pydict()


def test_no_thread_of_pyarrow_holds_the_bytes_of_a_file_that_was_read(tmp_path: Path) -> None:
    """Otherwise about one `normstudy check` in a hundred ended with SIGABRT, when Python's exit met such a thread."""
    content = pa.table({name: [1, 2] for name in "abcdefgh"})
    (tmp_path / "a.parquet").write_bytes(parquet.bytes_of(content))
    code = (
        "import os, pathlib, sys\nfrom normstudy.study import parquet\nbefore = os.listdir('/proc/self/task')\n"
        "print(parquet.read(pathlib.Path(sys.argv[1])).num_rows, len(os.listdir('/proc/self/task')) - len(before))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.parquet"], check=True, capture_output=True, text=True
    )
    assert shown.stdout.split() == ["2", "0"]

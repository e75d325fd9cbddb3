"""The generated study of row f: its files are laid out as those of trained runs, and readers and figures take it."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from studies import REQUEST, tiny

import normstudy
from normstudy.analysis.compare import compare_study
from normstudy.bench import generated
from normstudy.study import parquet, schema
from normstudy.study import tables as store
from normstudy.sweep import execute, planning

SIZE = generated.Size(seeds=1, n_steps=450, n_layers=3)  # three windows


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root") / "generated"
    generated.write_study(folder, SIZE)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that were trained, one of each placement."""
    root = tmp_path_factory.mktemp("trained")
    execute.execute(planning.plan([tiny(root, placement=p, n_layers=3) for p in generated.PLACEMENTS]), REQUEST)
    return root / "tiny"


def files(study: Path) -> dict[str, bytes]:
    tables = study / "tables"
    return {str(p.relative_to(tables)): p.read_bytes() for p in sorted(tables.rglob("*.parquet"))}


def test_a_run_is_what_the_store_writes_of_the_same_rows(study: Path, tmp_path: Path) -> None:
    names = store.read(study, "runs")["run_id"]
    store.prepare(tmp_path)
    for name in (names.iloc[0], names.iloc[-1]):
        row = parquet.read_row(study, name)
        assert row is not None
        store.write_runs(tmp_path, [row])
        for window in range(3):
            parts = {t: study / "tables" / t / f"{name}-{window:03d}.parquet" for t in schema.SERIES}
            rows = {t: pq.ParquetFile(path).read().drop_columns(["run_id"]).to_pydict() for t, path in parts.items()}
            assert set(rows["steps"]["step"]) <= set(range(window * 200, window * 200 + 200))
            store.write_windows(tmp_path, [(name, window, rows)])
    written, found = files(tmp_path), files(study)
    assert len(written) == len(schema.TABLES) + 2 * (1 + 3 * len(schema.SERIES))
    assert {path: found[path] for path in written} == written


def test_it_has_the_modules_and_layers_of_trained_runs_in_their_order(study: Path, trained: Path) -> None:
    for placement in generated.PLACEMENTS:
        for table, keys in {"modules": ["layer", "module"], "residual": ["layer"]}.items():
            rows = []
            for folder in (study, trained):
                path = min((folder / "tables" / table).glob(f"{placement}-*-000.parquet"))
                first = pq.ParquetFile(path).read().to_pandas().query("step == 0")
                rows.append(first[keys].astype(str).to_numpy().tolist())
            assert rows[0] == rows[1]


@pytest.mark.parametrize("table", schema.TABLES)
def test_its_files_are_laid_out_as_those_of_trained_runs(table: str, study: Path, trained: Path) -> None:
    """Schema with its metadata, and of every column the type, the encodings and the compression."""
    one, other = (pq.ParquetFile(max((folder / "tables" / table).iterdir())) for folder in (study, trained))
    assert one.schema_arrow.equals(other.schema_arrow, check_metadata=True)
    for i in range(one.metadata.num_columns):
        a, b = (file.metadata.row_group(0).column(i) for file in (one, other))
        assert (a.physical_type, a.encodings, a.compression) == (b.physical_type, b.encodings, b.compression)


def test_the_seed_gives_the_bytes(tmp_path: Path) -> None:
    size = generated.Size(seeds=1, n_steps=200, n_layers=1)
    for name, seed in {"one": 0, "same": 0, "other": 1}.items():
        generated.write_study(tmp_path / name / "generated", size, seed)
    one, same, other = (files(tmp_path / name / "generated") for name in ("one", "same", "other"))
    assert one == same
    assert one.keys() == other.keys()
    assert one != other


@pytest.mark.parametrize("table", schema.TABLES)
def test_readers_agree(study: Path, table: str) -> None:
    folder = study / "tables" / table
    frames = [
        store.read(study, table),
        pd.read_parquet(folder),
        pl.read_parquet(folder).to_pandas(),
        duckdb.sql(f"from '{folder}/*.parquet'").to_arrow_table().to_pandas(),
    ]
    first, *others = (plain(table, frame) for frame in frames)
    for other in others:
        pd.testing.assert_frame_equal(first, other, check_exact=True)


def plain(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in the table's order, numbers as float64, all else as text; the times left out."""
    columns = {}
    for name in frame.columns.difference(["started_at", "finished_at"]):
        if pd.api.types.is_numeric_dtype(frame[name].dtype) and frame[name].dtype != bool:
            columns[name] = frame[name].astype(float)
        else:
            columns[name] = frame[name].astype(object).where(frame[name].notna(), "null").astype(str)
    return pd.DataFrame(columns).sort_values(schema.SORT[table], ignore_index=True)


def test_load_takes_it_and_it_has_what_figures_and_comparisons_need(study: Path) -> None:
    found = normstudy.load(study)
    assert found.runs["outcome"].value_counts().to_dict() == {"learned": generated.CELLS - 4, "stuck": 4}
    assert set(found.steps.groupby("run_id")["step"].max()) == {SIZE.n_steps - 1}
    compared = compare_study(study, by="warmup_steps")
    assert len(compared) == len(generated.PLACEMENTS) * len(generated.PEAK_LRS) * (len(generated.WARMUPS) - 1)
    assert set(compared["pairs"]) == {1}
    assert set(compared["unpaired"]) == {0}


@pytest.mark.parametrize("text", [True, False])
def test_reading_chooses_rows(study: Path, text: bool) -> None:
    """Names are text, or categories in order."""
    whole = store.read(study, "modules")
    ids = sorted(set(whole["run_id"]))[3:40:7]
    expected = whole[(whole["module"] == "mlp_out") & whole["run_id"].isin(ids)].reset_index(drop=True)
    found = store.read(study, "modules", ["run_id", "grad_norm"], ids, "mlp_out", text=text)
    if not text:
        assert isinstance(found["run_id"].dtype, pd.CategoricalDtype)
        assert list(found["run_id"].cat.categories) == sorted(found["run_id"].cat.categories)
    pd.testing.assert_frame_equal(found.astype({"run_id": str}), expected[["run_id", "grad_norm"]])

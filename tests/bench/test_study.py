"""The generated study of row f: the bytes that training and compaction would leave, in both forms, and its samples."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from studies import REQUEST, tiny

import normstudy
from normstudy.analysis.compare import compare_study, render
from normstudy.bench import generated
from normstudy.bench import study as bench
from normstudy.figures.draw import plot_study
from normstudy.study import parquet, schema
from normstudy.study import tables as store
from normstudy.sweep import execute, planning
from normstudy.upkeep.compact import compact_study

COMPACTED, SWEPT = generated.FORMS
SIZE = generated.Size(seeds=1, n_steps=450, n_layers=3)  # three windows; the run that diverges at 225 has two


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same study in both forms, under the same name."""
    found = {form: tmp_path_factory.mktemp("root") / "generated" for form in generated.FORMS}
    for form, folder in found.items():
        generated.write_study(folder, SIZE, form)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that were trained, one of each placement."""
    root = tmp_path_factory.mktemp("trained")
    execute.execute(planning.plan([tiny(root, placement=p, n_layers=3) for p in generated.PLACEMENTS]), REQUEST)
    return root / "tiny"


def files(study: Path) -> dict[str, bytes]:
    tables = study / "tables"
    return {str(p.relative_to(tables)): p.read_bytes() for p in sorted(tables.rglob("*.parquet"))}


def test_compaction_of_one_form_gives_the_other(studies: dict[str, Path], tmp_path: Path) -> None:
    study = shutil.copytree(studies[SWEPT], tmp_path / "generated")
    compact_study(study)
    assert files(study) == files(studies[COMPACTED])
    assert len(files(study)) == 2 * len(schema.TABLES)


def test_a_run_as_swept_is_what_the_store_writes_of_the_same_rows(studies: dict[str, Path], tmp_path: Path) -> None:
    runs = store.read(studies[SWEPT], "runs")
    gone = runs.loc[runs["nonfinite_step"].notna(), "run_id"].tolist()
    assert len(gone) == 1
    store.prepare(tmp_path)
    for name in [*gone, runs["run_id"].iloc[1], runs["run_id"].iloc[-1]]:
        row = parquet.read_row(studies[SWEPT], name)
        assert row is not None
        store.write_runs(tmp_path, [row])
        for window in range(2 if name in gone else 3):
            parts = {t: studies[SWEPT] / "tables" / t / f"{name}-{window:03d}.parquet" for t in schema.SERIES}
            rows = {t: pq.ParquetFile(path).read().drop_columns(["run_id"]).to_pydict() for t, path in parts.items()}
            assert set(rows["steps"]["step"]) <= set(range(window * 200, window * 200 + 200))
            store.write_windows(tmp_path, [(name, window, rows)])
    written, generated = files(tmp_path), files(studies[SWEPT])
    assert len(written) == len(schema.TABLES) + 3 + 3 * (2 + 3 + 3)
    assert {path: generated[path] for path in written} == written


def newest(study: Path, table: str) -> pq.ParquetFile:
    """The last file of a table by name: of a pre-norm run, or the compacted one."""
    return pq.ParquetFile(max((study / "tables" / table).iterdir()))


def test_it_has_the_modules_and_layers_of_trained_runs_in_their_order(studies: dict[str, Path], trained: Path) -> None:
    for placement in generated.PLACEMENTS:
        for table, keys in {"modules": ["layer", "module"], "residual": ["layer"]}.items():
            rows = []
            for study in (studies[SWEPT], trained):
                path = min((study / "tables" / table).glob(f"{placement}-*-000.parquet"))
                first = pq.ParquetFile(path).read().to_pandas().query("step == 0")
                rows.append(first[keys].astype(str).to_numpy().tolist())
            assert rows[0] == rows[1]


@pytest.mark.parametrize("form", generated.FORMS)
def test_its_files_are_laid_out_as_those_of_trained_runs(
    studies: dict[str, Path], trained: Path, tmp_path: Path, form: str
) -> None:
    """Schema with its metadata, and of every column the type, the encodings and the compression."""
    real = shutil.copytree(trained, tmp_path / "tiny")
    if form == COMPACTED:
        compact_study(real)
    for table in schema.TABLES:
        one, other = newest(studies[form], table), newest(real, table)
        assert one.schema_arrow.equals(other.schema_arrow, check_metadata=True)
        for i in range(one.metadata.num_columns):
            a, b = (file.metadata.row_group(0).column(i) for file in (one, other))
            assert (a.physical_type, a.encodings, a.compression) == (b.physical_type, b.encodings, b.compression)


def test_the_seed_gives_the_bytes(studies: dict[str, Path], tmp_path: Path) -> None:
    for form in generated.FORMS:
        for seed in (0, 1):
            generated.write_study(tmp_path / form / str(seed) / "generated", SIZE, form, seed)
        assert files(tmp_path / form / "0" / "generated") == files(studies[form])
        other = files(tmp_path / form / "1" / "generated")
        assert other.keys() == files(studies[form]).keys()
        for path, data in files(studies[form]).items():
            if not path.startswith("runs") and not path.endswith(schema.SCHEMA_FILE):
                assert other[path] != data, path


@pytest.mark.parametrize("form", generated.FORMS)
@pytest.mark.parametrize("table", schema.TABLES)
def test_readers_agree(studies: dict[str, Path], form: str, table: str) -> None:
    folder = studies[form] / "tables" / table
    frames = [
        store.read(studies[form], table),
        pd.read_parquet(folder),
        pl.read_parquet(folder).to_pandas(),
        duckdb.sql(f"from '{folder}/*.parquet'").to_arrow_table().to_pandas(),
    ]
    pd.testing.assert_frame_equal(
        frames[0], frames[0].sort_values(schema.SORT[table], kind="stable", ignore_index=True)
    )
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


def test_load_takes_it_and_it_has_what_figures_and_comparisons_need(studies: dict[str, Path]) -> None:
    whole, parts = (normstudy.load(studies[form]) for form in generated.FORMS)
    for one, other in zip(whole, parts, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert len(whole.runs) == generated.CELLS
    assert whole.runs["outcome"].value_counts().to_dict() == {"learned": 46, "stuck": 3, "diverged": 1}
    last = whole.steps.groupby("run_id")["step"].max()
    assert sorted(last.unique()) == [SIZE.n_steps // 2 - 1, SIZE.n_steps - 1]
    found = compare_study(studies[COMPACTED], by="warmup_steps")
    assert len(found) == len(generated.PLACEMENTS) * len(generated.PEAK_LRS) * (len(generated.WARMUPS) - 1)
    assert set(found["pairs"]) == {1}
    assert set(found["unpaired"]) == {0}


def test_both_forms_give_the_same_figures_and_comparison(studies: dict[str, Path], tmp_path: Path) -> None:
    compared = [render(compare_study(studies[form], by="placement"), "table") for form in generated.FORMS]
    assert compared[0] == compared[1]
    only = ["headline", "heatmap", "final_grid"]
    drawn = [plot_study(studies[form], out=tmp_path / form, only=only).paths for form in generated.FORMS]
    assert len(drawn[0]) == 3
    for one, other in zip(*drawn, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.parametrize("form", generated.FORMS)
def test_reading_chooses_rows_and_leaves_names_as_categories(studies: dict[str, Path], form: str) -> None:
    whole = store.read(studies[form], "modules")
    ids = sorted(set(whole["run_id"]))[3:40:7]
    expected = whole[(whole["module"] == "mlp_out") & whole["run_id"].isin(ids)].reset_index(drop=True)
    expected = expected.astype({"layer": "int32"})  # of these rows none is outside the layers
    pd.testing.assert_frame_equal(store.read(studies[form], "modules", None, ids, "mlp_out"), expected)
    names = store.read(studies[form], "modules", ["run_id", "grad_norm"], ids, "mlp_out", text=False)
    assert isinstance(names["run_id"].dtype, pd.CategoricalDtype)
    assert list(names["run_id"].cat.categories) == sorted(names["run_id"].cat.categories)
    pd.testing.assert_frame_equal(names.astype({"run_id": str}), expected[["run_id", "grad_norm"]])


def test_it_measures_what_its_goals_name(tmp_path: Path) -> None:
    size = generated.Size(seeds=1, n_steps=200, n_layers=2)
    samples = list(bench.measure_size(size, tmp_path, rounds=1))
    named = {(g.row, g.case, g.subject, g.metric) for g in bench._goals(size, judged=False)}
    assert {(s.row, s.case, s.subject, s.metric) for s in samples} == named
    assert len(samples) == len(named)
    assert all(s.value > 0 and s.round == 0 for s in samples)


def test_only_the_full_study_has_limits() -> None:
    cases = {f"1,000 runs x 2,000 steps x 12 layers, {form}" for form in generated.FORMS}
    limits = {(g.subject, g.metric, g.limit) for g in bench.GOALS if g.case in cases and g.sense == "at most"}
    readers = {(reader, "seconds", 1.0) for reader in ("pandas", "polars", "duckdb")}
    assert limits == {("plot", "seconds", 20.0), ("plot", "gigabytes", 1.5), ("compare", "seconds", 3.0)} | readers
    assert all(g.limit is None and g.sense is None for g in bench.GOALS if g.case not in cases)


def test_peak_memory_is_the_commands_own() -> None:
    """Not that of the process that starts it, and in the unit that it says."""
    held = np.ones(40_000_000)
    assert held.nbytes == 0.32e9
    assert bench.timed([sys.executable, "-c", "pass"])[1] < 0.1
    seconds, gigabytes = bench.timed([sys.executable, "-c", "import time; b'1' * 200_000_000; time.sleep(0.2)"])
    assert 0.2 < gigabytes < 0.3
    assert 0.2 < seconds < 5
    # and with what it starts
    code = "import subprocess, sys, time; b'1' * 200_000_000; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    both = bench.timed([sys.executable, "-c", code, "import time; b'1' * 200_000_000; time.sleep(0.2)"])[1]
    assert 0.4 < both < 0.6
    with pytest.raises(Exception, match="exit status 3"):
        bench.timed([sys.executable, "-c", "raise SystemExit(3)"])

"""The committed studies are complete, sealed and small; all readers agree on them; their figures are current."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from pictures import MAX_RMS, assert_committed, assert_same_pixels, rms
from PIL import Image, ImageChops

import normstudy
from normstudy.analysis.compare import compare_study
from normstudy.reproductions.claims import first_to_last
from normstudy.study import schema
from normstudy.study import tables as store

RESULTS = Path(__file__).parent.parent / "results"
STUDIES = {
    "warmup": 40, "depth": 100, "peak_lr": 120, "rmsnorm": 10, "placements": 280, "shallow": 60, "boundary": 40,
    "best": 180, "critical_lr": 658, "critical_warmup": 148,
}  # fmt: skip
MAX_BYTES = 6_200_000
LARGER = {"critical_lr": 7_200_000}  # a search of 36 cells


@pytest.mark.parametrize("study", STUDIES)
def test_it_is_whole_sealed_and_small(study: str) -> None:
    folder = RESULTS / study
    files = [p for p in folder.rglob("*") if p.is_file() and not {"state", "sweeps"} & set(p.relative_to(folder).parts)]
    assert sum(p.stat().st_size for p in files) <= LARGER.get(study, MAX_BYTES)
    assert {p.suffix for p in (folder / "figures").iterdir()} == {".png"}
    sealed = json.loads((folder / schema.SEALED).read_text())
    assert sealed["runs"] == STUDIES[study]
    for name, sha256 in sealed["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    runs = store.read(folder, "runs")
    assert len(runs) == STUDIES[study]
    assert set(runs["status"]) == {"done"}
    assert not runs["git_commit"].str.contains("dirty").any()
    assert runs["data_path"].isna().all()
    last = store.read(folder, "steps").groupby("run_id")["step"].max()
    whole = runs.set_index("run_id")["nonfinite_step"].isna()
    assert (last[whole[whole].index] == runs["n_steps"].iloc[0] - 1).all()


@pytest.mark.parametrize("table", schema.TABLES)
def test_pandas_polars_and_duckdb_read_the_same(table: str) -> None:
    """Each library reads the folder in one call; `plain` removes their differences in types."""
    folder = RESULTS / "warmup" / "tables" / table
    frames = (
        pd.read_parquet(folder),
        pl.read_parquet(folder).to_pandas(),
        duckdb.sql(f"from '{folder}/*.parquet'").to_arrow_table().to_pandas(),
    )
    first, *others = (plain(frame, table) for frame in frames)
    assert len(first) > 0
    for other in others:
        pd.testing.assert_frame_equal(first, other, check_exact=True)


def plain(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """Rows in the table's order; numbers as float64, times as nanoseconds, all else as text."""
    columns = {}
    for name in frame:
        column = frame[name]
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            columns[name] = column.dt.tz_convert("UTC").astype("datetime64[us, UTC]").astype("int64").astype(float)
        elif pd.api.types.is_numeric_dtype(column.dtype) and column.dtype != bool:
            columns[name] = column.astype(float)
        else:
            columns[name] = column.astype(object).where(column.notna(), "null").astype(str).astype(object)
    return pd.DataFrame(columns).sort_values(schema.SORT[table], kind="stable", ignore_index=True)


@pytest.mark.committed
@pytest.mark.parametrize("study", STUDIES)
def test_plot_without_torch_gives_the_committed_figures(study: str, tmp_path: Path) -> None:
    """Every fourth figure of a study, from another one on in the next study. `slow` draws all."""
    committed = sorted(p.name for p in (RESULTS / study / "figures").iterdir())
    assert_drawn_again(study, committed[list(STUDIES).index(study) % 4 :: 4], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_plot_gives_all_committed_figures_and_no_other(study: str, tmp_path: Path) -> None:
    assert_drawn_again(study, sorted(p.name for p in (RESULTS / study / "figures").iterdir()), tmp_path)


def assert_drawn_again(study: str, committed: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no figure needs it')\n")
    code = (
        "import sys; from normstudy.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]) or 'matplotlib.pyplot' in sys.modules)"  # pyplot is slow to import
    )
    only = ["--only", ",".join(name.removesuffix(".png") for name in committed)]
    words = ["plot", str(RESULTS / study), "--out", str(tmp_path / "figures"), *only]
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}  # the second drawing process inherits it
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, env=environment)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == committed
    for name in committed:
        assert_committed(RESULTS / study / "figures" / name, tmp_path / "figures" / name)


def test_the_bound_on_another_matplotlib_tells_figures_apart() -> None:
    """The figure of another study lies beyond the bound."""
    for name in ("gradient_profile.png", "residual_path.png"):
        assert rms(RESULTS / "warmup" / "figures" / name, RESULTS / "rmsnorm" / "figures" / name) > MAX_RMS


def test_the_bound_on_another_cpu_refuses_a_figure_that_moved_by_a_pixel(tmp_path: Path) -> None:
    committed = RESULTS / "warmup" / "figures" / "headline.png"
    assert_same_pixels(committed, committed)
    with Image.open(committed) as image:
        ImageChops.offset(image, 1, 0).save(tmp_path / "moved.png")
        image.convert("RGB").point(lambda grey: max(0, grey - 1)).save(tmp_path / "darker.png")
    with pytest.raises(AssertionError, match="a pixel differs by"):
        assert_same_pixels(committed, tmp_path / "moved.png")
    with pytest.raises(AssertionError, match="pixels differ"):
        assert_same_pixels(committed, tmp_path / "darker.png")


def test_what_the_headline_study_shows() -> None:
    """Post-norm at 3e-3 is stuck without warmup and mostly learns with it; its gradient vanishes early."""
    tables = normstudy.load(RESULTS / "warmup", join=True)
    outcomes = tables.runs.groupby(["placement", "peak_lr", "warmup_steps"])["outcome"].agg(list)
    assert outcomes["post", 3e-3, 0] == ["stuck"] * 5
    assert outcomes["post", 3e-3, 100].count("learned") >= 4
    for rate in (1e-3, 3e-3):
        for steps in (0, 100):
            assert outcomes["pre", rate, steps] == ["learned"] * 5
    post = tables.modules.query("placement == 'post' and peak_lr == 3e-3 and warmup_steps == 0")
    assert 0.5 < np.exp(np.log(first_to_last(post, 0)).mean()) < 2
    assert (first_to_last(post, 5) < 0.1).all()
    assert (first_to_last(post, 599) < 1e-2).all()
    pre = tables.modules.query("placement == 'pre' and peak_lr == 3e-3 and warmup_steps == 0")
    assert all((first_to_last(pre, step) > 0.5).all() for step in (0, 5, 20, 100, 599))


@pytest.mark.parametrize(("warmup", "column"), [("0", 1), ("100", 2)])
def test_the_order_on_the_page_of_placements_is_that_of_the_tables(warmup: str, column: int) -> None:
    """Each row holds the difference from pre-norm at 12 layers and its interval, or how many runs failed.

    A star marks what `compare` calls a difference.
    """
    page = (RESULTS.parent / "experiments" / "placements.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.count(" | ") == 2]
    on_page = {cells[0].split(" (")[0]: cells[column] for cells in lines if len(cells) == 3}
    where = {"n_layers": "12", "warmup_steps": warmup}
    found = compare_study(RESULTS / "placements", by="placement", baseline="pre", where=where)
    for row in found.to_dict("records"):
        text = f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
        text = f"{row['failed']} of {row['runs']} failed" if row["failed"] else text
        shown = row["failed_verdict"].startswith("fails") or row["loss_verdict"] in ("lower", "higher")
        assert on_page[row["arm"]] == text + "*" * shown
    assert len(found) == 13

"""The committed reproductions: complete, small, of the present definition; verdicts and figures follow from them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from pictures import assert_committed
from reduced import STORED, stored

from normstudy.reproductions import run, tables
from normstudy.reproductions.entry import Sizes
from normstudy.reproductions.run import REPRODUCTIONS
from normstudy.reproductions.verdicts import MEASURED, NOT_SUPPORTED, SUPPORTED

ROOT = STORED.parents[1]
MAX_BYTES = 3_000_000
VERDICTS = {
    "xiong-theorem1-pre": [SUPPORTED],
    "xiong-theorem1-post": [SUPPORTED, MEASURED],
    "gpt2-init-control": [SUPPORTED, SUPPORTED],
    "xiong-lemma2-post": [SUPPORTED],
    "xiong-lemma2-pre": [SUPPORTED],
    "xiong-profile-pre": [SUPPORTED],
    "xiong-profile-post": [NOT_SUPPORTED],
    "rmsnorm-equals-layernorm": [SUPPORTED, MEASURED, MEASURED],
    "admin-output-change": [NOT_SUPPORTED, SUPPORTED, MEASURED],
    "deepnet-constants": [SUPPORTED, SUPPORTED, SUPPORTED],
    "deepnet-update": [SUPPORTED, MEASURED],
    "peri-variance": [SUPPORTED],
    "lns-variance": [SUPPORTED, MEASURED],
    "mixln-balance": [MEASURED],
    "reordered-needs-qknorm": [MEASURED, MEASURED, MEASURED],
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the tables, judged and drawn where torch cannot be imported; and what was printed."""
    out = tmp_path_factory.mktemp("reproductions")
    shutil.copytree(STORED / "tables", out / "tables")
    code = "import sys; sys.modules['torch'] = None; from normstudy.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["reproduce", "--tier", "0", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *words], check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    return out, done.stdout


def test_they_are_whole_and_small() -> None:
    files = [p for p in STORED.rglob("*") if p.is_file()]
    assert {p.relative_to(STORED).as_posix() for p in files} == {
        "README.md",
        *(f"tables/{name}.parquet" for name in REPRODUCTIONS),
        *(f"figures/{name}.png" for name in REPRODUCTIONS),
    }
    assert sum(p.stat().st_size for p in files) <= MAX_BYTES


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_they_are_of_the_present_definition(name: str) -> None:
    """After a change of what is measured, or how, run `normstudy reproduce` and commit the new table."""
    sizes = Sizes()
    assert tables.stored_definition(STORED, name) == tables.definition(sizes, REPRODUCTIONS[name].needs(sizes))
    content = pq.ParquetFile(tables.path(STORED, name)).read()
    assert content.schema.equals(tables.SCHEMA)
    assert set(content.schema.metadata) == {b"definition", b"python", b"torch", b"normstudy"}
    table = stored(name)
    wanted = run.units(REPRODUCTIONS[name].needs(sizes))
    assert {(variant.name, depth, seed) for _, variant, depth, seed in wanted} == set(
        table[["variant", "depth", "seed"]].itertuples(index=False, name=None)
    )
    assert not table.duplicated([c for c in table.columns if c != "value"]).any()
    assert table["value"].notna().all()


def test_verdicts() -> None:
    found = {name: [f.verdict for f in entry.findings(stored(name))] for name, entry in REPRODUCTIONS.items()}
    assert found == VERDICTS


@pytest.mark.committed
def test_judged_and_drawn_without_torch(drawn: tuple[Path, str]) -> None:
    out, printed = drawn
    findings = {name: entry.findings(stored(name)) for name, entry in REPRODUCTIONS.items()}
    assert printed.startswith(run.render(findings))
    assert "measured 0 predictions; 15 were already stored" in printed
    for name in REPRODUCTIONS:
        assert tables.path(out, name).read_bytes() == tables.path(STORED, name).read_bytes()
        assert_committed(*(folder / "figures" / f"{name}.png" for folder in (STORED, out)))
    assert not (out / "state").exists()


def test_the_page_shows_the_verdicts_of_the_tables() -> None:
    """Between the markers is what `normstudy reproduce --tier 0 --format markdown` prints."""
    page = (ROOT / "docs" / "reproductions.md").read_text()
    between = re.search(r"<!-- reproductions -->\n(.*)<!-- /reproductions -->", page, re.S)
    assert between is not None
    findings = {name: REPRODUCTIONS[name].findings(stored(name)) for name in REPRODUCTIONS}
    assert between[1].strip() == run.render(findings, "markdown")


def test_the_columns_and_quantities_are_documented() -> None:
    text = (STORED / "README.md").read_text()
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    cells = {name: re.findall(r"^\| `([\w ]+)` \|", part, re.M) for name, part in sections.items()}
    assert cells["Columns"] == tables.SCHEMA.names
    quantities = {q for name in REPRODUCTIONS for q in stored(name)["quantity"].unique()}
    assert sorted(cells["Quantities"]) == sorted({q if not q.startswith("gain_") else "gain_NAME" for q in quantities})


def test_pandas_polars_and_duckdb_read_the_same() -> None:
    folder = STORED / "tables"
    frames = (
        pd.read_parquet(folder),
        pl.read_parquet(folder).to_pandas(),
        duckdb.sql(f"from '{folder}/*.parquet'").to_arrow_table().to_pandas(),
    )
    first, *others = (
        frame.astype(dict.fromkeys(("quantity", "variant", "placement"), str) | {"layer": float}).sort_values(
            list(frame.columns), ignore_index=True
        )
        for frame in frames
    )
    assert len(first) > 1000
    for other in others:
        pd.testing.assert_frame_equal(first, other, check_dtype=False, check_exact=True)

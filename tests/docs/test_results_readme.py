"""results/README.md documents every column of every table, every module and every derived column, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from faults import soak
from handmade import handmade_config, write_handmade_run
from studies import NOT_REPRODUCED

import normstudy
from normstudy.analysis.load import stationary_rms
from normstudy.analysis.outcomes import OUTCOMES, UNJUDGED
from normstudy.analysis.sensitivity import RESULTS as RESULTS_OF_SENSITIVITY
from normstudy.bench import run, tables
from normstudy.study import schema

RESULTS = Path(__file__).parents[2] / "results"
README = (RESULTS / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", README, re.M | re.S))


def first_cells(section: str, header: str) -> list[str]:
    """The names in the first column of the table whose header line begins so."""
    table = re.search(rf"^\| {header} .*\n\|[-|]+\n((?:\|.*\n)+)", SECTIONS[section], re.M)
    assert table is not None
    return [line.split("|")[1].strip().strip("`") for line in table[1].splitlines()]


SCHEMAS = {**schema.SCHEMAS, "bench": tables.SCHEMA}


@pytest.mark.parametrize("table", SCHEMAS)
def test_columns(table: str) -> None:
    assert first_cells(table, r"column \| type") == SCHEMAS[table].names


@pytest.mark.parametrize("table", SCHEMAS)
def test_types(table: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|[^|]*\| [^|]+ \|$", SECTIONS[table], re.M)
    assert [name for name, _ in rows] == SCHEMAS[table].names
    kinds = {
        "string": "text", "dictionary": "text", "int64": "int", "int32": "int", "double": "float", "float": "float",
        "bool": "bool", "timestamp": "UTC time",
    }  # fmt: skip
    for name, kind in rows:
        arrow = re.split(r"\W", str(SCHEMAS[table].field(name).type))[0]
        assert kind.removesuffix(" or null") == kinds[arrow], name


def test_modules() -> None:
    assert sorted(first_cells("modules", "module")) == sorted(schema.MODULES)


def test_derived_columns(tmp_path: Path) -> None:
    write_handmade_run(tmp_path / "handmade", handmade_config(tmp_path))
    tables = normstudy.load(tmp_path / "handmade")
    assert first_cells("runs", r"column \| unit") == [c for c in tables.runs if c not in schema.SCHEMAS["runs"].names]
    for table in ("steps", "modules"):
        derived = {c for c in getattr(tables, table) if c not in schema.SCHEMAS[table].names}
        assert derived == set(re.findall(r"adds `(\w+)`", SECTIONS[table]))
    assert f"{stationary_rms(0.9):.3f} for a\n`beta1` of 0.9" in SECTIONS["steps"]


def test_the_columns_of_a_sensitivity() -> None:
    table = README.partition("## A sensitivity\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    assert [name for cell in cells for name in re.findall(r"\w+", cell)] == list(RESULTS_OF_SENSITIVITY)


def test_outcomes() -> None:
    assert set(re.findall(r"^\d\. `(\w+)`", SECTIONS["runs"], re.M)) | {UNJUDGED} == set(OUTCOMES)


def test_columns_outside_the_promise_of_equal_bits() -> None:
    told = re.search(r"^`wall_time_s`, .*?describe one execution", SECTIONS["runs"], re.M | re.S)
    assert told is not None
    assert set(re.findall(r"`(\w+)`", told[0])) == set(NOT_REPRODUCED)


def test_the_modes_of_the_benchmark() -> None:
    for mode in run.OUT:
        assert f"`{mode}`" in SECTIONS["bench"]


def test_robustness() -> None:
    """The kills of the long test: the columns, one seed, and all of them."""
    kept = pd.read_parquet(RESULTS / "robustness" / "kills.parquet")
    cells = first_cells("robustness", r"column \| definition")
    assert [name for cell in cells for name in re.findall(r"\w+", cell)] == [*kept.columns]
    assert len(kept) == 200
    assert len(set(kept["seed"])) == 1
    assert kept["finished"].max() > 0


def test_early_warning() -> None:
    kept = pd.read_parquet(RESULTS / "robustness" / "early_warning.parquet")
    cells = first_cells("robustness", "column of `early_warning`")
    assert [name for cell in cells for name in re.findall(r"\w+", cell)] == [*kept.columns]


def test_soak() -> None:
    """Its columns; that workers were killed for ten minutes and that it went on after; and that it was flat."""
    kept = pd.read_parquet(RESULTS / "robustness" / "soak.parquet")
    assert first_cells("robustness", "column of `soak`") == [*kept.columns]
    kills = kept["kills"].diff().fillna(0)
    assert kept.loc[kills > 0, "seconds"].max() > 540
    assert kept["seconds"].max() > 600
    assert kills.sum() == kept["kills"].max() >= 60
    assert len(set(kept["seed"])) == 1
    assert soak.growth(kept["parent_mb"]) < soak.FLAT_MB
    assert soak.growth(kept["parent_handles"]) < soak.FLAT_HANDLES

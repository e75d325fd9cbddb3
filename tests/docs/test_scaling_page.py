"""The page about large studies shows what its script makes of the committed tables."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import measured
import numpy as np
import pytest
from pages import missing

from normstudy.analysis.grid import three_digits
from normstudy.bench import generated, tables
from normstudy.bench.rows import Sample
from normstudy.study import schema
from normstudy.study import tables as store
from normstudy.upkeep.check import check_study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("scripts_scaling", ROOT / "scripts" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its module
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_tables(scaling: ModuleType) -> None:
    page = (ROOT / scaling.PAGE).read_text()
    assert scaling.shown(page, ROOT / scaling.OUT) == page
    stored = [part for part in scaling.PARTS if (ROOT / scaling.OUT / f"{part}.parquet").exists()]
    assert stored == [*scaling.PARTS]
    measured_as = tables.read(ROOT / scaling.OUT, stored)
    assert set(measured_as["mode"]) == {"full"}
    assert not measured_as["git_commit"].str.contains("dirty").any()


def test_its_words_have_the_numbers_of_the_tables(scaling: ModuleType) -> None:
    stored = tables.read(ROOT / scaling.OUT, ["swept", "compacted"]).query("unit == 's of CPU'")
    median = stored.groupby(["row", "subject", "case"])["value"].median()
    small, large = (median["swept", "as swept: runs in pandas", case] for case in ("1000", "4000"))
    assert round(1e3 * (large - small) / 3000) == 2
    status, compared = (median["compacted", what, "100000"] for what in ("status", "compare --by warmup_steps"))
    sizes = [  # kB a run, of the committed studies
        sum(path.stat().st_size for path in study.rglob("*.parquet")) / 1e3 / len(store.read(study.parent, "runs"))
        for study in (seal.parent / "tables" for seal in (ROOT / "results").glob("*/SEALED"))
    ]
    phrases = [
        "opening a file takes about two milliseconds",
        f"{three_digits(status)} s and {three_digits(compared)} s at 200 steps per run",
        f"A run has about {_rows_of_a_run(200, 2):,} rows here and about {_rows_of_a_run(2000, 12):,} with",
        f"{int(min(sizes))} to {int(max(sizes))} kB each",
    ]
    assert missing((ROOT / scaling.PAGE).read_text(), phrases) == []


def _rows_of_a_run(n_steps: int, n_layers: int) -> int:
    """Rows that a generated run has in all tables, to two digits: the mean of a pre-norm and a post-norm run."""
    configs = generated.configs(Path("x"), generated.Size(1, n_steps, n_layers))
    counts = []
    for placement in generated.PLACEMENTS:
        config = next(c for c in configs if c.model.placement == placement)
        _, series = generated.run_rows("x", config, np.random.default_rng(0))
        counts.append(1 + sum(len(columns["step"]) for columns in series.values()))
    return int(float(f"{np.mean(counts):.2g}"))


def test_what_was_not_measured_is_on_the_line_and_marked(scaling: ModuleType, tmp_path: Path) -> None:
    """Medians over rounds; 3 s + 2 ms a run; what did not grow is not followed; seconds that pass are not told."""
    rounds = [(n, at) for n in (1000, 4000) for at in range(3)]
    taken = [
        *(Sample("swept", f"{n}", "look", "s of CPU", "s of CPU", at, 3 + n / 500 + 9 * (at == 2)) for n, at in rounds),
        *(Sample("swept", f"{n}", "files", "files", "files", 0, 4.0 * n) for n in (1000, 4000)),
        *(Sample("swept", f"{n}", "noise", "MB", "MB", 0, 5000.0 / n) for n in (1000, 4000)),
        Sample("swept", "1000", "look", "s", "s", 0, 60.0),
        Sample("swept", "100000", "one folder", "MB", "MB", 0, 25.0),
    ]
    measured.write(tmp_path, taken)
    lines = scaling.render(tables.read(tmp_path, ["swept"])).splitlines()
    assert lines[0] == "| what | unit | 1,000 | 4,000 | 100,000 | slope |"
    assert lines[2:6] == [
        "| look | s of CPU | 5 | 11 | ~203 | 0.57 |",
        "| files | files | 4000 | 16000 | ~400000 | 1.00 |",
        "| noise | MB | 5 | 1.25 |  | -1.00 |",
        "| one folder | MB |  |  | 25 |  |",
    ]


def test_only_the_text_between_markers_changes(scaling: ModuleType, tmp_path: Path) -> None:
    measured.write(tmp_path, [Sample("planning", "100", "plan", "MB", "MB", 0, 1.5)])
    page = "a\n<!-- planning -->\nold\n<!-- /planning -->\nb\n<!-- swept -->\nkept\n<!-- /swept -->\n"
    found = scaling.shown(page, tmp_path)
    assert found.startswith("a\n<!-- planning -->\n| what |")
    assert found.endswith("\n<!-- /planning -->\nb\n<!-- swept -->\nkept\n<!-- /swept -->\n")
    assert "old" not in found
    assert scaling.shown(found, tmp_path) == found


def test_the_generated_studies_are_what_commands_read(scaling: ModuleType, tmp_path: Path) -> None:
    """Finished runs by the store: a file a run, and `runs` and `steps` compacted, of which nothing is missing."""
    scaling._write_runs(tmp_path / "folder", 50)
    assert [*store.statuses(tmp_path / "folder").values()] == ["done"] * 50
    assert scaling.weighed(tmp_path / "folder")["files"] == 50 + len(schema.TABLES)
    scaling._write_compacted(tmp_path / "compacted", 50)
    found = check_study(tmp_path / "compacted").text.splitlines()
    assert "50 runs, 6 files" in found[0]
    assert len(found) == 51  # a run each: only modules and residual are lacking
    assert all("tables/modules lacks" in line for line in found[1:])

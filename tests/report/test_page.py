"""The page of a study: its numbers are those of the tables, its bytes are always the same, and names are only text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from handmade import handmade_config, handmade_study, write_handmade_run
from reported import HOSTILE, assert_same_numbers, data_of, texts, unpack

import normstudy
from normstudy.analysis.compare import compare_study, render
from normstudy.analysis.load import load
from normstudy.cli import main as cli
from normstudy.errors import ConfigError
from normstudy.report import pack
from normstudy.report.make import Report
from normstudy.report.make import report as make
from normstudy.report.read import read

RESULTS = Path(__file__).parents[2] / "results"
Capture = pytest.CaptureFixture[str]


def report(folders: list[Path], out: Path | None = None, where: Sequence[str] = ()) -> Path:
    return make(folders, where).save(out)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade_study(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def html(study: Path) -> str:
    return report([study]).read_text()


def test_numbers_are_those_of_the_tables(study: Path, html: str) -> None:
    assert_same_numbers(study, html)


def test_tables_and_runs_are_those_of_the_commands(study: Path, html: str) -> None:
    assert render(compare_study(study, by="warmup_steps"), "table").strip() in texts(html, "pre")
    rows = [
        texts(f"<tr>{row}", "td") for row in html.split('<table id="runs">')[1].split("</table>")[0].split("<tr>")[2:]
    ]
    runs = load(study).runs
    assert len(rows) == len(runs)
    states = {"failed": "crashed", "done": None}
    for row, (_, run) in zip(rows, read([study]).runs.iterrows(), strict=True):
        assert row[5] == (states[run["status"]] or run["outcome"])
        assert row[6] == ("" if pd.isna(run["final_val_loss"]) else f"{run['final_val_loss']:.3g}")


def test_a_diverged_and_a_failed_run_are_listed(html: str) -> None:
    cells = texts(html, "td")
    assert "diverged" in cells
    assert "crashed" in cells
    assert "not finite at step 29" in cells


@pytest.mark.processes
def test_the_same_bytes_in_another_folder_locale_and_process(study: Path, html: str, tmp_path: Path) -> None:
    """Also without torch, and nothing else is written."""
    (tmp_path / "torch.py").write_text("raise ImportError('no page needs it')\n")
    shutil.copytree(study, tmp_path / study.name, ignore=shutil.ignore_patterns("report.html"))
    before = sorted(path for path in tmp_path.rglob("*"))
    command = [sys.executable, "-m", "normstudy", "report", str(tmp_path / study.name)]
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "7", "LC_ALL": "C", "MPLBACKEND": "absent"}
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / study.name / 'report.html'}\n"
    assert done.stderr == ""
    assert sorted(path for path in tmp_path.rglob("*")) == sorted([*before, tmp_path / study.name / "report.html"])
    assert (tmp_path / study.name / "report.html").read_bytes() == html.encode()


def test_names_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "a 'quoted' \"study\" <b> & co"
    for seed in range(2):
        write_handmade_run(folder, handmade_config(tmp_path, seed=seed), columns={"placement": HOSTILE})
        write_handmade_run(folder, handmade_config(tmp_path, seed=seed))
    html = report([folder]).read_text()
    assert "<img src=x" not in html
    assert html.count("</script>") == 4
    assert data_of(html)["cells"][-1]["title"] == HOSTILE.replace("\u202e", r"\u202e")
    assert folder.name in texts(html, "h1")


def test_only_failed_runs(tmp_path: Path) -> None:
    write_handmade_run(tmp_path / "s", handmade_config(tmp_path), "failed")
    html = report([tmp_path / "s"]).read_text()
    assert "1 crashed" in " ".join(texts(html, "p")[0].split())
    assert data_of(html)["runs"][0]["loss"] is None


def test_where_chooses_runs(study: Path, tmp_path: Path) -> None:
    html = report([study], where=["placement=post,n_layers=4"], out=tmp_path / "a.html").read_text()
    runs = load(study, where=["placement=post,n_layers=4"]).runs
    assert len(data_of(html)["runs"]) == len(runs) > 0
    assert "Only runs with placement=post, n_layers=4 are shown." in " ".join(texts(html, "p")[0].split())


@pytest.mark.committed
def test_several_studies_on_one_page(tmp_path: Path, capfd: Capture) -> None:
    for name in ("warmup", "depth"):
        (tmp_path / name).symlink_to(RESULTS / name)
    assert cli.main(["report", str(tmp_path / "warmup"), str(tmp_path / "depth")]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'warmup+depth.html'}\n"
    html = (tmp_path / "warmup+depth.html").read_text()
    assert len(data_of(html)["runs"]) == 40 + 80
    assert "warmup, depth" in texts(html, "td")


def error_of(capfd: Capture, *words: str) -> str:
    assert cli.main(["report", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_bad_request_is_one_line(study: Path, tmp_path: Path, capfd: Capture) -> None:
    assert "no such folder" in error_of(capfd, str(tmp_path / "none"))
    assert "STUDY" in error_of(capfd)
    assert "given twice" in error_of(capfd, str(study), str(study))
    assert "seed=9" in error_of(capfd, str(study), "--where", "seed=9")
    (tmp_path / "file").touch()
    assert "Choose another --out" in error_of(capfd, str(study), "--out", str(tmp_path / "file" / "page.html"))
    assert "another --out" in error_of(capfd, str(study), "--out", str(study / "tables" / "page.html"))


def test_a_notebook_shows_it(study: Path, html: str) -> None:
    normstudy.report(study)
    found = normstudy.report(study)  # the first call imports a module of the same name
    assert isinstance(found, Report)
    assert found.html == html
    frame = found._repr_html_()
    assert frame.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert unescape(frame.split('"')[1]) == html
    assert repr(found).startswith(f"Report of {study}: 48 runs, ")


def test_a_missing_library_is_named(study: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)  # as find_spec sees a module that is not installed
    assert error_of(capfd, str(study)) == "error: a report needs altair: pip install 'normstudy[report]'\n"


def test_a_page_that_is_too_large_shows_fewer_probes(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read([study])
    whole = pack.collect(bundle)
    assert (whole.probes, whole.quantities) == (None, pack.QUANTITIES)

    def size(found: pack.Numbers) -> int:
        return sum(len(run.get(name, "")) for run in found.runs.values() for name in (*pack.QUANTITIES, "residual"))

    for share, quantities in ((0.7, 2), (0.1, 1)):
        monkeypatch.setattr(pack, "BYTES", int(share * size(whole)))
        thinner = pack.collect(bundle)
        assert thinner.probes is not None
        assert len(thinner.quantities) == quantities
        assert size(thinner) <= pack.BYTES * 1.1
        assert_ladder(thinner)


def assert_ladder(found: pack.Numbers) -> None:
    for run in found.runs.values():
        steps: list[Any] = found.grids[run["probes"]]
        assert len(steps) <= (found.probes or 0)
        assert len(unpack(run["residual"])) % len(steps) == 0


def test_a_page_replaces_only_a_regular_file(tmp_path: Path) -> None:
    page = Report((tmp_path,), 1, "new")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("folder", "pipe", "link"):
        with pytest.raises(ConfigError, match=f"{name} is a folder, a pipe or a device: choose another --out"):
            page.save(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "other").write_text("old")
    (tmp_path / "a.html.part").symlink_to("other")  # what an earlier version would have written through
    os.mkfifo(tmp_path / "b.html.part")
    for name in ("a.html", "b.html", "other"):
        before = (tmp_path / "other").read_text()
        assert page.save(tmp_path / name).read_text() == "new"
        assert name == "other" or (tmp_path / "other").read_text() == before == "old"
    names = {"folder", "pipe", "link", "other", "a.html", "a.html.part", "b.html", "b.html.part"}
    assert {path.name for path in tmp_path.iterdir()} == names

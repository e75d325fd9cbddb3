"""The commands and the Python that the pages show are run here as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import measured
import pytest
from pages import ROOT, fenced, page

from normstudy.bench.rows import ROWS
from normstudy.cli import main

SHOWN = ["README.md", "docs/clusters.md", "docs/reproductions.md", "docs/speed.md", ".github/CONTRIBUTING.md"]
TEXT = "\n".join(map(page, SHOWN))
TEXT = re.sub(r"<!-- own-block -->.*?<!-- /own-block -->", "", TEXT, flags=re.S)  # the tests of own blocks run that
SHORT = ["data=synthetic", "model.d_model=16", "model.n_layers=1", "data.seq_len=8", "schedule.n_steps=100"]


@pytest.mark.parametrize("snippet", fenced(page("README.md"), "python")[:1])
def test_python_snippets_run(snippet: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out


def commands() -> list[list[str]]:
    """The normstudy command lines of the pages, without comments and the shell's quotes."""
    lines = re.findall(r"^normstudy (.*)$", "\n".join(fenced(TEXT, "bash")), re.M)
    return [line.split("#")[0].replace("'", "").split() for line in lines]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_accepted(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps are planned and reproductions listed instead of run; plot and compare read the committed studies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("the quick brown fox jumps over the lazy dog. " * 500)
    words = [str(ROOT / w) if w.startswith("results/") else w for w in words]
    if words[0] == "sweep" and "--dry-run" not in words:
        words.append("--dry-run")
    if words[0] == "reproduce" and "--list" not in words:
        words.append("--list")
    if words[0] == "bench":  # one quick row instead of those of ours, which take minutes
        for letter in reversed([*ROWS]):  # monkeypatch restores them in the opposite order, which is theirs
            monkeypatch.delitem(ROWS, letter)
        monkeypatch.setitem(ROWS, "a", measured.ROW)
        measured.write(tmp_path / "results" / "bench", measured.by_hand({"sorted": [1.0]}))
    if words[0] == "plot":  # the tests of the committed studies draw all their figures
        words += ["--only", "headline", *([] if "--out" in words else ["--out", "figures"])]
    if words[0] == "run":
        words += SHORT
    assert main.main(words) == 0

"""Texts and paths of any characters: through a sweep, and through every command that reads a study."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

import handmade
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties import PROPERTY
from studies import draw_no_figures

from normstudy.analysis.load import load
from normstudy.cli import main as cli
from normstudy.study import parquet, schema

# A name of a file: any characters but / and NUL. Those from U+DC80 to U+DCFF stand for bytes that are not UTF-8.
ANY = st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]
)
NAMES = st.text(ANY, min_size=1, max_size=40).filter(lambda name: name not in (".", "..") and name[0] not in "-~")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
COMPARE = ["compare", "S", "--by", "placement"]
READERS = [
    ["status", "S"], ["check", "S"], COMPARE, [*COMPARE, "--format", "csv"], [*COMPARE, "--format", "markdown"],
    ["plot", "S", "--only", "loss_curves"], ["export", "S", "--to", "csv"], ["export", "S", "--to", "duckdb"],
    ["compact", "S"], ["check", "S"],
]  # fmt: skip


def said(*words: str) -> tuple[int, str, str]:
    """The exit code of a command, and what it prints on a terminal that knows ASCII only."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=how) for how in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(words))
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("ascii"))  # type: ignore[attr-defined]
    return code, texts[0], texts[1]


def write_study(study: Path, placement: str, path: str) -> None:
    """Two seeds of `pre`, and two of a placement whose name another program wrote."""
    for seed in (0, 1):
        for name in ("pre", placement):
            config = handmade.handmade_config(study.parent, seed=seed, warmup_steps=10 * (name == "pre"))
            run_id = handmade.write_handmade_run(study, config)
            row = {**(parquet.read_row(study, run_id) or {}), "placement": name, "data_path": path, "warmup_steps": 0}
            content = pa.Table.from_pylist([row], schema.SCHEMAS["runs"])
            (study / "tables" / "runs" / f"{run_id}.parquet").write_bytes(parquet.encode("runs", content))


@settings(PROPERTY, max_examples=max(2, PROPERTY.max_examples // 30))
@given(NAMES.filter(str.strip), TEXTS.filter(lambda text: text != "pre"), TEXTS)  # a blank results_dir is refused
@example("\x1b[31mred\n", "a|b\n\x1b]0;x\x07", "=cmd\r")
@example("run-12:30", "$x", "$\\frac")
@example("caf\udce9", "\u0830\u202e", "{}")  # matplotlib's font has no U+0830
def test_a_study_of_any_name_that_holds_any_text_is_read(name: str, placement: str, path: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_study(Path(name, "s"), placement, path)
        for words in READERS:
            code, out, err = said(*(f"{name}/s" if word == "S" else word for word in words))
            assert all(c.isprintable() for c in (out + err).replace("\n", "")), ascii(out + err)
            if words[-1] == "duckdb" and code == 2:  # duckdb itself cannot write to a path with ?, or not in UTF-8
                assert err.startswith("error: duckdb cannot write the database")
                assert err.count("\n") == 1
                continue
            assert err == "", (words, err)
            assert code == (1 if words[0] == "check" else 0)  # a run_id is made of what another program changed


TINY = [
    "data=file", "model=tiny", "data.seq_len=16", "schedule.n_steps=3", "eval.windows=4", "execution.workers=1",
    "model.norm=rmsnorm,layernorm",
]  # fmt: skip


def quoted(key: str, text: str) -> str:
    """A word of the command line that gives a key any text, as Hydra's grammar has it."""
    escaped = re.sub(r'(\\*)(?="|$)', r"\1\1", text).replace('"', r"\"")
    return f'{key}="{escaped}"'


def swept(folder: Path, results: str, study: str, path: str, *flags: str) -> tuple[int, str, str]:
    (folder / path).write_bytes(TEXT)
    keys = [quoted("results_dir", results), quoted("study", study), quoted("data.path", path)]
    return said("sweep", *TINY, *keys, *flags)


TEXT = Path(__file__).read_bytes() * 8


@settings(PROPERTY, max_examples=max(3, PROPERTY.max_examples // 20))
@given(NAMES, NAMES | st.from_regex(r"[A-Za-z0-9_.=-]{1,9}", fullmatch=True), NAMES)
@example("x:y", "s", "t")
@example("r", "a=b", "t")
@example("caf\udce9", "s", "t")
@example("r", "s", "\x1b[31m")
def test_a_plan_takes_any_text_or_refuses_it_in_one_line(results: str, study: str, path: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, out, err = swept(Path(folder), results, study, path, "--dry-run")
        assert all(c.isprintable() for c in (out + err).replace("\n", "")), ascii(out + err)
        assert os.listdir(folder) == [path]
        if code:
            assert (code, out, err.count("\n")) == (2, "", 1), err
        else:
            assert "2 runs" in out
            assert err == ""


def test_a_study_of_a_strange_name_is_trained_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path and its text's have blanks, quotes, braces and letters that the terminal does not know."""
    monkeypatch.chdir(tmp_path)
    draw_no_figures(monkeypatch)
    results, path = "ü {a} $b 'c' 文", 'x"y\n\\ z;\x1b[31m'
    code, out, err = swept(tmp_path, results, "s-1.0+", path)
    assert code == 0, err  # a slow machine prints its progress
    assert "\\xfc {a} $b 'c' \\u6587/s-1.0+" in out
    assert set(load(f"{results}/s-1.0+").runs["data_path"]) == {path}
    for words in READERS:
        renamed = {"S": f"{results}/s-1.0+", "placement": "norm"}
        assert said(*(renamed.get(word, word) for word in words))[::2] == (0, ""), words

"""Any command line and any config file: it is planned, or refused in one line with exit code 2, and nothing is written.

`NORMSTUDY_EXAMPLES=4000 pytest -n0 tests/app/test_malformed.py` tries 1,000 of each.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties import PROPERTY

from normstudy.app.errors import known_keys
from normstudy.cli import main as cli

FEW = settings(PROPERTY, max_examples=max(1, PROPERTY.max_examples // 6))
# Small numbers, names and every character that Hydra, OmegaConf or YAML gives a meaning.
# fmt: off
PIECES = [
    *"[]{}()<>'\"\\,:;=.$~+-*&!|%@#?/_ \t\n\r\0\x1b\x7f\ufeff\u2028é😀", "${", "${seed}",
    "${oc.env:HOME}", "${hydra:job.num}",
    "0", "1", "2", "-1", "1e-3", "1_0", "1.10", "0x1f", "010", "1:30", "nan", "inf", ".inf", "null", "~", "true", "off",
    "range(", "choice(", "glob(*)", "sort(", "interval(0,1)", "shuffle(", "tag(", "int(", "pre", "post", "tiny", "sgd",
    "seed", "model", "hydra", "schedule: {peak_lr: 1e-3}", "defaults:\n  - ", "override /model: ", "&a ", "*a",
    "<<: *a",
        "!!int ", "!!binary ", "!!set ", "!!timestamp ",
    "!!python/name:os.system ", "---\n", "%YAML 1.1\n", "# @package ",
]
# fmt: on
MESS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)
KEYS = [
    *known_keys(),
    "probe",
    "eval",
    "hydra.verbose",
    "hydra.job.name",
    "hydra.sweeper.params.seed",
    "hydra/launcher",
]
WORD = st.one_of(MESS, st.tuples(st.sampled_from(KEYS), st.just("=") | MESS, MESS).map("".join))
YAML = """# @package _global_
defaults:
  - override /model: tiny
study: mine
schedule: {peak_lr: 1e-3, n_steps: 3}
optimizer:
  weight_decay: 0.1
hydra:
  sweeper:
    params:
      model.placement: pre,post
"""
LETTERS = "abcdefghijklmnopqrst"
BOMB = "a: &a [1,1]\n" + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in itertools.pairwise(LETTERS))


@st.composite
def mangled(draw: st.DrawFn) -> str:
    """The file above, some of it replaced."""
    text = YAML
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(MESS) + text[start + draw(st.sampled_from([0, 0, 1, 2, 10, 100])) :]
    return text


def is_planned_or_refused(words: list[str], folder: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    before, start = sorted(folder.rglob("*")), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    assert time.process_time() - start < 10
    assert sorted(folder.rglob("*")) == before
    if code == 0:
        assert err.getvalue() == ""
    else:
        assert code == 2
        assert err.getvalue().startswith("error: ")
        assert err.getvalue().count("\n") == 1
        assert err.getvalue()[:-1].isprintable()
        assert len(err.getvalue()) > len("error: x\n")
        assert out.getvalue() == ""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "experiment").mkdir()
    with contextlib.chdir(folder):
        yield folder


@FEW
@given(st.lists(WORD, min_size=1, max_size=3))
@example(["schedule.peak_lr=range(nan,1,1)"])
@example(["seed=" + "[" * 3000])
@example(["hydra.launcher._target_=os.system"])
@example(["hydra/hydra_logging=default", "hydra.hydra_logging.handlers.console.class=nope"])
def test_any_command_line(folder: Path, words: list[str]) -> None:
    words = [word for word in words if not word.startswith("-")]  # flags are in test_bad_input.py
    is_planned_or_refused(["sweep", "data=synthetic", "seed=0,1", *words, "--dry-run"], folder)


@FEW
@given(mangled())
@example("")
@example("\ufeff# mine\n# @package _global_\n" + YAML[20:])
@example("# @package _global_\nstudy: &a [*a]\n")
@example(BOMB)
@example("[" * 3000)
@example("model:\nschedule:\n")
@example("5")
def test_any_config_file(folder: Path, text: str) -> None:
    (folder / "experiment" / "mine.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    words = ["--config-dir", os.curdir, "experiment=mine", "data=synthetic", "seed=0,1"]
    is_planned_or_refused(["sweep", *words, "--dry-run"], folder)

"""normstudy from Python: the words of its values, what a study answers, and a host that is left as it was."""

from __future__ import annotations

import contextlib
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import normstudy
from normstudy.app import api
from normstudy.app.reading import as_written

TINY = {
    "data": "synthetic", "n_layers": 2, "d_model": 16, "n_heads": 2, "seq_len": 8, "batch_size": 1, "windows": 4,
    "n_steps": 3, "device": "cpu", "workers": 1,
}  # fmt: skip
HOST = f"""
import os, signal, sys, threading, warnings
import matplotlib, scipy.special, torch
torch.set_num_threads(3)
signal.signal(signal.SIGINT, lambda *_: None)

def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)]
    host = dict(os.environ), os.getcwd(), list(sys.argv), list(sys.path), [one.name for one in threading.enumerate()]
    return *host, torch.get_num_threads(), handlers, dict(matplotlib.rcParams), list(warnings.filters)

import normstudy
before = state()
study = normstudy.sweep(study="s", seed=[0, 1], **{TINY!r})
for one, other in zip(state(), before): assert one == other, (one, other)
thread = threading.Thread(target=lambda: normstudy.run(study="t", **{TINY!r}))
thread.start()
thread.join()
assert state() == before

def train_and_draw(seed):
    normstudy.run(study="u", seed=seed, **{TINY!r}).plot("loss_curves")
    normstudy.report("results/s").save(f"{{seed}}.html")

threads = [threading.Thread(target=train_and_draw, args=(seed,)) for seed in range(3)]
for one in threads: one.start()
for one in threads: one.join()
for one, other in zip(state(), before): assert one == other, (one, other)
print(study)
print(*[len(normstudy.load(f"results/{{one}}").runs) for one in "ut"], study.tables.runs["status"].tolist())
"""


def test_values_become_words() -> None:
    keys = {
        "n_layers": [2, np.int64(4)], "placement": ("pre", "mine:block"), "model": {"d_model": 16, "norm": "rmsnorm"},
        "schedule.peak_lr": np.array([1e-3, 0.003]), "warmup_steps": None, "retry_failed": True, "study": "1.10",
        "results_dir": Path("/a b"), "seed": range(2), "experiment": "null",
    }  # fmt: skip
    assert api.words(keys) == [
        "model.n_layers=2,4", 'model.placement=pre,"mine:block"', "model.d_model=16", "model.norm=rmsnorm",
        "schedule.peak_lr=0.001,0.003", "schedule.warmup_steps=null", "execution.retry_failed=true", 'study="1.10"',
        'results_dir="/a b"', "seed=0,1", 'experiment="null"',
    ]  # fmt: skip


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]).filter(lambda one: one != "$"), min_size=1))
def test_text_is_read_as_it_is(text: str) -> None:
    with as_written():
        value = OverridesParser.create().parse_override(api.words({"study": text})[0]).value()
    assert (value.text if isinstance(value, QuotedString) else value) == text


@given(st.text(r"""\${}'"a:. """, min_size=1))
def test_text_is_composed_as_it_is(text: str) -> None:
    with as_written():
        override = OverridesParser.create().parse_override(api.words({"data.path": text})[0])
    value = override.value()
    config = OmegaConf.create({"seed": 0, "path": value.text if isinstance(value, QuotedString) else value})
    assert config.path == text


@pytest.mark.packages
def test_it_trains_under_a_host_that_it_leaves_as_it_was(tmp_path: Path) -> None:
    """In a program that comes from standard input, where no process can read it again, and in threads."""
    done = subprocess.run([sys.executable, "-"], input=HOST, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, told, outcomes, last = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert "results/s: 2 runs, all 2 finished" in done.stdout
    assert last == "3 1 ['done', 'done']", (told, outcomes)


def test_a_sweep_is_that_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root, axes = 'it\'s "1" ${x}, b', {"model.placement": ["pre", "post"]}
    study = normstudy.sweep("smoke", ["schedule.n_steps=30"], axes, "1.10", results_dir=root, seed=0, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert (str(study.folder), repr(study)) == (f"{root}/1.10", f"{root}/1.10: no runs")
    assert "1.10: 4 runs, 0 already finished" in capfd.readouterr().out


def test_a_search_is_that_of_its_experiment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for of, said in ((None, "warmup_steps from 0 to 300"), ("n_layers", "model.n_layers is set, but")):
        with contextlib.nullcontext() if of is None else pytest.raises(normstudy.ConfigError, match=said):
            normstudy.critical(of, "critical_warmup", results_dir=tmp_path, dry_run=True)
            assert said in capfd.readouterr().out


def test_a_bad_request_is_an_error_with_the_command_line_s_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call, words in (
        (lambda: normstudy.run(n_layer=3), "Did you mean"),
        (lambda: normstudy.run(n_layers=[3, 4]), "normstudy run trains one run"),
        (lambda: normstudy.sweep("warmpu"), "Did you mean warmup?"),
        (lambda: normstudy.sweep(overrides="seed=0,1"), "is one text"),
        (lambda: normstudy.critical("momentum", n_layers=2), "momentum"),
        (lambda: normstudy.run(placement="__main__:block"), "put block into a module, such as my_module.py"),
        (lambda: normstudy.load("none"), "none does not exist"),
        (lambda: normstudy.Study("none").plot(), "none does not exist"),
        (lambda: normstudy.Study("none").critical(), "none does not exist"),
        (lambda: normstudy.status("none"), "none does not exist"),
        *((lambda call=call, name=name: call(name), "... cannot be read: File name too long")
          for call in (normstudy.load, normstudy.status, normstudy.report, normstudy.plot)
          for name in ("x" * 300, "y/" * 3000)),
    ):  # fmt: skip
        with pytest.raises(normstudy.ConfigError, match=re.escape(words)) as told:
            call()
        assert "\n" not in str(told.value)
    assert repr(normstudy.Study("x" * 300)).endswith(": no runs")
    assert list(tmp_path.iterdir()) == []


NAMES = (
    "ConfigError", "RunConfig", "Study", "compare", "critical", "load", "plot", "report", "run", "status", "sweep",
    "watch",
)  # fmt: skip


def test_its_help_fits_a_screen_and_names_everything() -> None:
    text = pydoc.plain(pydoc.render_doc(normstudy))
    about = text.partition("PACKAGE CONTENTS")[0]
    assert all(re.search(rf"\b{name}\b", about) for name in NAMES)
    assert len(text.splitlines()) < 60


def test_its_names_are_listed_and_imported_late() -> None:
    code = "import sys, normstudy; print(*dir(normstudy)); assert not {'hydra', 'numpy', 'pandas'} & sys.modules.keys()"
    names = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert set(NAMES) < set(names)
    assert all(callable(getattr(normstudy, name)) for name in NAMES)
    for room in ("sweep", "report"):  # also rooms of the package
        __import__(f"normstudy.{room}")
        assert getattr(normstudy, room) is getattr(api, room)

"""What normstudy.watch is given: options, values to log, runs that go on, and watches that nobody closes."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loops import Convolutions, Encoder, Plain, batches, loss_of, made, plain_loop
from test_watch import adamw, count_hooks, watched
from torch import nn

import normstudy
from normstudy.cli.main import main

CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"evry": 3}, "watch has no option 'evry'. Did you mean every?"),
        ({"every": "10"}, "every '10' is not a whole number"),
        ({"every": math.nan}, "every nan is not a whole number"),
        ({"every": -1}, "every -1 must be 1 or more"),
        ({"dense": 2.5}, "dense 2.5 is not a whole number"),
        ({"dense": None}, "dense None is not a whole number"),
        ({"study": None}, "study is missing"),
        ({"study": 7}, "study 7 is not text"),
        ({"results_dir": 7}, "results_dir 7 is not text"),
        ({"blocks": 3}, "blocks 3 is not text"),
        ({"blocks": "layers.9"}, "no modules below it"),
        ({"names": 3}, "names=3 is not callable"),
        ({"names": lambda name: None}, "must return a layer (a number or None) and a module"),
        ({"names": lambda name: ("0", "mlp")}, "must return a layer"),
        ({"names": lambda name: (-1, "mlp")}, "return a layer (0, 1, ...) and a module"),
        ({"names": lambda name: (0, "")}, "return a layer (0, 1, ...) and a module"),
        ({"names": lambda name: 1 / 0}, "ZeroDivisionError"),
        ({"scaler": True}, "scaler is of type bool"),
        ({"config": [1]}, "config is of type list"),
        ({"config": {1: 2}}, "config has the key 1"),
        ({"config": {"a": CIRCULAR}}, "config contains itself"),
        ({"seed": "x"}, "seed 'x' is not a whole number"),
        ({"seed": -1}, "seed -1 must be 0 or more"),
        ({"step": 3}, "step=3 needs resume"),
        ({"resume": "mine-0123456789", "step": -3}, "step -3 must be 0 or more"),
        ({"resume": 3}, "resume 3 is not text"),
        ({"unigram_entropy": 2.0}, "an outcome needs both"),
        ({"unigram_entropy": math.nan, "bigram_entropy": 1.0}, "bigram_entropy 1 must be between 0 and"),
        ({"unigram_entropy": 1.0, "bigram_entropy": 2.0}, "bigram_entropy 2 must be between 0 and unigram_entropy 1"),
        ({"unigram_entropy": "a", "bigram_entropy": 2.0}, "must both be numbers"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = made(Encoder)
    with pytest.raises(normstudy.ConfigError, match=re.escape(words)) as told:
        watched(model, adamw(model), tmp_path, **options)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []
    assert count_hooks(model) == 0


def test_models_and_optimizers_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    class Lookahead(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    model = made(Encoder)
    lazy = nn.Sequential(nn.LazyLinear(3))
    for one, optimizer, words in (
        ("model", adamw(model), "model is of type str"),
        (model, "sgd", "optimizer is of type str"),
        (model, [], "the list of optimizers is empty"),
        (model, [adamw(model)] * 2, "the list of 2 optimizers has only 1 different"),
        (model, [adamw(model) for _ in range(3)], f"{len([*model.parameters()])} parameters are in two optimizers"),
        (model, Lookahead(adamw(model)), "Lookahead accepts no step hooks"),
        (lazy, torch.optim.SGD(lazy.parameters(), lr=0.1), "has parameters without a shape yet"),
    ):
        with pytest.raises(normstudy.ConfigError, match=re.escape(words)):
            watched(one, optimizer, tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_options_of_other_types_that_are_right(tmp_path: Path) -> None:
    given = {
        "rate": np.float32(0.5), "n": np.int64(3), "flag": np.bool_(True), "tensor": torch.tensor(2), "clip": math.inf,
        "path": tmp_path, "deep": {"a": (1, None)}, "half": "\ud800", "array": np.arange(2),
    }  # fmt: skip
    model = made(Encoder)
    options = {"every": np.int64(3), "seed": np.uint8(7), "results_dir": tmp_path, "config": given}
    with watched(model, adamw(model), tmp_path, **options) as w:
        plain_loop(model, w.optimizers[0], 2)
    runs = normstudy.load(tmp_path / "mine").runs
    kept = json.loads(runs["config"][0])
    assert kept == {
        "rate": 0.5, "n": 3, "flag": True, "tensor": 2, "clip": "inf", "path": str(tmp_path),
        "deep": {"a": [1, None]}, "half": "?", "array": "[0 1]",
    }  # fmt: skip
    assert runs["seed"].tolist() == [7]
    assert len(normstudy.load(tmp_path / "mine", where="n=3").runs) == 1


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (torch.ones(2), None), (torch.ones(1), 1.0), ("x", None), ("0.5", None), (1 + 2j, None), (np.float64(0.5), 0.5),
        (torch.tensor(1j), None), (1e39, math.inf), (-1e300, -math.inf), (10**400, None), (np.ones(3), None),
        (torch.tensor(1e300, dtype=torch.float64), math.inf), (torch.tensor(3), 3.0), (True, 1.0), ([1.0], None),
    ],
)  # fmt: skip
def test_what_is_logged_costs_no_step(
    value: Any, kept: float | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = made(Encoder)
    with watched(model, adamw(model), tmp_path) as w:
        for i in range(3):
            plain_loop(model, w.optimizers[0], 1)
            w.log(train_loss=value if i else 0.5)
            w.log(loss=3, accuracy=0.5)
    found = normstudy.load(tmp_path / "mine")
    losses = found.steps["train_loss"].tolist()
    assert losses[0] == 0.5
    assert all(one == kept or (kept is None and math.isnan(one)) for one in losses[1:])
    assert found.runs["status"].tolist() == ["done"]
    err = capfd.readouterr().err
    assert err.count("train_loss is not recorded") == (kept is None)
    assert err.count("loss is not recorded, because it is neither train_loss nor val_loss") == 1


def test_what_differs_from_the_run_that_goes_on_is_refused(tmp_path: Path) -> None:
    model = made(Encoder)
    with watched(model, adamw(model), tmp_path, seed=3, config={"a": 1}) as w:
        plain_loop(model, w.optimizers[0], 6)
        with pytest.raises(normstudy.ConfigError, match=f"another watch is recording {w.run_id}"):
            watched(model, adamw(model), tmp_path, resume=w.run_id).start()
    other = made(Plain)
    for one, options, words in (
        (other, {}, "the model has "),
        (model, {"seed": 4}, "seed 4 differs from the run's 3"),
        (model, {"config": {"a": 2}}, "differs from the run's"),
    ):
        with pytest.raises(normstudy.ConfigError, match=words):
            watched(one, adamw(one), tmp_path, resume=w.run_id, **options).start()
    entropies = {"unigram_entropy": 3.0, "bigram_entropy": 2.0}
    with watched(model, adamw(model), tmp_path, resume=w.run_id, seed=3, config={"a": 1}, **entropies) as again:
        plain_loop(model, again.optimizers[0], 1, log=lambda train_loss: again.log(val_loss=train_loss))
    found = normstudy.load(tmp_path / "mine")
    assert found.runs["unigram_entropy"].tolist() == [3.0]
    assert found.steps["step"].tolist() == list(range(7))
    with pytest.raises(normstudy.ConfigError, match="unigram_entropy 4"):
        watched(model, adamw(model), tmp_path, resume=w.run_id, unigram_entropy=4.0, bigram_entropy=2.0).start()
    assert main(["compact", str(tmp_path / "mine")]) == 0
    with pytest.raises(normstudy.ConfigError, match="is compacted, so its runs cannot be resumed"):
        watched(model, adamw(model), tmp_path, resume=w.run_id).start()


def test_a_watch_records_one_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = made(Encoder)
    with watched(model, adamw(model), tmp_path).start() as w:
        w.start()
        plain_loop(model, w.optimizers[0], 2)
    assert count_hooks(model) == 0
    with pytest.raises(normstudy.ConfigError, match=f"this watch has ended: .* resume='{w.run_id}'"):
        w.start()
    assert normstudy.load(tmp_path / "mine").steps["step"].tolist() == [0, 1]
    capfd.readouterr()
    watched(model, adamw(model), tmp_path)
    gc.collect()
    assert "a watch was never started" in capfd.readouterr().err


def test_a_saved_model_needs_no_normstudy(tmp_path: Path) -> None:
    model = made(Convolutions)
    with watched(model, adamw(model), tmp_path):
        saved = pickle.dumps(model)
    assert b"normstudy" not in saved
    loss_of(pickle.loads(saved), batches(1)[0]).backward()  # type: ignore[no-untyped-call]


LEFT = """
import sys
sys.path.insert(0, {here!r})
import torch, normstudy
from loops import Encoder, made, plain_loop
model = made(Encoder)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
w = normstudy.watch(model, optimizer, study={study!r}, results_dir={root!r}).start()
plain_loop(model, optimizer, 5)
{end}
"""


@pytest.mark.parametrize(
    ("end", "status"), [("", "done"), ("1 / 0", "failed"), ("import os, signal; os.fork() or sys.exit()", "done")]
)
def test_a_watch_that_nobody_closes_is_written_at_the_end(end: str, status: str, tmp_path: Path) -> None:
    code = LEFT.format(here=str(Path(__file__).parent), study="mine", root=str(tmp_path), end=end)
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, timeout=120, check=False)
    found = normstudy.load(tmp_path / "mine")
    assert found.runs["status"].tolist() == [status]
    assert found.steps["step"].tolist() == list(range(5))


@pytest.mark.parametrize(("code", "status"), [(None, "done"), (0, "done"), (1, "failed")])
def test_an_exit_without_an_error_is_an_end(code: int | None, status: str, tmp_path: Path) -> None:
    model = made(Encoder)
    with contextlib.suppress(SystemExit), watched(model, adamw(model), tmp_path) as w:
        plain_loop(model, w.optimizers[0], 1)
        sys.exit(code)
    assert normstudy.load(tmp_path / "mine").runs["status"].tolist() == [status]


def test_an_argument_of_a_step_that_is_a_model_stays_one(tmp_path: Path) -> None:
    class Regularized(torch.optim.SGD):
        def step(self, closure: Any = None, model: Any = None) -> Any:
            assert isinstance(model, nn.Module)
            return super().step(closure)

    model = made(Encoder)
    optimizer = Regularized(model.parameters(), lr=0.1)
    with watched(model, optimizer, tmp_path):
        loss_of(model, batches(1)[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step(model=model)
    assert len(normstudy.load(tmp_path / "mine").steps) == 1


def test_compiled_blocks_have_the_names_of_plain_ones(tmp_path: Path) -> None:
    model = made(Plain)
    want = normstudy.watch(model, adamw(model), study="a").layout.places
    blocks = model.decoder.blocks  # type: ignore[union-attr]
    for i in range(len(blocks)):  # type: ignore[arg-type]
        blocks[i] = torch.compile(blocks[i], backend="eager")  # type: ignore[index, operator]
    torch._dynamo.reset()
    with watched(model, adamw(model), tmp_path) as w, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        assert w.layout.places == want
        plain_loop(model, w.optimizers[0], 2)
    torch._dynamo.reset()
    assert normstudy.load(tmp_path / "mine").residual.notna().all(axis=None)

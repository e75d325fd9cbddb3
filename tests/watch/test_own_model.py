"""Watching this project's model in a plain loop gives the numbers that the runner stores for the same run.

Updates are the least alike: a watch sees parameters that were rounded after the update, of key biases the update is
scaled rounding noise (results/README.md), and the runner's norm of 12,288 equal updates is off by 7e-6.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from studies import draw_no_figures
from torch.nn import functional as F

import normstudy
from normstudy.config import RunConfig
from normstudy.config.schema import DataConfig, EvalConfig, ModelConfig, OptimizerConfig, ProbeConfig, ScheduleConfig
from normstudy.data import texts
from normstudy.model.transformer import Transformer
from normstudy.training import batch, step

STEPS, RATE = 20, 1e-2
PLACEMENTS = ("pre", "post", "peri")
KEYS = {"steps": ["step"], "modules": ["step", "layer", "module"], "residual": ["step", "layer"]}


def config_of(placement: str, biases: bool) -> RunConfig:
    return RunConfig(
        model=ModelConfig(placement=placement, n_layers=3, n_heads=2, biases=biases),
        data=DataConfig(name="synthetic", seq_len=16, batch_size=4), optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(peak_lr=RATE, warmup_steps=0, n_steps=STEPS), probe=ProbeConfig(dense_steps=STEPS),
        eval=EvalConfig(windows=8), seed=1, data_seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> normstudy.Study:
    root = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        draw_no_figures(patch)
        return normstudy.sweep(
            study="swept", results_dir=root, placement=list(PLACEMENTS), n_layers=3, n_heads=2,
            biases=[False, True], data="synthetic", seq_len=16, batch_size=4, peak_lr=RATE, warmup_steps=0,
            n_steps=STEPS, windows=8, dense_steps=STEPS, device="cpu", workers=1, seed=1,
        )  # fmt: skip


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_number_is_the_runner_s(placement: str, biases: bool, swept: normstudy.Study, tmp_path: Path) -> None:
    config = config_of(placement, biases)
    text = texts.load(config.data)
    model = Transformer(config.model, text.vocab_size, config.data.seq_len)
    drawn = batch.start(model, [config], text)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(drawn[name][0])
    o = config.optimizer
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(o.beta1, o.beta2), eps=o.eps)
    with normstudy.watch(model, optimizer, study="mine", results_dir=str(tmp_path), dense=STEPS) as w:
        for t in range(STEPS):
            tokens = torch.as_tensor(np.asarray(step.tokens_of(text, config, t)), dtype=torch.int64)
            logits, _ = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            w.log(train_loss=loss)
    ours = normstudy.load(swept.folder, where={"placement": placement, "biases": biases})
    theirs = normstudy.load(tmp_path / "mine")
    for table, keys in KEYS.items():
        one, other = (getattr(each, table).sort_values(keys, ignore_index=True) for each in (ours, theirs))
        assert one[keys].equals(other[keys])
        for column in one.columns.drop([*keys, "run_id", *({"val_loss", "clip_factor"} & {*one.columns})]):
            a, b = one[column].to_numpy(float), other[column].to_numpy(float)
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-9, err_msg=f"{table}.{column}")

"""The join of `modules` and `residual` that results/README.md shows, against a model whose blocks are watched."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from pages import fenced, page
from studies import never, task_of, tiny
from torch import Tensor, nn

from normstudy.config import RunConfig, run_id
from normstudy.data import texts
from normstudy.model import init
from normstudy.model.transformer import Transformer
from normstudy.workers import worker

EXAMPLE = fenced(page("results/README.md").partition("\n## residual\n")[2], "python")[0]
N_LAYERS = 3


def watched(config: RunConfig) -> list[tuple[float, float, float]]:
    """For each block at step 0: the norm of its gradient, and the rms of what it was given and of what it returned."""
    text = texts.load(config.data)
    model = Transformer(config.model, text.vocab_size, config.data.seq_len)
    for name, p in model.named_parameters():
        p.data.copy_(init.draw(name, p.shape, config.model, config.seed))
    seen: list[tuple[float, float]] = []

    def look(_: nn.Module, given: tuple[Tensor, ...], returned: tuple[Tensor, ...]) -> None:
        seen.append((given[0].square().mean().sqrt().item(), returned[0].square().mean().sqrt().item()))

    for block in model.blocks:
        block.register_forward_hook(look)
    windows = texts.batch(text, config.seed, 0, config.data.batch_size, config.data.seq_len)
    tokens = torch.from_numpy(windows)
    logits, _ = model(tokens[:, :-1])
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    norms = [torch.stack([p.grad.norm() for p in b.parameters() if p.grad is not None]).norm() for b in model.blocks]
    return [(norm.item(), *rms) for norm, rms in zip(norms, seen, strict=True)]


def test_a_block_is_joined_with_its_input_and_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"study": "warmup", "n_layers": N_LAYERS, "n_steps": 2}
    configs = [tiny(Path("results"), placement=placement, **sizes) for placement in ("pre", "peri")]
    for config in configs:
        list(worker.train_halving(task_of([config]), never))
    found: dict[str, pd.DataFrame] = {}
    exec(compile(EXAMPLE, "results/README.md", "exec"), found)
    blocks = found["blocks"].set_index(["run_id", "step", "layer"]).sort_index()
    assert list(blocks) == ["grad_norm", "rms_in", "rms_out"]
    assert len(blocks) == 2 * 2 * N_LAYERS
    for config in configs:
        name = run_id(config, texts.load(config.data).sha256)
        for layer, expected in enumerate(watched(config)):
            assert blocks.loc[(name, 0, layer)].tolist() == pytest.approx(expected, rel=1e-5)
            assert expected[1] != pytest.approx(expected[2], rel=1e-3)  # so that a shift by one layer would be seen

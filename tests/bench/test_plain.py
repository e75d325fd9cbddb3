"""The plain loop trains the model that normstudy trains, and records the same numbers: both do the same work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from normstudy.bench import plain
from normstudy.bench.speed import CASES
from normstudy.bench.subjects import Case, run_config
from normstudy.config import ProbeConfig
from normstudy.data import texts
from normstudy.model import transformer
from normstudy.training import batch, probes
from normstudy.training.step import loss_of_run

torch.set_num_threads(1)

TEXT = texts.load(run_config(Case(16, 1, 1, 8)).data)
SMALL = Case(d_model=32, n_layers=3, batch_size=4, seq_len=16)


def copied(params: dict[str, Tensor], model: plain.Decoder) -> None:
    """Give a plain decoder the parameters of one of normstudy's runs, name -> tensor."""
    outside = {"embed.weight": "embed", "pos.weight": "pos", "head.weight": "unembed.weight",
               "norm.weight": "final_norm.gamma", "norm.bias": "final_norm.beta"}  # fmt: skip
    inside = {"norm1.weight": "norm1.gamma", "norm1.bias": "norm1.beta",
              "norm2.weight": "norm2.gamma", "norm2.bias": "norm2.beta", "out.weight": "attn.out.weight",
              "out.bias": "attn.out.bias", "up.weight": "mlp.w1.weight", "up.bias": "mlp.w1.bias",
              "down.weight": "mlp.w2.weight", "down.bias": "mlp.w2.bias"}  # fmt: skip
    state = {theirs: params[ours] for theirs, ours in outside.items()}
    for layer in range(len(model.blocks)):
        block = f"blocks.{layer}."
        state |= {block + theirs: params[block + ours] for theirs, ours in inside.items()}
        for kind in ("weight", "bias"):
            state[f"{block}qkv.{kind}"] = torch.cat([params[f"{block}attn.{p}.{kind}"] for p in "qkv"])
    model.load_state_dict(state)


@pytest.mark.parametrize("case", [SMALL, *CASES], ids=lambda case: case.name)
def test_it_has_as_many_parameters(case: Case) -> None:
    config = run_config(case)
    ours = sum(p.numel() for p in transformer.build(config, TEXT.vocab_size).parameters())
    theirs = sum(p.numel() for p in plain.Decoder(config.model, TEXT.vocab_size, case.seq_len).parameters())
    assert ours == theirs


def test_with_the_same_weights_it_has_the_same_loss_and_gradient() -> None:
    config = run_config(SMALL)
    ours = transformer.build(config, TEXT.vocab_size)
    noise = torch.Generator().manual_seed(0)
    # Biases and norms start at constants, behind which a wrong one could hide.
    params = {
        name: p[0] + 0.1 * torch.randn(p[0].shape, generator=noise)
        for name, p in batch.start(ours, [config], TEXT).items()
    }
    theirs = plain.Decoder(config.model, TEXT.vocab_size, SMALL.seq_len)
    copied(params, theirs)
    tokens = torch.from_numpy(texts.batch(TEXT, 0, 0, SMALL.batch_size, SMALL.seq_len))

    def forward(values: list[Tensor]) -> Tensor:
        loss, _ = loss_of_run(ours, dict(zip(params, values, strict=True)), tokens)
        return loss

    stacked = [p[None].requires_grad_() for p in params.values()]
    loss = torch.func.vmap(forward)(stacked)
    grads = torch.autograd.grad(loss.sum(), stacked)
    plain_loss, _ = theirs(tokens[:, :-1], tokens[:, 1:])
    plain_loss.backward()
    assert abs(loss.item() - plain_loss.item()) < 1e-5
    expected = plain.Decoder(config.model, TEXT.vocab_size, SMALL.seq_len)
    copied({name: g[0] for name, g in zip(params, grads, strict=True)}, expected)
    for p, g in zip(theirs.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, g.detach(), rtol=1e-4, atol=1e-6)


def test_batches_are_windows_of_the_text_and_what_follows() -> None:
    tokens = torch.arange(40)
    torch.manual_seed(0)
    x, y = plain.draw_batch(tokens, 500, 8)
    assert x.shape == y.shape == (500, 8)
    assert torch.equal(y, x + 1)
    assert torch.equal(x - x[:, :1], torch.arange(8).expand(500, 8))
    assert (int(x.min()), int(y.max())) == (0, 39)  # the first window and the last both occur


def losses(device: str, steps: int) -> list[float | None]:
    """What a small run yields."""
    tokens = torch.from_numpy(TEXT.train.tokens).long()
    trained = plain.train(run_config(SMALL), tokens, TEXT.vocab_size, device)
    return [next(trained) for _ in range(steps)]


def test_it_learns_and_reads_the_loss_every_tenth_step() -> None:
    found = losses("cpu", 151)
    read = [i for i, loss in enumerate(found) if loss is not None]
    assert read == list(range(0, 151, 10))
    first, last = np.array([found[i] for i in read[:3]]), np.array([found[i] for i in read[-3:]])
    assert last.mean() < first.mean() - 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none here")
def test_it_learns_on_a_gpu() -> None:
    found = losses("cuda", 151)
    assert found[0] is not None
    assert found[150] is not None
    assert found[150] < found[0] - 0.5


MODULES = {
    "qkv": "attn_in",
    "out": "attn_out",
    "up": "mlp_in",
    "down": "mlp_out",
    "head": "unembed",
    "norm": "final_norm",
}


def test_it_records_what_normstudy_records_of_the_same_run() -> None:
    """Six steps at a constant rate: every norm of `steps` and `modules`, and of each x_l and dLoss/dx_l."""
    config = run_config(SMALL, probe=ProbeConfig(every=1))
    config = replace(config, schedule=replace(config.schedule, warmup_steps=0))
    model = transformer.build(config, TEXT.vocab_size)
    modules = probes.modules_of([name for name, _ in model.named_parameters()])
    rows = [*zip(modules.layer, modules.name, strict=True)]
    decoder, optimizer = plain.make(config, TEXT.vocab_size)
    copied({name: p[0] for name, p in batch.start(model, [config], TEXT).items()}, decoder)
    recorder = plain.Recorder(decoder, optimizer)
    order = []  # the row of normstudy's `modules` that each of the plain loop's is
    for name in recorder.modules:
        *path, last = name.split(".")
        order.append(rows.index((int(path[1]) if path else None, MODULES.get(last, last))))
    assert sorted(order) == list(range(len(rows)))
    records = batch.train_batch([config], TEXT)
    for step in range(6):
        record = next(records)
        assert isinstance(record, batch.Record)
        assert record.probe is not None
        tokens = torch.from_numpy(texts.batch(TEXT, config.data_seed or 0, step, SMALL.batch_size, SMALL.seq_len))
        loss, norms, residual = recorder.step(tokens[:, :-1], tokens[:, 1:])
        assert loss == pytest.approx(record.train_loss[0], rel=1e-4)
        ours = np.stack([record.probe.grad, record.probe.param, record.probe.update])[:, order, 0]
        np.testing.assert_allclose(norms[:, :-1], ours, rtol=1e-4)
        of_all = [record.grad_norm[0], record.param_norm[0], record.update_norm[0]]
        np.testing.assert_allclose(norms[:, -1], of_all, rtol=1e-4)
        ours = np.stack([record.probe.rms, record.probe.residual_grad])[..., 0]
        np.testing.assert_allclose(residual, ours, rtol=1e-4)


def test_both_recording_loops_train_the_plain_run() -> None:
    """The same losses; and a hook per parameter has a histogram of as many numbers as its gradient has."""
    config, tokens = run_config(SMALL), torch.from_numpy(TEXT.train.tokens).long()
    recorded = plain.train_recorded(config, tokens, TEXT.vocab_size)
    assert [next(recorded)[0] for _ in range(11)][::10] == pytest.approx(losses("cpu", 11)[::10], rel=1e-6)
    histograms = next(plain.train_watched(config, tokens, TEXT.vocab_size))
    sizes = sorted(p.numel() for p in plain.make(config, TEXT.vocab_size)[0].parameters())
    assert sorted(sum(counts) for counts, _ in histograms) == sizes
    assert {(len(counts), len(edges)) for counts, edges in histograms} == {(plain.BINS, plain.BINS + 1)}

"""Each measurement against a plain computation: one model, ordinary autograd, torch's own optimizer, no vmap."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from reduced import REDUCED
from torch import Tensor, nn
from torch.nn import functional as F

from normstudy.model import init
from normstudy.model.transformer import Transformer
from normstudy.reproductions.entry import PRE, Job, Reading, Sizes, Variant, model_config
from normstudy.reproductions.measure import MEASUREMENTS, NOISE_SEED, measure, random_tokens, start

DEPTH = 5
VARIANTS = (
    PRE, Variant("post"), Variant("mix"), Variant("pre", norm="rmsnorm"), Variant("reordered"), Variant("admin"),
    Variant("pre", init="gpt2", embed_init="std"), Variant("post", simplified=True),
)  # fmt: skip


def values(kind: str, variant: Variant, seeds: tuple[int, ...] = (1,)) -> dict[tuple[str, int | None, int], float]:
    rows = measure(Job(kind, variant, DEPTH, seeds, REDUCED))
    found = {(quantity, layer, seed): value for quantity, layer, seed, value in rows}
    assert len(found) == len(rows)
    return found


def plain(variant: Variant, seed: int, sizes: Sizes = REDUCED) -> nn.Module:
    """The same model as an ordinary module, float64."""
    config = model_config(variant, DEPTH, sizes)
    model = Transformer(config, sizes.vocab_size, sizes.seq_len)
    drawn = {name: init.draw(name, p.shape, config, seed) for name, p in model.named_parameters()}
    if variant.simplified:
        drawn |= {n: torch.zeros_like(p) for n, p in drawn.items() if n.endswith(("attn.q.weight", "attn.k.weight"))}
    if variant.placement == "admin":
        drawn |= init.profile(model, drawn, random_tokens(sizes, seed)[:, :-1])
    model.load_state_dict(drawn)
    return model.double()


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    logits, _ = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_gradients_and_the_stream(variant: Variant) -> None:
    found = values("gradients", variant, (1, 2))
    for seed in (1, 2):
        model, tokens = plain(variant, seed), random_tokens(REDUCED, seed)
        loss_of(model, tokens).backward()
        _, residual = model(tokens[:, :-1])
        for layer in range(DEPTH):
            grad = model.get_parameter(f"blocks.{layer}.mlp.w2.weight").grad
            assert grad is not None
            assert found["mlp_out_grad", layer, seed] == pytest.approx(grad.norm().item(), rel=1e-4)
        for layer, x in enumerate(residual):
            assert found["mean_square", layer, seed] == pytest.approx(x.square().mean().item(), rel=1e-5)
    assert len(found) == 2 * (DEPTH + DEPTH + 1)
    assert values("stream", variant, (1, 2)) == {k: v for k, v in found.items() if k[0] == "mean_square"}


def test_what_the_last_norm_reads() -> None:
    """Against the simplified post-norm block written out: attention is the mean of the values up to each place."""
    variant = Variant("post", simplified=True)
    found = values("before_norm2", variant)
    model, tokens = plain(variant, 1), random_tokens(REDUCED, 1)
    p = dict(model.named_parameters())
    x = p["embed"][tokens[:, :-1]] + p["pos"]
    n_tokens = x.shape[1]
    average = torch.ones(n_tokens, n_tokens, dtype=x.dtype).tril() / torch.arange(1, n_tokens + 1)[:, None]
    for layer in range(DEPTH):
        w = {n: p[f"blocks.{layer}.{n}.weight"] for n in ("attn.v", "attn.out", "mlp.w1", "mlp.w2")}
        assert all(m.shape == (REDUCED.d_model, REDUCED.d_model) for m in w.values())
        x = F.layer_norm(x + average @ x @ w["attn.v"].T @ w["attn.out"].T, x.shape[-1:])
        x = x + torch.relu(x @ w["mlp.w1"].T) @ w["mlp.w2"].T
        assert found["before_norm2", layer, 1] == pytest.approx(x.square().mean().item(), rel=1e-5)
        x = F.layer_norm(x, x.shape[-1:])
    assert len(found) == DEPTH


@pytest.mark.parametrize("variant", [PRE, Variant("post"), Variant("admin")], ids=lambda v: v.name)
def test_the_output_change_under_noise(variant: Variant) -> None:
    """Every matrix of the blocks, and nothing else, gets noise of 1 % of its own standard deviation."""
    model, tokens = plain(variant, 1), random_tokens(REDUCED, 1)
    noisy = copy.deepcopy(model)
    config = model_config(variant, DEPTH, REDUCED)
    with torch.no_grad():
        for name, p in noisy.blocks.named_parameters():  # type: ignore[union-attr, operator]
            if p.dim() == 2:
                drawn = init.draw(f"blocks.{name}", p.shape, config, 1 + NOISE_SEED)
                std = math.sqrt(2 / sum(p.shape))
                assert drawn.std().item() == pytest.approx(std, rel=0.15)
                assert not torch.equal(drawn, init.draw(f"blocks.{name}", p.shape, config, 1))
                p += 0.01 * drawn
        change = noisy(tokens[:, :-1])[0] - model(tokens[:, :-1])[0]
    assert values("noise", variant) == {
        ("output_change", None, 1): pytest.approx(change.square().mean().item(), rel=1e-3)
    }


def test_the_output_change_after_one_step() -> None:
    variant = Variant("deepnorm")
    found = values("update", variant)
    for quantity, trained in (("update_frozen", False), ("update_trained", True)):
        model, tokens = plain(variant, 1), random_tokens(REDUCED, 1)
        norms = {id(p) for m in model.modules() if type(m).__name__ == "FunctionNorm" for p in m.parameters()}
        before = model(tokens[:, :-1])[0].detach()
        moved = [p for p in model.parameters() if trained or id(p) not in norms]
        optimizer = torch.optim.SGD(moved, lr=1e-2)
        loss_of(model, tokens).backward()
        optimizer.step()
        change = (model(tokens[:, :-1])[0] - before).square().mean().sqrt().item()
        assert found[quantity, None, 1] == pytest.approx(change, rel=1e-3)
    assert len(found) == 2


def test_the_constants_are_those_of_the_model() -> None:
    found = values("constants", Variant("deepnorm"), (0,))
    assert found["alpha", 3, 0] == pytest.approx(10**0.25)
    for name in ("v", "out", "w1", "w2"):
        assert found[f"gain_{name}", 2, 0] == pytest.approx(40**-0.25)
    for name in ("q", "k"):
        assert found[f"gain_{name}", 2, 0] == 1
    for name in ("embed", "pos", "unembed"):
        assert found[f"gain_{name}", None, 0] == 1
    assert len(found) == 7 * DEPTH + 3
    without = values("constants", Variant("post"), (0,))
    assert {v for k, v in without.items() if k[0] == "alpha"} == {1.0}


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_a_seed_does_not_depend_on_its_company(kind: str) -> None:
    """A seed gives the same bits alone, in a batch, and in another order."""
    variant = Variant("deepnorm")

    def of(seeds: tuple[int, ...]) -> list[Reading]:
        return sorted(measure(Job(kind, variant, DEPTH, seeds, REDUCED)), key=str)

    together = of((0, 1, 2))
    assert together == sorted([*of((0,)), *of((2, 1))], key=str)
    assert {row[2] for row in together} == {0, 1, 2}


def test_random_tokens() -> None:
    sizes = Sizes()
    tokens = random_tokens(sizes, 0)
    assert tokens.shape == (4, 65)
    assert torch.equal(tokens, random_tokens(sizes, 0))
    assert not torch.equal(tokens, random_tokens(sizes, 1))
    many = torch.cat([random_tokens(sizes, seed).flatten() for seed in range(200)])
    counts = torch.bincount(many, minlength=256).double()
    assert counts.numel() == 256
    assert ((counts / counts.mean() - 1).abs() < 0.35).all()  # 203 expected, standard deviation 14


def test_the_setting_is_that_of_the_theory() -> None:
    config = model_config(Variant("post", simplified=True), 8, Sizes())
    assert (config.n_heads, config.d_ff, config.activation, config.biases) == (1, 128, "relu", False)
    runs = start(Sizes(), Variant("post", simplified=True), 1, (0,))
    assert not runs.params["blocks.0.attn.q.weight"].any()
    assert not runs.params["blocks.0.attn.k.weight"].any()
    assert runs.params["blocks.0.attn.v.weight"].any()
    real = model_config(Variant("post"), 8, Sizes())
    assert (real.n_heads, real.d_ff, real.activation, real.biases, real.norm) == (4, None, "gelu", False, "auto")
    params = start(Sizes(), PRE, 1, (0,)).params
    assert params["blocks.0.mlp.w1.weight"].shape == (1, 512, 128)
    assert params["unembed.weight"].std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert not any("bias" in name for name in params)

"""Every tensor is drawn from the documented distribution, from a stream of its own."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from normstudy.config import ModelConfig
from normstudy.init import INITS, draw, init_params
from normstudy.model import Transformer
from normstudy.placements import PLACEMENTS

torch.set_num_threads(1)

V, T, D, L, D_FF = 96, 40, 48, 4, 120


def config(placement: str = "pre", init: str = "auto", **more: object) -> ModelConfig:
    shape = {"n_layers": L, "d_model": D, "n_heads": 4, "d_ff": D_FF}
    return ModelConfig(placement=placement, init=init, **(shape | more))  # type: ignore[arg-type]


def shapes_of(model_config: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = Transformer(model_config, V, T)
    return {name: p.shape for name, p in model.named_parameters()}


def drawn(model_config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: draw(name, shape, model_config, seed) for name, shape in shapes_of(model_config).items()}


# Standard deviations by hand. xavier is sqrt(2 / (in + out)), of each of Q, K and V alone: one fused matrix
# would have fans 48 and 144 and so sqrt(2 / 192) = 0.102, not 0.144.
SQUARE = math.sqrt(2 / 96)
WIDE = math.sqrt(2 / 168)
UNEMBED = math.sqrt(2 / 144)
SCALED = 0.02 / math.sqrt(8)  # gpt2: 2 L = 8 sublayers add to the stream
TABLE = {
    #          q, k, v   out     w1     w2      unembed
    "xavier": (SQUARE, SQUARE, WIDE, WIDE, UNEMBED),
    "normal": (0.02, 0.02, 0.02, 0.02, 0.02),
    "gpt2": (0.02, SCALED, 0.02, SCALED, 0.02),
}


def expected_std(name: str, init: str) -> float:
    qkv, out, w1, w2, unembed = TABLE[init]
    by_part = {"q": qkv, "k": qkv, "v": qkv, "out": out, "w1": w1, "w2": w2, "unembed": unembed}
    if name in ("embed", "pos"):
        return math.sqrt(0.5)  # the two tables add up to variance 1
    return by_part[name.split(".")[-2]] if name.endswith("weight") else 0.0


def test_the_table_covers_every_init() -> None:
    assert set(TABLE) == set(INITS)


@pytest.mark.parametrize("placement", sorted(PLACEMENTS))
@pytest.mark.parametrize("init", sorted(TABLE))
def test_every_tensor_has_the_documented_distribution(init: str, placement: str) -> None:
    """Mean and deviation within 4.5 standard errors, sigma / sqrt(n) and sigma / sqrt(2 n)."""
    for name, value in drawn(config(placement, init)).items():
        assert value.dtype == torch.float32
        std, n, x = expected_std(name, init), value.numel(), value.double()
        if std == 0:
            assert torch.equal(value, torch.full_like(value, 1.0 if name.endswith("gamma") else 0.0)), name
        else:
            assert abs(x.mean().item()) < 4.5 * std / math.sqrt(n), name
            assert abs(x.std().item() - std) < 4.5 * std / math.sqrt(2 * n), name


def test_weights_are_normal_not_uniform() -> None:
    """The fourth moment of a normal is 3 sigma^4, of a uniform 1.8 sigma^4."""
    x = drawn(config())["blocks.0.mlp.w1.weight"].double()
    assert (x**4).mean().item() / (x**2).mean().item() ** 2 == pytest.approx(3, abs=0.4)


@pytest.mark.parametrize("placement", sorted(PLACEMENTS))
def test_auto_is_the_placement_s_own_init(placement: str) -> None:
    auto, own = drawn(config(placement)), drawn(config(placement, PLACEMENTS[placement].init))
    assert all(torch.equal(auto[name], own[name]) for name in own)


def test_x_0_has_unit_variance() -> None:
    params = drawn(config())
    tokens = torch.from_numpy(np.random.Generator(np.random.Philox(key=1)).integers(0, V, (32, T)))
    x = (F.embedding(tokens, params["embed"]) + params["pos"]).double()
    assert x.var().item() == pytest.approx(1, abs=0.05)


# ---- streams ------------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_and_name_only() -> None:
    """More layers, another placement (post has no final norm) or norm move no other tensor's draw."""
    base = drawn(config())
    for other in (config(n_layers=L + 2), config("post"), config(norm="rmsnorm"), config("post", n_layers=1)):
        shared = drawn(other)
        assert set(shared) & set(base) >= {"embed", "blocks.0.attn.q.weight"}
        for name in set(shared) & set(base):
            assert torch.equal(shared[name], base[name]), name
    # Another init is another deviation of the same normal numbers.
    small = drawn(config(init="normal"))["blocks.1.mlp.w1.weight"]
    torch.testing.assert_close(small / 0.02, base["blocks.1.mlp.w1.weight"] / WIDE)


def test_every_tensor_and_every_seed_has_its_own_stream() -> None:
    """The first 256 numbers of all tensors of two seeds: no two are alike."""
    heads = []
    for seed in (0, 1):
        for value in drawn(config(), seed).values():
            x = value.double().ravel()[:256]
            if x.std() > 0:
                heads.append(x / x.std())
    numbers = torch.stack(heads)
    correlations = (numbers @ numbers.T / 256).fill_diagonal_(0)
    assert len(heads) == 2 * (3 + 6 * L)
    assert correlations.abs().max().item() < 0.4  # six standard errors


GOLDEN_DRAW = [-0.13042724, 0.12280392, 0.17608176, -0.31574872]


def test_golden_draw() -> None:
    """The stream is part of a run's identity: when this moves, NUMERICS must be raised."""
    first = draw("blocks.0.attn.q.weight", torch.Size([48, 48]), config(), 0)[0, :4]
    torch.testing.assert_close(first, torch.tensor(GOLDEN_DRAW), rtol=1e-6, atol=0)


def test_init_params_stacks_each_run_s_own_draws() -> None:
    """Runs of one batch may differ in seed and in init."""
    configs = [config(init="xavier"), config(init="gpt2"), config(init="xavier")]
    stacked = init_params(shapes_of(configs[0]), configs, [3, 3, 4])
    for run, (c, seed) in enumerate(zip(configs, [3, 3, 4], strict=True)):
        for name, value in drawn(c, seed).items():
            assert torch.equal(stacked[name][run], value), name
    for one, other in pairwise(range(3)):
        assert not torch.equal(stacked["blocks.0.attn.out.weight"][one], stacked["blocks.0.attn.out.weight"][other])


def test_global_generators_are_untouched() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    drawn(config())
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before[1])  # noqa: NPY002
    a = drawn(config())
    torch.manual_seed(12345)
    b = drawn(config())
    assert all(torch.equal(a[name], b[name]) for name in a)
    torch.set_rng_state(torch_before)

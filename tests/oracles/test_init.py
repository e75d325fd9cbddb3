"""Every tensor is drawn from the documented distribution, from a separate random stream."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from normstudy.config import INIT_NAMES, ModelConfig
from normstudy.model.init import distribution, draw, init_params
from normstudy.model.transformer import Transformer
from normstudy.placements import PLACEMENTS

torch.set_num_threads(1)

V, T, D, L, D_FF = 96, 40, 48, 4, 120
BLOCKS = [{"placement": placement} for placement in sorted(PLACEMENTS)] + [
    {"placement": "hybrid", "first_block": "star"},
    {"placement": "pre", "qk_norm": "full"},
    {"placement": "post", "qk_norm": "per_head", "norm": "dyt", "embed_norm": True},
]


def config(placement: str = "pre", init: str = "auto", **more: object) -> ModelConfig:
    shape = {"n_layers": L, "d_model": D, "n_heads": 4, "d_ff": D_FF, "force_init": True}
    return ModelConfig(placement=placement, init=init, **(shape | more))  # type: ignore[arg-type]


def shapes_of(model_config: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = Transformer(model_config, V, T)
    return {name: p.shape for name, p in model.named_parameters()}


def drawn(model_config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: draw(name, shape, model_config, seed) for name, shape in shapes_of(model_config).items()}


# Standard deviations by hand. xavier is sqrt(2 / (in + out)) for Q, K and V separately: one fused matrix would have
# fans 48 and 144, and the deviation sqrt(2 / 192) = 0.102 instead of 0.144.
SQUARE = math.sqrt(2 / 96)
WIDE = math.sqrt(2 / 168)
UNEMBED = math.sqrt(2 / 144)
SCALED = 0.02 / math.sqrt(8)  # gpt2: 2 L = 8 sublayers add to the stream
DEEPNORM = 0.42044820762685725  # 32^(-1/4)
SUB = 1.4420268866008827  # sqrt(ln 8)
TFIXUP = 0.67 * 0.7071067811865476  # 0.67 * 4^(-1/4)
TABLE = {
    #          q, k    v       out     w1, gate  w2      unembed
    "xavier": (SQUARE, SQUARE, SQUARE, WIDE, WIDE, UNEMBED),
    "normal": (0.02, 0.02, 0.02, 0.02, 0.02, 0.02),
    "gpt2": (0.02, 0.02, SCALED, 0.02, SCALED, 0.02),
    "deepnorm": (SQUARE, SQUARE * DEEPNORM, SQUARE * DEEPNORM, WIDE * DEEPNORM, WIDE * DEEPNORM, UNEMBED),
    "sub": (SQUARE, SQUARE * SUB, SQUARE * SUB, WIDE * SUB, WIDE * SUB, UNEMBED),
    "tfixup": (SQUARE, SQUARE * TFIXUP, SQUARE * TFIXUP, WIDE * TFIXUP, WIDE * TFIXUP, UNEMBED),
}
# Initial values of tensors that start at a constant.
VALUES = {"gamma": 1.0, "beta": 0.0, "bias": 0.0, "a": 0.5, "omega1": 1.0, "omega2": 1.0, "scale": 0.0}


def expected_std(name: str, init: str) -> float:
    qk, v, out, w1, w2, unembed = TABLE[init]
    by_part = {"q": qk, "k": qk, "v": v, "out": out, "gate": w1, "w1": w1, "w2": w2, "unembed": unembed}
    if name in ("embed", "pos"):
        return math.sqrt(0.5)  # the two tables add up to variance 1
    return by_part[name.split(".")[-2]] if name.endswith("weight") else 0.0


def assert_drawn_with(name: str, value: torch.Tensor, std: float) -> None:
    """Mean and deviation are within 4.5 standard errors, which are sigma / sqrt(n) and sigma / sqrt(2 n)."""
    assert value.dtype == torch.float32
    n, x = value.numel(), value.double()
    if std == 0:
        assert torch.equal(value, torch.full_like(value, VALUES[name.rpartition(".")[2]])), name
    else:
        assert abs(x.mean().item()) < 4.5 * std / math.sqrt(n), name
        assert abs(x.std().item() - std) < 4.5 * std / math.sqrt(2 * n), name


def test_the_table_covers_every_init() -> None:
    assert set(TABLE) == set(INIT_NAMES)


@pytest.mark.parametrize("place", range(len(BLOCKS)), ids=lambda i: "-".join(map(str, BLOCKS[i].values())))
@pytest.mark.parametrize("turn", [0, 1])
def test_every_tensor_has_the_documented_distribution(turn: int, place: int) -> None:
    """Two inits for each block, so that every init meets five or six blocks. Every other placement has a gate."""
    block, init = BLOCKS[place], sorted(TABLE)[(place + 3 * turn) % len(TABLE)]
    gated = "swiglu" if len(str(block["placement"])) % 2 else "gelu"
    values = drawn(config(init=init, activation=gated, **block))
    assert ("blocks.0.mlp.gate.weight" in values) == (gated == "swiglu")
    for name, value in values.items():
        assert_drawn_with(name, value, expected_std(name, init))


def test_scaled_inits_move_with_the_depth_as_documented() -> None:
    """Deviations at 2, 8 and 18 layers, relative to xavier or 0.02. For deepnorm 8 L is 16, 64 and 144."""
    for init, scaled, expected in (
        ("deepnorm", ("attn.v", "attn.out", "mlp.w1", "mlp.gate", "mlp.w2"), [1 / 2, 8**-0.5, 12**-0.5]),
        ("sub", ("attn.v", "attn.out", "mlp.w1", "mlp.gate", "mlp.w2"), [1.177410, 1.665109, 1.893018]),
        ("tfixup", ("attn.v", "attn.out", "mlp.w1", "mlp.gate", "mlp.w2"), [0.563401, 0.398384, 0.325279]),
        ("gpt2", ("attn.out", "mlp.w2"), [1 / 2, 1 / 4, 1 / 6]),
    ):
        for n_layers, factor in zip((2, 8, 18), expected, strict=True):
            c = config(init=init, n_layers=n_layers, activation="swiglu")
            for part in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.w1", "mlp.gate", "mlp.w2"):
                mean, std = distribution(f"blocks.1.{part}.weight", torch.Size([30, 20]), c)
                base = 0.02 if init == "gpt2" else 0.2  # sqrt(2 / 50)
                assert (mean, std) == (0, pytest.approx(base * (factor if part in scaled else 1), rel=1e-5)), part
            assert distribution("unembed.weight", torch.Size([30, 20]), c)[1] == pytest.approx(base)


@pytest.mark.parametrize(
    ("values", "embed", "pos", "unembed"),
    [
        ({}, math.sqrt(0.5), math.sqrt(0.5), UNEMBED),
        ({"positions": "sinusoidal"}, math.sqrt(0.5), None, UNEMBED),  # the waves have mean square 1/2
        ({"positions": "rope"}, 1, None, UNEMBED),
        ({"positions": "none"}, 1, None, UNEMBED),
        ({"embed_init": "std"}, 0.02, 0.02, UNEMBED),
        ({"embed_init": "std", "embed_std": 0.3}, 0.3, 0.3, UNEMBED),
        ({"embed_init": "std", "embed_std": 0.3, "positions": "rope"}, 0.3, None, UNEMBED),
        ({"embed_init": "scaled"}, 48**-0.5, 48**-0.5, UNEMBED),
        ({"embed_init": "scaled", "embed_std": 0.1}, 0.1, 0.1, UNEMBED),
        ({"embed_init": "scaled", "positions": "none"}, 48**-0.5, None, UNEMBED),
        ({"unembed_std": 0.05}, math.sqrt(0.5), math.sqrt(0.5), 0.05),
        ({"unembed_std": 0.05, "init": "gpt2"}, math.sqrt(0.5), math.sqrt(0.5), 0.05),
        ({"tied": True}, math.sqrt(0.5), math.sqrt(0.5), None),
        ({"tied": True, "embed_init": "std"}, 0.02, 0.02, None),
        ({"placement": "deepnorm", "embed_init": "std"}, 0.02, 0.02, UNEMBED),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else "",
)
def test_tables_have_the_documented_distribution(
    values: dict[str, object], embed: float, pos: float | None, unembed: float | None
) -> None:
    got = drawn(config(n_layers=1, **values))
    expected = {"embed": embed, "pos": pos, "unembed.weight": unembed}
    assert set(got) & set(expected) == {name for name, std in expected.items() if std is not None}
    for name, std in expected.items():
        if std is not None:
            assert_drawn_with(name, got[name], std)


def test_weights_are_normal_not_uniform() -> None:
    """The fourth moment of a normal is 3 sigma^4, of a uniform 1.8 sigma^4."""
    x = drawn(config())["blocks.0.mlp.w1.weight"].double()
    assert (x**4).mean().item() / (x**2).mean().item() ** 2 == pytest.approx(3, abs=0.4)


@pytest.mark.parametrize("placement", sorted(PLACEMENTS))
def test_auto_is_the_placement_s_own_init(placement: str) -> None:
    auto, own = drawn(config(placement)), drawn(config(placement, PLACEMENTS[placement].init))
    assert all(torch.equal(auto[name], own[name]) for name in own)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "none"])
@pytest.mark.parametrize("embed_init", ["unit", "scaled"])
def test_x_0_has_unit_variance(embed_init: str, positions: str) -> None:
    """The mean square is taken, since sinusoids are not random. With `scaled`, the tokens alone have unit variance, and
    positions add 1/48 (learned) or 1/2 (sinusoids).
    """
    c = config(positions=positions, embed_init=embed_init)
    tokens = torch.from_numpy(np.random.Generator(np.random.Philox(key=1)).integers(0, V, (32, T)))
    x = torch.func.functional_call(Transformer(c, V, T), drawn(c), (tokens,))[1][0].double()
    added = {"learned": 1 / 48, "sinusoidal": 0.5}.get(positions, 0) if embed_init == "scaled" else 0
    assert x.square().mean().item() == pytest.approx(1 + added, abs=0.05)


# ---- streams ------------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_and_name_only() -> None:
    """More layers, another placement (post has no final norm) or another norm change no other tensor's draw."""
    base = drawn(config())
    others = [config(n_layers=L + 2), config("post"), config(norm="rmsnorm"), config("post", n_layers=1)]
    others += [config(**block | {"init": "xavier"}) for block in BLOCKS]
    for other in [*others, config(activation="swiglu", biases=False, tied=True)]:
        shared = drawn(other)
        assert set(shared) & set(base) >= {"embed", "blocks.0.attn.q.weight"}
        for name in set(shared) & set(base):
            assert torch.equal(shared[name], base[name]), name
    # Another init scales the same normal numbers differently.
    small = drawn(config(init="normal"))["blocks.1.mlp.w1.weight"]
    torch.testing.assert_close(small / 0.02, base["blocks.1.mlp.w1.weight"] / WIDE)


def test_every_tensor_and_every_seed_has_its_own_stream() -> None:
    """The first 256 numbers of any two tensors, of two seeds, are uncorrelated."""
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
    """The stream is part of a run's identity: if it changes, NUMERICS must be raised."""
    first = draw("blocks.0.attn.q.weight", torch.Size([48, 48]), config(), 0)[0, :4]
    torch.testing.assert_close(first, torch.tensor(GOLDEN_DRAW), rtol=1e-6, atol=0)


def test_init_params_stacks_each_run_s_own_draws() -> None:
    """Runs of one batch may differ in seed and in init."""
    configs = [config(init="xavier"), config(init="gpt2"), config(init="xavier")]
    with torch.device("meta"):
        model = Transformer(configs[0], V, T)
    stacked = init_params(model, configs, [3, 3, 4])
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

"""The oracle against numbers computed by hand and formulas written differently."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from normstudy.config import ModelConfig
from normstudy.reference import (
    BLOCKS,
    FINAL_NORM,
    admin_omegas,
    causal_attention,
    cross_entropy,
    decoder,
    dynamic_tanh,
    embedding,
    gelu,
    hybrid_star,
    layer_norm,
    mlp,
    post_norm_block,
    pre_norm_block,
    relu,
    rms_norm,
    rotary,
    sinusoids,
    swish,
    unembedding,
)

ONES, ZEROS = np.ones(4), np.zeros(4)


def rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=7))


# ---- norms --------------------------------------------------------------------------------------------


def test_layer_norm_by_hand() -> None:
    """[1 2 3 4]: mean 2.5, biased variance (2.25 + 0.25 + 0.25 + 2.25) / 4 = 1.25."""
    root = math.sqrt(1.25 + 1e-5)
    expected = np.array([-1.5, -0.5, 0.5, 1.5]) / root
    np.testing.assert_allclose(expected, [-1.34163542, -0.44721181, 0.44721181, 1.34163542], atol=1e-8)
    np.testing.assert_allclose(layer_norm(np.array([1.0, 2, 3, 4]), ONES, ZEROS), expected, rtol=1e-14)


def test_layer_norm_scales_and_shifts_after_normalizing() -> None:
    """[1 3]: mean 2, variance 1; gain [2 10] and bias [5 -1] give [-2 + 5, 10 - 1] with eps = 0."""
    got = layer_norm(np.array([1.0, 3.0]), np.array([2.0, 10.0]), np.array([5.0, -1.0]), eps=0.0)
    np.testing.assert_array_equal(got, [3.0, 9.0])


def test_layer_norm_eps_is_inside_the_root() -> None:
    """[0 2]: variance 1; with eps = 3 the root is 2. A root plus eps would give 4."""
    np.testing.assert_array_equal(layer_norm(np.array([0.0, 2.0]), np.ones(2), np.zeros(2), 3.0), [-0.5, 0.5])


def test_layer_norm_normalizes_each_position_apart() -> None:
    x = np.array([[[0.0, 2.0], [10.0, 10.0]], [[5.0, 1.0], [0.0, -8.0]]])
    got = layer_norm(x, np.ones(2), np.zeros(2), eps=0.25)
    a, b, c = 1 / math.sqrt(1.25), 2 / math.sqrt(4.25), 4 / math.sqrt(16.25)
    np.testing.assert_allclose(got, [[[-a, a], [0, 0]], [[b, -b], [c, -c]]], rtol=1e-14)


def test_rms_norm_by_hand() -> None:
    """[1 7]: mean square 25; not centered, so both stay positive."""
    np.testing.assert_array_equal(rms_norm(np.array([1.0, 7.0]), np.array([1.0, 3.0]), eps=0.0), [0.2, 4.2])
    np.testing.assert_array_equal(rms_norm(np.array([1.0, 7.0]), np.ones(2), eps=11.0), [1 / 6, 7 / 6])


def test_dynamic_tanh_by_hand() -> None:
    """tanh(ln 2) = (2 - 1/2) / (2 + 1/2) = 0.6: x = [ln 4, -ln 4] with a = 1/2, gain [10 5], bias [1 2]."""
    x = np.array([math.log(4), -math.log(4)])
    got = dynamic_tanh(x, np.asarray(0.5), np.array([10.0, 5.0]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(got, [7, -1], rtol=1e-14)


# ---- blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [pre_norm_block, post_norm_block])
def test_signatures_are_the_starting_text_s(block: object) -> None:
    assert callable(block)
    names = ["x", "attn_fn", "ffn_fn", "gamma1", "beta1", "gamma2", "beta2"]
    assert list(inspect.signature(block).parameters) == names
    assert str(inspect.signature(layer_norm)).startswith("(x:")
    assert list(inspect.signature(layer_norm).parameters) == ["x", "gamma", "beta", "eps"]
    assert inspect.signature(layer_norm).parameters["eps"].default == 1e-5


def test_pre_norm_block_by_hand() -> None:
    """x = [1 3], attn doubles, ffn adds 1; the large gain would reveal a misplaced norm.

    norm1 [-1 1] (eps negligible) * 2 + 1 = [-1 3]; attn [-2 6]; x = [-1 9].
    norm2: mean 4, deviation 5: [-1 1] * 10 + 0 = [-10 10]; ffn [-9 11]; x = [-10 20].
    """
    got = pre_norm_block(
        np.array([1.0, 3.0]),
        lambda h: 2 * h,
        lambda h: h + 1,
        np.array([2.0, 2.0]),
        np.array([1.0, 1.0]),
        np.array([10.0, 10.0]),
        np.zeros(2),
    )
    np.testing.assert_allclose(got, [-10, 20], rtol=2e-5)


def test_post_norm_block_by_hand() -> None:
    """x = [0 0 3], attn doubles, ffn adds 1 (eps negligible).

    x + attn(x) = [0 0 9]: mean 3, variance 18; norm1: [-1 -1 2] / sqrt 2 * sqrt 2 + [1 4 -2] = [0 3 0].
    x + ffn(x) = [0 3 0] + [1 4 1] = [1 7 1]: mean 3, variance 8; norm2: [-1 2 -1] / sqrt 2 * 10 sqrt 2 + 5.
    """
    got = post_norm_block(
        np.array([0.0, 0.0, 3.0]),
        lambda h: 2 * h,
        lambda h: h + 1,
        np.full(3, math.sqrt(2)),
        np.array([1.0, 4.0, -2.0]),
        np.full(3, 10 * math.sqrt(2)),
        np.full(3, 5.0),
    )
    np.testing.assert_allclose(got, [-5, 25, -5], rtol=1e-5)


def test_pre_norm_block_keeps_an_identity_path_and_post_norm_block_does_not() -> None:
    """With sublayers that return 0, pre-norm is the identity; post-norm normalizes twice."""
    x = rng().standard_normal((3, 4)) * 5 + 2
    parts = (np.zeros_like, np.zeros_like, ONES, ZEROS, ONES, ZEROS)
    np.testing.assert_array_equal(pre_norm_block(x, *parts), x)
    once = layer_norm(x, ONES, ZEROS)
    np.testing.assert_allclose(post_norm_block(x, *parts), layer_norm(once, ONES, ZEROS), rtol=1e-14)


@pytest.mark.parametrize(("name", "block"), [("pre", pre_norm_block), ("post", post_norm_block)])
def test_table_of_blocks_agrees_with_the_starting_text(name: str, block: object) -> None:
    assert callable(block)
    g = rng()
    x, gamma1, beta1, gamma2, beta2 = (g.standard_normal(s) for s in [(3, 4), 4, 4, 4, 4])
    gain = {"norm1": (gamma1, beta1), "norm2": (gamma2, beta2)}
    parts = SimpleNamespace(attn=np.tanh, ffn=np.sin, norm=lambda which, h: layer_norm(h, *gain[which]))
    np.testing.assert_array_equal(BLOCKS[name](x, parts), block(x, np.tanh, np.sin, gamma1, beta1, gamma2, beta2))


# A block on single numbers: norm1(h) = 2 h + 1, norm2(h) = 3 h + 1, norm1_out and norm1_inner 11 h + 1, norm2_out and
# norm2_inner 13 h + 1, attn(h) = 5 h, ffn(h) = 7 h. The shifts distinguish n(f(x)) from f(n(x)).
FACTORS = {"norm1": 2, "norm2": 3, "norm1_out": 11, "norm1_inner": 11, "norm2_out": 13, "norm2_inner": 13}
HEAD_SHIFTS = {"q": 1, "k": 2, "v": 4}  # attn with norms per head: the sum of q + 1, k + 2, v + 4, all three 5 h


def parts_of_numbers(layer: int, n_layers: int) -> SimpleNamespace:
    def attn(h: float, per_head: Callable | None = None, inner: Callable | None = None) -> float:
        if per_head is not None:
            return sum(per_head(m, 5 * h) for m in "qkv")
        return inner(5 * h) if inner else 5 * h

    def norm(name: str, h: float) -> float:
        return h + HEAD_SHIFTS[name[0]] if name[1:] == "_norm" else FACTORS[name] * h + 1

    return SimpleNamespace(
        attn=attn,
        ffn=lambda h, inner=None: inner(7 * h) if inner else 7 * h,
        norm=norm,
        params={"omega1": 4.0, "omega2": 6.0, "scale": 0.5},
        layer=layer,
        model=SimpleNamespace(n_layers=n_layers),
    )


@pytest.mark.parametrize(
    ("placement", "layer", "n_layers", "expected"),
    [
        ("pre", 1, 8, 359),  # y = 1 + 5 * 3 = 16; n2(16) = 49; 16 + 7 * 49
        ("post", 1, 8, 313),  # y = n1(1 + 5) = 13; n2(13 + 91)
        ("peri", 1, 8, 45850),  # y = 1 + (11 * 15 + 1) = 167; n2(167) = 502; 167 + (13 * 3514 + 1)
        ("reordered", 1, 8, 265),  # y = 1 + n1(5) = 12; 12 + n2(84)
        ("sub", 1, 8, 45850),  # as peri, the second norms being inside
        ("deepnorm", 1, 8, 406),  # alpha = 16^(1/4) = 2: y = n1(2 + 5) = 15; n2(30 + 105)
        ("admin", 1, 8, 742),  # y = n1(4 + 5) = 19; n2(6 * 19 + 133)
        ("lns", 4, 8, 101.25),  # y = 1 + 5 * 3/2 = 8.5; n2(8.5) = 26.5; 8.5 + 7 * 13.25
        ("mix", 2, 8, 313),  # floor(8 / 4) = 2 layers of post
        ("mix", 3, 8, 359),
        ("mix", 1, 7, 313),  # floor(7 / 4) = 1
        ("mix", 2, 7, 359),
        ("b2t", 1, 8, 316),  # y = 13; n2(1 + 13 + 91)
        ("hybrid", 1, 8, 560),  # y = 1 + (6 + 7 + 9) = 23; z = n2(23) = 70; 70 + 490
        ("rezero", 1, 8, 15.75),  # y = 1 + 2.5; 3.5 + 12.25
        ("none", 1, 8, 48),  # y = 6; 6 + 42
    ],
)
def test_blocks_by_hand(placement: str, layer: int, n_layers: int, expected: float) -> None:
    assert BLOCKS[placement](1.0, parts_of_numbers(layer, n_layers)) == expected


def test_blocks_that_stand_apart_by_hand() -> None:
    """residual: x = 1, r = 2: f = 5, x = n1(6) = 13, r = 7; g = 91, x = n2(104) = 313, r = 98.

    HybridNorm*'s first block: n1(1) = 3; y = 1 + (16 + 17 + 19) = 53; n2(53) = 160; 53 + 1120.
    """
    streams = BLOCKS["residual"](np.array([1.0, 2.0]), parts_of_numbers(1, 8))
    np.testing.assert_array_equal(streams, [313, 98])
    assert hybrid_star(1.0, parts_of_numbers(1, 8)) == 1173


# ---- sublayers ----------------------------------------------------------------------------------------


def attention_params(g: np.random.Generator, d_model: int) -> dict[str, np.ndarray]:
    shapes = {"weight": (d_model, d_model), "bias": (d_model,)}
    return {f"{m}.{leaf}": g.standard_normal(s) for m in ("q", "k", "v", "out") for leaf, s in shapes.items()}


@pytest.mark.parametrize("n_heads", [1, 2, 3])
def test_causal_attention_equals_the_matrix_formula(n_heads: int) -> None:
    """softmax(Q K^T / sqrt(K) + mask) V, written with whole matrices and -inf above the diagonal."""
    g = rng()
    B, T, D, K = 2, 5, 6, 6 // n_heads
    x, p = g.standard_normal((B, T, D)), attention_params(g, D)
    q, k, v = (np.einsum("btd,ed->bte", x, p[f"{n}.weight"]) + p[f"{n}.bias"] for n in "qkv")
    heads = [a.reshape(B, T, n_heads, K).transpose(0, 2, 1, 3) for a in (q, k, v)]
    scores = np.einsum("bhtk,bhsk->bhts", heads[0], heads[1]) * K**-0.5
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("bhts,bhsk->bthk", weights, heads[2]).reshape(B, T, D)
    expected = np.einsum("btd,ed->bte", mixed, p["out.weight"]) + p["out.bias"]
    np.testing.assert_allclose(causal_attention(x, p, n_heads), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(causal_attention(x[0], p, n_heads), expected[0], rtol=1e-12, atol=1e-13)


def test_causal_attention_by_hand() -> None:
    """Width 1, identity projections, no biases, x = [ln 2, ln 4]: d_head is 1, so scores are plain products.

    Position 0 reads itself: ln 2. Position 1 has scores ln4 ln2 and ln4 ln4, whose weights are 4^ln2 : 4^ln4.
    """
    p = {f"{m}.weight": np.ones((1, 1)) for m in ("q", "k", "v", "out")}
    p |= {f"{m}.bias": np.zeros(1) for m in ("q", "k", "v", "out")}
    a, b = math.log(2), math.log(4)
    wa, wb = 4**a, 4**b
    got = causal_attention(np.array([[a], [b]]), p, 1)
    np.testing.assert_allclose(got, [[a], [(wa * a + wb * b) / (wa + wb)]], rtol=1e-14)


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("form", ["full", "per_head"])
def test_norms_and_rotations_inside_attention(form: str, rope: bool) -> None:
    """Compare with whole matrices. The norms come first, over the full width with a gain (D,), or per head with a gain
    (K,) that the heads share. Then comes RoPE, as one matrix per position. A norm of the joined heads precedes `out`.
    """
    g = rng()
    B, T, D, H, K = 2, 5, 12, 3, 4
    x, p = g.standard_normal((B, T, D)), attention_params(g, D)
    width = D if form == "full" else K
    gains = {m: g.standard_normal(width) for m in "qkv"}
    inner_gain = g.standard_normal(D)

    def unit(h: np.ndarray) -> np.ndarray:
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5)

    shaped = {}
    for m in "qkv":
        h = np.einsum("btd,ed->bte", x, p[f"{m}.weight"]) + p[f"{m}.bias"]
        h = unit(h) * gains[m] if form == "full" else h
        h = h.reshape(B, T, H, K)
        shaped[m] = unit(h) * gains[m] if form == "per_head" else h
    if rope:
        turn = np.zeros((T, K, K))
        for t in range(T):
            for i, rate in enumerate((1.0, 0.01)):  # 10000^(-2 i / 4)
                c, s = math.cos(t * rate), math.sin(t * rate)
                turn[t][np.ix_([i, i + 2], [i, i + 2])] = [[c, -s], [s, c]]
        for m in "qk":
            shaped[m] = np.einsum("tij,bthj->bthi", turn, shaped[m])
    scores = np.einsum("bthk,bshk->bhts", shaped["q"], shaped["k"]) / 2
    weights = np.where(np.tril(np.ones((T, T), bool)), np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    mixed = unit(np.einsum("bhts,bshk->bthk", weights, shaped["v"]).reshape(B, T, D)) * inner_gain
    expected = np.einsum("btd,ed->bte", mixed, p["out.weight"]) + p["out.bias"]

    got = causal_attention(
        x,
        p,
        H,
        rope_base=10_000 if rope else None,
        inner=lambda h: rms_norm(h, inner_gain),
        **{form: lambda m, h: rms_norm(h, gains[m])},
    )
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


def test_rotary_by_hand() -> None:
    """Position 0 stays; at position 1 the pair (x_0, x_2) rotates by 1 radian, (x_1, x_3) by 10000^(-1/2) = 0.01."""
    x = np.array([[3.0, 4.0, 5.0, 6.0], [1.0, 1.0, 0.0, 0.0]])
    expected = [[3, 4, 5, 6], [math.cos(1), math.cos(0.01), math.sin(1), math.sin(0.01)]]
    np.testing.assert_allclose(rotary(x), expected, rtol=1e-14)


def test_rotary_products_depend_on_the_distance_only() -> None:
    q, k = rng().standard_normal((2, 6))
    turned_q, turned_k = rotary(np.tile(q, (9, 1))), rotary(np.tile(k, (9, 1)))
    for t in range(4, 9):
        assert turned_q[t] @ turned_k[t - 4] == pytest.approx(turned_q[4] @ turned_k[0], rel=1e-12)
    assert turned_q[4] @ turned_k[0] != pytest.approx(turned_q[3] @ turned_k[0], rel=1e-2)
    np.testing.assert_allclose(np.linalg.norm(turned_q, axis=1), np.linalg.norm(q), rtol=1e-12)


def test_sinusoids_by_hand() -> None:
    """Width 4: rates 1 and 1/100; their mean square is 1/2 at every position."""
    table = sinusoids(3, 4)
    np.testing.assert_allclose(table[0], [0, 1, 0, 1])
    np.testing.assert_allclose(table[2], [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)], rtol=1e-14)
    np.testing.assert_allclose((sinusoids(5, 12) ** 2).mean(1), 0.5, rtol=1e-14)


def test_causal_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="d_model 6 is not divisible by n_heads 4"):
        causal_attention(np.zeros((2, 6)), attention_params(rng(), 6), 4)


def test_gelu_and_mlp_by_hand() -> None:
    """Phi(1) = 0.841344746..., Phi(-1) = 1 - Phi(1)."""
    phi = 0.8413447460685429
    np.testing.assert_allclose(gelu(np.array([[0.0, 1.0, -1.0]])), [[0, phi, phi - 1]], rtol=1e-14)
    p = {
        "w1.weight": np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
        "w1.bias": np.array([0.0, -2.0, 1.0]),
        "w2.weight": np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]),
        "w2.bias": np.array([10.0, 20.0]),
    }
    # hidden = gelu([1, 1 - 2, 1]) = [phi, phi - 1, phi]
    np.testing.assert_allclose(mlp(np.array([1.0, 1.0]), p), [2 * phi - 1 + 10, 2 * phi + 20], rtol=1e-14)


def test_gated_mlps_and_their_activations_by_hand() -> None:
    """swish(ln 3) = ln 3 / (1 + 1/3); the gate is activated and multiplied by W1 x; the two are not interchanged."""
    np.testing.assert_allclose(swish(np.array([math.log(3), 0.0])), [0.75 * math.log(3), 0], rtol=1e-14)
    np.testing.assert_array_equal(relu(np.array([-2.0, 0.0, 3.0])), [0, 0, 3])
    p = {
        "gate.weight": np.array([[1.0], [2.0]]),
        "gate.bias": np.array([0.0, -1.0]),
        "w1.weight": np.array([[3.0], [-1.0]]),
        "w1.bias": np.array([1.0, 0.0]),
        "w2.weight": np.array([[10.0, 1.0]]),
    }
    x = np.array([2.0])  # gate [2, 3], w1 [7, -2]
    s2, s3 = 2 / (1 + math.exp(-2)), 3 / (1 + math.exp(-3))
    np.testing.assert_allclose(mlp(x, p, "swiglu"), [70 * s2 - 2 * s3], rtol=1e-14)
    g2, g3 = gelu(np.array([2.0, 3.0]))
    np.testing.assert_allclose(mlp(x, p, "geglu"), [70 * g2 - 2 * g3], rtol=1e-14)
    np.testing.assert_array_equal(mlp(x, p, "relu"), [70])
    np.testing.assert_array_equal(mlp(x, p, "relu", inner=lambda h: h + 1), [81])


# ---- a whole model ------------------------------------------------------------------------------------


def decoder_params(g: np.random.Generator, L: int, D: int, F: int, V: int, T: int) -> dict[str, np.ndarray]:
    p = {"embed": g.standard_normal((V, D)), "pos": g.standard_normal((T, D))}
    for layer in range(L):
        b = f"blocks.{layer}"
        p |= {f"{b}.attn.{name}": value for name, value in attention_params(g, D).items()}
        p |= {f"{b}.mlp.w1.weight": g.standard_normal((F, D)), f"{b}.mlp.w1.bias": g.standard_normal(F)}
        p |= {f"{b}.mlp.w2.weight": g.standard_normal((D, F)), f"{b}.mlp.w2.bias": g.standard_normal(D)}
        p |= {f"{b}.{n}.{leaf}": g.standard_normal(D) for n in ("norm1", "norm2") for leaf in ("gamma", "beta")}
    p |= {"final_norm.gamma": g.standard_normal(D), "final_norm.beta": g.standard_normal(D)}
    return p | {"unembed.weight": g.standard_normal((V, D))}


@pytest.mark.parametrize(("placement", "block"), [("pre", pre_norm_block), ("post", post_norm_block)])
def test_decoder_is_the_blocks_in_order(placement: str, block: object) -> None:
    assert callable(block)
    p = decoder_params(rng(), L=3, D=4, F=5, V=7, T=6)
    tokens = np.array([[0, 6, 2, 2], [1, 3, 5, 0]])
    model = ModelConfig(placement=placement, n_layers=3, d_model=4, n_heads=2, d_ff=5)
    logits, residual = decoder(p, tokens, model)

    x = np.array([[p["embed"][token] + p["pos"][t] for t, token in enumerate(row)] for row in tokens])
    np.testing.assert_array_equal(residual[0], x)
    for layer in range(3):
        own = {k.removeprefix(f"blocks.{layer}."): v for k, v in p.items() if k.startswith(f"blocks.{layer}.")}
        attn = {k.removeprefix("attn."): v for k, v in own.items() if k.startswith("attn.")}
        ffn = {k.removeprefix("mlp."): v for k, v in own.items() if k.startswith("mlp.")}
        gains = [own[k] for k in ("norm1.gamma", "norm1.beta", "norm2.gamma", "norm2.beta")]
        x = block(x, lambda h, a=attn: causal_attention(h, a, 2), lambda h, f=ffn: mlp(h, f), *gains)
        np.testing.assert_array_equal(residual[layer + 1], x)
    assert len(residual) == 4
    final = layer_norm(x, p["final_norm.gamma"], p["final_norm.beta"]) if placement == "pre" else x
    np.testing.assert_allclose(logits, final @ p["unembed.weight"].T, rtol=1e-13)


def test_decoder_obeys_an_explicit_final_norm() -> None:
    p = decoder_params(rng(), L=1, D=4, F=16, V=7, T=6)
    tokens = np.array([[3, 1, 4]])
    for placement in ("pre", "post", "lns", "b2t", "deepnorm", "residual"):  # placements that fit these parameters
        shape = {"placement": placement, "n_layers": 1, "d_model": 4, "n_heads": 1}
        given = {f: decoder(p, tokens, ModelConfig(**shape, final_norm=f))[0] for f in ("auto", "true", "false")}
        assert not np.allclose(given["true"], given["false"])
        np.testing.assert_array_equal(given["auto"], given[str(FINAL_NORM[placement]).lower()])


def test_decoder_keeps_the_precision_it_is_given() -> None:
    p = decoder_params(rng(), L=2, D=4, F=16, V=7, T=6)
    tokens = np.array([[3, 1, 4]])
    for norm in ("layernorm", "rmsnorm"):
        for placement, positions in (("pre", "sinusoidal"), ("post", "rope"), ("deepnorm", "learned")):
            shape = {"n_layers": 2, "d_model": 4, "n_heads": 2, "positions": positions, "embed_init": "scaled"}
            model = ModelConfig(placement=placement, norm=norm, **shape)
            half = decoder({k: v.astype(np.float32) for k, v in p.items()}, tokens, model)
            full = decoder(p, tokens, model)
            assert {a.dtype for a in (half[0], *half[1])} == {np.dtype(np.float32)}
            assert {a.dtype for a in (full[0], *full[1])} == {np.dtype(np.float64)}
            np.testing.assert_allclose(half[0], full[0], rtol=1e-3, atol=1e-4)


def test_unknown_norm_is_an_error_not_the_identity() -> None:
    model = ModelConfig(n_layers=1, d_model=4, n_heads=1)
    model.norm = "layernrom"
    with pytest.raises(ValueError, match="layernrom"):
        decoder(decoder_params(rng(), 1, 4, 16, 7, 6), np.array([[3, 1]]), model)
    model.placement = "per"
    with pytest.raises(KeyError, match="per"):
        decoder(decoder_params(rng(), 1, 4, 16, 7, 6), np.array([[3, 1]]), model)


def test_embedding_and_unembedding_by_hand() -> None:
    """D = 4: `scaled` doubles the tokens but not the positions. Tied logits are products with the rows of the table."""
    p = {
        "embed": np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]]),
        "pos": np.array([[0.5, 0.0, 0.0, 0.0], [0.0, 0.25, 0.0, 0.0]]),
        "embed_norm.gamma": np.full(4, 3.0),
        "final_norm.gamma": np.full(4, 2.0),
        "unembed.weight": np.array([[1.0, 0.0, 0.0, 0.0]]),
    }
    tokens = np.array([[1, 0]])

    def model(**more: object) -> ModelConfig:
        return ModelConfig(**({"n_layers": 4, "d_model": 4, "n_heads": 1, "norm": "rmsnorm"} | more))

    table = [[[0.5, 0, 0, 1], [1, 2.25, 3, 4]]]
    np.testing.assert_array_equal(embedding(p, tokens, model()), table)
    doubled = [[[0.5, 0, 0, 2], [2, 4.25, 6, 8]]]
    np.testing.assert_array_equal(embedding(p, tokens, model(embed_init="scaled")), doubled)
    for positions in ("none", "rope"):
        np.testing.assert_array_equal(embedding(p, tokens, model(positions=positions)), p["embed"][tokens])
    waves = p["embed"][tokens] + [[0, 1, 0, 1], [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]]
    np.testing.assert_allclose(embedding(p, tokens, model(positions="sinusoidal")), waves, rtol=1e-14)
    normed = rms_norm(np.array(table), np.full(4, 3.0))
    np.testing.assert_array_equal(embedding(p, tokens, model(embed_norm=True)), normed)

    x = np.array([[[1.0, 1.0, -1.0, 1.0]]])  # root mean square 1
    np.testing.assert_array_equal(unembedding(x, p, model(placement="post")), [[[1]]])
    np.testing.assert_allclose(unembedding(x, p, model()), [[[2]]], rtol=1e-5)
    np.testing.assert_allclose(unembedding(x, p, model(tied=True)), [[[8, 2]]], rtol=1e-5)
    streams = np.stack([10 * x, 5 * x])
    np.testing.assert_allclose(unembedding(streams, p, model(placement="residual")), [[[12]]], rtol=1e-5)
    without = model(placement="residual", final_norm="false")
    np.testing.assert_array_equal(unembedding(streams, p, without), [[[15]]])


def test_admin_omegas_by_hand() -> None:
    """One position, D = 2, x_0 = [4 0]: mean 2, variance 4. One head, so that attention is O(V x).

    omega_1 = 1. V doubles, O is 1: f_1 = [8 0], variance 16: omega_2 = sqrt(4 + 16).
    n1([12 0]) = [1 -1] * 3 = [3 -3]. The MLP's ReLU keeps the 3, and W2 gives [6 0], variance 9.
    omega_2 x has variance 20 * 9: omega_3 = sqrt(180 + 9).
    """
    identity, zeros = np.eye(2), np.zeros((2, 2))
    block = {f"attn.{m}.weight": w for m, w in zip("qkv", (zeros, zeros, 2 * identity), strict=True)}
    block |= {"attn.out.weight": identity, "mlp.w1.weight": identity, "mlp.w2.weight": 2 * identity}
    block |= {f"norm{i}.{leaf}": v for i in (1, 2) for leaf, v in (("gamma", np.full(2, 3.0)), ("beta", np.zeros(2)))}
    p = {"embed": np.array([[4.0, 0.0]])} | {f"blocks.{i}.{n}": v for i in range(2) for n, v in block.items()}
    model = ModelConfig(
        placement="admin", n_layers=2, d_model=2, n_heads=1, d_ff=2, activation="relu", positions="none", biases=False
    )
    omegas = admin_omegas(p, np.array([[0]]), model)
    assert omegas[:3] == pytest.approx([1, math.sqrt(20), math.sqrt(189)], rel=1e-5)
    # n2 gives [3 -3] again: variance 9, f_3 = [6 -6] of variance 36: omega_4^2 = 189 * 9 + 36
    assert omegas[3:] == pytest.approx([math.sqrt(189 * 9 + 36)], rel=1e-5)


def test_cross_entropy_by_hand() -> None:
    """Odds 1:3, 3:1 and 1:1, whose targets have probability 3/4, 1/4 and 1/2. An offset changes nothing."""
    logits = np.log(np.array([[1.0, 3.0], [3.0, 1.0], [5.0, 5.0]]))
    got = cross_entropy(logits, np.array([1, 1, 0]))
    assert got == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2)) / 3, rel=1e-14)
    assert cross_entropy(logits + 5000, np.array([1, 1, 0])) == pytest.approx(got, rel=1e-12)

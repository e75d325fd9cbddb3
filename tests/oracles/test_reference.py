"""The oracle itself, against numbers worked out by hand and formulas written another way."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

from normstudy.config import ModelConfig
from normstudy.reference import (
    BLOCKS,
    FINAL_NORM,
    causal_attention,
    cross_entropy,
    decoder,
    gelu,
    layer_norm,
    mlp,
    post_norm_block,
    pre_norm_block,
    rms_norm,
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
    """x = [1 3], attn doubles, ffn adds 1; a huge gain would show a norm out of place.

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
    got = BLOCKS[name](x, np.tanh, np.sin, lambda which, h: layer_norm(h, *gain[which]))
    np.testing.assert_array_equal(got, block(x, np.tanh, np.sin, gamma1, beta1, gamma2, beta2))


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
    for placement in BLOCKS:
        shape = {"placement": placement, "n_layers": 1, "d_model": 4, "n_heads": 1}
        given = {f: decoder(p, tokens, ModelConfig(**shape, final_norm=f))[0] for f in ("auto", "true", "false")}
        assert not np.allclose(given["true"], given["false"])
        np.testing.assert_array_equal(given["auto"], given[str(FINAL_NORM[placement]).lower()])


def test_decoder_keeps_the_precision_it_is_given() -> None:
    p = decoder_params(rng(), L=2, D=4, F=16, V=7, T=6)
    tokens = np.array([[3, 1, 4]])
    for norm in ("layernorm", "rmsnorm"):
        for placement in BLOCKS:
            model = ModelConfig(placement=placement, norm=norm, n_layers=2, d_model=4, n_heads=2)
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


def test_cross_entropy_by_hand() -> None:
    """Odds 1:3, 3:1 and 1:1, whose targets have probability 3/4, 1/4 and 1/2. An offset changes nothing."""
    logits = np.log(np.array([[1.0, 3.0], [3.0, 1.0], [5.0, 5.0]]))
    got = cross_entropy(logits, np.array([1, 1, 0]))
    assert got == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2)) / 3, rel=1e-14)
    assert cross_entropy(logits + 5000, np.array([1, 1, 0])) == pytest.approx(got, rel=1e-12)

"""The torch model against the NumPy oracle, against torch's own encoder layer, and against calculus."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normstudy import placements, reference
from normstudy.config import ConfigError, ModelConfig
from normstudy.model.norms import NORMS as SHIPPED
from normstudy.model.norms import dynamic_tanh, layer_norm, rms_norm
from normstudy.model.transformer import ACTIVATIONS, Transformer
from normstudy.training.step import loss_of_run

torch.set_num_threads(1)

VOCAB, SEQ_LEN = 11, 7
NORMS = ("layernorm", "rmsnorm", "dyt", "none")
PLACEMENTS = tuple(placements.PLACEMENTS)
WITHOUT = ("rezero", "none")  # placements that allow no norm
NORMED = tuple(p for p in PLACEMENTS if p not in WITHOUT)

Fields = dict[str, object]  # of a ModelConfig


def kinds(*norms: str) -> list[Fields]:
    """Every placement and HybridNorm* with each of the given norms; placements without norms once."""
    blocks: list[Fields] = [{"placement": p} for p in NORMED]
    blocks.append({"placement": "hybrid", "first_block": "star"})
    return [block | {"norm": norm} for block in blocks for norm in norms] + [{"placement": p} for p in WITHOUT]


# Every value that is not a model's default, in placements where it could go wrong: a gate before sub's inner norm, tied
# tables with two streams, QK-norm in every placement that allows it, before RoPE.
FEATURES: list[Fields] = [
    *[{"placement": "pre", "activation": a} for a in ("relu", "gelu_tanh", "swiglu", "geglu", "geglu_tanh")],
    *[{"placement": p, "norm_eps": 0.1, "embed_norm": True} for p in ("pre", "peri")],
    {"placement": "reordered", "norm": "rmsnorm", "norm_eps": 0.1, "positions": "rope", "rope_base": 3.0},
    *[{"placement": "pre", "positions": p} for p in ("sinusoidal", "rope", "none")],
    *[{"placement": p, "positions": "rope", "norm": "rmsnorm"} for p in ("reordered", "hybrid", "residual")],
    {"placement": "sub", "activation": "swiglu", "norm": "rmsnorm"},
    {"placement": "sub", "activation": "geglu", "norm": "dyt", "biases": False},
    {"placement": "post", "activation": "swiglu", "positions": "sinusoidal", "tied": True},
    {"placement": "hybrid", "first_block": "star", "positions": "rope", "norm": "layernorm"},
    {"placement": "none", "positions": "rope", "biases": False, "tied": True},
    {"placement": "rezero", "positions": "none", "activation": "relu", "embed_init": "scaled"},
    {"placement": "pre", "embed_init": "scaled"},
    {"placement": "pre", "embed_init": "scaled", "positions": "sinusoidal", "tied": True, "embed_norm": True},
    {"placement": "peri", "embed_norm": True, "norm": "rmsnorm"},
    {"placement": "residual", "embed_norm": True, "tied": True, "norm": "dyt"},
    {"placement": "lns", "biases": False, "embed_init": "std"},
    *[
        {"placement": p, "qk_norm": form, "norm": norm, "positions": positions}
        for p in NORMED
        if p != "hybrid"
        for form, norm, positions in (("full", "layernorm", "rope"), ("per_head", "rmsnorm", "learned"))
    ],
    {"placement": "pre", "qk_norm": "per_head", "norm": "layernorm", "positions": "rope"},
    {"placement": "post", "qk_norm": "per_head", "norm": "dyt", "positions": "rope"},
    {"placement": "peri", "qk_norm": "full", "norm": "dyt"},
    {"placement": "reordered", "qk_norm": "none"},
]


def name_of(values: Fields) -> str:
    """A test's id: pre-rmsnorm-full."""
    return "-".join(str(v) if isinstance(v, str) else f"{k}={v}" for k, v in values.items())


def config(n_layers: int = 5, **more: object) -> ModelConfig:
    shape = {"n_layers": n_layers, "d_model": 12, "n_heads": 3, "d_ff": 20}
    return ModelConfig(**(shape | more))  # type: ignore[arg-type]


def small(n_layers: int = 2, **more: object) -> ModelConfig:
    """A small model for numerical derivatives. mix needs four layers."""
    layers = 4 if more.get("placement") == "mix" else n_layers
    return config(**{"n_layers": layers, "d_model": 8, "n_heads": 2, "d_ff": 10, **more})  # type: ignore[arg-type]


SPECIAL = {"gamma": 1.0, "omega1": 1.0, "omega2": 1.0, "a": 0.5, "scale": 0.0}  # initial values


def random_model(model_config: ModelConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Transformer:
    """A model without special values: no bias is 0, no gain 1, no vector constant, no `a` 0.5.

    The values are the same in float32 and float64. Without norms the stream grows, so the matrices are smaller.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    model = Transformer(model_config, VOCAB, SEQ_LEN)
    normless = model_config.norm == "none" or model_config.placement in WITHOUT
    with torch.no_grad():
        for name, p in model.named_parameters():
            leaf = name.rpartition(".")[2]
            spread = 0.2 if normless and leaf == "weight" else 0.4
            values = SPECIAL.get(leaf, 0.0) + spread * rng.standard_normal(tuple(p.shape))
            if leaf in ("a", "scale"):
                values = SPECIAL[leaf] + 0.2 + 0.1 * rng.random()
            p.copy_(torch.from_numpy(np.asarray(values, np.float32)))
    return model.to(dtype)


def random_tokens(length: int = SEQ_LEN, batch: int = 2) -> Tensor:
    rng = np.random.Generator(np.random.Philox(key=99))
    return torch.from_numpy(rng.integers(0, VOCAB, (batch, length)))


def as_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().astype(np.float64) for name, p in model.named_parameters()}


def relative_error(got: Tensor, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest entry."""
    assert got.shape == expected.shape
    return float(np.abs(got.detach().numpy() - expected).max() / np.abs(expected).max())


# ---- against the NumPy oracle -------------------------------------------------------------------------


def assert_equals_the_reference(model_config: ModelConfig) -> None:
    """Logits and every x_l agree with the oracle in float64: to 1e-5 for float32, to 1e-10 for float64."""
    models = {1e-5: random_model(model_config, torch.float32), 1e-10: random_model(model_config)}
    params = as_arrays(models[1e-10])
    for tokens in (random_tokens(), random_tokens(length=3, batch=1)):  # full windows and shorter ones
        expected_logits, expected_residual = reference.decoder(params, tokens.numpy(), model_config)
        for tolerance, model in models.items():
            logits, residual = model(tokens)
            assert relative_error(logits, expected_logits) < tolerance
            assert len(residual) == len(expected_residual) == model_config.n_layers + 1
            for layer, (x, expected) in enumerate(zip(residual, expected_residual, strict=True)):
                assert relative_error(x, expected) < tolerance, f"x_{layer}"


def test_who_admits_no_norm_and_who_has_another_first_block() -> None:
    assert {p for p, row in placements.PLACEMENTS.items() if row.norms is not None} == set(WITHOUT)
    assert {p for p, row in placements.PLACEMENTS.items() if row.star_block is not None} == {"hybrid"}


@pytest.mark.parametrize("values", kinds(*NORMS), ids=name_of)
def test_model_equals_the_reference(values: Fields) -> None:
    assert_equals_the_reference(config(**values))


@pytest.mark.parametrize("n_layers", [4, 7, 8])
@pytest.mark.parametrize("placement", ["mix", "deepnorm", "lns"])
def test_formulas_with_a_depth_hold_at_other_depths(placement: str, n_layers: int) -> None:
    """mix has floor(L / 4) = 1, 1 and 2 post-norm layers."""
    assert_equals_the_reference(config(n_layers, placement=placement))


@pytest.mark.parametrize("values", FEATURES, ids=name_of)
def test_model_with_a_feature_equals_the_reference(values: Fields) -> None:
    assert_equals_the_reference(config(4, **values))


@pytest.mark.parametrize("final_norm", ["true", "false"])
@pytest.mark.parametrize(
    ("placement", "norm"), [("pre", "dyt"), ("post", "layernorm"), ("mix", "rmsnorm"), ("residual", "dyt")]
)
def test_final_norm_can_be_chosen(placement: str, norm: str, final_norm: str) -> None:
    model_config = config(4, placement=placement, norm=norm, final_norm=final_norm)
    assert_equals_the_reference(model_config)
    assert (random_model(model_config).final_norm is not None) == (final_norm == "true")


@pytest.mark.parametrize("values", kinds("layernorm"), ids=name_of)
def test_loss_equals_the_reference(values: Fields) -> None:
    model_config = config(4, **values)
    model = random_model(model_config)
    windows = random_tokens(length=SEQ_LEN + 1)
    loss, residual = loss_of_run(model, dict(model.named_parameters()), windows)
    logits, _ = reference.decoder(as_arrays(model), windows[:, :-1].numpy(), model_config)
    assert loss.item() == pytest.approx(reference.cross_entropy(logits, windows[:, 1:].numpy()), rel=1e-12)
    assert len(residual) == model_config.n_layers + 1


def test_norms_equal_the_reference() -> None:
    """The rows include some far from zero and from unit scale, where a misplaced eps would show."""
    rng = np.random.Generator(np.random.Philox(key=3))
    gamma, beta, a = rng.standard_normal(12), rng.standard_normal(12), np.asarray(0.8)
    for scale in (1e-3, 1.0, 1e3):
        x = (rng.standard_normal((2, 5, 12)) + 1) * scale
        x_t, gamma_t, beta_t, a_t = (torch.from_numpy(v) for v in (x, gamma, beta, a))
        assert relative_error(layer_norm(x_t, gamma_t, beta_t), reference.layer_norm(x, gamma, beta)) < 1e-12
        assert relative_error(rms_norm(x_t, gamma_t), reference.rms_norm(x, gamma)) < 1e-12
        assert (
            relative_error(dynamic_tanh(x_t, a_t, gamma_t, beta_t), reference.dynamic_tanh(x, a, gamma, beta)) < 1e-12
        )
    ones, zeros, half = 1 + 0 * gamma, 0 * beta, np.asarray(0.5)
    x /= 1e3  # otherwise tanh would be +-1 everywhere
    x_t = torch.from_numpy(x).float()
    assert relative_error(SHIPPED["layernorm"](12)(x_t), reference.layer_norm(x, ones, zeros)) < 1e-5
    assert relative_error(SHIPPED["rmsnorm"](12)(x_t), reference.rms_norm(x, ones)) < 1e-5
    assert relative_error(SHIPPED["dyt"](12)(x_t), reference.dynamic_tanh(x, half, ones, zeros)) < 1e-5
    assert SHIPPED["none"](12)(x_t) is x_t


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_equal_the_reference(name: str) -> None:
    """For very large inputs neither the value nor the gradient overflows."""
    x = np.linspace(-30, 30, 601)
    assert relative_error(ACTIVATIONS[name](torch.from_numpy(x)), reference.ACTIVATIONS[name](x)) < 1e-14
    far = torch.tensor([-1e30, -1e4, 1e4, 1e30], requires_grad=True)
    (grad,) = torch.autograd.grad(ACTIVATIONS[name](far).sum(), far)
    assert ACTIVATIONS[name](far).tolist() == [0, 0, far[2].item(), far[3].item()]
    assert grad.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_s_bits_do_not_depend_on_what_lies_beside_a_number(name: str) -> None:
    """torch's own tanh-GELU and silu compute the last few numbers of a tensor by another formula."""
    x = torch.randn(37 * 50, generator=torch.Generator().manual_seed(0))

    def both(part: torch.Tensor) -> torch.Tensor:
        leaf = part.clone().requires_grad_()
        y = ACTIVATIONS[name](leaf)
        return torch.cat([y.detach(), *torch.autograd.grad(y.sum(), leaf)])

    alone = torch.stack([both(part).view(2, -1) for part in x.split(37)], 1)
    assert torch.equal(both(x), alone.flatten())


@pytest.mark.parametrize(
    "values",
    [
        *[{"placement": p} for p in ("pre", "post", "peri", "reordered", "mix", "hybrid")],
        {"placement": "hybrid", "first_block": "star"},
    ],
    ids=name_of,
)
def test_without_norms_these_placements_are_one_function(values: Fields) -> None:
    """They have the parameters of placement none, and the same logits and residual stream to the bit."""
    plain = random_model(config(placement="none"), torch.float32)
    other = random_model(config(norm="none", **values), torch.float32)
    other.load_state_dict(plain.state_dict(), strict=True)
    (logits, residual), (expected, expected_residual) = other(random_tokens()), plain(random_tokens())
    assert torch.equal(logits, expected)
    assert all(torch.equal(a, b) for a, b in zip(residual, expected_residual, strict=True))


# ---- against torch's own layer ------------------------------------------------------------------------


def encoder_layer_like(block: nn.Module, model_config: ModelConfig) -> nn.TransformerEncoderLayer:
    """torch.nn.TransformerEncoderLayer with a block's weights; for RMSNorm its norms are replaced."""
    layer = nn.TransformerEncoderLayer(
        model_config.d_model,
        model_config.n_heads,
        model_config.d_ff or 0,
        dropout=0.0,
        activation=model_config.activation,
        batch_first=True,
        norm_first=model_config.placement == "pre",
        dtype=torch.float64,
    )
    if model_config.norm == "rmsnorm":
        layer.norm1 = nn.RMSNorm(model_config.d_model, eps=1e-5, dtype=torch.float64)  # type: ignore[assignment]
        layer.norm2 = nn.RMSNorm(model_config.d_model, eps=1e-5, dtype=torch.float64)  # type: ignore[assignment]
    theirs = dict(layer.named_parameters())
    with torch.no_grad():
        for name, value in in_encoder_names({n: p.detach() for n, p in block.named_parameters()}).items():
            theirs[name].copy_(value)
    return layer


def in_encoder_names(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a block under TransformerEncoderLayer's names; there Q, K and V are one tensor."""
    out = {}
    for leaf in ("weight", "bias"):
        out[f"self_attn.in_proj_{leaf}"] = torch.cat([ours[f"attn.{m}.{leaf}"] for m in "qkv"])
        out[f"self_attn.out_proj.{leaf}"] = ours[f"attn.out.{leaf}"]
        out[f"linear1.{leaf}"] = ours[f"mlp.w1.{leaf}"]
        out[f"linear2.{leaf}"] = ours[f"mlp.w2.{leaf}"]
    for n in ("norm1", "norm2"):
        out[f"{n}.weight"] = ours[f"{n}.gamma"]
        if f"{n}.beta" in ours:
            out[f"{n}.bias"] = ours[f"{n}.beta"]
    return out


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_block_equals_torch_encoder_layer(placement: str, norm: str, activation: str) -> None:
    """Output, gradient of the input and of every parameter, in float64."""
    model_config = config(1, placement=placement, norm=norm, activation=activation)
    block = random_model(model_config).blocks[0]
    layer = encoder_layer_like(block, model_config)
    rng = np.random.Generator(np.random.Philox(key=5))
    x = torch.from_numpy(rng.standard_normal((2, SEQ_LEN, model_config.d_model)) * 2 + 0.5)
    weight = torch.from_numpy(rng.standard_normal(x.shape))  # a fixed random direction: no gradient cancels

    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    second = torch.zeros_like(x)
    out, unread = block(mine, second)
    assert unread is second  # a block that takes no second stream returns it unchanged
    mask = nn.Transformer.generate_square_subsequent_mask(SEQ_LEN, dtype=torch.float64)
    expected = layer(theirs, src_mask=mask, is_causal=True)
    assert relative_error(out, expected.detach().numpy()) < 1e-10

    names = [n for n, _ in block.named_parameters()]
    grads = torch.autograd.grad((out * weight).sum(), [mine, *block.parameters()])
    their_names = [n for n, _ in layer.named_parameters()]
    their_grads = torch.autograd.grad((expected * weight).sum(), [theirs, *layer.parameters()])
    assert relative_error(grads[0], their_grads[0].numpy()) < 1e-10
    renamed = in_encoder_names(dict(zip(names, grads[1:], strict=True)))
    assert sorted(renamed) == sorted(their_names)
    for name, grad in zip(their_names, their_grads[1:], strict=True):
        assert relative_error(renamed[name], grad.numpy()) < 1e-10, name


# ---- causality ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [*kinds("layernorm"), {"placement": "pre", "qk_norm": "full", "positions": "rope"}], ids=name_of
)
def test_causality_by_gradient(values: Fields) -> None:
    """d logits[t] / d x_0[t'] for every pair of positions. Three cases:

    - t' > t, the future: exactly zero, not small, since a masked weight is exactly zero;
    - t' = t, the position itself: non-zero, through the residual stream;
    - t' < t, the past: non-zero, through attention alone. A mask that hides the nearest past fails
      here; one that is off by one in the other direction fails in the first case.

    Another sequence of the batch has no influence.
    """
    model = random_model(small(**values))
    logits, residual = model(random_tokens())
    rng = np.random.Generator(np.random.Philox(key=6))
    weight = torch.from_numpy(rng.standard_normal(VOCAB))
    for t in range(SEQ_LEN):
        (grad,) = torch.autograd.grad(logits[0, t] @ weight, residual[0], retain_graph=True)
        size = torch.linalg.vector_norm(grad, dim=-1)
        assert torch.equal(size[1], torch.zeros(SEQ_LEN, dtype=torch.float64))
        assert torch.equal(size[0, t + 1 :], torch.zeros(SEQ_LEN - t - 1, dtype=torch.float64))
        assert (size[0, : t + 1] > 1e-6).all()


# ---- gradients ----------------------------------------------------------------------------------------

STEP = 1e-5  # step of a central difference along a direction of length 1


def windows_for_derivatives() -> tuple[Tensor, np.ndarray, np.ndarray]:
    windows = random_tokens(length=5, batch=1)
    return windows, windows[:, :-1].numpy(), windows[:, 1:].numpy()


def directions(like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=8))
    out = {name: rng.standard_normal(value.shape) for name, value in like.items()}
    return {name: value / np.linalg.norm(value) for name, value in out.items()}


@pytest.mark.parametrize("values", [*kinds(*NORMS), *FEATURES], ids=name_of)
def test_gradients_equal_numerical_derivatives(values: Fields) -> None:
    """Each tensor's gradient along a random direction is the central difference of the oracle's loss.

    The tolerance is 1e-6 of the tensor's gradient norm, or of a thousandth of the whole norm if that is larger. The
    oracle's loss is used, so a detached path or a wrong backward of the model cannot agree by accident.
    """
    model_config = small(**values)
    model = random_model(model_config)
    windows, tokens, targets = windows_for_derivatives()
    params = dict(model.named_parameters())
    loss = loss_of_run(model, params, windows)[0]
    grads = {n: g.numpy() for n, g in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True)}
    whole = np.sqrt(sum((g**2).sum() for g in grads.values()))
    arrays = as_arrays(model)
    for name, direction in directions(arrays).items():
        up, down = (
            reference.cross_entropy(reference.decoder(arrays | {name: v}, tokens, model_config)[0], targets)
            for v in (arrays[name] + STEP * direction, arrays[name] - STEP * direction)
        )
        exact, size = float((grads[name] * direction).sum()), float(np.linalg.norm(grads[name]))
        assert abs(exact - (up - down) / (2 * STEP)) <= 1e-6 * max(size, 1e-3 * whole), name


@pytest.mark.parametrize("values", [*kinds("layernorm"), {"placement": "residual", "norm": "dyt"}], ids=name_of)
def test_gradients_of_the_residual_stream_equal_numerical_derivatives(values: Fields) -> None:
    """dLoss/dx_l for every l, from the oracle's blocks above layer l.

    With two streams x_l changes and r_l does not, except at l = 0, where both are the embeddings.
    """
    model_config = small(3, **values)
    model = random_model(model_config)
    windows, tokens, targets = windows_for_derivatives()
    loss, residual = loss_of_run(model, dict(model.named_parameters()), windows)
    grads = torch.autograd.grad(loss, residual)
    params, two_streams = as_arrays(model), model_config.placement == "residual"

    def loss_from(x: np.ndarray, layer: int) -> float:
        for above in range(layer + 1, model_config.n_layers + 1):
            x = reference.run_block(x, params, model_config, above)
        return reference.cross_entropy(reference.unembedding(x, params, model_config), targets)

    x = reference.embedding(params, tokens, model_config)
    x = np.stack([x, x]) if two_streams else x
    for layer, grad in enumerate(grads):
        direction = directions({"x": grad.numpy()})["x"]
        moved = np.stack([direction, direction * (layer == 0)]) if two_streams else direction
        slope = (loss_from(x + STEP * moved, layer) - loss_from(x - STEP * moved, layer)) / (2 * STEP)
        exact, size = float((grad.numpy() * direction).sum()), float(torch.linalg.vector_norm(grad))
        assert size > 1e-3, f"x_{layer}"
        assert abs(exact - slope) <= 1e-6 * size, f"x_{layer}"
        if layer < model_config.n_layers:
            x = reference.run_block(x, params, model_config, layer + 1)


@pytest.mark.parametrize(
    "values",
    [*kinds("layernorm"), {"placement": "pre", "qk_norm": "full", "positions": "rope"}, {"placement": "post"}],
    ids=name_of,
)
def test_only_what_shifts_all_keys_has_no_gradient(values: Fields) -> None:
    """A shift b of all keys adds q . b to all scores of a query, and softmax ignores it. All else has a gradient.

    Such a shift is a key bias without a norm or RoPE after it, or the bias of a key norm without RoPE after it.
    """
    model_config = config(4, **values)
    model = random_model(model_config)
    params = dict(model.named_parameters())
    loss, _ = loss_of_run(model, params, random_tokens(length=SEQ_LEN + 1))
    shift = "k_norm.beta" if any("k_norm" in name for name in params) else "attn.k.bias"
    shift = "nothing" if model_config.positions == "rope" else shift
    for name, grad in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
        size = float(torch.linalg.vector_norm(grad))
        if name.endswith(shift):
            assert size < 1e-14, name
        else:
            assert size > 1e-7, name


# ---- shape and names ----------------------------------------------------------------------------------

# By hand, for V 11, T 7, L 4, D 12, H 3, F 20. Tables 11 * 12 + 7 * 12 = 216, output matrix 132. A block without
# norms: attention 4 * (12 * 12 + 12) = 624, MLP (20 * 12 + 20) + (12 * 20 + 12) = 512, together 1136.
WITHOUT_NORMS = 216 + 132 + 4 * 1136
# The widths of a block's norms, and whether there is a final one of width 12. A head has 4 dimensions.
NORM_WIDTHS: dict[str, tuple[tuple[int, ...], bool]] = {
    "pre": ((12, 12), True),
    "post": ((12, 12), False),
    "peri": ((12, 12, 12, 12), True),
    "reordered": ((12, 12, 12, 12), True),  # two of them of q and k, over the full width
    "sub": ((12, 12, 12, 20), True),
    "deepnorm": ((12, 12), False),
    "admin": ((12, 12), False),
    "lns": ((12, 12), True),
    "mix": ((12, 12), True),
    "b2t": ((12, 12), False),
    "residual": ((12, 12), True),
    "hybrid": ((12, 4, 4, 4), True),
    "rezero": ((), False),
    "none": ((), False),
}
OTHERS = {"admin": 4 * 2 * 12, "rezero": 4}  # omegas, scales
TOTALS = {  # some totals by hand
    ("pre", "layernorm"): 4892 + 4 * 48 + 24,
    ("post", "rmsnorm"): 4892 + 4 * 24,
    ("peri", "dyt"): 4892 + 4 * 100 + 25,
    ("sub", "layernorm"): 4892 + 4 * 112 + 24,
    ("hybrid", "rmsnorm"): 4892 + 4 * 24 + 12,
    ("admin", "layernorm"): 4892 + 4 * 72,
    ("rezero", "none"): 4896,
    ("residual", "none"): 4892,
}


def n_params(**values: object) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config(4, **values), VOCAB, SEQ_LEN).parameters())


def of_norm(norm: str, width: int) -> int:
    """Number of parameters of a norm."""
    return {"layernorm": 2 * width, "rmsnorm": width, "dyt": 2 * width + 1, "none": 0}[norm]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_parameter_count_by_hand(placement: str, norm: str) -> None:
    if placement in WITHOUT and norm != "none":
        return
    widths, final = NORM_WIDTHS[placement]
    expected = WITHOUT_NORMS + OTHERS.get(placement, 0)
    expected += 4 * sum(of_norm(norm, w) for w in widths) + of_norm(norm, 12 * final) * final
    assert n_params(placement=placement, norm=norm) == expected
    assert TOTALS.get((placement, norm), expected) == expected


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ({"first_block": "star", "placement": "hybrid"}, 24),  # norm1 of the first block
        ({"qk_norm": "full"}, 4 * 2 * 24),
        ({"qk_norm": "per_head"}, 4 * 2 * 8),  # one gain and bias of width 4, shared by the heads
        ({"qk_norm": "per_head", "norm": "dyt"}, 4 * 2 * 9),
        ({"qk_norm": "none", "placement": "reordered"}, -4 * 2 * 24),
        ({"activation": "relu"}, 0),
        ({"activation": "swiglu"}, 4 * (20 * 12 + 20)),
        ({"activation": "geglu", "biases": False}, 4 * (20 * 12 - 4 * 12 - 20 - 12)),
        *[({"positions": p}, -7 * 12) for p in ("sinusoidal", "rope", "none")],
        ({"biases": False}, -4 * (4 * 12 + 20 + 12)),
        ({"tied": True}, -132),
        ({"embed_norm": True}, 24),
        ({"embed_norm": True, "norm": "rmsnorm"}, 12),
        ({"embed_init": "scaled"}, 0),
        ({"final_norm": "false"}, -24),
        ({"final_norm": "true", "placement": "post"}, 24),
        ({"final_norm": "false", "placement": "residual"}, -24),
    ],
    ids=lambda v: name_of(v) if isinstance(v, dict) else "",
)
def test_parameter_count_of_a_feature_by_hand(values: Fields, more: int) -> None:
    base = {"placement": "pre"} | {k: v for k, v in values.items() if k in ("placement", "norm")}
    assert n_params(**(base | values)) == n_params(**base) + more


def test_embeddings_are_tied_only_when_asked() -> None:
    model = random_model(config())
    assert model.embed.data_ptr() != model.unembed.weight.data_ptr()
    assert model.unembed.bias is None
    tied = random_model(config(tied=True))
    assert tied.unembed is None
    loss, _ = loss_of_run(tied, dict(tied.named_parameters()), random_tokens(length=4))
    (grad,) = torch.autograd.grad(loss, tied.embed)
    assert (torch.linalg.vector_norm(grad, dim=1) > 1e-6).all()  # also for tokens that do not occur in the input


def test_d_ff_follows_d_model_unless_given() -> None:
    """4 d_model, or with a gate 8/3 d_model rounded up to a multiple of 8: 32 for 12, 56 for 20."""
    for d_model, activation, given, expected in (
        (12, "gelu", None, 48), (12, "relu", None, 48), (12, "gelu", 5, 5), (12, "swiglu", None, 32),
        (20, "geglu", None, 56), (20, "geglu", 5, 5),
    ):  # fmt: skip
        c = ModelConfig(n_layers=1, d_model=d_model, n_heads=1, d_ff=given, activation=activation)
        assert Transformer(c, VOCAB, SEQ_LEN).blocks[0].mlp.w1.weight.shape == (expected, d_model)


@pytest.mark.parametrize(
    ("field", "wrong", "meant"),
    [
        ("placement", "Pre", "pre"), ("placement", "psot", "post"), ("placement", "sandwhich", "peri"),
        ("norm", "layer_norm", "layernorm"), ("qk_norm", "perhead", "per_head"), ("activation", "swi_glu", "swiglu"),
        ("positions", "rope ", "rope"), ("embed_init", "scale", "scaled"), ("first_block", "Star", "star"),
        ("final_norm", "ture", "true"),
    ],
)  # fmt: skip
def test_a_name_set_after_the_check_of_the_config_is_checked_again(field: str, wrong: str, meant: str) -> None:
    """An unknown name never means the identity or another placement."""
    bypassed = config()
    setattr(bypassed, field, wrong)
    with pytest.raises(ConfigError, match=f"model.{field} '{wrong}' is not one of .* Did you mean {meant}"):
        Transformer(bypassed, VOCAB, SEQ_LEN)

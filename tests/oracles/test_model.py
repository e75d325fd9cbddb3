"""The torch model against the NumPy oracle, against torch's own encoder layer, and against calculus."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normstudy import reference
from normstudy.config import ConfigError, ModelConfig
from normstudy.model import Transformer
from normstudy.norms import LayerNorm, RMSNorm, layer_norm, rms_norm
from normstudy.train import loss_of_run

torch.set_num_threads(1)

VOCAB, SEQ_LEN = 11, 7
KINDS = [(placement, norm) for placement in ("pre", "post") for norm in ("layernorm", "rmsnorm")]


def config(placement: str, norm: str, n_layers: int = 3, **more: object) -> ModelConfig:
    shape = {"n_layers": n_layers, "d_model": 12, "n_heads": 3, "d_ff": 20}
    return ModelConfig(placement=placement, norm=norm, **(shape | more))  # type: ignore[arg-type]


def random_model(model_config: ModelConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Transformer:
    """A model in which nothing is at a special value: biases are not 0, gains are not 1."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    model = Transformer(model_config, VOCAB, SEQ_LEN)
    with torch.no_grad():
        for name, p in model.named_parameters():
            values = rng.standard_normal(tuple(p.shape)) * 0.4 + (1 if name.endswith("gamma") else 0)
            p.copy_(torch.from_numpy(values))
    return model.to(dtype)


def random_tokens(length: int = SEQ_LEN, batch: int = 2) -> Tensor:
    rng = np.random.Generator(np.random.Philox(key=99))
    return torch.from_numpy(rng.integers(0, VOCAB, (batch, length)))


def as_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def relative_error(got: Tensor, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest entry."""
    assert got.shape == expected.shape
    return float(np.abs(got.detach().numpy() - expected).max() / np.abs(expected).max())


# ---- against the NumPy oracle -------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("placement", "norm"), KINDS)
def test_model_equals_the_reference(placement: str, norm: str, dtype: torch.dtype, tolerance: float) -> None:
    """Logits and every x_l, on full windows and on shorter ones; the oracle computes in float64."""
    model_config = config(placement, norm)
    model = random_model(model_config, dtype)
    params = {name: value.astype(np.float64) for name, value in as_arrays(model).items()}
    for tokens in (random_tokens(), random_tokens(length=3, batch=1)):
        logits, residual = model(tokens)
        expected_logits, expected_residual = reference.decoder(params, tokens.numpy(), model_config)
        assert relative_error(logits, expected_logits) < tolerance
        assert len(residual) == len(expected_residual) == model_config.n_layers + 1
        for x, expected in zip(residual, expected_residual, strict=True):
            assert relative_error(x, expected) < tolerance


@pytest.mark.parametrize(("placement", "norm"), KINDS)
def test_loss_equals_the_reference(placement: str, norm: str) -> None:
    model_config = config(placement, norm)
    model = random_model(model_config)
    windows = random_tokens(length=SEQ_LEN + 1)
    loss, residual = loss_of_run(model, dict(model.named_parameters()), windows)
    logits, _ = reference.decoder(as_arrays(model), windows[:, :-1].numpy(), model_config)
    assert loss.item() == pytest.approx(reference.cross_entropy(logits, windows[:, 1:].numpy()), rel=1e-12)
    assert len(residual) == model_config.n_layers + 1


@pytest.mark.parametrize("final_norm", ["true", "false"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_final_norm_can_be_asked_for(placement: str, final_norm: str) -> None:
    model_config = config(placement, "layernorm", final_norm=final_norm)
    model = random_model(model_config)
    logits, _ = model(random_tokens())
    expected, _ = reference.decoder(as_arrays(model), random_tokens().numpy(), model_config)
    assert relative_error(logits, expected) < 1e-10
    assert (model.final_norm is not None) == (final_norm == "true")


def test_norms_equal_the_reference() -> None:
    """Also on rows far from zero and far from unit scale, where a misplaced eps would show."""
    rng = np.random.Generator(np.random.Philox(key=3))
    gamma, beta = rng.standard_normal(12), rng.standard_normal(12)
    for scale in (1e-3, 1.0, 1e3):
        x = (rng.standard_normal((2, 5, 12)) + 1) * scale
        x_t, gamma_t, beta_t = (torch.from_numpy(a) for a in (x, gamma, beta))
        assert relative_error(layer_norm(x_t, gamma_t, beta_t), reference.layer_norm(x, gamma, beta)) < 1e-12
        assert relative_error(rms_norm(x_t, gamma_t), reference.rms_norm(x, gamma)) < 1e-12
    assert relative_error(LayerNorm(12)(x_t.float()), reference.layer_norm(x, 1 + 0 * gamma, 0 * beta)) < 1e-5
    assert relative_error(RMSNorm(12)(x_t.float()), reference.rms_norm(x, 1 + 0 * gamma)) < 1e-5


# ---- against torch's own layer ------------------------------------------------------------------------


def encoder_layer_like(block: nn.Module, model_config: ModelConfig) -> nn.TransformerEncoderLayer:
    """torch.nn.TransformerEncoderLayer with a block's weights; its RMSNorm variant has its norms replaced."""
    layer = nn.TransformerEncoderLayer(
        model_config.d_model,
        model_config.n_heads,
        model_config.d_ff or 0,
        dropout=0.0,
        activation="gelu",
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


@pytest.mark.parametrize(("placement", "norm"), KINDS)
def test_block_equals_torch_encoder_layer(placement: str, norm: str) -> None:
    """Output, gradient of the input and of every parameter, in float64."""
    model_config = config(placement, norm, n_layers=1)
    block = random_model(model_config).blocks[0]
    layer = encoder_layer_like(block, model_config)
    rng = np.random.Generator(np.random.Philox(key=5))
    x = torch.from_numpy(rng.standard_normal((2, SEQ_LEN, model_config.d_model)) * 2 + 0.5)
    weight = torch.from_numpy(rng.standard_normal(x.shape))  # a fixed random direction: no gradient cancels

    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = block(mine)
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


@pytest.mark.parametrize(("placement", "norm"), KINDS)
def test_causality_by_gradient(placement: str, norm: str) -> None:
    """d logits[t] / d x_0[t'] for every pair of positions. Three cases:

    - t' > t, the future: exactly zero, not small, since a masked weight is exactly zero;
    - t' = t, the position itself: non-zero, through the residual stream;
    - t' < t, the past: non-zero, through attention alone. A mask that hides the nearest past fails
      here; one that is off by one in the other direction fails in the first case.

    And whatever another sequence of the batch holds, it has no influence at all.
    """
    model = random_model(config(placement, norm))
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


@pytest.mark.parametrize(("placement", "norm"), KINDS)
def test_gradients_equal_numerical_derivatives(placement: str, norm: str) -> None:
    """Each tensor's gradient along a random direction is the central difference of the oracle's loss.

    The oracle's, not the model's own: a detached path or a wrong backward cannot agree with it by accident.
    """
    model_config = config(placement, norm, n_layers=2)
    model = random_model(model_config)
    windows = random_tokens(length=5, batch=1)
    tokens, targets = windows[:, :-1].numpy(), windows[:, 1:].numpy()
    params = dict(model.named_parameters())
    grads = torch.autograd.grad(loss_of_run(model, params, windows)[0], list(params.values()))
    arrays = as_arrays(model)
    rng = np.random.Generator(np.random.Philox(key=8))
    for (name, value), grad in zip(arrays.items(), grads, strict=True):
        direction = rng.standard_normal(value.shape)
        direction /= np.linalg.norm(direction)
        h = 1e-5
        up, down = (
            reference.cross_entropy(reference.decoder(arrays | {name: v}, tokens, model_config)[0], targets)
            for v in (value + h * direction, value - h * direction)
        )
        exact = float((grad.numpy() * direction).sum())
        assert exact == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize(("placement", "norm"), KINDS)
def test_only_the_key_bias_has_no_gradient(placement: str, norm: str) -> None:
    """A key bias adds q . b to all scores of a query, which softmax does not see; all else has a gradient."""
    model = random_model(config(placement, norm))
    params = dict(model.named_parameters())
    loss, _ = loss_of_run(model, params, random_tokens(length=SEQ_LEN + 1))
    for name, grad in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
        size = float(torch.linalg.vector_norm(grad))
        if name.endswith("attn.k.bias"):
            assert size < 1e-14, name
        else:
            assert size > 1e-6, name


# ---- shape and names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "per_norm"), [("layernorm", 2), ("rmsnorm", 1)])
def test_parameter_count_by_hand(norm: str, per_norm: int) -> None:
    """Tables V D + T D; unembedding V D, without bias; per block attention 4 (D^2 + D), MLP F D + F + D F + D
    and two norms of `per_norm` D each. pre has a final norm that post has not: `per_norm` D more.
    """
    V, T, L, D, F = VOCAB, SEQ_LEN, 3, 12, 20
    block = 4 * (D * D + D) + (F * D + F) + (D * F + D) + 2 * per_norm * D
    post = V * D + T * D + L * block + V * D
    counts = {
        placement: sum(p.numel() for p in Transformer(config(placement, norm), V, T).parameters())
        for placement in ("pre", "post")
    }
    assert counts == {"post": post, "pre": post + per_norm * D}


def test_unembedding_is_not_the_embedding() -> None:
    model = random_model(config("pre", "layernorm"))
    assert model.embed.data_ptr() != model.unembed.weight.data_ptr()
    assert model.unembed.bias is None


def test_d_ff_is_four_times_d_model_unless_given() -> None:
    for given, expected in ((None, 48), (5, 5)):
        model = Transformer(ModelConfig(n_layers=1, d_model=12, n_heads=1, d_ff=given), VOCAB, SEQ_LEN)
        assert model.blocks[0].mlp.w1.weight.shape == (expected, 12)


@pytest.mark.parametrize(
    ("field", "wrong", "meant"),
    [("placement", "Pre", "pre"), ("placement", "psot", "post"), ("norm", "layer_norm", "layernorm")],
)
def test_unknown_names_are_errors_with_the_nearest(field: str, wrong: str, meant: str) -> None:
    """Never the identity, never another placement."""
    with pytest.raises(ConfigError, match=f"model.{field} '{wrong}' is not one of .* Did you mean {meant}"):
        ModelConfig(**{field: wrong})  # type: ignore[arg-type]
    bypassed = config("pre", "layernorm")
    setattr(bypassed, field, wrong)
    with pytest.raises(KeyError, match=wrong):
        Transformer(bypassed, VOCAB, SEQ_LEN)

"""The presets are the models of Hugging Face's classes: with equal weights, equal logits and equal gradients.

Their classes compute norms, angles and softmax in float32, whatever the weights are. So that numbers can be compared to
1e-12, torch.float32 names float64 while they run.
"""

from __future__ import annotations

import importlib

import hydra
import pytest
import torch
from hydra import initialize_config_dir
from torch import Tensor

from normstudy.app import compose
from normstudy.config import ModelConfig
from normstudy.model.transformer import Transformer
from normstudy.training.step import loss_of_run

pytestmark = pytest.mark.packages

L, D, H, F, T, V = 2, 16, 2, 24, 7, 11
NORMS = {
    "llama": {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"},
    "olmo2": {
        "norm1": "post_attention_layernorm", "norm2": "post_feedforward_layernorm",
        "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm",
    },
    "gemma2": {
        "norm1": "input_layernorm", "norm1_out": "post_attention_layernorm",
        "norm2": "pre_feedforward_layernorm", "norm2_out": "post_feedforward_layernorm",
    },
}  # fmt: skip
LINEAR = {
    "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.down_proj",
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    words = [f"model.n_layers={L}", f"model.d_model={D}", f"model.n_heads={H}", f"model.d_ff={F}"]
    with initialize_config_dir(str(compose.conf_dir()), version_base="1.3"):
        return compose.to_run_config(hydra.compose("config", [f"model={name}", *words])).model


def as_gpt2(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights or gradients under GPT-2's names. Its linear maps store (in, out), and Q, K and V are one map."""
    out = {"wte.weight": ours["embed"], "wpe.weight": ours["pos"]}
    norms = {"ln_f": "final_norm"}
    for i in range(L):
        norms |= {f"h.{i}.ln_1": f"blocks.{i}.norm1", f"h.{i}.ln_2": f"blocks.{i}.norm2"}
        maps = {"attn.c_proj": ["attn.out"], "mlp.c_fc": ["mlp.w1"], "mlp.c_proj": ["mlp.w2"]}
        for theirs, parts in {"attn.c_attn": ["attn.q", "attn.k", "attn.v"], **maps}.items():
            for kind in ("weight", "bias"):
                joined = torch.cat([ours[f"blocks.{i}.{p}.{kind}"] for p in parts])
                out[f"h.{i}.{theirs}.{kind}"] = joined.mT if kind == "weight" else joined
    for theirs, name in norms.items():
        out |= {f"{theirs}.weight": ours[f"{name}.gamma"], f"{theirs}.bias": ours[f"{name}.beta"]}
    return {f"transformer.{name}": value for name, value in out.items()}


def as_llama(family: str, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights or gradients under the names that Llama, OLMo 2 and Gemma 2 share."""
    out = {"model.embed_tokens.weight": ours["embed"], "model.norm.weight": ours["final_norm.gamma"]}
    for i in range(L):
        for name, theirs in NORMS[family].items():
            out[f"model.layers.{i}.{theirs}.weight"] = ours[f"blocks.{i}.{name}.gamma"]
        for name, theirs in LINEAR.items():
            out[f"model.layers.{i}.{theirs}.weight"] = ours[f"blocks.{i}.{name}.weight"]
    return out | ({"lm_head.weight": ours["unembed.weight"]} if "unembed.weight" in ours else {})


def their_model(family: str) -> torch.nn.Module:
    """A small model of their class, with the class's own eps, base of RoPE, activation and ties of embeddings."""
    transformers = importlib.import_module("transformers")
    if family == "gpt2":
        shape = {"n_positions": T, "n_embd": D, "n_layer": L, "n_head": H, "n_inner": F}
        rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = transformers.GPT2Config(vocab_size=V, activation_function="gelu", **shape, **rates)
        return transformers.GPT2LMHeadModel(config)
    name = family.title()
    special: dict[str, object] = {}
    if family == "olmo2":  # as in the published configuration of 7B
        special = {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    if family == "gemma2":
        special = {
            "head_dim": D // H, "query_pre_attn_scalar": D // H, "attn_logit_softcapping": None,
            "final_logit_softcapping": None, "layer_types": ["full_attention"] * L,
        }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L, num_attention_heads=H,
        num_key_value_heads=H, max_position_embeddings=T, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        **special,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config)


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2", "gemma2"])
def test_a_preset_equals_hugging_face_s_class(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Transformer(preset(family), V, T).double()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in ours.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=draws, dtype=torch.float64))
    params = dict(ours.named_parameters())
    tokens = torch.randint(V, (2, T + 1), generator=draws)
    logits, _ = ours(tokens[:, :-1])
    loss, _ = loss_of_run(ours, params, tokens)
    grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))

    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    theirs = their_model(family).double().eval()
    weights = as_gpt2(params) if family == "gpt2" else as_llama(family, params)
    expected = as_gpt2(grads) if family == "gpt2" else as_llama(family, grads)
    if family == "gemma2":  # its gains are 1 + weight
        weights = {name: w - 1 if "norm" in name else w for name, w in weights.items()}
    found = dict(theirs.named_parameters())
    assert set(found) == set(weights)
    with torch.no_grad():
        for name, p in found.items():
            p.copy_(weights[name])
    got = theirs(tokens[:, :-1]).logits
    torch.testing.assert_close(got, logits, rtol=0, atol=1e-12)
    flat = torch.nn.functional.cross_entropy(got.flatten(0, 1), tokens[:, 1:].flatten())
    for name, grad in zip(found, torch.autograd.grad(flat, list(found.values())), strict=True):
        torch.testing.assert_close(grad, expected[name], rtol=0, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")

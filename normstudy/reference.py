"""The oracle: norms, blocks, attention, MLP and a whole decoder in plain NumPy, each line beside its formula.

Slow on purpose. Nothing here shares code with placements.py, norms.py or model.py, which the tests hold equal
to it. Works in the precision of its input (float64, float32). Parameters carry the names that a Transformer
gives them.

B batch, T sequence, D d_model, H heads, K d_head, F d_ff, V vocab.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from normstudy.config import ModelConfig

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Tokens = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Params = Mapping[str, Array]
Sublayer = Callable[[Array], Array]
Norm = Callable[[str, Array], Array]  # the name of a norm of the block ("norm1"), and what it normalizes


# ---- the starting text's functions --------------------------------------------------------------------


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> Array:
    """gamma * (x - mean) / sqrt(var + eps) + beta over the last axis, var biased (arXiv:1607.06450)."""
    mean: Array = np.mean(x, axis=-1, keepdims=True)
    var: Array = np.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return gamma * (x - mean) / np.sqrt(var + eps) + beta


def pre_norm_block(
    x: Array, attn_fn: Sublayer, ffn_fn: Sublayer, gamma1: Array, beta1: Array, gamma2: Array, beta2: Array
) -> Array:
    """x <- x + attn(norm1(x)), then x <- x + ffn(norm2(x)), both norms being `layer_norm`."""
    x = x + attn_fn(layer_norm(x, gamma1, beta1))
    return x + ffn_fn(layer_norm(x, gamma2, beta2))


def post_norm_block(
    x: Array, attn_fn: Sublayer, ffn_fn: Sublayer, gamma1: Array, beta1: Array, gamma2: Array, beta2: Array
) -> Array:
    """x <- norm1(x + attn(x)), then x <- norm2(x + ffn(x)), both norms being `layer_norm`."""
    x = layer_norm(x + attn_fn(x), gamma1, beta1)
    return layer_norm(x + ffn_fn(x), gamma2, beta2)


# ---- parts --------------------------------------------------------------------------------------------


def rms_norm(x: Array, gamma: Array, eps: float = 1e-5) -> Array:
    """gamma * x / sqrt(mean(x^2) + eps) over the last axis (arXiv:1910.07467)."""
    mean_square: Array = np.mean(x**2, axis=-1, keepdims=True)
    return gamma * x / np.sqrt(mean_square + eps)


def softmax(scores: Array) -> Array:
    """exp(s_i) / sum_j exp(s_j) of a vector."""
    e: Array = np.exp(scores - np.max(scores))
    return e / np.sum(e)


def gelu(x: Array) -> Array:
    """x * Phi(x), Phi the normal distribution function: x / 2 * (1 + erf(x / sqrt 2)) (arXiv:1606.08415)."""
    phi = [0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.ravel().tolist()]
    return x * np.array(phi, x.dtype).reshape(x.shape)


def causal_attention(x: Array, params: Params, n_heads: int) -> Array:
    """Multi-head self-attention in which position t reads the positions 0 ... t.

    x: (..., T, D). params: {q,k,v,out}.weight (D, D), written (out, in), and {q,k,v,out}.bias (D,).
    """
    *_, n_positions, d_model = x.shape
    if d_model % n_heads:
        raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
    d_head = d_model // n_heads
    out = np.empty_like(x)
    for sequence in np.ndindex(x.shape[:-2]):
        x_TD = x[sequence]
        q_TD, k_TD, v_TD = (x_TD @ params[f"{p}.weight"].T + params[f"{p}.bias"] for p in "qkv")
        mixed_TD = np.empty_like(x_TD)
        for head in range(n_heads):
            own = slice(head * d_head, (head + 1) * d_head)
            for t in range(n_positions):
                scores = [q_TD[t, own] @ k_TD[s, own] / math.sqrt(d_head) for s in range(t + 1)]
                mixed_TD[t, own] = softmax(np.array(scores)) @ v_TD[: t + 1, own]
        out[sequence] = mixed_TD @ params["out.weight"].T + params["out.bias"]
    return out


def mlp(x: Array, params: Params) -> Array:
    """W2 gelu(W1 x + b1) + b2. x: (..., D). params: w1.weight (F, D), w1.bias, w2.weight (D, F), w2.bias."""
    hidden = gelu(x @ params["w1.weight"].T + params["w1.bias"])
    return hidden @ params["w2.weight"].T + params["w2.bias"]


# ---- placements ---------------------------------------------------------------------------------------


def _pre(x: Array, attn: Sublayer, ffn: Sublayer, norm: Norm) -> Array:
    x = x + attn(norm("norm1", x))
    return x + ffn(norm("norm2", x))


def _post(x: Array, attn: Sublayer, ffn: Sublayer, norm: Norm) -> Array:
    x = norm("norm1", x + attn(x))
    return norm("norm2", x + ffn(x))


BLOCKS: dict[str, Callable[[Array, Sublayer, Sublayer, Norm], Array]] = {"pre": _pre, "post": _post}
FINAL_NORM = {"pre": True, "post": False}


# ---- a whole model ------------------------------------------------------------------------------------


def normalize(x: Array, name: str, params: Params, norm: str) -> Array:
    """The norm called `name`, with its own gain `name.gamma` and, for a layernorm, bias `name.beta`."""
    if norm == "layernorm":
        return layer_norm(x, params[f"{name}.gamma"], params[f"{name}.beta"])
    if norm == "rmsnorm":
        return rms_norm(x, params[f"{name}.gamma"])
    raise ValueError(f"norm {norm!r} has no definition here")


def part(params: Params, prefix: str) -> dict[str, Array]:
    """The parameters whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def run_block(x: Array, params: Params, model: ModelConfig) -> Array:
    """One block on x (B, T, D); params are its own: attn.q.weight, mlp.w1.weight, norm1.gamma, ..."""

    def attn(h: Array) -> Array:
        return causal_attention(h, part(params, "attn."), model.n_heads)

    def ffn(h: Array) -> Array:
        return mlp(h, part(params, "mlp."))

    def norm(name: str, h: Array) -> Array:
        return normalize(h, name, params, model.norm)

    return BLOCKS[model.placement](x, attn, ffn, norm)


def decoder(params: Params, tokens: Tokens, model: ModelConfig) -> tuple[Array, list[Array]]:
    """Logits (B, T, V) and the residual stream [x_0 ... x_L], each (B, T, D), of tokens (B, T).

    x_0 is the embeddings' sum and x_l what block l returns; a final norm comes after x_L.
    """
    x = params["embed"][tokens] + params["pos"][: tokens.shape[-1]]
    residual = [x]
    for layer in range(model.n_layers):
        x = run_block(x, part(params, f"blocks.{layer}."), model)
        residual.append(x)
    has_final_norm = FINAL_NORM[model.placement] if model.final_norm == "auto" else model.final_norm == "true"
    h = normalize(x, "final_norm", params, model.norm) if has_final_norm else x
    return h @ params["unembed.weight"].T, residual


def cross_entropy(logits: Array, targets: Tokens) -> float:
    """Mean of ln sum_j exp(l_j) - l_target, nats per token. logits: (..., V); targets: (...)."""
    losses: list[float] = []
    for place in np.ndindex(targets.shape):
        row = (logits[place] - logits[place].max()).tolist()  # a common offset changes nothing but overflow
        losses.append(math.log(sum(math.exp(value) for value in row)) - row[targets[place]])
    return sum(losses) / len(losses)

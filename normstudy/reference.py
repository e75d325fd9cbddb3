"""A reference implementation in plain NumPy: norms, blocks, attention, MLP and a whole decoder, each with its formula.

The tests require placements.py, model/ and training/ to agree with this module, which shares no code with them. It is
written to be read beside the papers, not to be fast, and computes in its input's precision (float64 or float32).
Parameters are named as in model/transformer.py.

B batch, T sequence, D d_model, H heads, K d_head, F d_ff, V vocab, L n_layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from normstudy.config import ModelConfig

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Tokens = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Params = Mapping[str, Array]
Sublayer = Callable[[Array], Array]
Norm = Callable[[str, Array], Array]  # (which of "q", "k" and "v" to normalize, its values) -> normalized values


# ---- layer norm and two standalone blocks -------------------------------------------------------------


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> Array:
    """gamma * (x - mean) / sqrt(var + eps) + beta over the last axis, with biased variance (arXiv:1607.06450)."""
    mean: Array = np.mean(x, axis=-1, keepdims=True)
    var: Array = np.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return gamma * (x - mean) / np.sqrt(var + eps) + beta


def pre_norm_block(
    x: Array, attn_fn: Sublayer, ffn_fn: Sublayer, gamma1: Array, beta1: Array, gamma2: Array, beta2: Array
) -> Array:
    """x <- x + attn(norm1(x)), then x <- x + ffn(norm2(x)), where norm1 and norm2 are layer norms."""
    x = x + attn_fn(layer_norm(x, gamma1, beta1))
    return x + ffn_fn(layer_norm(x, gamma2, beta2))


def post_norm_block(
    x: Array, attn_fn: Sublayer, ffn_fn: Sublayer, gamma1: Array, beta1: Array, gamma2: Array, beta2: Array
) -> Array:
    """x <- norm1(x + attn(x)), then x <- norm2(x + ffn(x)), where norm1 and norm2 are layer norms."""
    x = layer_norm(x + attn_fn(x), gamma1, beta1)
    return layer_norm(x + ffn_fn(x), gamma2, beta2)


# ---- norms and activations ----------------------------------------------------------------------------


def rms_norm(x: Array, gamma: Array, eps: float = 1e-5) -> Array:
    """gamma * x / sqrt(mean(x^2) + eps) over the last axis (arXiv:1910.07467)."""
    mean_square: Array = np.mean(x**2, axis=-1, keepdims=True)
    return gamma * x / np.sqrt(mean_square + eps)


def dynamic_tanh(x: Array, a: Array, gamma: Array, beta: Array) -> Array:
    """gamma * tanh(a x) + beta, where a is a scalar (arXiv:2503.10622)."""
    return gamma * np.tanh(a * x) + beta


def softmax(scores: Array) -> Array:
    """exp(s_i) / sum_j exp(s_j) for a vector s."""
    e: Array = np.exp(scores - np.max(scores))
    return e / np.sum(e)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    y: Array = np.maximum(x, 0)
    return y


def gelu(x: Array) -> Array:
    """x * Phi(x) = x / 2 * (1 + erf(x / sqrt 2)), where Phi is the standard normal CDF (arXiv:1606.08415)."""
    phi = [0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.ravel().tolist()]
    return x * np.array(phi, x.dtype).reshape(x.shape)


def swish(x: Array) -> Array:
    """x / (1 + exp(-x)) (arXiv:1702.03118)."""
    y: Array = x / (1 + np.exp(-x))
    return y


# ---- positions ----------------------------------------------------------------------------------------


def sinusoids(n_positions: int, d_model: int) -> Array:
    """A table (T, D): column 2i is sin(t / 10000^(2i/D)), column 2i + 1 its cosine (arXiv:1706.03762, section 3.5)."""
    table = np.empty((n_positions, d_model))
    for t in range(n_positions):
        for i in range(d_model // 2):
            angle = t / 10_000 ** (2 * i / d_model)
            table[t, 2 * i], table[t, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


def rotary(x_TK: Array) -> Array:
    """Apply RoPE to one head: at position t, multiply the complex number x_i + j x_{i + K/2}, where j^2 = -1, by
    exp(j t theta_i) with theta_i = 10000^(-2i/K) (arXiv:2104.09864, section 3.2).
    """
    n_positions, d_head = x_TK.shape
    out = np.empty_like(x_TK)
    for t in range(n_positions):
        for i in range(d_head // 2):
            j = i + d_head // 2
            theta = 10_000 ** (-2 * i / d_head)
            rotated = complex(x_TK[t, i], x_TK[t, j]) * complex(math.cos(t * theta), math.sin(t * theta))
            out[t, i], out[t, j] = rotated.real, rotated.imag
    return out


# ---- sublayers ----------------------------------------------------------------------------------------


def keep(which: str, x: Array) -> Array:
    """Return x unchanged: the `Norm` that does nothing."""
    return x


def linear(x: Array, params: Params, name: str) -> Array:
    """W x + b with W = params[`name`.weight], (out, in), and b = params[`name`.bias], or W x if there is no bias."""
    y = x @ params[f"{name}.weight"].T
    return y + params[f"{name}.bias"] if f"{name}.bias" in params else y


def causal_attention(
    x: Array,
    params: Params,
    n_heads: int,
    *,
    full: Norm = keep,
    per_head: Norm = keep,
    inner: Sublayer | None = None,
    rope: bool = False,
) -> Array:
    """Multi-head self-attention on x (..., T, D) in which position t reads positions 0 ... t.

    params: {q,k,v,out}.weight (D, D) with axes (out, in), and optionally {q,k,v,out}.bias (D,). Before RoPE, `full`
    normalizes q, k and v (T, D) before the split into heads, and `per_head` normalizes them (T, K) in each head.
    `inner` normalizes the joined heads (T, D) before the output projection.
    """
    *_, n_positions, d_model = x.shape
    if d_model % n_heads:
        raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
    d_head = d_model // n_heads
    out = np.empty_like(x)
    for sequence in np.ndindex(x.shape[:-2]):
        wide = {m: full(m, linear(x[sequence], params, m)) for m in "qkv"}
        mixed_TD = np.empty_like(x[sequence])
        for head in range(n_heads):
            columns = slice(head * d_head, (head + 1) * d_head)
            q_TK, k_TK, v_TK = (per_head(m, wide[m][:, columns]) for m in "qkv")
            if rope:
                q_TK, k_TK = rotary(q_TK), rotary(k_TK)
            for t in range(n_positions):
                scores = k_TK[: t + 1] @ q_TK[t] / math.sqrt(d_head)
                mixed_TD[t, columns] = softmax(scores) @ v_TK[: t + 1]
        out[sequence] = linear(mixed_TD if inner is None else inner(mixed_TD), params, "out")
    return out


ACTIVATIONS: dict[str, Sublayer] = {"relu": relu, "gelu": gelu, "swiglu": swish, "geglu": gelu}


def mlp(x: Array, params: Params, activation: str = "gelu", inner: Sublayer | None = None) -> Array:
    """W2 act(W1 x + b1) + b2, or for a GLU W2 (act(W x + b) * (W1 x + b1)) + b2 (arXiv:2002.05202, eq. 6).

    x: (..., D). params: w1.weight W1 (F, D), w2.weight W2 (D, F), for a GLU gate.weight W (F, D); biases are optional.
    inner: a norm applied to the input of W2.
    """
    act, hidden = ACTIVATIONS[activation], linear(x, params, "w1")
    hidden = act(linear(x, params, "gate")) * hidden if activation.endswith("glu") else act(hidden)
    return linear(hidden if inner is None else inner(hidden), params, "w2")


# ---- a block's parts ----------------------------------------------------------------------------------


def norm_of(model: ModelConfig) -> str:
    """The model's norm, where `auto` means layernorm, or none if the placement has no norms."""
    without = model.placement in ("rezero", "none")
    return model.norm if model.norm != "auto" else "none" if without else "layernorm"


def qk_norm_of(model: ModelConfig) -> str:
    """The model's QK-norm, where `auto` means full (over d_model) for OLMo 2's placement, else none."""
    return model.qk_norm if model.qk_norm != "auto" else "full" if model.placement == "reordered" else "none"


def normalize(x: Array, name: str, params: Params, norm: str) -> Array:
    """Apply a norm of kind `norm` to x, with the parameters `name`.gamma, `name`.beta and `name`.a of `params`."""
    if norm == "layernorm":
        return layer_norm(x, params[f"{name}.gamma"], params[f"{name}.beta"])
    if norm == "rmsnorm":
        return rms_norm(x, params[f"{name}.gamma"])
    if norm == "dyt":
        return dynamic_tanh(x, params[f"{name}.a"], params[f"{name}.gamma"], params[f"{name}.beta"])
    if norm == "none":
        return x
    raise ValueError(f"norm {norm!r} has no definition here")


def part(params: Params, prefix: str) -> dict[str, Array]:
    """The parameters whose names begin with `prefix`, which is removed from the names."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class BlockParts:
    """The sublayers and norms of one block, from which a placement's formula is built. layer: 1 ... L, as in papers."""

    params: Params
    model: ModelConfig
    layer: int

    def norm(self, name: str, x: Array) -> Array:
        """Apply the block's norm `name` to x."""
        return normalize(x, name, self.params, norm_of(self.model))

    def attn(self, x: Array, *, per_head: Norm | None = None, inner: Sublayer | None = None) -> Array:
        """Apply attention to x. A given `per_head` replaces the model's per-head QK-norm."""

        def qk_norm(which: str, h: Array) -> Array:
            return h if which == "v" else self.norm(f"attn.{which}_norm", h)

        form = qk_norm_of(self.model)
        return causal_attention(
            x,
            part(self.params, "attn."),
            self.model.n_heads,
            full=qk_norm if form == "full" else keep,
            per_head=per_head or (qk_norm if form == "per_head" else keep),
            inner=inner,
            rope=self.model.positions == "rope",
        )

    def ffn(self, x: Array, *, inner: Sublayer | None = None) -> Array:
        """Apply the MLP to x."""
        return mlp(x, part(self.params, "mlp."), self.model.activation, inner)


# ---- placements ---------------------------------------------------------------------------------------
# In the formulas n1, n2, ... are norms with separate gains, nq, nk, nv are norms of each head, x is the block's input,
# and y is the stream after the attention half. The last expression is the block's output.


def pre(x: Array, block: BlockParts) -> Array:
    """y = x + attn(n1(x)); y + ffn(n2(y)) (GPT-2; arXiv:2002.04745)."""
    y = x + block.attn(block.norm("norm1", x))
    return y + block.ffn(block.norm("norm2", y))


def post(x: Array, block: BlockParts) -> Array:
    """y = n1(x + attn(x)); n2(y + ffn(y)) (arXiv:1706.03762)."""
    y = block.norm("norm1", x + block.attn(x))
    return block.norm("norm2", y + block.ffn(y))


def peri(x: Array, block: BlockParts) -> Array:
    """y = x + n1'(attn(n1(x))); y + n2'(ffn(n2(y))) (arXiv:2502.02732; Gemma 2)."""
    y = x + block.norm("norm1_out", block.attn(block.norm("norm1", x)))
    return y + block.norm("norm2_out", block.ffn(block.norm("norm2", y)))


def reordered(x: Array, block: BlockParts) -> Array:
    """y = x + n1(attn(x)); y + n2(ffn(y)), with QK-norm in attn (OLMo 2, arXiv:2501.00656)."""
    y = x + block.norm("norm1", block.attn(x))
    return y + block.norm("norm2", block.ffn(y))


def sub(x: Array, block: BlockParts) -> Array:
    """y = x + O n1'(heads(n1(x))); y + W2 n2'(act(W1 n2(y))), where n2' has width d_ff (Magneto, arXiv:2210.06423)."""
    y = x + block.attn(block.norm("norm1", x), inner=lambda h: block.norm("norm1_inner", h))
    return y + block.ffn(block.norm("norm2", y), inner=lambda h: block.norm("norm2_inner", h))


def deepnorm(x: Array, block: BlockParts) -> Array:
    """y = n1(alpha x + attn(x)); n2(alpha y + ffn(y)) with alpha = (2 L)^(1/4) (DeepNet, arXiv:2203.00555)."""
    alpha = (2 * block.model.n_layers) ** (1 / 4)
    y = block.norm("norm1", alpha * x + block.attn(x))
    return block.norm("norm2", alpha * y + block.ffn(y))


def admin(x: Array, block: BlockParts) -> Array:
    """y = n1(omega1 * x + attn(x)); n2(omega2 * y + ffn(y)), each omega a vector (D,) (arXiv:2004.08249)."""
    y = block.norm("norm1", x * block.params["omega1"] + block.attn(x))
    return block.norm("norm2", y * block.params["omega2"] + block.ffn(y))


def lns(x: Array, block: BlockParts) -> Array:
    """y = x + attn(n1(x) / sqrt(l)); y + ffn(n2(y) / sqrt(l)), where l = 1 ... L is the layer (arXiv:2502.05795)."""
    y = x + block.attn(block.norm("norm1", x) / math.sqrt(block.layer))
    return y + block.ffn(block.norm("norm2", y) / math.sqrt(block.layer))


def mix(x: Array, block: BlockParts) -> Array:
    """Post-norm in the first floor(L / 4) layers, pre-norm in the others (Mix-LN, arXiv:2412.13795)."""
    return post(x, block) if block.layer <= math.floor(0.25 * block.model.n_layers) else pre(x, block)


def b2t(x: Array, block: BlockParts) -> Array:
    """y = n1(x + attn(x)); n2(x + y + ffn(y)): the block's input is added again at its end (arXiv:2206.00330)."""
    y = block.norm("norm1", x + block.attn(x))
    return block.norm("norm2", x + y + block.ffn(y))


def residual(streams: Array, block: BlockParts) -> Array:
    """x' = n1(x + f), r' = r + f with f = attn(x); n2(x' + g), r' + g with g = ffn(x') (ResiDual, arXiv:2304.14802)."""
    x, r = streams  # each (B, T, D)
    f = block.attn(x)
    x, r = block.norm("norm1", x + f), r + f
    g = block.ffn(x)
    return np.stack([block.norm("norm2", x + g), r + g])


def hybrid(x: Array, block: BlockParts) -> Array:
    """y = x + O heads(nq(q), nk(k), nv(v)), q, k, v from x; z = n2(y); z + ffn(z) (HybridNorm, arXiv:2503.04598)."""
    y = x + block.attn(x, per_head=lambda m, h: block.norm(f"{m}_norm", h))
    z = block.norm("norm2", y)
    return z + block.ffn(z)


def hybrid_star(x: Array, block: BlockParts) -> Array:
    """y = x + O heads(nq(q), nk(k), nv(v)) with q, k, v from n1(x); y + ffn(n2(y)): the first block of HybridNorm*."""
    y = x + block.attn(block.norm("norm1", x), per_head=lambda m, h: block.norm(f"{m}_norm", h))
    return y + block.ffn(block.norm("norm2", y))


def rezero(x: Array, block: BlockParts) -> Array:
    """y = x + a attn(x); y + a ffn(y), where a is one learned number per layer; no norms (arXiv:2003.04887)."""
    y = x + block.params["scale"] * block.attn(x)
    return y + block.params["scale"] * block.ffn(y)


def none(x: Array, block: BlockParts) -> Array:
    """y = x + attn(x); y + ffn(y)."""
    y = x + block.attn(x)
    return y + block.ffn(y)


BLOCKS: dict[str, Callable[[Array, BlockParts], Array]] = {
    "pre": pre, "post": post, "peri": peri, "reordered": reordered, "sub": sub, "deepnorm": deepnorm, "admin": admin,
    "lns": lns, "mix": mix, "b2t": b2t, "residual": residual, "hybrid": hybrid, "rezero": rezero, "none": none,
}  # fmt: skip
FINAL_NORM = {
    "pre": True, "post": False, "peri": True, "reordered": True, "sub": True, "deepnorm": False, "admin": False,
    "lns": True, "mix": True, "b2t": False, "residual": True, "hybrid": True, "rezero": False, "none": False,
}  # fmt: skip


# ---- a whole model ------------------------------------------------------------------------------------


def embedding(params: Params, tokens: Tokens, model: ModelConfig) -> Array:
    """x_0 (B, T, D) for tokens (B, T): token embeddings, times sqrt(D) if embed_init=scaled, plus positions."""
    x = params["embed"][tokens]
    if model.embed_init == "scaled":
        x = x * math.sqrt(model.d_model)
    if model.positions == "learned":
        x = x + params["pos"][: tokens.shape[-1]]
    if model.positions == "sinusoidal":
        x = x + sinusoids(tokens.shape[-1], model.d_model).astype(x.dtype)
    return normalize(x, "embed_norm", params, norm_of(model)) if model.embed_norm else x


def run_block(x: Array, params: Params, model: ModelConfig, layer: int) -> Array:
    """Apply block `layer` (1 ... L) to x (B, T, D); for placement `residual`, to x and r stacked (2, B, T, D)."""
    block = BlockParts(part(params, f"blocks.{layer - 1}."), model, layer)
    star = model.first_block == "star" and layer == 1
    return hybrid_star(x, block) if star else BLOCKS[model.placement](x, block)


def unembedding(x: Array, params: Params, model: ModelConfig) -> Array:
    """Logits (B, T, V) computed from n(x), or from x + n(r) for placement `residual`; n: the final norm, if any."""
    has_final_norm = FINAL_NORM[model.placement] if model.final_norm == "auto" else model.final_norm == "true"

    def final_norm(h: Array) -> Array:
        return normalize(h, "final_norm", params, norm_of(model)) if has_final_norm else h

    h = x[0] + final_norm(x[1]) if model.placement == "residual" else final_norm(x)
    return h @ (params["embed"] if model.tied else params["unembed.weight"]).T


def decoder(params: Params, tokens: Tokens, model: ModelConfig) -> tuple[Array, list[Array]]:
    """Logits (B, T, V) and the residual stream [x_0 ... x_L], each (B, T, D); x_l is block l's output, without r."""
    x = embedding(params, tokens, model)
    stream = [x]
    if model.placement == "residual":
        x = np.stack([x, x])
    for layer in range(1, model.n_layers + 1):
        x = run_block(x, params, model, layer)
        stream.append(x[0] if model.placement == "residual" else x)
    return unembedding(x, params, model), stream


def cross_entropy(logits: Array, targets: Tokens) -> float:
    """Mean of ln sum_j exp(l_j) - l_target over all tokens, in nats. l: logits (..., V); targets: (...)."""
    losses: list[float] = []
    for place in np.ndindex(targets.shape):
        row = (logits[place] - logits[place].max()).tolist()  # subtracting the maximum prevents overflow
        losses.append(math.log(sum(math.exp(value) for value in row)) - row[targets[place]])
    return sum(losses) / len(losses)


# ---- Admin's profiling --------------------------------------------------------------------------------


def admin_omegas(params: Params, tokens: Tokens, model: ModelConfig) -> list[float]:
    """Admin's omega_1 ... omega_2L for tokens (B, T): attention and MLP of block 1, then of block 2, and so on.

    omega_1 = 1 and omega_{i+1} = sqrt(Var(omega_i x_i) + Var(f_i)), where x_i is the input of sublayer i and f_i its
    output once all earlier omegas are set. The variance is over all elements (arXiv:2004.08249).
    """
    x, omega = embedding(params, tokens, model), 1.0
    omegas = []
    for layer in range(1, model.n_layers + 1):
        block = BlockParts(part(params, f"blocks.{layer - 1}."), model, layer)
        for sublayer, norm in ((block.attn, "norm1"), (block.ffn, "norm2")):
            f = sublayer(x)
            omegas.append(omega)
            omega_next = math.sqrt(np.var(omega * x) + np.var(f))
            x, omega = block.norm(norm, omega * x + f), omega_next
    return omegas

"""Implement the norms, the sublayers, the blocks and the decoder in plain NumPy, as a reference for tests.

The tests require placements.py, model/ and training/ to agree with this module. This module shares no code with them.
The code is written to be read beside the papers, not to be fast. Results have the precision of the input (float64 or
float32). Parameters are named as in model/transformer.py. Axes: B batch, T sequence, D d_model, K d_head, F d_ff, V
vocab.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from normstudy.config import ModelConfig

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Tokens = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Params = Mapping[str, Array]
Sublayer = Callable[[Array], Array]
Norm = Callable[[str, Array], Array]  # ("q", "k" or "v", the array q, k or v) -> the normalized array


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> Array:
    """Return gamma * (x - mean) / sqrt(var + eps) + beta over the last axis with biased variance (arXiv:1607.06450)."""
    mean: Array = np.mean(x, axis=-1, keepdims=True)
    var: Array = np.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return gamma * (x - mean) / np.sqrt(var + eps) + beta


def pre_norm_block(
    x: Array, attn_fn: Sublayer, ffn_fn: Sublayer, gamma1: Array, beta1: Array, gamma2: Array, beta2: Array
) -> Array:
    """Return y + ffn(norm2(y)) with y = x + attn(norm1(x)), where norm1 and norm2 are layer norms."""
    x = x + attn_fn(layer_norm(x, gamma1, beta1))
    return x + ffn_fn(layer_norm(x, gamma2, beta2))


def post_norm_block(
    x: Array, attn_fn: Sublayer, ffn_fn: Sublayer, gamma1: Array, beta1: Array, gamma2: Array, beta2: Array
) -> Array:
    """Return norm2(y + ffn(y)) with y = norm1(x + attn(x)), where norm1 and norm2 are layer norms."""
    x = layer_norm(x + attn_fn(x), gamma1, beta1)
    return layer_norm(x + ffn_fn(x), gamma2, beta2)


def rms_norm(x: Array, gamma: Array, eps: float = 1e-5) -> Array:
    """Return gamma * x / sqrt(mean(x^2) + eps) over the last axis (arXiv:1910.07467)."""
    mean_square: Array = np.mean(x**2, axis=-1, keepdims=True)
    return gamma * x / np.sqrt(mean_square + eps)


def dynamic_tanh(x: Array, a: Array, gamma: Array, beta: Array) -> Array:
    """Return gamma * tanh(a x) + beta, where a is a scalar (arXiv:2503.10622)."""
    return gamma * np.tanh(a * x) + beta


def softmax(scores: Array) -> Array:
    """Return exp(s_i) / sum_j exp(s_j) for a vector s."""
    e: Array = np.exp(scores - np.max(scores))
    return e / np.sum(e)


def relu(x: Array) -> Array:
    """Return max(x, 0)."""
    y: Array = np.maximum(x, 0)
    return y


def gelu(x: Array) -> Array:
    """Return x * Phi(x) = x / 2 * (1 + erf(x / sqrt 2)) with the standard normal CDF Phi (arXiv:1606.08415)."""
    phi = [0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.ravel().tolist()]
    return x * np.array(phi, x.dtype).reshape(x.shape)


def gelu_tanh(x: Array) -> Array:
    """Return x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (arXiv:1606.08415, section 2)."""
    y: Array = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


def swish(x: Array) -> Array:
    """Return x / (1 + exp(-x)) (arXiv:1702.03118)."""
    y: Array = x / (1 + np.exp(-x))
    return y


def sinusoids(n_positions: int, d_model: int) -> Array:
    """Return a table (T, D) with sin and cos of t / 10000^(2i/D) in columns 2i and 2i + 1 (arXiv:1706.03762, 3.5)."""
    table = np.empty((n_positions, d_model))
    for t in range(n_positions):
        for i in range(d_model // 2):
            angle = t / 10_000 ** (2 * i / d_model)
            table[t, 2 * i], table[t, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


def rotary(x_TK: Array, base: float = 10_000) -> Array:
    """Multiply x_i + j x_{i + K/2} at position t of a head by exp(j t base^(-2i/K)) (RoPE, arXiv:2104.09864, 3.2)."""
    n_positions, d_head = x_TK.shape
    out = np.empty_like(x_TK)
    for t in range(n_positions):
        for i in range(d_head // 2):
            j = i + d_head // 2
            theta = base ** (-2 * i / d_head)
            rotated = complex(x_TK[t, i], x_TK[t, j]) * complex(math.cos(t * theta), math.sin(t * theta))
            out[t, i], out[t, j] = rotated.real, rotated.imag
    return out


def keep(which: str, x: Array) -> Array:
    """Return x unchanged. This is the default of causal_attention's `full` and `per_head`."""
    return x


def linear(x: Array, params: Params, name: str) -> Array:
    """Return W x + b with W = params["name.weight"] (out, in) and b = params["name.bias"], or W x without a bias."""
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
    rope_base: float | None = None,
) -> Array:
    """Apply multi-head self-attention to x (..., T, D), in which position `t` reads positions 0 ... t.

    params: {q,k,v,out}.weight (D, D), and optionally {q,k,v,out}.bias (D,). First `full` normalizes q, k and v (T, D).
    Then `per_head` normalizes each head (T, K). Then RoPE rotates q and k, unless RoPE's base is None. At
    the end `inner` normalizes the joined heads (T, D) before the output projection.
    """
    *_, n_positions, d_model = x.shape
    if d_model % n_heads:
        raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}: change d_model or n_heads")
    d_head = d_model // n_heads
    out = np.empty_like(x)
    for sequence in np.ndindex(x.shape[:-2]):
        wide = {m: full(m, linear(x[sequence], params, m)) for m in "qkv"}
        mixed_TD = np.empty_like(x[sequence])
        for head in range(n_heads):
            columns = slice(head * d_head, (head + 1) * d_head)
            q_TK, k_TK, v_TK = (per_head(m, wide[m][:, columns]) for m in "qkv")
            if rope_base is not None:
                q_TK, k_TK = rotary(q_TK, rope_base), rotary(k_TK, rope_base)
            for t in range(n_positions):
                scores = k_TK[: t + 1] @ q_TK[t] / math.sqrt(d_head)
                mixed_TD[t, columns] = softmax(scores) @ v_TK[: t + 1]
        out[sequence] = linear(mixed_TD if inner is None else inner(mixed_TD), params, "out")
    return out


ACTIVATIONS: dict[str, Sublayer] = {
    "relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "swiglu": swish, "geglu": gelu, "geglu_tanh": gelu_tanh,
}  # fmt: skip


def mlp(x: Array, params: Params, activation: str = "gelu", inner: Sublayer | None = None) -> Array:
    """Return W2 act(W1 x + b1) + b2, or W2 (act(W x + b) * (W1 x + b1)) + b2 for a GLU (arXiv:2002.05202, eq. 6).

    params: w1.weight is W1 (F, D), w2.weight is W2 (D, F), and gate.weight, only in a GLU, is W (F, D). Biases are
    optional. inner: a norm for the input of W2.
    """
    act, hidden = ACTIVATIONS[activation], linear(x, params, "w1")
    hidden = act(linear(x, params, "gate")) * hidden if "glu" in activation else act(hidden)
    return linear(hidden if inner is None else inner(hidden), params, "w2")


def norm_of(model: ModelConfig) -> str:
    """Return the model's norm. The value auto means layernorm, or none if the placement has no norms."""
    without = model.placement in ("rezero", "none")
    return model.norm if model.norm != "auto" else "none" if without else "layernorm"


def qk_norm_of(model: ModelConfig) -> str:
    """Return the model's QK-norm. The value auto means full (over d_model) for OLMo 2's placement, otherwise none."""
    return model.qk_norm if model.qk_norm != "auto" else "full" if model.placement == "reordered" else "none"


def normalize(x: Array, name: str, params: Params, norm: str, eps: float = 1e-5) -> Array:
    """Apply a norm of kind `norm` to x. `params` holds its parameters as {name}.gamma, {name}.beta and {name}.a."""
    if norm == "layernorm":
        return layer_norm(x, params[f"{name}.gamma"], params[f"{name}.beta"], eps)
    if norm == "rmsnorm":
        return rms_norm(x, params[f"{name}.gamma"], eps)
    if norm == "dyt":
        return dynamic_tanh(x, params[f"{name}.a"], params[f"{name}.gamma"], params[f"{name}.beta"])
    if norm == "none":
        return x
    raise ValueError(f"reference.py does not define the norm {norm!r}: add the norm to the function normalize")


def part(params: Params, prefix: str) -> dict[str, Array]:
    """Return the parameters whose names begin with `prefix`. Remove the prefix from the names."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class BlockParts:
    """The sublayers and norms of one block, which a placement's formula combines. layer: 1 ... L, as in papers."""

    params: Params
    model: ModelConfig
    layer: int

    def norm(self, name: str, x: Array) -> Array:
        """Apply the block's norm `name` to x."""
        return normalize(x, name, self.params, norm_of(self.model), self.model.norm_eps)

    def attn(self, x: Array, *, per_head: Norm | None = None, inner: Sublayer | None = None) -> Array:
        """Apply attention to x. If given, `per_head` replaces the model's own norm of each head."""

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
            rope_base=self.model.rope_base if self.model.positions == "rope" else None,
        )

    def ffn(self, x: Array, *, inner: Sublayer | None = None) -> Array:
        """Apply the MLP to x."""
        return mlp(x, part(self.params, "mlp."), self.model.activation, inner)


def pre(x: Array, block: BlockParts) -> Array:
    """Return y + ffn(norm2(y)) with y = x + attn(norm1(x)) (GPT-2; arXiv:2002.04745)."""
    y = x + block.attn(block.norm("norm1", x))
    return y + block.ffn(block.norm("norm2", y))


def post(x: Array, block: BlockParts) -> Array:
    """Return norm2(y + ffn(y)) with y = norm1(x + attn(x)) (arXiv:1706.03762)."""
    y = block.norm("norm1", x + block.attn(x))
    return block.norm("norm2", y + block.ffn(y))


def peri(x: Array, block: BlockParts) -> Array:
    """Return y + norm2_out(ffn(norm2(y))) with y = x + norm1_out(attn(norm1(x))) (arXiv:2502.02732; Gemma 2)."""
    y = x + block.norm("norm1_out", block.attn(block.norm("norm1", x)))
    return y + block.norm("norm2_out", block.ffn(block.norm("norm2", y)))


def reordered(x: Array, block: BlockParts) -> Array:
    """Return y + norm2(ffn(y)) with y = x + norm1(attn(x)), and QK-norm in attn (OLMo 2, arXiv:2501.00656)."""
    y = x + block.norm("norm1", block.attn(x))
    return y + block.norm("norm2", block.ffn(y))


def sub(x: Array, block: BlockParts) -> Array:
    """Compute `pre` with an additional norm before the output matrix of attn and of ffn (arXiv:2210.06423)."""
    y = x + block.attn(block.norm("norm1", x), inner=lambda h: block.norm("norm1_inner", h))
    return y + block.ffn(block.norm("norm2", y), inner=lambda h: block.norm("norm2_inner", h))


def deepnorm(x: Array, block: BlockParts) -> Array:
    """Return norm2(alpha y + ffn(y)) with y = norm1(alpha x + attn(x)), alpha = (2 L)^(1/4) (arXiv:2203.00555)."""
    alpha = (2 * block.model.n_layers) ** (1 / 4)
    y = block.norm("norm1", alpha * x + block.attn(x))
    return block.norm("norm2", alpha * y + block.ffn(y))


def admin(x: Array, block: BlockParts) -> Array:
    """Return norm2(omega2 * y + ffn(y)) with y = norm1(omega1 * x + attn(x)), each omega (D,) (arXiv:2004.08249)."""
    y = block.norm("norm1", x * block.params["omega1"] + block.attn(x))
    return block.norm("norm2", y * block.params["omega2"] + block.ffn(y))


def lns(x: Array, block: BlockParts) -> Array:
    """Return y + ffn(norm2(y) / sqrt(l)) with y = x + attn(norm1(x) / sqrt(l)) in layer l (arXiv:2502.05795)."""
    y = x + block.attn(block.norm("norm1", x) / math.sqrt(block.layer))
    return y + block.ffn(block.norm("norm2", y) / math.sqrt(block.layer))


def mix(x: Array, block: BlockParts) -> Array:
    """Apply post-norm in the first floor(L / 4) layers, and pre-norm in the others (Mix-LN, arXiv:2412.13795)."""
    return post(x, block) if block.layer <= math.floor(0.25 * block.model.n_layers) else pre(x, block)


def b2t(x: Array, block: BlockParts) -> Array:
    """Return norm2(x + y + ffn(y)) with y = norm1(x + attn(x)) (arXiv:2206.00330)."""
    y = block.norm("norm1", x + block.attn(x))
    return block.norm("norm2", x + y + block.ffn(y))


def residual(streams: Array, block: BlockParts) -> Array:
    """Return norm2(y + g) and r + f + g with f = attn(x), y = norm1(x + f), g = ffn(y) (ResiDual, arXiv:2304.14802)."""
    x, r = streams  # x and r are (B, T, D)
    f = block.attn(x)
    y = block.norm("norm1", x + f)
    g = block.ffn(y)
    return np.stack([block.norm("norm2", y + g), r + f + g])


def hybrid(x: Array, block: BlockParts) -> Array:
    """Return z + ffn(z) with z = norm2(x + attn(x)), where attn normalizes q, k and v per head (arXiv:2503.04598)."""
    y = x + block.attn(x, per_head=lambda m, h: block.norm(f"{m}_norm", h))
    z = block.norm("norm2", y)
    return z + block.ffn(z)


def hybrid_star(x: Array, block: BlockParts) -> Array:
    """Return y + ffn(norm2(y)) with y = x + attn(norm1(x)), where attn normalizes q, k, v (block 1 of HybridNorm*)."""
    y = x + block.attn(block.norm("norm1", x), per_head=lambda m, h: block.norm(f"{m}_norm", h))
    return y + block.ffn(block.norm("norm2", y))


def rezero(x: Array, block: BlockParts) -> Array:
    """Return y + a ffn(y) with y = x + a attn(x), where the layer learns the number a (arXiv:2003.04887)."""
    y = x + block.params["scale"] * block.attn(x)
    return y + block.params["scale"] * block.ffn(y)


def none(x: Array, block: BlockParts) -> Array:
    """Return y + ffn(y) with y = x + attn(x)."""
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


def embedding(params: Params, tokens: Tokens, model: ModelConfig) -> Array:
    """Return x_0 (B, T, D) for tokens (B, T): their embeddings, times sqrt(D) if embed_init=scaled, plus positions."""
    x = params["embed"][tokens]
    if model.embed_init == "scaled":
        x = x * math.sqrt(model.d_model)
    if model.positions == "learned":
        x = x + params["pos"][: tokens.shape[-1]]
    if model.positions == "sinusoidal":
        x = x + sinusoids(tokens.shape[-1], model.d_model).astype(x.dtype)
    return normalize(x, "embed_norm", params, norm_of(model), model.norm_eps) if model.embed_norm else x


def run_block(x: Array, params: Params, model: ModelConfig, layer: int) -> Array:
    """Apply block `layer` (1 ... L) to x (B, T, D). If the placement is residual, x holds x and r: (2, B, T, D)."""
    block = BlockParts(part(params, f"blocks.{layer - 1}."), model, layer)
    star = model.first_block == "star" and layer == 1
    return hybrid_star(x, block) if star else BLOCKS[model.placement](x, block)


def unembedding(x: Array, params: Params, model: ModelConfig) -> Array:
    """Apply the output matrix to final_norm(x), or to x + final_norm(r) if the placement is residual: -> (B, T, V)."""
    has_final_norm = FINAL_NORM[model.placement] if model.final_norm == "auto" else model.final_norm == "true"

    def final_norm(h: Array) -> Array:
        return normalize(h, "final_norm", params, norm_of(model), model.norm_eps) if has_final_norm else h

    h = x[0] + final_norm(x[1]) if model.placement == "residual" else final_norm(x)
    return h @ (params["embed"] if model.tied else params["unembed.weight"]).T


def decoder(params: Params, tokens: Tokens, model: ModelConfig) -> tuple[Array, list[Array]]:
    """Return logits (B, T, V) and the residual stream [x_0 ... x_L], each (B, T, D). Block l outputs x_l."""
    x = embedding(params, tokens, model)
    stream = [x]
    if model.placement == "residual":
        x = np.stack([x, x])
    for layer in range(1, model.n_layers + 1):
        x = run_block(x, params, model, layer)
        stream.append(x[0] if model.placement == "residual" else x)
    return unembedding(x, params, model), stream


def cross_entropy(logits: Array, targets: Tokens) -> float:
    """Return the mean of ln sum_j exp(l_j) - l_target over all tokens, in nats. l: logits (..., V). targets: (...)."""
    losses: list[float] = []
    for place in np.ndindex(targets.shape):
        row = (logits[place] - logits[place].max()).tolist()  # subtracting the maximum prevents overflow
        losses.append(math.log(sum(math.exp(value) for value in row)) - row[targets[place]])
    return sum(losses) / len(losses)


def admin_omegas(params: Params, tokens: Tokens, model: ModelConfig) -> list[float]:
    """Compute Admin's omega_1 ... omega_2L for tokens (B, T), in the order of the sublayers (arXiv:2004.08249).

    omega_1 = 1 and omega_{i+1} = sqrt(Var(omega_i x_i) + Var(f_i)) over all elements. Sublayer i reads x_i, computed
    with the earlier omegas, and returns f_i.
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

"""Define a decoder-only transformer for one run as an ordinary nn.Module.

training/step.py calls the model through torch.func.vmap, which adds the run axis. In the residual stream x_0 ... x_L,
x_0 is the sum of the embeddings and x_l is the output of block l.

Axes: B batch, T sequence, D d_model, H heads, K d_head, F d_ff, V vocab.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normstudy.config import GATED, ModelConfig, RunConfig, own_sources, resolve, row_of, sources
from normstudy.model import kernels
from normstudy.model.norms import NORMS, FunctionNorm
from normstudy.model.own import asked_of, construct, load


class Linear(nn.Module):
    """A linear map x W^T + b with weight W (out, in) and bias b (out,), whose values model/init.py draws."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return kernels.linears(x, [self.weight], [self.bias])[0]


def together(x: Tensor, *maps: Linear) -> list[Tensor]:
    """Apply several linear maps to one input in one call. One call for each map would be slower."""
    return kernels.linears(x, [m.weight for m in maps], [m.bias for m in maps])


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """Construct the norm that the config selects. A user's own norm is a function, or a class that takes the width."""
    name = resolve(config).norm
    if not sources.is_own(name):
        return NORMS[name](width, config.norm_eps)
    found = load(name, own_sources(config)["norm_sha256"])
    if isinstance(found, type):
        return construct(functools.partial(found, width), seed=0)
    return FunctionNorm(found, width, config.norm_eps)  # type: ignore[arg-type]


def norm_width(config: ModelConfig, name: str) -> int:
    """Return the width of the norm that a block takes as argument `name`."""
    if name in ("q_norm", "k_norm", "v_norm"):
        return config.d_model // config.n_heads
    return resolve(config).d_ff if name == "norm2_inner" else config.d_model


@functools.lru_cache(maxsize=32)
def _angles(n_positions: int, width: int, base: float, like: tuple[torch.dtype, torch.device]) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position / base^(2 i / width), each (T, width / 2)."""
    angles = np.arange(n_positions)[:, None] * base ** (-np.arange(0, width, 2) / width)
    dtype, device = like
    return tuple(torch.tensor(f(angles), dtype=dtype, device=device) for f in (np.cos, np.sin))  # type: ignore[return-value]


def sinusoids(n_positions: int, d_model: int, like: Tensor) -> Tensor:
    """Return sinusoidal positions (T, D): sin in even columns, cos in odd columns (arXiv:1706.03762, section 3.5)."""
    cos, sin = _angles(n_positions, d_model, 10_000.0, (like.dtype, like.device))
    return torch.stack([sin, cos], -1).flatten(1)


def rotate(x_BTHK: Tensor, base: float) -> Tensor:
    """Apply RoPE: rotate dimensions i and i + K/2 of a head by position / base^(2 i / K) (arXiv:2104.09864, eq. 34)."""
    _, n_positions, _, d_head = x_BTHK.shape
    cos, sin = (a[:, None] for a in _angles(n_positions, d_head, base, (x_BTHK.dtype, x_BTHK.device)))  # (T, 1, K/2)
    a, b = x_BTHK.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Attention(nn.Module):
    """Causal multi-head attention. placements.py describes the norms `inner` and `qkv` that `forward` takes.

    With model.qk_norm=per_head, all heads share one norm for queries and another for keys. With qk_norm=full, both
    norms are over d_model, before the split into heads. RoPE follows all norms of queries, keys and values.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model, bias = config.d_model, config.biases
        self.n_heads = config.n_heads
        self.rope_base = config.rope_base if config.positions == "rope" else None
        self.q, self.k, self.v, self.out = (Linear(d_model, d_model, bias=bias) for _ in range(4))
        self.qk_norm = "none" if row_of(config.placement).formula_has_qk_norm else resolve(config).qk_norm
        if self.qk_norm != "none":
            width = d_model if self.qk_norm == "full" else d_model // config.n_heads
            self.q_norm, self.k_norm = make_norm(config, width), make_norm(config, width)

    def forward(
        self, x_BTD: Tensor, inner: nn.Module | None = None, qkv: tuple[nn.Module, nn.Module, nn.Module] | None = None
    ) -> Tensor:
        B, T, D = x_BTD.shape
        H, K = self.n_heads, D // self.n_heads
        q, k, v = together(x_BTD, self.q, self.k, self.v)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.view(B, T, H, K) for y in (q, k, v))
        if self.qk_norm == "per_head":
            q, k = self.q_norm(q), self.k_norm(k)
        if qkv is not None:
            q, k, v = (norm(y) for norm, y in zip(qkv, (q, k, v), strict=True))
        if self.rope_base is not None:
            q, k = rotate(q, self.rope_base), rotate(k, self.rope_base)
        mixed_BTD = kernels.causal_attention(q, k, v).reshape(B, T, D)
        y_BTD: Tensor = self.out(mixed_BTD if inner is None else inner(mixed_BTD))
        return y_BTD


def silu(x: Tensor) -> Tensor:
    """Return x / (1 + exp(-x)), computed so that neither the value nor its gradient overflows.

    torch's silu computes a tensor's last few elements by another formula, so a run's bits would depend on its batch.
    """
    return 0.5 * x * (1 + torch.tanh(0.5 * x))


def gelu_tanh(x: Tensor) -> Tensor:
    """Return x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). `silu` explains why torch's function is not used."""
    c = x.clamp(-10, 10)  # for larger |x| the tanh is +-1 in float64, but x^3 might overflow
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (c + 0.044715 * (c * c * c))))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "gelu": F.gelu, "gelu_tanh": gelu_tanh, "swiglu": silu, "geglu": F.gelu,
    "geglu_tanh": gelu_tanh,
}  # fmt: skip


class MLP(nn.Module):
    """The MLP W2 act(W1 x + b1) + b2; with a gate, W2 (act(W x + b) * (W1 x + b1)) + b2 (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model, d_ff, bias = config.d_model, resolve(config).d_ff, config.biases
        self.act = ACTIVATIONS[config.activation]
        self.gate = Linear(d_model, d_ff, bias=bias) if config.activation in GATED else None
        self.w1 = Linear(d_model, d_ff, bias=bias)
        self.w2 = Linear(d_ff, d_model, bias=bias)

    def forward(self, x_BTD: Tensor, inner: nn.Module | None = None) -> Tensor:
        if self.gate is None:
            h_BTF = self.act(self.w1(x_BTD))
        else:
            gate_BTF, h_BTF = together(x_BTD, self.gate, self.w1)
            h_BTF = self.act(gate_BTF) * h_BTF
        y_BTD: Tensor = self.w2(h_BTF if inner is None else inner(h_BTF))
        return y_BTD


class Block(nn.Module):
    """A block: the placement's function (`own`), and the modules and parameters that this function takes."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.own = block_function(config, layer)
        self.wanted = list(sources.parameters(self.own))
        self.attn = Attention(config)
        self.mlp = MLP(config)
        alpha = (2 * config.n_layers) ** 0.25  # DeepNet's decoder-only alpha (arXiv:2203.00555, table 2)
        self.numbers = {"layer": layer, "n_layers": config.n_layers, "alpha": alpha}
        for name in self.wanted:
            if name in sources.NORMS:
                setattr(self, name, make_norm(config, norm_width(config, name)))
            elif name in ("omega1", "omega2"):
                setattr(self, name, nn.Parameter(torch.ones(config.d_model)))
            elif name == "scale":
                self.scale = nn.Parameter(torch.zeros(()))

    def call(self, x_BTD: Tensor, r_BTD: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Call the placement's function and return its value."""
        given = {"x": x_BTD, "r": r_BTD, **self.numbers}
        return self.own(**{name: given[name] if name in given else getattr(self, name) for name in self.wanted})

    def forward(self, x_BTD: Tensor, r_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return both streams after the block. If the placement's function does not take `r`, `r` is unchanged."""
        out = self.call(x_BTD, r_BTD)
        return (out, r_BTD) if isinstance(out, Tensor) else out


def block_function(config: ModelConfig, layer: int) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """Return the block of a layer: the placement's function, or a module if the user's own placement is a class."""
    if sources.is_own(config.placement):
        found = load(config.placement, own_sources(config)["placement_sha256"])
        if isinstance(found, type):
            return construct(functools.partial(found, **asked_of(found, layer, config)), seed=0)
        return found  # type: ignore[return-value]
    row = row_of(config.placement)
    star = layer == 0 and config.first_block == "star"
    return row.star_block if star and row.star_block is not None else row.block  # type: ignore[return-value]


class Transformer(nn.Module):
    """A model with embeddings, blocks, possibly a final norm, and an output matrix without bias."""

    def __init__(self, config: ModelConfig, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        config.validate()  # a field may have been changed since the config was constructed
        d_model = config.d_model
        self.positions = config.positions
        self.multiplier = math.sqrt(d_model) if config.embed_init == "scaled" else None
        self.embed = nn.Parameter(torch.empty(vocab_size, d_model))
        if config.positions == "learned":
            self.pos = nn.Parameter(torch.empty(seq_len, d_model))
        self.embed_norm = make_norm(config, d_model) if config.embed_norm else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.two_streams = "r" in self.blocks[-1].wanted  # type: ignore[operator]
        self.final_norm = make_norm(config, d_model) if resolve(config).final_norm else None
        self.unembed = None if config.tied else Linear(d_model, vocab_size, bias=False)

    def embedding(self, tokens_BT: Tensor) -> Tensor:
        """Return x_0 (B, T, D) for tokens (B, T), where T <= seq_len."""
        x_BTD = F.embedding(tokens_BT, self.embed)
        if self.multiplier is not None:
            x_BTD = x_BTD * self.multiplier
        if self.positions == "learned":
            x_BTD = x_BTD + self.pos[: tokens_BT.shape[1]]
        elif self.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoids(tokens_BT.shape[1], self.embed.shape[1], self.embed)
        return x_BTD if self.embed_norm is None else self.embed_norm(x_BTD)

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, T, V) and the residual stream [x_0 ... x_L], each (B, T, D). The stream r is left out."""
        x_BTD = r_BTD = self.embedding(tokens_BT)
        residual = [x_BTD]
        for block in self.blocks:
            x_BTD, r_BTD = block(x_BTD, r_BTD)
            residual.append(x_BTD)
        last_BTD = r_BTD if self.two_streams else x_BTD
        h_BTD = last_BTD if self.final_norm is None else self.final_norm(last_BTD)
        if self.two_streams:
            h_BTD = x_BTD + h_BTD
        return h_BTD @ self.embed.mT if self.unembed is None else self.unembed(h_BTD), residual


def build(config: RunConfig, vocab_size: int) -> Transformer:
    """Construct a run's model without memory for parameters. Each call of the model is given the parameters."""
    with torch.device("meta"):
        return Transformer(config.model, vocab_size, config.data.seq_len)

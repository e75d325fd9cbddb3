"""A decoder-only transformer for ONE run, written as an ordinary nn.Module.

train.py calls it through torch.func: vmap puts the run axis in front. Its forward gives the logits and the
residual stream x_0 ... x_L, x_l being what block l returns and x_0 the embeddings' sum.

B batch, T sequence, D d_model, H heads, K d_head, F d_ff, V vocab.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normstudy.config import ModelConfig, resolve
from normstudy.norms import NORMS
from normstudy.placements import PLACEMENTS


class Linear(nn.Module):
    """x W^T + b with weight (out, in) and bias (out,); init.py fills both."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.mT
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    """Causal multi-head attention, written out: the scores are at hand for a probe, and vmap has rules for it."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = Linear(d_model, d_model)
        self.k = Linear(d_model, d_model)
        self.v = Linear(d_model, d_model)
        self.out = Linear(d_model, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        H, K = self.n_heads, D // self.n_heads
        # Scaling q costs less than scaling the (T, T) scores. Contiguous factors make the products of a run
        # the same bits in any batch of runs.
        q_BHTK = (self.q(x_BTD) * K**-0.5).view(B, T, H, K).transpose(1, 2).contiguous()
        k_BHKT = self.k(x_BTD).view(B, T, H, K).permute(0, 2, 3, 1).contiguous()
        v_BHTK = self.v(x_BTD).view(B, T, H, K).transpose(1, 2).contiguous()
        mask_TT = torch.full((T, T), -math.inf, dtype=x_BTD.dtype, device=x_BTD.device).triu(1)
        weights_BHTT = torch.softmax(q_BHTK @ k_BHKT + mask_TT, -1)
        mixed_BTD = (weights_BHTT @ v_BHTK).transpose(1, 2).reshape(B, T, D)
        y_BTD: Tensor = self.out(mixed_BTD)
        return y_BTD


class MLP(nn.Module):
    """W2 gelu(W1 x + b1) + b2, exact GELU."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1 = Linear(d_model, d_ff)
        self.w2 = Linear(d_ff, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.w2(F.gelu(self.w1(x_BTD)))
        return y_BTD


class Block(nn.Module):
    """One block: the sublayers and norms that its placement's function names as arguments."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.function = PLACEMENTS[config.placement].block
        self.attn = Attention(config.d_model, config.n_heads)
        self.mlp = MLP(config.d_model, resolve(config).d_ff)
        wanted = inspect.signature(self.function).parameters
        numbers = {"layer": layer, "n_layers": config.n_layers}
        self.numbers = {name: value for name, value in numbers.items() if name in wanted}
        self.parts = [name for name in wanted if name != "x" and name not in self.numbers]
        for name in self.parts:
            if name.startswith("norm"):
                setattr(self, name, NORMS[config.norm](config.d_model))

    def forward(self, x_BTD: Tensor) -> Tensor:
        parts = {name: getattr(self, name) for name in self.parts}
        out = self.function(x_BTD, **parts, **self.numbers)
        assert isinstance(out, Tensor)
        return out


class Transformer(nn.Module):
    """Embeddings, blocks, a final norm where the placement has one, an untied unembedding without bias."""

    def __init__(self, config: ModelConfig, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.empty(vocab_size, config.d_model))
        self.pos = nn.Parameter(torch.empty(seq_len, config.d_model))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = NORMS[config.norm](config.d_model) if resolve(config).final_norm else None
        self.unembed = Linear(config.d_model, vocab_size, bias=False)

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, T, V) and the residual stream [x_0 ... x_L], each (B, T, D); T <= seq_len."""
        x_BTD = F.embedding(tokens_BT, self.embed) + self.pos[: tokens_BT.shape[1]]
        residual = [x_BTD]
        for block in self.blocks:
            x_BTD = block(x_BTD)
            residual.append(x_BTD)
        h_BTD = x_BTD if self.final_norm is None else self.final_norm(x_BTD)
        return self.unembed(h_BTD), residual

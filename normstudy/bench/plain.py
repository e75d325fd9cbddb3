"""The plain training loop that normstudy is measured against: a decoder and a loop in the form people write them.

The model is the one of `normstudy run` at its defaults (pre-norm, GELU, learned positions, an output matrix of its own
without bias), with as many parameters: a test holds the counts equal, and with copied weights the losses.

Against public loops: it has the shape of nanoGPT's train.py and model.py. Both have one fused matrix for Q, K and V,
F.scaled_dot_product_attention(is_causal=True), a fused Adam, zero_grad(set_to_none=True), and batches of random windows
stacked. Left out is what costs nanoGPT time: gradient accumulation, autocast and its scaler, DDP, evaluation, gradient
clipping, dropout, a learning rate set anew at each step, weight decay in groups. The text is one int64 tensor in
memory, where nanoGPT reads a memory map and converts each window. Left out too is torch.compile, nanoGPT's default
on a GPU, which its README switches off on a CPU: it takes half a minute for each shape of model, and a sweep has many.
The loss is read every tenth step, as in nanoGPT's config for small texts: to read it at each step, as many do, makes a
GPU wait, so this is the faster habit.

Needs torch: only the processes that train import it. B batch, T sequence, D d_model, H heads, K d_head, V vocab.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normstudy.config import ModelConfig, RunConfig

LOG_EVERY = 10  # steps between two readings of the loss


class SelfAttention(nn.Module):
    """Causal multi-head attention with one matrix for Q, K and V."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).split(D, dim=2)
        q, k, v = (y.view(B, T, self.n_heads, D // self.n_heads).transpose(1, 2) for y in (q, k, v))
        mixed_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y_BTD: Tensor = self.out(mixed_BHTK.transpose(1, 2).contiguous().view(B, T, D))
        return y_BTD


class MLP(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(F.gelu(self.up(x_BTD)))
        return y_BTD


class Block(nn.Module):
    """x + attn(norm(x)), then the same with the MLP."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = SelfAttention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        y_BTD: Tensor = x_BTD + self.mlp(self.norm2(x_BTD))
        return y_BTD


class Decoder(nn.Module):
    """Token and position tables, pre-norm blocks, a final norm, an output matrix without bias."""

    def __init__(self, config: ModelConfig, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        d_model = config.d_model
        self.embed = nn.Embedding(vocab_size, d_model)
        self.pos = nn.Embedding(seq_len, d_model)
        self.blocks = nn.ModuleList(Block(d_model, config.n_heads) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.embed(tokens_BT) + self.pos(positions_T)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        return logits_BTV


def loss_of(model: Decoder, x_BT: Tensor, y_BT: Tensor) -> Tensor:
    """Mean cross-entropy, nats per token."""
    return F.cross_entropy(model(x_BT).flatten(0, 1), y_BT.flatten())


def draw_batch(tokens: Tensor, batch_size: int, seq_len: int, device: str) -> tuple[Tensor, Tensor]:
    """Random windows (B, T) of a flat text, and the tokens that follow each of theirs."""
    starts = torch.randint(len(tokens) - seq_len, (batch_size,)).tolist()
    x = torch.stack([tokens[i : i + seq_len] for i in starts])
    y = torch.stack([tokens[i + 1 : i + 1 + seq_len] for i in starts])
    if device == "cpu":
        return x, y
    return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)


def train(config: RunConfig, tokens: Tensor, vocab_size: int, device: str = "cpu") -> Iterator[float | None]:
    """Train one run without end, a step a `next`; yields the loss where it is read (every LOG_EVERY steps), else None.

    Of the config are read the sizes of the model (d_model, n_heads, n_layers), batch_size, seq_len, peak_lr, the betas
    and the seed, which goes to torch's global generator. tokens: (n,) int64, on the CPU.
    """
    torch.manual_seed(config.seed)
    batch_size, seq_len = config.data.batch_size, config.data.seq_len
    model = Decoder(config.model, vocab_size, seq_len).to(device)
    betas = config.optimizer.beta1, config.optimizer.beta2
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.schedule.peak_lr, betas=betas, eps=config.optimizer.eps, fused=True
    )
    step = 0
    while True:
        loss = loss_of(model, *draw_batch(tokens, batch_size, seq_len, device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item() if step % LOG_EVERY == 0 else None
        step += 1

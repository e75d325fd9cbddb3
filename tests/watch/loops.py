"""Small models and loops of somebody else, and the numbers of their steps taken by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normstudy.bench.plain import Decoder
from normstudy.config import ModelConfig

VOCAB, T = 32, 8


class Encoder(nn.Module):
    """torch's own stack of pre-norm layers, with a tied output matrix."""

    def __init__(self, n_layers: int = 3) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.embed = nn.Embedding(VOCAB, 16)
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, VOCAB, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.embed(tokens)))
        return logits


class Plain(nn.Module):
    """The benchmark's plain decoder, which returns logits here."""

    def __init__(self, n_layers: int = 3) -> None:
        super().__init__()
        self.decoder = Decoder(ModelConfig(n_layers=n_layers, d_model=16, n_heads=2), VOCAB, T)

    def forward(self, tokens: Tensor) -> Tensor:
        d = self.decoder
        x = d.embed(tokens) + d.pos(torch.arange(tokens.shape[1]))
        for block in d.blocks:
            x = block(x)
        logits: Tensor = d.head(d.norm(x))
        return logits


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 16)
        self.first = nn.Conv1d(16, 16, 3, padding=1)
        self.second = nn.Conv1d(16, VOCAB, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).transpose(1, 2)
        logits: Tensor = self.second(self.first(x).relu()).transpose(1, 2)
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 16)
        self.lstm = nn.LSTM(16, 16, 2, batch_first=True)
        self.head = nn.Linear(16, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.embed(tokens))[0])
        return logits


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def batches(n: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(VOCAB, (n, 4, T + 1), generator=generator)
    return [(one[:, :-1], one[:, 1:]) for one in drawn]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    out = model(x)
    logits = getattr(out, "logits", out)
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten())


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in tensors))


def plain_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, clip: float | None = None, log: Any = None
) -> list[dict[str, tuple[float, float, float]]]:
    """Train, and return of each step and parameter the norms of gradient before clipping, parameter and update."""
    taken = []
    for batch in batches(steps):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        grads = {name: norm([p.grad]) if p.grad is not None else math.nan for name, p in model.named_parameters()}
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if log is not None:
            log(train_loss=loss)
        taken.append({
            name: (grads[name], norm([before[name]]), norm([before[name] - p.detach()]))
            for name, p in model.named_parameters()
        })  # fmt: skip
    return taken

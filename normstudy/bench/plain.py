"""The plain training loop that normstudy is measured against: a decoder and a loop in the form people write them.

The model is the one of `normstudy run` at its defaults (pre-norm, GELU, learned positions, an output matrix of its own
without bias), with as many parameters: a test holds the counts equal, and with copied weights the losses.

It has the shape of nanoGPT's train.py and model.py: one fused matrix for Q, K and V, scaled_dot_product_attention, a
fused Adam, batches of random windows stacked, the loss read every tenth step (each reading makes a GPU wait). What
costs nanoGPT time is left out: gradient accumulation, autocast, DDP, evaluation, clipping, dropout, a learning rate set
anew at each step, weight decay in groups, a text in a memory map. So is torch.compile, which nanoGPT's README switches
off on a CPU: it takes half a minute for each shape of model, and a sweep has many.

Needs torch: only the processes that train import it. B batch, T sequence, D d_model, H heads, K d_head, V vocab.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normstudy.config import ModelConfig, RunConfig

LOG_EVERY = 10  # steps between two readings of the loss
BINS = 64  # of a histogram, as in wandb
Histograms = list[tuple[list[float], list[float]]]  # counts and edges of each


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


class PlainBlock(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)), the MLP being two linear maps with an exact GELU between them."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = SelfAttention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        y_BTD: Tensor = x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD))))
        return y_BTD


class Decoder(nn.Module):
    """Token and position tables, pre-norm blocks, a final norm, an output matrix without bias."""

    def __init__(self, config: ModelConfig, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, config.d_model)
        self.pos = nn.Embedding(seq_len, config.d_model)
        self.blocks = nn.ModuleList(PlainBlock(config.d_model, config.n_heads) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mean cross-entropy, nats per token; the embedding's output and x after each block."""
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        stream = [self.embed(tokens_BT) + self.pos(positions_T)]
        for block in self.blocks:
            stream.append(block(stream[-1]))
        logits_BTV = self.head(self.norm(stream[-1]))
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten()), stream


def draw_batch(tokens: Tensor, batch_size: int, seq_len: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Random windows (B, T) of a flat text, and the tokens that follow each of theirs."""
    starts = torch.randint(len(tokens) - seq_len, (batch_size,)).tolist()
    x = torch.stack([tokens[i : i + seq_len] for i in starts])
    y = torch.stack([tokens[i + 1 : i + 1 + seq_len] for i in starts])
    if device == "cpu":
        return x, y
    return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)


def make(config: RunConfig, vocab_size: int, device: str = "cpu") -> tuple[Decoder, torch.optim.Adam]:
    """The model and the optimizer of one run, whose seed goes to torch's global generator."""
    torch.manual_seed(config.seed)
    model, o = Decoder(config.model, vocab_size, config.data.seq_len).to(device), config.optimizer
    lr, betas = config.schedule.peak_lr, (o.beta1, o.beta2)
    return model, torch.optim.Adam(model.parameters(), lr=lr, betas=betas, eps=o.eps, fused=True)


def train(
    config: RunConfig, tokens: Tensor, vocab_size: int, device: str = "cpu",
    hook: Callable[[Tensor], None] | None = None,
) -> Iterator[float | None]:  # fmt: skip
    """Train one run without end, a step a `next`; yields the loss where it is read (every LOG_EVERY steps), else None.

    tokens: (n,) int64, on the CPU. hook: called with each parameter's gradient.
    """
    model, optimizer = make(config, vocab_size, device)
    for parameter in model.parameters() if hook is not None else ():
        parameter.register_hook(hook)  # type: ignore[no-untyped-call]
    for step in itertools.count():
        loss, _ = model(*draw_batch(tokens, config.data.batch_size, config.data.seq_len, device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield loss.item() if step % LOG_EVERY == 0 else None


class Recorder:
    """Takes steps of a plain run, and all that normstudy records of each: by one _foreach_norm, and in one transfer."""

    def __init__(self, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.params: list[Tensor] = [*model.parameters()]
        self.before = [torch.empty_like(p) for p in self.params]
        module_of = [name.rpartition(".")[0] for name, _ in model.named_parameters()]
        self.modules = list(dict.fromkeys(module_of))
        belongs = [[float(m == module) for m in self.modules] + [1.0] for module in module_of]  # and to the model
        self.of_module = torch.tensor(belongs, dtype=torch.float64)

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[float, Tensor, Tensor]:
        """Take a step on a batch; its loss, (3, modules + 1) and (2, n_layers + 1), in float64.

        The first are the norms of gradient, parameters and update of each module, and last of the whole model; the
        second the root mean square of each x_l and the norm of dLoss/dx_l.
        """
        loss, stream = self.model(tokens_BT, targets_BT)
        for x in stream:
            x.retain_grad()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            torch._foreach_copy_(self.before, self.params)
            self.optimizer.step()
            updates = torch._foreach_sub(self.params, self.before)
            grads = [t.grad for t in (*self.params, *stream) if t.grad is not None]
            norms = torch._foreach_norm([*grads, *self.before, *updates, *stream])
        n, depth = len(self.params), len(stream)
        given = torch.stack([*norms, loss.detach()]).cpu().double()
        grad, residual_grad, param, update, x, value = torch.split(given, [n, depth, n, n, depth, 1])
        modules = (torch.stack([grad, param, update]).square() @ self.of_module).sqrt()
        return value.item(), modules, torch.stack([x / stream[0].numel() ** 0.5, residual_grad])


def train_recorded(config: RunConfig, tokens: Tensor, vocab_size: int) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Train one run on the CPU without end, a step a `next`, and keep what is recorded of every step."""
    recorder, kept = Recorder(*make(config, vocab_size)), []
    while True:
        kept.append(recorder.step(*draw_batch(tokens, config.data.batch_size, config.data.seq_len)))
        yield kept[-1]


def train_watched(config: RunConfig, tokens: Tensor, vocab_size: int) -> Iterator[Histograms]:
    """Train one run on the CPU without end, a step a `next`, with the hooks of wandb.watch(model, log="gradients").

    wandb's default records every 1,000th step (log_freq); this records every step, as the others of row i do. Each hook
    does what wandb's does with a gradient: a copy, two checks for numbers that are not finite, its least and largest
    number read one by one, a histogram between them, and the counts and edges as lists. What wandb does with these
    afterwards (its own process, files, network) is left out.
    """
    histograms: Histograms = []

    def watch(grad: Tensor) -> None:
        flat = grad.detach().clone().reshape(-1)
        if bool((~torch.isfinite(flat)).all()) or not bool(torch.isfinite(flat).all()):
            return
        low, high = flat.min().item(), flat.max().item()
        counts = flat.histc(bins=BINS, min=low, max=high).cpu().detach().clone()
        histograms.append((counts.tolist(), torch.linspace(low, high, BINS + 1).tolist()))

    for _ in train(config, tokens, vocab_size, hook=watch):
        yield histograms
        histograms.clear()

"""Train the default model of `normstudy run` in plain loops, whose speed the benchmark compares with normstudy's.

The loops follow nanoGPT's train.py and model.py: one fused matrix for Q, K and V, scaled_dot_product_attention, fused
Adam, and batches of stacked random windows. They omit features of nanoGPT that cost time: gradient accumulation,
autocast, DDP, evaluation, clipping, dropout, a new learning rate at each step, weight decay, and a memory-mapped text.
The loops also omit torch.compile, which takes half a minute for each model size on a CPU.
Suffixes of tensor names are their dimensions: B batch, T sequence, D d_model, H heads, K d_head, V vocab.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normstudy.config import ModelConfig, RunConfig

LOG_EVERY = 10  # steps between two reads of the loss, because reading waits until a GPU has finished the step
BINS = 64  # bins in a gradient histogram, as in wandb
Histograms = list[tuple[list[float], list[float]]]  # (counts, bin edges) of each gradient


class PlainBlock(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)). The MLP uses the exact GELU."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(self.norm1(x_BTD)).split(D, dim=2)
        q, k, v = (y.view(B, T, self.n_heads, D // self.n_heads).transpose(1, 2) for y in (q, k, v))
        mixed_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(mixed_BHTK.transpose(1, 2).contiguous().view(B, T, D))
        y_BTD: Tensor = x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD))))
        return y_BTD


class Decoder(nn.Module):
    """A decoder of token and position embeddings, pre-norm blocks, a final norm, and an output matrix without bias."""

    def __init__(self, config: ModelConfig, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, config.d_model)
        self.pos = nn.Embedding(seq_len, config.d_model)
        self.blocks = nn.ModuleList(PlainBlock(config.d_model, config.n_heads) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the mean cross-entropy (nats per token), and a list of the outputs of the embedding and all blocks."""
        stream = [self.embed(tokens_BT) + self.pos(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))]
        for block in self.blocks:
            stream.append(block(stream[-1]))
        logits_BTV = self.head(self.norm(stream[-1]))
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten()), stream


def draw_batch(tokens: Tensor, batch_size: int, seq_len: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Draw random windows (B, T) from tokens (n,), and their targets: the windows shifted by one token."""
    starts = torch.randint(len(tokens) - seq_len, (batch_size,)).tolist()
    x = torch.stack([tokens[i : i + seq_len] for i in starts])
    y = torch.stack([tokens[i + 1 : i + 1 + seq_len] for i in starts])
    if device == "cpu":
        return x, y
    return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)


def make(config: RunConfig, vocab_size: int, device: str = "cpu") -> tuple[Decoder, torch.optim.Adam]:
    """Seed torch's global generator with a run's seed, then make the run's model and optimizer."""
    torch.manual_seed(config.seed)
    model, o = Decoder(config.model, vocab_size, config.data.seq_len).to(device), config.optimizer
    lr, betas = config.schedule.peak_lr, (o.beta1, o.beta2)
    return model, torch.optim.Adam(model.parameters(), lr=lr, betas=betas, eps=o.eps, fused=True)


def train(
    config: RunConfig, tokens: Tensor, vocab_size: int, device: str = "cpu",
    hook: Callable[[Tensor], None] | None = None,
) -> Iterator[float | None]:  # fmt: skip
    """Train one run without end. Yield the loss at each LOG_EVERY-th step, and None at all other steps.

    tokens: (n,) int64, on the CPU. hook: a function that is called with each parameter's gradient.
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
    """Train a run step by step, and measure the norms that normstudy records, all in one torch call to save time."""

    def __init__(self, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.params: list[Tensor] = [*model.parameters()]
        self.before = [torch.empty_like(p) for p in self.params]
        module_of = [name.rpartition(".")[0] for name, _ in model.named_parameters()]
        self.modules = list(dict.fromkeys(module_of))
        # belongs[p][m] is 1 if parameter `p` belongs to module `m`, else 0. The last column is 1: the whole model.
        belongs = [[float(m == module) for m in self.modules] + [1.0] for module in module_of]
        self.of_module = torch.tensor(belongs, dtype=torch.float64)

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[float, Tensor, Tensor]:
        """Take one training step. Return its loss, and in float64 the norms of modules and of the residual stream.

        Modules: (3, modules + 1), the norms of gradients, parameters and updates. The last column is for the whole
        model. Stream: (2, n_layers + 1), the root mean square of x_l and the norm of dLoss/dx_l. x_l is the stream
        after `l` blocks.
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
        numbers = torch.stack([*norms, loss.detach()]).cpu().double()
        grad, residual_grad, param, update, x, value = torch.split(numbers, [n, depth, n, n, depth, 1])
        modules = (torch.stack([grad, param, update]).square() @ self.of_module).sqrt()
        return value.item(), modules, torch.stack([x / stream[0].numel() ** 0.5, residual_grad])


def train_recorded(config: RunConfig, tokens: Tensor, vocab_size: int) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Train one run without end on the CPU; yield each result of Recorder.step, and keep all results in memory."""
    recorder, kept = Recorder(*make(config, vocab_size)), []
    while True:
        kept.append(recorder.step(*draw_batch(tokens, config.data.batch_size, config.data.seq_len)))
        yield kept[-1]


def train_watched(config: RunConfig, tokens: Tensor, vocab_size: int) -> Iterator[Histograms]:
    """Train one run without end on the CPU, with hooks like those of wandb.watch(model, log="gradients", log_freq=1).

    As in wandb, each hook copies the gradient, tests twice whether its numbers are finite, reads its minimum and its
    maximum separately, and makes lists of its histogram's counts and edges. Each step's lists are then discarded.
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

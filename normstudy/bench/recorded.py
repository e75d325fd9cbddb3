"""The plain loop that also records: what normstudy records at every step, or what wandb.watch would.

Needs torch: only the processes that train import it. B batch, T sequence.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from normstudy.bench.plain import Decoder, draw_batch, make
from normstudy.config import RunConfig

BINS = 64  # of a histogram, as in wandb
Recorded = tuple[float, Tensor, Tensor]


class Recorder:
    """Takes a step of a plain run, and with it all that normstudy records of one.

    It is written for speed: the norms of all tensors by one call of torch._foreach_norm, and one transfer to the host.
    """

    def __init__(self, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer, self.params = model, optimizer, list(model.parameters())
        self.before = [torch.empty_like(p) for p in self.params]
        module_of = [name.rpartition(".")[0] for name, _ in model.named_parameters()]
        self.modules = list(dict.fromkeys(module_of))
        belongs = [[float(m == module) for m in self.modules] + [1.0] for module in module_of]  # and to the model
        self.of_module = torch.tensor(belongs, dtype=torch.float64)

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> Recorded:
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
            grads = [t.grad for t in (*self.params, *stream)]
            norms = torch._foreach_norm([*grads, *self.before, *updates, *stream])
        n, depth = len(self.params), len(stream)
        given = torch.stack([*norms, loss.detach()]).cpu().double()
        grad, residual_grad, param, update, x, value = given.split([n, depth, n, n, depth, 1])
        modules = (torch.stack([grad, param, update]).square() @ self.of_module).sqrt()
        return value.item(), modules, torch.stack([x / stream[0].numel() ** 0.5, residual_grad])


def train_recorded(config: RunConfig, tokens: Tensor, vocab_size: int) -> Iterator[Recorded]:
    """Train one run on the CPU without end, a step a `next`, and keep what is recorded of every step."""
    recorder, kept = Recorder(*make(config, vocab_size)), []
    while True:
        kept.append(recorder.step(*draw_batch(tokens, config.data.batch_size, config.data.seq_len)))
        yield kept[-1]


def train_watched(config: RunConfig, tokens: Tensor, vocab_size: int) -> Iterator[list[tuple[object, object]]]:
    """Train one run on the CPU without end, a step a `next`, with the hooks of wandb.watch(model, log="gradients").

    wandb's default records every 1,000th step (log_freq); this records every step, as the others of row i do. Each hook
    does what wandb's does with a gradient: a copy, two checks for numbers that are not finite, its least and largest
    number read one by one, a histogram between them, and the counts and edges as lists. What wandb does with these
    afterwards (its own process, files, network) is left out.
    """
    histograms: list[tuple[object, object]] = []

    def watch(grad: Tensor) -> None:
        flat = grad.detach().clone().reshape(-1)
        if bool((~torch.isfinite(flat)).all()):
            return
        if not bool(torch.isfinite(flat).all()):
            flat = flat[torch.isfinite(flat)]
        low, high = flat.min().item(), flat.max().item()
        counts = flat.histc(bins=BINS, min=low, max=high).cpu().detach().clone()
        histograms.append((counts.tolist(), torch.linspace(low, high, BINS + 1).tolist()))

    model, optimizer = make(config, vocab_size)
    for parameter in model.parameters():
        parameter.register_hook(watch)
    while True:
        loss, _ = model(*draw_batch(tokens, config.data.batch_size, config.data.seq_len))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield histograms
        histograms.clear()

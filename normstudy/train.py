"""Train a batch of runs as one program.

The loss of ONE run is written once; vmap puts the run axis in front of it, and ordinary autograd differentiates the
sum of the losses outside the vmap. Runs do not interact, so that gradient is each run's own. dLoss/dx_l needs no
hook: the residual stream is an output of the forward, and one more input of `autograd.grad`.

`train_batch` is a generator of records: it writes nothing and knows no file.

B batch, T sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normstudy import data, optim, own, probes, profiling
from normstudy.config import RunConfig, row_of
from normstudy.init import init_params
from normstudy.model import Transformer
from normstudy.probes import Array, Probe

FLOAT32_MAX = float(np.finfo(np.float32).max)
EVAL_CHUNK = 16  # validation windows in one forward pass: bounds the memory of a batch of runs


@dataclass(frozen=True)
class Record:
    """What one step gave. Arrays are (runs,) over `runs`, the indices of the runs still alive at this step."""

    step: int
    runs: list[int]
    train_loss: Array
    val_loss: Array | None
    lr: list[float]
    grad_norm: Array
    param_norm: Array
    update_norm: Array
    probe: Probe | None


@dataclass(frozen=True)
class End:
    """How a run ended: after its last update, or at its first non-finite number.

    nonfinite_step: the step of that number; n_steps where it is the validation loss after the last update.
    """

    run: int
    final_val_loss: float | None
    nonfinite_step: int | None


def loss_of_run(model: Transformer, params: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Mean cross-entropy of one run on windows (B, T + 1), nats per token, and its residual stream."""
    logits, residual = torch.func.functional_call(model, params, (tokens[:, :-1],))
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()), residual


def build(config: RunConfig, vocab_size: int) -> Transformer:
    """The model of one run, without memory for its parameters: they are kept stacked over runs."""
    with torch.device("meta"):
        return Transformer(config.model, vocab_size, config.data.seq_len)


def start(model: Transformer, configs: list[RunConfig], text: data.Text) -> dict[str, Tensor]:
    """The parameters of runs of one model before the first update, name -> (runs, *shape), on the CPU."""
    stacked = init_params(model, [c.model for c in configs], [c.seed for c in configs])
    if row_of(configs[0].model.placement).profiled:
        tokens = torch.from_numpy(np.stack([_tokens(text, c, step=0) for c in configs]))
        profiling.set_omegas_(model, stacked, tokens[..., :-1])
    return stacked


def _tokens(text: data.Text, config: RunConfig, step: int) -> data.Ints:
    return data.batch(text, int(config.data_seed or 0), step, config.data.batch_size, config.data.seq_len)


def train_batch(configs: list[RunConfig], text: data.Text, device: str = "cpu") -> Iterator[Record | End]:
    """Train runs of one shape together; yields a Record a step and an End a run.

    A run ends at its first non-finite loss or gradient norm: that Record is its last, and it leaves the batch.
    Whatever a run is batched with, its numbers are the same bits (on one kind of CPU and version of torch).
    """
    first = configs[0]
    n_steps = first.schedule.n_steps
    model = build(first, text.vocab_size)
    names = [n for n, _ in model.named_parameters()]
    stacked = start(model, configs, text)
    params = [stacked[n].to(device) for n in names]
    own.move(model, device)
    state = optim.new_state(first.optimizer.name, params)
    modules = probes.modules_of(names)
    windows = torch.from_numpy(data.validation_windows(text, first.eval.windows, first.data.seq_len)).to(device)

    def forward(values: list[Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        return loss_of_run(model, dict(zip(names, values, strict=True)), tokens)

    over_runs = torch.func.vmap(forward)
    over_runs_same_tokens = torch.func.vmap(forward, in_dims=(0, None))

    def evaluate() -> Array:
        with torch.no_grad():
            sums = [over_runs_same_tokens(params, chunk)[0] * len(chunk) for chunk in torch.split(windows, EVAL_CHUNK)]
        return probes.sum_by_run(_numpy(torch.stack(sums))) / len(windows)

    alive = list(range(len(configs)))
    for step in range(n_steps):
        running = [configs[r] for r in alive]
        lr = [optim.lr_at(step, c.schedule) for c in running]
        val_loss = evaluate() if step % first.eval.every == 0 else None
        tokens = torch.from_numpy(np.stack([_tokens(text, c, step) for c in running])).to(device)
        probed = probes.is_probed(step, n_steps, first.probe)

        leaves = [p.requires_grad_() for p in params]
        losses, residual = over_runs(leaves, tokens)
        grads = torch.autograd.grad(losses.sum(), [*leaves, *residual])
        params = [p.detach() for p in params]
        with torch.no_grad():
            measured = [losses.detach()[None], *(_norms(t) for t in (grads[: len(params)], params))]
            if probed:
                rms = torch.stack([probes.rms_by_run(x.detach()) for x in residual])
                measured += [rms, _norms(grads[len(params) :])]
        loss, grad, param, *stream = (_numpy(m) for m in measured)
        grad_norm = probes.global_norm(grad)

        with torch.no_grad():
            clipped = _clip(list(grads[: len(params)]), grad_norm, running)
            update = _numpy(
                optim.OPTIMIZERS[first.optimizer.name](params, clipped, state, step, lr, [c.optimizer for c in running])
            )
        probe = None
        if probed:
            probe = Probe(*(modules.combine(x) for x in (grad, param, update)), *stream)
        yield Record(
            step,
            alive,
            loss[0],
            val_loss,
            lr,
            grad_norm,
            probes.global_norm(param),
            probes.global_norm(update),
            probe,
        )

        finite = np.isfinite(loss[0]) & (grad_norm <= FLOAT32_MAX)  # beyond it the table would hold inf
        if val_loss is not None:
            finite &= np.isfinite(val_loss)
        if not finite.all():
            for r in np.array(alive)[~finite]:
                yield End(int(r), None, step)
            keep = np.flatnonzero(finite)
            alive = [alive[i] for i in keep]
            if not alive:
                return
            index = torch.from_numpy(keep).to(device)
            params = [p.index_select(0, index) for p in params]
            state = {slot: [t.index_select(0, index) for t in tensors] for slot, tensors in state.items()}

    for r, value in zip(alive, evaluate(), strict=True):
        yield End(r, float(value), None) if np.isfinite(value) else End(r, None, n_steps)


def _norms(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """(tensors, runs)."""
    return torch.stack([optim.norm_by_run(t) for t in tensors])


def _numpy(x: Tensor) -> Array:
    return x.detach().to("cpu", torch.float64).numpy()


def _clip(grads: list[Tensor], grad_norm: Array, configs: list[RunConfig]) -> list[Tensor]:
    """Scale each run's gradients to its max_grad_norm, as torch.nn.utils.clip_grad_norm_ does."""
    limits = [c.optimizer.max_grad_norm for c in configs]
    if all(limit is None for limit in limits):
        return grads
    # A run without a limit is multiplied by exactly 1, which leaves its bits.
    factors = [1.0 if m is None else min(1.0, m / (float(n) + 1e-6)) for m, n in zip(limits, grad_norm, strict=True)]
    scale = optim.per_run(factors, grads[0])
    return [g * optim.over(scale, g) for g in grads]

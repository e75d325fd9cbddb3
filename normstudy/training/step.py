"""Take one training step of a batch of runs, and compute validation losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normstudy.config import EVAL_CHUNK, RunConfig
from normstudy.data import blocks, texts
from normstudy.model import kernels
from normstudy.model.transformer import Transformer
from normstudy.training import optim, probes
from normstudy.training.probes import Array, Layout

Step = Callable[..., Sequence[Tensor]]
WARMUP = 3  # steps before the capture of a CUDA graph; in these steps, libraries select kernels and allocate workspaces


def loss_of_run(model: Transformer, params: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return one run's mean cross-entropy on windows (B, T + 1), in nats per token, and its residual stream."""
    logits, residual = torch.func.functional_call(model, params, (tokens[:, :-1],))
    return kernels.cross_entropy(logits, tokens[:, 1:]), residual


def tokens_of(text: texts.Text, config: RunConfig, step: int) -> blocks.Ints:
    """Return the windows (B, T + 1) on which a run trains at a step."""
    return texts.batch(text, int(config.data_seed or 0), step, config.data.batch_size, config.data.seq_len)


@dataclass(frozen=True)
class StackedRuns:
    """A batch of runs of one model on a device. Parameters, gradients and each optimizer slot are (runs, width)."""

    model: Transformer
    layout: Layout
    optimizer: str
    params: Tensor
    grads: Tensor
    state: optim.State
    has_own_parts: bool  # whether the user supplied the block or the norm
    decayed: Tensor | None = None  # see `optim.decayed_columns`

    def losses(self, values: list[Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return losses (runs,) and x_0 ... x_L, each (runs, B, T, D). tokens: (runs, B, T + 1), or (B, T + 1)."""

        def of_run(values: list[Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
            return loss_of_run(self.model, dict(zip(self.layout.names, values, strict=True)), tokens)

        return torch.func.vmap(of_run, in_dims=(0, 0 if tokens.ndim == 3 else None))(values, tokens)

    def select(self, index: Tensor) -> StackedRuns:
        """Copy the runs at the positions `index` into a new batch."""
        params, grads, *slots = (t.index_select(0, index) for t in (self.params, self.grads, *self.state.values()))
        return replace(self, params=params, grads=grads, state=dict(zip(self.state, slots, strict=True)))

    def join(self, others: StackedRuns) -> StackedRuns:
        """Copy these runs and other runs of the same model, in this order, into a new batch."""
        mine, theirs = ([r.params, r.grads, *r.state.values()] for r in (self, others))
        params, grads, *slots = (torch.cat([a.detach(), b.detach()]) for a, b in zip(mine, theirs, strict=True))
        return replace(self, params=params, grads=grads, state=dict(zip(self.state, slots, strict=True)))


class Measured(NamedTuple):
    """Results of a step: losses (runs,), module norms (modules, runs), norms of x_0 ... x_L (n_layers + 1, runs)."""

    loss: Tensor
    grad: Tensor | None = None
    param: Tensor | None = None
    update: Tensor | None = None
    rms: Tensor | None = None
    residual_grad: Tensor | None = None


class Inputs(NamedTuple):
    """Inputs of a step. lr: each run's rate. tokens: (runs, B, T + 1). limits: each run's max_grad_norm, (runs,)."""

    lr: list[float]
    tokens: Tensor
    coefficients: optim.Coefficients
    limits: Tensor | None


def evaluate(runs: StackedRuns, windows: Tensor) -> Array:
    """Compute each run's validation loss (runs,) on windows (W, T + 1)."""
    values = runs.layout.tensors(runs.params)
    with torch.no_grad():
        sums = [runs.losses(values, chunk)[0] * len(chunk) for chunk in torch.split(windows, EVAL_CHUNK)]
    return probes.sum_by_run(to_numpy(torch.stack(sums))) / len(windows)


def inputs_of(steps: range, configs: list[RunConfig], text: texts.Text, like: Tensor) -> list[Inputs]:
    """Make the inputs of several steps, and move each kind of input to the device of `like` in one transfer."""
    optimizers = [c.optimizer for c in configs]
    tokens = torch.from_numpy(np.stack([[tokens_of(text, c, step) for c in configs] for step in steps])).to(like.device)
    lr = [[optim.lr_at(step, c.schedule) for c in configs] for step in steps]
    coefficients = optim.coefficients(optimizers[0].name, steps, lr, optimizers, like)
    given = [math.inf if o.max_grad_norm is None else o.max_grad_norm for o in optimizers]
    limits = None if min(given) == math.inf else torch.tensor(given, dtype=torch.float64).to(like.device)
    return [Inputs(*one, limits) for one in zip(lr, tokens, coefficients, strict=True)]


def stepper(runs: StackedRuns, like: Inputs, *, probing: bool) -> Callable[[Inputs, bool], Measured]:
    """Return a function that takes one step of these runs: (inputs, probed) -> Measured.

    On a GPU the function replays a CUDA graph. The graph computes norms at every step. Models with a user's own block
    or norm use no graph, because a graph cannot capture all code (e.g. building a tensor from numbers).
    """
    if runs.params.device.type != "cuda" or runs.has_own_parts:
        return lambda inputs, probed: step_(runs, inputs, probing=probing, probed=probed and probing)
    names, limited = list(like.coefficients), like.limits is not None

    def tensors(inputs: Inputs) -> list[Tensor]:
        return [inputs.tokens, *inputs.coefficients.values(), *([] if inputs.limits is None else [inputs.limits])]

    def step(tokens: Tensor, *numbers: Tensor) -> list[Tensor]:
        inputs = Inputs(like.lr, tokens, dict(zip(names, numbers, strict=False)), numbers[-1] if limited else None)
        return [t for t in step_(runs, inputs, probing=probing, probed=probing) if t is not None]

    replay = captured(step, tensors(like), [runs.params, runs.grads, *runs.state.values()])
    return lambda inputs, _: Measured(*replay(*tensors(inputs)))


def captured(step: Step, inputs: Sequence[Tensor], changed: Sequence[Tensor]) -> Step:
    """Capture `step` as a CUDA graph, and return a function that replays the graph.

    A step of a small model runs about a thousand kernels of a few microseconds each. Launching the kernels one by one
    takes longer than running them. A graph launches them all at once.

    changed: the tensors that `step` changes. After the capture, these tensors are set back to their earlier values.
    """
    before = [t.clone() for t in changed]
    static = [t.clone() for t in inputs]
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP):
            step(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            outputs = step(*static)
    finally:  # a failed capture may leave another CUDA stream selected
        torch.cuda.set_stream(current)
    for now, old in zip(changed, before, strict=True):
        now.copy_(old)

    def replay(*given: Tensor) -> list[Tensor]:
        for place, value in zip(static, given, strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()
        return [t.clone() for t in outputs]

    return replay


def step_(runs: StackedRuns, inputs: Inputs, *, probing: bool, probed: bool) -> Measured:
    """Compute losses, gradients and norms, and update the runs, without transfers between host and device."""
    layout = runs.layout
    leaves = [p.requires_grad_() for p in layout.tensors(runs.params)]
    losses, residual = runs.losses(leaves, inputs.tokens)
    given = torch.autograd.grad(losses.sum(), [*leaves, *(residual if probed else [])])
    with torch.no_grad():
        torch._foreach_copy_(layout.tensors(runs.grads), list(given[: len(leaves)]))
        grad = layout.norms(runs.grads) if probing or inputs.limits is not None else None
        param = layout.norms(runs.params) if probing else None
        if inputs.limits is not None and grad is not None:
            runs.grads.mul_(clip_factors(grad, inputs.limits).to(runs.grads.dtype)[:, None])
        optim.update_(runs.optimizer, runs.params, runs.grads, runs.state, inputs.coefficients, runs.decayed)
        if not probing:
            return Measured(losses.detach())
        update = layout.norms(runs.grads)  # grads now contains what update_ subtracted from params
        if not probed:
            return Measured(losses.detach(), grad, param, update)
        rms, stream = probes.rms_by_run(residual), probes.norms_by_run(given[len(leaves) :])
        return Measured(losses.detach(), grad, param, update, rms, stream)


def clip_factors(norms: Tensor, limits: Tensor) -> Tensor:
    """Return float64 factors (runs,) that clip as torch.nn.utils.clip_grad_norm_ does. norms: (modules, runs)."""
    # A sum over the last axis of a contiguous matrix adds in an order that does not depend on the number of runs.
    norm = norms.double().square().T.contiguous().sum(1).sqrt()
    # For a run without a limit, `limits` is inf. If the run's norm is also inf, limits / norm would be NaN.
    return torch.where(limits.isinf(), 1.0, (limits / (norm + 1e-6)).clamp(max=1))


def to_numpy(x: Tensor) -> Array:
    """Copy a tensor to the host as a float64 array."""
    return x.detach().to("cpu", torch.float64).numpy()

"""Train a batch of runs as one program.

The loss of ONE run is written once; vmap puts the run axis in front of it, and ordinary autograd differentiates the
sum of the losses outside the vmap. Runs do not interact, so that gradient is each run's own. dLoss/dx_l needs no
hook: the residual stream is an output of the forward, and one more input of `autograd.grad`.

`train_batch` is a generator of records: it writes nothing and knows no file.

B batch, T sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normstudy import cuda, data, kernels, optim, own, probes, profiling
from normstudy.config import EVAL_CHUNK, RunConfig, row_of
from normstudy.flat import Layout, layout_of
from normstudy.init import init_params
from normstudy.model import Transformer
from normstudy.probes import Array, Probe

FLOAT32_MAX = float(np.finfo(np.float32).max)
LOOK_EVERY = 50  # steps on a GPU between two looks of the host, each of which waits for all that is queued


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


@dataclass(frozen=True)
class Start:
    """Where a run goes on. step: the next to take; params (width,) and the optimizer's slots (width,) before it."""

    step: int
    params: Tensor
    state: optim.State


@dataclass(frozen=True)
class Snapshot:
    """Some runs of a batch before a step. params and slots are (runs, width), and change with the next step."""

    step: int
    runs: list[int]
    layout: Layout
    params: Tensor
    state: optim.State

    def of(self, place: int) -> Start:
        """The start of one of the runs, a copy."""
        state = {slot: values[place].cpu().clone() for slot, values in self.state.items()}
        return Start(self.step, self.params[place].detach().cpu().clone(), state)


def loss_of_run(model: Transformer, params: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Mean cross-entropy of one run on windows (B, T + 1), nats per token, and its residual stream."""
    logits, residual = torch.func.functional_call(model, params, (tokens[:, :-1],))
    return kernels.cross_entropy(logits, tokens[:, 1:]), residual


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


@dataclass(frozen=True)
class Runs:
    """A batch of runs on its device: one model, and (runs, width) each of parameters, gradients and optimizer slots."""

    model: Transformer
    layout: Layout
    optimizer: str
    params: Tensor
    grads: Tensor
    state: optim.State
    has_own_parts: bool  # a user's block or norm

    def losses(self, values: list[Tensor], tokens: Tensor, *, same_tokens: bool) -> tuple[Tensor, list[Tensor]]:
        """Losses (runs,) and residual streams (runs, B, T, D), with tokens (runs, B, T + 1) or (B, T + 1) for all."""

        def of_run(values: list[Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
            return loss_of_run(self.model, dict(zip(self.layout.names, values, strict=True)), tokens)

        both: tuple[Tensor, list[Tensor]] = torch.func.vmap(of_run, in_dims=(0, None if same_tokens else 0))(
            values, tokens
        )
        return both

    def select(self, index: Tensor) -> Runs:
        """Only the runs of an index."""
        params, grads, *slots = (t.index_select(0, index) for t in (self.params, self.grads, *self.state.values()))
        return replace(self, params=params, grads=grads, state=dict(zip(self.state, slots, strict=True)))

    def join(self, others: Runs) -> Runs:
        """These runs and then the others, of the same batch."""
        mine, theirs = ([r.params, r.grads, *r.state.values()] for r in (self, others))
        params, grads, *slots = (torch.cat([a.detach(), b.detach()]) for a, b in zip(mine, theirs, strict=True))
        return replace(self, params=params, grads=grads, state=dict(zip(self.state, slots, strict=True)))


class Measured(NamedTuple):
    """What a step gave, on its device. loss (runs,); grad, param, update (modules, runs), None where nothing is
    probed; rms, residual_grad (n_layers + 1, runs), None except at a probed step."""

    loss: Tensor
    grad: Tensor | None = None
    param: Tensor | None = None
    update: Tensor | None = None
    rms: Tensor | None = None
    residual_grad: Tensor | None = None


@dataclass(frozen=True)
class Inputs:
    """What a step needs. tokens (runs, B, T + 1); limits (runs,) of the gradient norm, None where no run has one.

    lr: of each run, on the host, for the record.
    """

    lr: list[float]
    tokens: Tensor
    coefficients: optim.Coefficients
    limits: Tensor | None


def train_batch(
    configs: list[RunConfig],
    text: data.Text,
    device: str = "cpu",
    *,
    starts: Sequence[Start | None] | None = None,
    between: Callable[[Snapshot], bool] | None = None,
    probing: bool = True,
    look_every: int | None = None,
) -> Iterator[Record | End]:
    """Train runs of one shape together; yields a Record a step and an End a run.

    A run ends at its first non-finite loss or gradient norm: that Record is its last, and it leaves the batch.
    Whatever a run is batched with, its numbers are the same bits (on one kind of CPU, version of torch and
    libraries of matrix products: blas.py).

    starts: of each run, where it goes on, None for the beginning. The least advanced take their steps first, until
    they are level with the next. between: called after each step with the runs that train on; True ends the training.

    probing: False leaves the norms out, for `normstudy bench` to tell what they cost; they are NaN then.
    look_every: steps between two looks of the host at what they gave. No number depends on it; a run that diverged
    leaves at the next look. A look waits for the device, so on a GPU the default is LOOK_EVERY, on a CPU 1.
    """
    first = configs[0]
    n_steps, eval_every = first.schedule.n_steps, first.eval.every
    look_every = look_every or (1 if device == "cpu" else LOOK_EVERY)
    windows = torch.from_numpy(data.validation_windows(text, first.eval.windows, first.data.seq_len)).to(device)
    levels = levels_of(begin(configs, text, device), starts or [None] * len(configs))
    del starts  # as large as the batch, and copied into it
    (step, alive, runs), take = levels.pop(0), None
    while True:
        if levels and levels[0].step == step:
            _, others, theirs = levels.pop(0)
            runs, alive, take = runs.join(theirs), [*alive, *others], None
        if step == n_steps:
            break
        running = [configs[r] for r in alive]
        val_loss = evaluate(runs, windows) if step % eval_every == 0 else None
        next_level = levels[0].step if levels else n_steps
        steps = range(step, min(step + look_every, step + eval_every - step % eval_every, next_level))
        probed = [probes.is_probed(t, n_steps, first.probe) for t in steps]
        inputs = inputs_of(steps, running, text, runs.params)
        if take is None:
            take = stepper(runs, inputs[0], probing=probing)
        gave = [take(one, p) for one, p in zip(inputs, probed, strict=True)]
        here = np.arange(len(alive))  # places in the batch of the runs that have been finite so far
        for t, p, one, measured in zip(steps, probed, inputs, gave, strict=True):
            lr = [one.lr[i] for i in here]
            record = _record(t, [alive[i] for i in here], lr, measured, here, probed=p)
            if t == step and val_loss is not None:
                record = replace(record, val_loss=val_loss)
            yield record
            finite = _finite(record, probing=probing)
            for r in np.array(record.runs)[~finite]:
                yield End(int(r), None, t)
            here = here[finite]
            if not len(here):
                break
        if not len(here):
            if not levels:
                return
            (step, alive, runs), take = levels.pop(0), None
            continue
        if len(here) < len(alive):
            runs, alive, take = runs.select(torch.from_numpy(here).to(device)), [alive[i] for i in here], None
        step = steps.stop
        if between is not None and between(Snapshot(step, alive, runs.layout, runs.params, runs.state)):
            return

    for r, value in zip(alive, evaluate(runs, windows), strict=True):
        yield End(r, float(value), None) if np.isfinite(value) else End(r, None, n_steps)


class Level(NamedTuple):
    """Runs of a batch, by their indices in it, that take `step` next."""

    step: int
    indices: list[int]
    runs: Runs


def levels_of(runs: Runs, starts: Sequence[Start | None]) -> list[Level]:
    """The runs of a batch where they start, the least advanced first."""
    indices: dict[int, list[int]] = {}
    for r, start in enumerate(starts):
        indices.setdefault(0 if start is None else start.step, []).append(r)
        if start is not None:
            runs.params[r] = start.params
            for slot, values in start.state.items():
                runs.state[slot][r] = values
    if len(indices) == 1:
        return [Level(step, those, runs) for step, those in indices.items()]
    device = runs.params.device
    return [
        Level(step, those, runs.select(torch.tensor(those, device=device))) for step, those in sorted(indices.items())
    ]


def begin(configs: list[RunConfig], text: data.Text, device: str) -> Runs:
    """A batch of runs before the first update."""
    model = build(configs[0], text.vocab_size)
    layout = layout_of(dict(model.named_parameters()))
    params = layout.flatten(start(model, configs, text)).to(device)
    own.move(model, device)
    name, asked = configs[0].optimizer.name, configs[0].model
    has_own_parts = own.is_own(asked.placement) or own.is_own(asked.norm)
    return Runs(model, layout, name, params, torch.zeros_like(params), optim.new_state(name, params), has_own_parts)


def evaluate(runs: Runs, windows: Tensor) -> Array:
    """Validation loss of each run on the same windows (W, T + 1)."""
    values = runs.layout.tensors(runs.params)
    with torch.no_grad():
        sums = [
            runs.losses(values, chunk, same_tokens=True)[0] * len(chunk) for chunk in torch.split(windows, EVAL_CHUNK)
        ]
    return probes.sum_by_run(_numpy(torch.stack(sums))) / len(windows)


def inputs_of(steps: range, configs: list[RunConfig], text: data.Text, like: Tensor) -> list[Inputs]:
    """The inputs of some steps, brought to the device of `like` in one transfer of each kind."""
    optimizers = [c.optimizer for c in configs]
    tokens = torch.from_numpy(np.stack([[_tokens(text, c, step) for c in configs] for step in steps])).to(like.device)
    lr = [[optim.lr_at(step, c.schedule) for c in configs] for step in steps]
    coefficients = optim.coefficients(optimizers[0].name, steps, lr, optimizers, like)
    limits = None
    if any(o.max_grad_norm is not None for o in optimizers):
        given = [math.inf if o.max_grad_norm is None else o.max_grad_norm for o in optimizers]
        limits = torch.tensor(given, dtype=torch.float64).to(like.device)
    return [Inputs(*one, limits) for one in zip(lr, tokens, coefficients, strict=True)]


def stepper(runs: Runs, like: Inputs, *, probing: bool) -> Callable[[Inputs, bool], Measured]:
    """The function (inputs, probed) that takes steps of these runs; on a GPU one CUDA graph, which probes each step.

    A user's own block may do what a graph cannot hold, such as to make a tensor of Python numbers: it stays eager.
    """
    if runs.params.device.type != "cuda" or runs.has_own_parts:
        return lambda inputs, probed: step_(runs, inputs, probing=probing, probed=probed and probing)
    names, limited = list(like.coefficients), like.limits is not None

    def tensors(inputs: Inputs) -> list[Tensor]:
        return [inputs.tokens, *inputs.coefficients.values(), *([] if inputs.limits is None else [inputs.limits])]

    def step(tokens: Tensor, *numbers: Tensor) -> list[Tensor]:
        inputs = Inputs(like.lr, tokens, dict(zip(names, numbers, strict=False)), numbers[-1] if limited else None)
        return [t for t in step_(runs, inputs, probing=probing, probed=probing) if t is not None]

    replay = cuda.captured(step, tensors(like), [runs.params, runs.grads, *runs.state.values()])
    return lambda inputs, _: Measured(*replay(*tensors(inputs)))


def step_(runs: Runs, inputs: Inputs, *, probing: bool, probed: bool) -> Measured:
    """Take one step: losses and gradients, their norms, the update. It needs nothing of the host."""
    layout = runs.layout
    leaves = [p.requires_grad_() for p in layout.tensors(runs.params)]
    losses, residual = runs.losses(leaves, inputs.tokens, same_tokens=False)
    given = torch.autograd.grad(losses.sum(), [*leaves, *(residual if probed else [])])
    with torch.no_grad():
        torch._foreach_copy_(layout.tensors(runs.grads), list(given[: len(leaves)]))
        grad = layout.norms(runs.grads) if probing or inputs.limits is not None else None
        param = layout.norms(runs.params) if probing else None
        if inputs.limits is not None and grad is not None:
            runs.grads.mul_(clip_factors(grad, inputs.limits).to(runs.grads.dtype)[:, None])
        optim.update_(runs.optimizer, runs.params, runs.grads, runs.state, inputs.coefficients)
        if not probing:
            return Measured(losses.detach())
        update = layout.norms(runs.grads)
        if not probed:
            return Measured(losses.detach(), grad, param, update)
        rms, stream = ([probes.rms_by_run(x) for x in residual], [optim.norm_by_run(g) for g in given[len(leaves) :]])
        return Measured(losses.detach(), grad, param, update, torch.stack(rms), torch.stack(stream))


def clip_factors(norms: Tensor, limits: Tensor) -> Tensor:
    """What scales each run's gradients to its limit, as torch.nn.utils.clip_grad_norm_ does, (runs,) float64.

    norms: (modules, runs); limits: (runs,), inf for a run without one, whose factor is exactly 1.
    """
    # Summed along the last axis of a contiguous matrix: in an order that does not depend on the number of runs.
    norm = norms.double().square().T.contiguous().sum(1).sqrt()
    # Where a norm is not finite, limits / norm would be NaN for a run without a limit too.
    return torch.where(limits.isinf(), 1.0, (limits / (norm + 1e-6)).clamp(max=1))


def _record(
    step: int, runs: list[int], lr: list[float], measured: Measured, here: data.Ints, *, probed: bool
) -> Record:
    """What a step gave to the runs at some places of the batch; norms that were not measured are NaN."""

    def norms(x: Tensor | None) -> Array:
        return np.full((1, len(runs)), np.nan) if x is None else _numpy(x)[:, here]

    grad, param, update, rms, stream = (norms(x) for x in measured[1:])
    probe = Probe(grad, param, update, rms, stream) if probed and measured.rms is not None else None
    grad_norm, param_norm, update_norm = (probes.global_norm(x) for x in (grad, param, update))
    loss = _numpy(measured.loss)[here]
    return Record(step, runs, loss, None, lr, grad_norm, param_norm, update_norm, probe)


def _finite(record: Record, *, probing: bool) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which runs of a record go on: those whose losses and, where it was measured, gradient norm are finite."""
    finite = np.isfinite(record.train_loss)
    if probing:
        finite &= record.grad_norm <= FLOAT32_MAX  # beyond it the table would hold inf
    if record.val_loss is not None:
        finite &= np.isfinite(record.val_loss)
    return finite


def _numpy(x: Tensor) -> Array:
    return x.detach().to("cpu", torch.float64).numpy()

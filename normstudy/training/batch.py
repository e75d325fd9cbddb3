"""Train a batch of runs as one program.

The loss of ONE run is written once; vmap puts the run axis in front of it, and ordinary autograd differentiates the
sum of the losses outside the vmap. Runs do not interact, so that gradient is each run's own. dLoss/dx_l needs no
hook: the residual stream is an output of the forward, and one more input of `autograd.grad`.

`train_batch` is a generator of records: it writes nothing and knows no file.

B batch, T sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normstudy.config import RunConfig, row_of, sources
from normstudy.data import batches, blocks, texts
from normstudy.model.init import init_params
from normstudy.model.own import move
from normstudy.model.transformer import Transformer, build
from normstudy.training import admin, optim, probes
from normstudy.training.layout import Layout, layout_of
from normstudy.training.probes import Array, Probe
from normstudy.training.step import Measured, Runs, evaluate, inputs_of, stepper, to_numpy, tokens_of

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


def start(model: Transformer, configs: list[RunConfig], text: texts.Text) -> dict[str, Tensor]:
    """The parameters of runs of one model before the first update, name -> (runs, *shape), on the CPU."""
    stacked = init_params(model, [c.model for c in configs], [c.seed for c in configs])
    if row_of(configs[0].model.placement).profiled:
        tokens = torch.from_numpy(np.stack([tokens_of(text, c, step=0) for c in configs]))
        admin.set_omegas_(model, stacked, tokens[..., :-1])
    return stacked


def train_batch(
    configs: list[RunConfig],
    text: texts.Text,
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
    windows = torch.from_numpy(batches.validation_windows(text, first.eval.windows, first.data.seq_len)).to(device)
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


def begin(configs: list[RunConfig], text: texts.Text, device: str) -> Runs:
    """A batch of runs before the first update."""
    model = build(configs[0], text.vocab_size)
    layout = layout_of(dict(model.named_parameters()))
    params = layout.flatten(start(model, configs, text)).to(device)
    move(model, device)
    name, asked = configs[0].optimizer.name, configs[0].model
    has_own_parts = sources.is_own(asked.placement) or sources.is_own(asked.norm)
    return Runs(model, layout, name, params, torch.zeros_like(params), optim.new_state(name, params), has_own_parts)


def _record(
    step: int, runs: list[int], lr: list[float], measured: Measured, here: blocks.Ints, *, probed: bool
) -> Record:
    """What a step gave to the runs at some places of the batch; norms that were not measured are NaN."""

    def norms(x: Tensor | None) -> Array:
        return np.full((1, len(runs)), np.nan) if x is None else to_numpy(x)[:, here]

    grad, param, update, rms, stream = (norms(x) for x in measured[1:])
    probe = Probe(grad, param, update, rms, stream) if probed and measured.rms is not None else None
    grad_norm, param_norm, update_norm = (probes.global_norm(x) for x in (grad, param, update))
    loss = to_numpy(measured.loss)[here]
    return Record(step, runs, loss, None, lr, grad_norm, param_norm, update_norm, probe)


def _finite(record: Record, *, probing: bool) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which runs of a record go on: those whose losses and, where it was measured, gradient norm are finite."""
    finite = np.isfinite(record.train_loss)
    if probing:
        finite &= record.grad_norm <= FLOAT32_MAX  # beyond it the table would hold inf
    if record.val_loss is not None:
        finite &= np.isfinite(record.val_loss)
    return finite

"""Train a batch of runs as one program.

vmap adds the run axis to the loss of one run. Outside the vmap, autograd differentiates the sum of the losses. Runs do
not interact, so the gradient of the sum with respect to one run's parameters is the gradient of this run's loss.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normstudy.config import RunConfig, late_step, row_of, sources
from normstudy.data import blocks, texts
from normstudy.model.init import init_params, set_omegas_
from normstudy.model.own import move
from normstudy.model.transformer import Transformer, build
from normstudy.training import optim, probes
from normstudy.training.probes import Array, Probe, layout_of
from normstudy.training.step import Inputs, Measured, StackedRuns, evaluate, inputs_of, stepper, to_numpy, tokens_of

FLOAT32_MAX = float(np.finfo(np.float32).max)
SYNC_EVERY = 50  # steps between copies of results from a GPU; many, because each copy waits for the GPU


@dataclass(frozen=True)
class Record:
    """The results of one step. runs: the indices of the runs that took this step. Each array has an entry for each run.

    update_norm: the norm of the update that the optimizer subtracts from the parameters. With a tiny learning rate,
    such as 1e-10, rounding to float32 makes the parameters change by a different amount.
    """

    step: int
    runs: list[int]
    train_loss: Array
    val_loss: Array | None  # before the update, at every eval.every-th step and at late_step(n_steps)
    lr: list[float]
    grad_norm: Array
    param_norm: Array
    update_norm: Array
    probe: Probe | None


class End(NamedTuple):
    """The end of a run, after its last update or at its first non-finite number."""

    run: int
    final_val_loss: float | None
    nonfinite_step: int | None  # None if all numbers are finite; n_steps if only the final validation loss is not


class ResumePoint(NamedTuple):
    """The state of one run before `step`: its parameters (width,), and its optimizer state, slot -> (width,)."""

    step: int
    params: Tensor
    state: optim.State


class Snapshot(NamedTuple):
    """The state of a batch before `step`. The next step may overwrite the state. runs: the runs' indices."""

    step: int
    runs: list[int]
    stacked: StackedRuns

    def of(self, place: int) -> ResumePoint:
        """Copy the state of the run at position `place` in `runs`."""
        state = {slot: values[place].cpu().clone() for slot, values in self.stacked.state.items()}
        return ResumePoint(self.step, self.stacked.params[place].detach().cpu().clone(), state)


Event = Record | End | Snapshot


def start(model: Transformer, configs: list[RunConfig], text: texts.Text) -> dict[str, Tensor]:
    """Draw initial parameters for runs of one model shape: name -> (runs, *shape), on the CPU."""
    stacked = init_params(model, [c.model for c in configs], [c.seed for c in configs])
    if row_of(configs[0].model.placement).profiled:
        tokens = torch.from_numpy(np.stack([tokens_of(text, c, step=0) for c in configs]))
        set_omegas_(model, stacked, tokens[..., :-1])
    return stacked


def train_batch(
    configs: list[RunConfig],
    text: texts.Text,
    device: str = "cpu",
    *,
    starts: Sequence[ResumePoint | None] | None = None,
    snapshots: bool = False,
    probing: bool = True,
    sync_every: int | None = None,
) -> Iterator[Event]:
    """Train runs of one shape together. Yield a Record for each step and an End for each run.

    A run leaves the batch after the step of its first non-finite training loss or gradient norm. A run has the same
    bits in every batch, given one kind of CPU, one version of torch and one matrix library (model/processor.py).

    starts: each run's ResumePoint, or None for step 0. The runs at the lowest step train alone until they reach the
    step of other runs, which then join. snapshots: whether to yield a Snapshot after each transfer of results. The
    caller may stop after a Snapshot. probing: whether to compute norms; otherwise norms are NaN (`normstudy bench`).
    sync_every: steps between transfers of results to the host, by default 1 on a CPU and SYNC_EVERY on a GPU. Results
    do not depend on sync_every, but a diverged run leaves the batch only at a transfer.
    """
    first = configs[0]
    n_steps, eval_every = first.schedule.n_steps, first.eval.every
    late = late_step(n_steps)
    sync_every = sync_every or (1 if device == "cpu" else SYNC_EVERY)
    windows = torch.from_numpy(texts.validation_windows(text, first.eval.windows, first.data.seq_len)).to(device)
    levels = levels_of(begin(configs, text, device), starts or [None] * len(configs))
    del starts  # frees memory: levels_of has copied the starts
    (step, alive, runs), take = levels.pop(0), None
    while True:
        if levels and levels[0][0] == step:
            _, others, theirs = levels.pop(0)
            runs, alive, take = runs.join(theirs), [*alive, *others], None
        if step == n_steps:
            break
        val_loss = evaluate(runs, windows) if step % eval_every == 0 or step == late else None
        next_level, next_late = levels[0][0] if levels else n_steps, late if step < late else n_steps
        steps = range(step, min(step + sync_every, step + eval_every - step % eval_every, next_level, next_late))
        probed = [probes.is_probed(t, n_steps, first.probe) for t in steps]
        inputs = inputs_of(steps, [configs[r] for r in alive], text, runs.params)
        if take is None:
            take = stepper(runs, inputs[0], probing=probing)
        measured = [take(one, p) for one, p in zip(inputs, probed, strict=True)]
        results = zip(steps, probed, inputs, measured, strict=True)
        finite = yield from _events(results, alive, val_loss, probing=probing)
        if not len(finite):
            if not levels:
                return
            (step, alive, runs), take = levels.pop(0), None
            continue
        if len(finite) < len(alive):
            runs, alive, take = runs.select(torch.from_numpy(finite).to(device)), [alive[i] for i in finite], None
        step = steps.stop
        if snapshots:
            yield Snapshot(step, alive, runs)

    for r, value in zip(alive, evaluate(runs, windows), strict=True):
        yield End(r, float(value), None) if np.isfinite(value) else End(r, None, n_steps)


def levels_of(runs: StackedRuns, starts: Sequence[ResumePoint | None]) -> list[tuple[int, list[int], StackedRuns]]:
    """Copy `starts` into `runs`, and group the runs by step. Return (step, indices, runs) per group, sorted by step."""
    indices: dict[int, list[int]] = {}
    for r, start in enumerate(starts):
        indices.setdefault(0 if start is None else start.step, []).append(r)
        if start is not None:
            runs.params[r] = start.params
            for slot, values in start.state.items():
                runs.state[slot][r] = values
    if len(indices) == 1:
        return [(step, group, runs) for step, group in indices.items()]
    device = runs.params.device
    return [(step, group, runs.select(torch.tensor(group, device=device))) for step, group in sorted(indices.items())]


def begin(configs: list[RunConfig], text: texts.Text, device: str) -> StackedRuns:
    model = build(configs[0], text.vocab_size)
    layout = layout_of(dict(model.named_parameters()))
    params = layout.flatten(start(model, configs, text)).to(device)
    move(model, device)
    name, asked = configs[0].optimizer.name, configs[0].model
    has_own_parts = sources.is_own(asked.placement) or sources.is_own(asked.norm)
    state = optim.new_state(name, params)
    decayed = optim.decayed_columns(layout, configs[0].optimizer.decay, device)
    return StackedRuns(model, layout, name, params, torch.zeros_like(params), state, has_own_parts, decayed)


def _events(
    results: Iterable[tuple[int, bool, Inputs, Measured]], alive: list[int], val_loss: Array | None, *, probing: bool
) -> Generator[Record | End, None, blocks.Ints]:
    """Yield a Record for each step, and an End for each run that becomes non-finite.

    Return the positions in `alive` of the runs that stay finite. Norms not computed are NaN. results: (step, probed,
    inputs, measured) per step. alive: the runs' indices. val_loss: validation losses before the first step, or None.
    """
    finite = np.arange(len(alive))
    for step, probed, inputs, measured in results:
        if not len(finite):
            break
        parts = [np.full((1, len(finite)), np.nan) if x is None else to_numpy(x)[:, finite] for x in measured[1:]]
        probe = Probe(*parts) if probed and measured.rms is not None else None
        norms = [probes.global_norm(x) for x in parts[:3]]  # of gradients, parameters and updates
        loss, runs, rates = to_numpy(measured.loss)[finite], [alive[i] for i in finite], [inputs.lr[i] for i in finite]
        yield Record(step, runs, loss, val_loss, rates, norms[0], norms[1], norms[2], probe)
        val_loss = None
        is_finite = np.isfinite(loss)  # without val_loss, so that a run's length does not depend on eval.every
        if probing:
            is_finite &= norms[0] <= FLOAT32_MAX  # larger norms become inf in the table's float32
        for r in np.array(runs)[~is_finite]:
            yield End(int(r), None, step)
        finite = finite[is_finite]
    return finite

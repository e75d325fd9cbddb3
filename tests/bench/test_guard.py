"""A guard of the speed that no noise of a machine can break: what a step reads, counted, and one ratio of times.

The probes read each number of what they measure once. Counted are the elements of all tensors that torch's operations
are given, with the probes and without: a probe made twice as expensive, be it by a second pass or by a copy in double
precision, shows exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from normstudy.bench import plain
from normstudy.config import DataConfig, ModelConfig, OptimizerConfig, ProbeConfig, RunConfig, ScheduleConfig
from normstudy.data import texts
from normstudy.training import batch, probes, step
from normstudy.training.probes import Layout

pytestmark = pytest.mark.bench

torch.set_num_threads(1)

N_RUNS, B, T, D, L = 4, 8, 32, 32, 3
CONFIGS = [
    RunConfig(
        seed=seed,
        data_seed=seed,
        model=ModelConfig(n_layers=L, d_model=D, n_heads=2),
        data=DataConfig(name="synthetic", seq_len=T, batch_size=B),
        schedule=ScheduleConfig(n_steps=10**6),
        probe=ProbeConfig(dense_steps=0),
        optimizer=OptimizerConfig(),
    )
    for seed in range(N_RUNS)
]
TEXT = texts.load(CONFIGS[0].data)


class Elements(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements of every tensor that an operation is given; a view touches none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func, types, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        if not func.is_view:
            self.count += sum(x.numel() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor))
        return func(*args, **(kwargs or {}))


def elements_of_a_step(*, probing: bool, probed: bool) -> int:
    runs = batch.begin(CONFIGS, TEXT, "cpu")
    (inputs,) = step.inputs_of(range(1), CONFIGS, TEXT, runs.params)
    with Elements() as elements:
        step.step_(runs, inputs, probing=probing, probed=probed)
    return int(elements.count)


def reads_of_probes() -> tuple[float, float]:
    """What the norms of each step read, and what a probed step reads besides, over what has to be read for them."""
    without = elements_of_a_step(probing=False, probed=False)
    norms = elements_of_a_step(probing=True, probed=False)
    all_on = elements_of_a_step(probing=True, probed=True)
    parameters = N_RUNS * batch.begin(CONFIGS, TEXT, "cpu").layout.width
    streams = N_RUNS * (L + 1) * B * T * D
    return (norms - without) / (3 * parameters), (all_on - norms) / (2 * streams)


def test_probes_read_everything_once() -> None:
    """Gradients, parameters, updates; the residual stream and its gradient. 2 % is for stacking the norms."""
    of_modules, of_streams = reads_of_probes()
    assert 0.98 < of_modules < 1.02
    assert 0.98 < of_streams < 1.02


def twice(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def both(*args: object) -> torch.Tensor:
        function(*args)
        return function(*args)

    return both


@pytest.mark.parametrize("probe", ["norms_by_run", "rms_by_run", "norms"])
def test_the_guard_sees_a_probe_made_twice_as_expensive(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Layout if probe == "norms" else probes
    monkeypatch.setattr(owner, probe, twice(getattr(owner, probe)))
    with pytest.raises(AssertionError):
        test_probes_read_everything_once()


def test_the_guard_sees_a_probe_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    rms_by_run = probes.rms_by_run
    monkeypatch.setattr(probes, "rms_by_run", lambda xs: rms_by_run([x.double() for x in xs]).float())
    with pytest.raises(AssertionError):
        test_probes_read_everything_once()


def ratio_of_times(rounds: int = 7) -> float:
    """CPU time of a step of the plain loop over a run-step's in a batch, each the least of interleaved rounds."""
    configs = [*CONFIGS, *CONFIGS, *CONFIGS, *CONFIGS]
    batched = batch.train_batch(configs, TEXT)
    loop = plain.train(CONFIGS[0], torch.from_numpy(TEXT.train.tokens).long(), TEXT.vocab_size)

    def seconds(steps: Iterator[object], times: int) -> float:
        before = time.process_time()
        for _ in range(times):
            next(steps)
        return time.process_time() - before

    for _ in range(3):
        next(batched)
        next(loop)
    pairs = [(seconds(loop, 16), seconds(batched, 2)) for _ in range(rounds)]
    return (min(p for p, _ in pairs) / 16) / (min(b for _, b in pairs) / 2 / len(configs))


def test_a_batch_is_faster_than_a_plain_loop() -> None:
    """Some 1.5 times as fast at this shape (results/bench says how fast where it counts); a step that costs half as
    much again, or a batch that has fallen apart into single runs, does not pass."""
    assert ratio_of_times() > 1.0

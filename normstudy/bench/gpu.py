"""Row g: one GPU, 256 runs of d64 L6 as one program, against the plain eager loop on the same GPU, run after run.

Run-steps per second of both, in turns: a span ends when the device has finished it. A span of normstudy is 100 steps
of all runs, its own readings of their results included; all norms at every step, probes at the default density. The
opponent is plain.py, which launches its kernels one by one. `megabytes_per_run` is the most that was allocated
for tensors, over the runs. That nothing waits for the device within a step is a test (tests/test_cuda.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from normstudy.bench.samples import Goal, Sample, Scope
from normstudy.bench.subjects import D64_L6, NORMSTUDY, run_config

CASE, N_RUNS = f"256 runs of {D64_L6.name}", 256
PLAIN = "plain eager loop"
STEPS = 100  # whole periods of the probes and of the readings
GOALS = [
    Goal("g", CASE, "run-steps against the plain eager loop on the same GPU", "run_steps_per_s", NORMSTUDY, PLAIN,
         "at least", 50.0),
    Goal("g", CASE, "memory per run (MB)", "megabytes_per_run", NORMSTUDY),
]  # fmt: skip


def measure(scope: Scope) -> Iterator[Sample]:
    """Measure on the GPU, in this process. Needs one."""
    import torch

    from normstudy import data, train
    from normstudy.bench import plain

    configs = [run_config(D64_L6, seed) for seed in range(N_RUNS)]
    text = data.load(configs[0].data)
    records = train.train_batch(configs, text, "cuda")
    losses = plain.train(configs[0], torch.from_numpy(text.train.tokens).long(), text.vocab_size, "cuda")

    def rate(step: Callable[[], object], runs: int) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        return STEPS * runs / (time.perf_counter() - started)

    subjects = {NORMSTUDY: (records.__next__, N_RUNS), PLAIN: (losses.__next__, 1)}
    for subject in subjects.values():
        rate(*subject)  # kernels are chosen, the graph is captured
    for number in range(2 if scope.quick else 10):
        for name, subject in subjects.items():
            yield Sample("g", CASE, name, "run_steps_per_s", "1/s", number, rate(*subject))
    megabytes = torch.cuda.max_memory_allocated() / N_RUNS / 1e6
    yield Sample("g", CASE, NORMSTUDY, "megabytes_per_run", "MB", 0, megabytes)

"""Measure row `l` of the benchmark: by how much normstudy.watch, wandb.watch and Lightning slow down training."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from normstudy.bench.rows import Goal, Sample, Scope

SHAPE = {"vocab_size": 256, "n_positions": 128, "n_embd": 256, "n_layer": 12, "n_head": 4}
CASE, BARE, EVERY, TENTH = "GPT-2, 12 layers, d256, 8 x 128", "bare loop", "watch, every=1", "watch, every=10"
WANDB, LIGHTNING = "wandb.watch, log_freq=1", "Lightning's grad_norm"
STEPS, ROUNDS = (40, 6), (5, 1)  # steps per round, and rounds: (with --full, with --quick)
WARM = 3  # untimed steps before the first round
GOALS = [
    Goal("l", CASE, f"{title}, time against the bare loop", "seconds", subject, BARE, *goal)
    for subject, title, goal in (
        (EVERY, "watch: all norms, every step", ("at most", 1.04)),
        (TENTH, "watch: all norms, every tenth step", ("at most", 1.01)),
        (WANDB, "wandb.watch: histograms of the gradients", ()),
        (LIGHTNING, "Lightning's grad_norm: norms of the gradients", ()),
    )
]  # fmt: skip


def watching(scope: Scope) -> Iterator[Sample]:
    """Measure row `l`. The loops take turns after each step, in an order that rotates."""
    import torch

    torch.set_num_threads(1)
    with ExitStack() as stack:
        loops = {name: _loop(name, scope, stack) for name in (BARE, EVERY, TENTH, WANDB, LIGHTNING)}
        for _ in range(WARM):
            for step in loops.values():
                step()
        names, steps = list(loops), STEPS[scope.quick]
        for n in range(ROUNDS[scope.quick]):
            seconds = dict.fromkeys(names, 0.0)
            for i in range(steps):
                for name in (*names[i % len(names) :], *names[: i % len(names)]):
                    began = time.perf_counter()
                    loops[name]()
                    seconds[name] += time.perf_counter() - began
            for name in names:
                yield Sample("l", CASE, name, "seconds", "s", n, seconds[name] / steps)


def _loop(name: str, scope: Scope, stack: ExitStack) -> Callable[[], None]:
    """Return a function that trains one step of the loop `name`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(256, (8, 128))
    record = _recorder(name, model, optimizer, scope, stack)

    def step() -> None:
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        record(loss)

    return step


def _recorder(name: str, model: Any, optimizer: Any, scope: Scope, stack: ExitStack) -> Callable[[Any], object]:
    """Return the function that the loop `name` calls with its loss after each step."""
    if name == BARE:
        return lambda loss: None
    if name in (EVERY, TENTH):
        from normstudy.watch.watcher import Watch

        every = 1 if name == EVERY else 10
        watch = Watch(model, optimizer, study=f"every{every}", results_dir=str(scope.folder), every=every, dense=0)
        stack.enter_context(watch)
        return lambda loss: watch.log(train_loss=loss)
    if name == WANDB:
        import wandb

        os.environ["WANDB_SILENT"] = "true"
        run = wandb.init(mode="offline", dir=str(scope.folder), project="watching")
        stack.callback(run.finish)
        run.watch(model, log="gradients", log_freq=1)
        return lambda loss: run.log({"loss": loss.item()})
    from lightning.pytorch.utilities import grad_norm

    return lambda loss: grad_norm(model, 2)

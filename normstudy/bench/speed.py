"""Measure rows `a`, `b`, `g`, `i`, `j`, `l` of the benchmark: training speed, and the cost of recording norms.

In rows a and i, normstudy has one single-threaded worker per core, trains batches as large as in a large sweep, and
writes its tables. The plain loops write no files. Line a3 measures each matrix product of a step with the fastest
library, and divides the sum of these times by the time of the whole training step. In row b, one process trains three
copies of the same runs, which alternate step by step. Row j compares a search with an equally accurate grid. The grid's
time is computed: the grid's number of run-steps divided by the speed of plain loops, with one loop per core.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from shutil import rmtree
from typing import Any

import numpy as np

from normstudy.bench import commands
from normstudy.bench.products import start_products
from normstudy.bench.rows import Goal, Sample, Scope
from normstudy.bench.subjects import D32_L4, D64_L6, NORMSTUDY, Case, Race, cpu_seconds, in_worker, run_config, together
from normstudy.config import ProbeConfig
from normstudy.sweep import batching

PRODUCT_MS = 10  # each library repeats each matrix product for this time, in milliseconds
ALL_THREADS, PER_CORE = "plain, all threads, one run after the other", "plain, one process per core"
EQUAL, HOOKS = "plain, equal information", "plain, hooks as wandb.watch has"
TITLES = {
    ALL_THREADS: ("a", "a1 run-steps per second, relative to one plain loop on all threads"),
    PER_CORE: ("a", "a2 run-steps per second, relative to one plain loop per core"),
    EQUAL: ("i", "run-steps per second, relative to one plain loop per core that records the same numbers"),
    HOOKS: ("i", "run-steps per second, relative to one plain loop per core with the hooks of wandb.watch"),
}
CASES = {  # model size -> for each line in TITLES, the least ratio that meets the goal, or None for no goal
    D32_L4: (4.5, 2.2, 1.0, None), Case(64, 2, 8, 64): (2.5, 1.4, 1.0, None), D64_L6: (2.4, 1.2, 1.0, None),
    Case(64, 12, 8, 64): (2.0, 1.15, 1.0, None), Case(128, 6, 16, 64): (1.3, 1.0, 1.0, None),
}  # fmt: skip
OFF, EVERY_STEP, DEFAULT = "all probes off", "all probes on, every step", "all probes on, default density"
PLAIN, ON_GPU = "plain eager loop", f"256 runs of {D64_L6.name}"
GPU_RUNS, GPU_STEPS = 256, 100  # runs in a batch; steps in a timed span, a multiple of the probe period
SEARCH = ("model.placement=post", "schedule.warmup_steps=0,100", "data=pydoc", "execution.device=cpu")
CELLS, SEARCH_STEPS, GRID = 2, 300, "grid, one plain loop per core"
SEARCHED = f"{CELLS} cells of {D64_L6.name}, {SEARCH_STEPS} steps"
GPT2 = {"vocab_size": 256, "n_positions": 128, "n_embd": 256, "n_layer": 12, "n_head": 4}
ON_GPT2, GPT2_STEPS = "GPT-2, 12 layers, d256, 8 x 128", (40, 6)  # steps per round with --full, and with --quick
BARE, WATCHED, TENTH = "bare loop", "watch, every=1", "watch, every=10"
WANDB, LIGHTNING = "wandb.watch, log_freq=1", "Lightning's grad_norm"
GOALS = [
    *(
        Goal(row, case.name, title, "run_steps_per_s", NORMSTUDY, opponent, "at least" if goals[i] else None, goals[i])
        for i, (opponent, (row, title)) in enumerate(TITLES.items())
        for case, goals in CASES.items()
    ),
    Goal("a", D64_L6.name, "a3 time of a run-step's matrix products alone / time of the run-step", "share_of_limit",
         NORMSTUDY, None, "at least", 0.6),
    *(
        Goal("b", case.name, f"CPU time with {on.replace(',', ' at')} / with {OFF}", "ms_per_run_step", on, OFF,
             "at most", 1.05)
        for case in (D32_L4, D64_L6)
        for on in (EVERY_STEP, DEFAULT)
    ),
    Goal("g", ON_GPU, "run-steps per second, relative to one plain loop on the same GPU", "run_steps_per_s", NORMSTUDY,
         PLAIN, "at least", 50.0),
    Goal("g", ON_GPU, "memory per run (MB)", "megabytes_per_run", NORMSTUDY),
    Goal("j", SEARCHED, "time of a grid of the same error / time of the search", "seconds", GRID, NORMSTUDY, "at least",
         3.0),
    *(
        Goal("l", ON_GPT2, f"{title}, time against the bare loop", "seconds", subject, BARE, *goal)
        for subject, title, goal in (
            (WATCHED, "watch: all norms, every step", ("at most", 1.04)),
            (TENTH, "watch: all norms, every tenth step", ("at most", 1.01)),
            (WANDB, "wandb.watch: histograms of the gradients", ()),
            (LIGHTNING, "Lightning's grad_norm: norms of the gradients", ()),
        )
    ),
]  # fmt: skip


def of_cases(measure: Callable[[Race, int], Iterator[Sample]], row: str, scope: Scope) -> Iterator[Sample]:
    """Measure a row of the benchmark: call `measure` for one model size after another, and yield all samples."""
    for case in (D32_L4, D64_L6) if scope.quick else CASES:
        with Race(row, case, len(os.sched_getaffinity(0)), scope) as race:
            yield from measure(race, 2 if scope.quick else 5)


def against_plain(race: Race, rounds: int) -> Iterator[Sample]:
    """Measure row a of the benchmark at one model size: normstudy's speed against plain loops that record nothing."""
    race.add_normstudy(ProbeConfig(dense_steps=0))
    race.add_plain(ALL_THREADS, "train", 1, threads=race.n)
    race.add_plain(PER_CORE, "train", race.n)
    jobs = [(run_config(race.case), race.runs)] * race.n
    # A worker's environment variables can make a matrix product faster or slower. Time products with and without them.
    makers = [race.crew(start_products, jobs, like_worker=w) for w in (True, False) if race.case == D64_L6]
    for number in range(rounds):
        rates = yield from race.round(number)
        if makers:
            seconds = np.array([together(crew, PRODUCT_MS)[1] for crew in makers])  # axes: environment, core, product
            share = float(seconds.mean(axis=1).min(axis=0).sum()) * rates[NORMSTUDY] / race.n
            yield Sample("a", race.case.name, NORMSTUDY, "share_of_limit", "1", number, share)


def equal_information(race: Race, rounds: int) -> Iterator[Sample]:
    """Measure the benchmark's row i at one model size: normstudy's speed against plain loops that record norms."""
    race.add_normstudy(ProbeConfig(every=1))
    race.add_plain(EQUAL, "train_recorded", race.n)
    race.add_plain(HOOKS, "train_watched", race.n)
    for number in range(rounds):
        yield from race.round(number)


plain_loops, recording_loops = partial(of_cases, against_plain, "a"), partial(of_cases, equal_information, "i")


def probing(scope: Scope) -> Iterator[Sample]:
    """Measure row b of the benchmark: the cost of probes at each model size."""
    for case, rounds in ((D32_L4, 2),) if scope.quick else ((D32_L4, 9), (D64_L6, 7)):
        runs = batching.runs_per_batch(run_config(case), "cpu", len(os.sched_getaffinity(0)))
        yield from in_worker(probe_case, (case, runs, rounds))


def probed(case: Case, runs: int) -> dict[str, Iterator[object]]:
    """Return three trainings of the same runs: with no probes, with probes at every step, and at every 20th step."""
    from normstudy.data import texts
    from normstudy.training import batch

    text = texts.load(run_config(case).data)
    every = [run_config(case, r, probe=ProbeConfig(every=1)) for r in range(runs)]
    default = [run_config(case, r) for r in range(runs)]
    off = batch.train_batch(default, text, probing=False)
    return {OFF: off, EVERY_STEP: batch.train_batch(every, text), DEFAULT: batch.train_batch(default, text)}


def probe_case(job: tuple[Case, int, int]) -> Iterator[Sample]:
    """Measure row b of the benchmark at one model size, in this process. job: (model size, runs, rounds)."""
    case, runs, rounds = job
    batches, period = probed(case, runs), ProbeConfig().every
    for records in batches.values():
        cpu_seconds(records.__next__, 3)  # untimed warm-up
    for number in range(rounds):
        spent = dict.fromkeys(batches, 0.0)
        for step in range(period):
            for name in batches if step % 2 == 0 else reversed(batches):
                spent[name] += cpu_seconds(batches[name].__next__, 1)
        for name, seconds in spent.items():
            yield Sample("b", case.name, name, "ms_per_run_step", "ms", number, 1e3 * seconds / (period * runs))


def searching(scope: Scope) -> Iterator[Sample]:
    """Measure row j of the benchmark: the time of a search, and that of an equally accurate grid in plain loops."""
    from normstudy.search import simulate  # imports pandas
    from normstudy.search.settings import settings_of

    grid = CELLS * SEARCH_STEPS * simulate.expected(settings_of([run_config(D64_L6)])).grid_runs
    words = [*SEARCH, f"schedule.n_steps={SEARCH_STEPS}", f"results_dir={scope.folder}", "study=searched"]
    with Race("j", D64_L6, len(os.sched_getaffinity(0)), scope) as race:
        race.add_plain(PER_CORE, "train", race.n)
        for number in range(1 if scope.quick else 3):
            took, _ = commands.timed([*commands.NORMSTUDY, "critical", *words])
            yield Sample("j", SEARCHED, NORMSTUDY, "seconds", "s", number, took)
            rates = yield from race.round(number)
            yield Sample("j", SEARCHED, GRID, "seconds", "s", number, grid / sum(rates.values()))
            rmtree(scope.folder / "searched")


def on_gpu(scope: Scope) -> Iterator[Sample]:
    """Measure row g of the benchmark, in this process: the speed and memory of many runs on one GPU."""
    import torch

    from normstudy.bench import plain
    from normstudy.data import texts
    from normstudy.training import batch

    configs = [run_config(D64_L6, seed) for seed in range(GPU_RUNS)]
    text = texts.load(configs[0].data)
    records = batch.train_batch(configs, text, "cuda")
    losses = plain.train(configs[0], torch.from_numpy(text.train.tokens).long(), text.vocab_size, "cuda")

    def rate(step: Callable[[], object], runs: int) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(GPU_STEPS):
            step()
        torch.cuda.synchronize()
        return GPU_STEPS * runs / (time.perf_counter() - started)

    subjects = {NORMSTUDY: (records.__next__, GPU_RUNS), PLAIN: (losses.__next__, 1)}
    for subject in subjects.values():
        rate(*subject)  # untimed warm-up: torch chooses kernels and captures the CUDA graph
    for number in range(2 if scope.quick else 10):
        for name, subject in subjects.items():
            yield Sample("g", ON_GPU, name, "run_steps_per_s", "1/s", number, rate(*subject))
    megabytes = torch.cuda.max_memory_allocated() / GPU_RUNS / 1e6
    yield Sample("g", ON_GPU, NORMSTUDY, "megabytes_per_run", "MB", 0, megabytes)


def watching(scope: Scope) -> Iterator[Sample]:
    """Measure row l of the benchmark: how much normstudy.watch, wandb.watch and Lightning slow down training."""
    import torch

    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        loops = {name: _loop(name, scope, stack) for name in (BARE, WATCHED, TENTH, WANDB, LIGHTNING)}
        for step in loops.values():
            cpu_seconds(step, 3)  # untimed warm-up
        names, steps = list(loops), GPT2_STEPS[scope.quick]
        for n in range(1 if scope.quick else 5):
            seconds = dict.fromkeys(names, 0.0)
            for i in range(steps):
                for name in (*names[i % len(names) :], *names[: i % len(names)]):
                    began = time.perf_counter()
                    loops[name]()
                    seconds[name] += time.perf_counter() - began
            for name in names:
                yield Sample("l", ON_GPT2, name, "seconds", "s", n, seconds[name] / steps)


def _loop(name: str, scope: Scope, stack: contextlib.ExitStack) -> Callable[[], None]:
    """Return a function that trains one step of the loop `name`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**GPT2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(256, (8, 128))

    def step(record: Callable[[Any], object]) -> None:
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        record(loss)

    if name == BARE:
        return partial(step, lambda loss: None)
    if name in (WATCHED, TENTH):
        from normstudy.watch.watcher import Watch

        every = 1 if name == WATCHED else 10
        watch = Watch(model, optimizer, study=f"every{every}", results_dir=str(scope.folder), every=every, dense=0)
        stack.enter_context(watch)
        return partial(step, lambda loss: watch.log(train_loss=loss))
    if name == WANDB:
        import wandb

        os.environ["WANDB_SILENT"] = "true"
        run = wandb.init(mode="offline", dir=str(scope.folder), project="watching")
        stack.callback(run.finish)
        run.watch(model, log="gradients", log_freq=1)
        return partial(step, lambda loss: run.log({"loss": loss.item()}))
    from lightning.pytorch.utilities import grad_norm

    return partial(step, lambda loss: grad_norm(model, 2))

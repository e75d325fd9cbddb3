"""Row a: run-steps per second on all cores, against the two habits of people who sweep and the machine's limit.

a1, a2: normstudy trains on one single-threaded worker per core, in the workers' environment, batches of as many runs as
a sweep of many runs puts in one (`runs_per_batch`; a small sweep has less of the gain), all norms at every step, probes
at the default density, and the tables written in the windows of a run of 600 steps. Its opponents train the loop of
plain.py, which measures nothing: in one process with all cores as its threads, one run after the other (what
`hydra -m` does), and in one single-threaded process per core (what a joblib launcher does). Nobody evaluates.

Each subject's processes wait while the others are timed. In every round each subject has all cores for itself, for a
fixed number of steps that takes about as long for all; its time is the wall's, from the common start until its last
process is through. normstudy's spans are whole periods of its probes, and it begins beyond the dense first steps.
`busy_cores`, their CPU time over that time, tells whether they had the machine: anything below all cores is another's.

a3: the time that the matrix products of a run-step need at the best rate that this machine reaches at just these
shapes, over the time that a run-step takes. Every product is timed alone, on all cores at once, in every round: by
NumPy and by torch.bmm over the runs, torch.mm run by run, oneDNN run by run in both orders; attention's by torch's
fused attention too, with all that it does besides; each in the workers' environment and in the plain one. The fastest
counts. What a loop of nothing but these products would reach is shown for every shape, as the ceiling of a2. On AMD
OpenBLAS and oneDNN are up to twice as fast as the MKL behind torch.bmm, so the share of torch.bmm's own rate stands
beside a3, without a goal.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normstudy import config as cfg
from normstudy.bench.children import Answer, Child, Job, Work, together
from normstudy.bench.samples import Goal, Sample, Scope
from normstudy.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

NORMSTUDY = "normstudy"
ALL_THREADS = "plain, all threads, one run after the other"
PER_CORE = "plain, one process per core"
BEST, BMM, NUMPY = "best products", "torch.bmm", "NumPy"

D_HEAD = 16  # at every width, the d_head of the default model: so 2, 4 and 8 heads at d_model 32, 64, 128
WARM_UP = 3  # steps before anything is timed
WINDOW_OF = 600  # n_steps of a run whose windows are those in which the tables are written
PAUSE_SECONDS = 0.3  # between two spans: threads of a pool spin for up to 0.2 s after their last work


@dataclass(frozen=True)
class Case:
    """A shape of run."""

    d_model: int
    n_layers: int
    batch_size: int
    seq_len: int

    @property
    def name(self) -> str:
        """As in the table: d64 L6."""
        return f"d{self.d_model} L{self.n_layers}"


D32_L4, D64_L6 = Case(32, 4, 8, 32), Case(64, 6, 8, 64)
# Case, and the goals of a1 and a2.
GOALS_OF_CASES = [
    (D32_L4, 4.5, 2.2),
    (Case(64, 2, 8, 64), 2.5, 1.4),
    (D64_L6, 2.4, 1.2),
    (Case(64, 12, 8, 64), 2.0, 1.15),
    (Case(128, 6, 16, 64), 1.3, 1.0),
]
GOALS = [
    *(
        Goal("a", case.name, "a1 run-steps against the plain loop with all threads, one run after the other",
             "run_steps_per_s", NORMSTUDY, ALL_THREADS, "at least", least)
        for case, least, _ in GOALS_OF_CASES
    ),
    *(
        Goal("a", case.name, "a2 run-steps against one plain single-thread process per core",
             "run_steps_per_s", NORMSTUDY, PER_CORE, "at least", least)
        for case, _, least in GOALS_OF_CASES
    ),
    *(
        Goal("a", case.name, "a2 its ceiling: the matrix products alone, each at this machine's best rate",
             "run_steps_per_s", BEST, PER_CORE)
        for case, _, _ in GOALS_OF_CASES
    ),
    Goal("a", D64_L6.name, "a3 share of the machine's matrix-product limit at the same shapes",
         "share_of_limit", NORMSTUDY, None, "at least", 0.6),
    Goal("a", D64_L6.name, "a3 share of torch.bmm's rate at the same shapes", "share_of_torch_bmm", NORMSTUDY),
]  # fmt: skip


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def runs_per_batch(config: RunConfig) -> int:
    """As many runs as a sweep on all cores trains as one program on each."""
    from normstudy import batching

    return batching.runs_per_batch(config, "cpu", cores())


def run_config(case: Case, seed: int = 0, *, probe: cfg.ProbeConfig | None = None) -> RunConfig:
    """A run of the default model that goes on for ever, beyond its dense first steps from the start, not evaluated."""
    return RunConfig(
        study="bench",
        seed=seed,
        model=cfg.ModelConfig(n_layers=case.n_layers, d_model=case.d_model, n_heads=case.d_model // D_HEAD),
        data=cfg.DataConfig(name="pydoc", seq_len=case.seq_len, batch_size=case.batch_size),
        schedule=cfg.ScheduleConfig(n_steps=cfg.INT_MAX),
        probe=probe or cfg.ProbeConfig(dense_steps=0),
        eval=cfg.EvalConfig(every=cfg.INT_MAX, windows=1),
    )


# ---- the subjects -------------------------------------------------------------------------------------


def start_normstudy(job: tuple[list[RunConfig], Path]) -> Work[float]:
    """A batch of runs, in steps, whose tables are written to a folder as a worker does; their CPU seconds."""
    from normstudy import data, probes, store, train, worker

    configs, folder = job
    text = data.load(configs[0].data)
    records = train.train_batch(configs, text)
    modules = probes.modules_of([name for name, _ in train.build(configs[0], text.vocab_size).named_parameters()])
    series = [worker.Series(f"run-{r}") for r in range(len(configs))]
    window = store.window_size(WINDOW_OF)
    store.prepare(folder)

    def step() -> None:
        record = next(records)
        if isinstance(record, train.End):
            raise AssertionError(f"run {record.run} ended at step {record.nonfinite_step}: the work is not constant")
        for place, r in enumerate(record.runs):
            series[r].add(record, place, modules)
        if (record.step + 1) % window == 0:
            worker.flush(folder, series, window)

    return lambda n_steps: cpu_seconds(step, n_steps)


def start_plain(config: RunConfig) -> Work[float]:
    """A run of the plain loop, in steps; their CPU seconds."""
    import torch

    from normstudy import data
    from normstudy.bench import plain

    text = data.load(config.data)
    losses = plain.train(config, torch.from_numpy(text.train.tokens).long(), text.vocab_size)
    return lambda n_steps: cpu_seconds(lambda: next(losses), n_steps)


def cpu_seconds(step: Callable[[], object], times: int) -> float:
    """CPU time of this process, all its threads, for a number of calls."""
    before = time.process_time()
    for _ in range(times):
        step()
    return time.process_time() - before


# ---- matrix products ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """`batch` products (m, k) x (k, n). layout: which factors are transposes of what lies in memory: nn, nt or tn."""

    batch: int
    m: int
    k: int
    n: int
    layout: str

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


@dataclass(frozen=True)
class Piece:
    """Products of one run, made one after the other, `count` times a run-step."""

    name: str
    products: tuple[Product, ...]
    count: int

    @property
    def flops(self) -> int:
        """Of one run-step."""
        return self.count * sum(p.flops for p in self.products)


ATTENTION, ATTENTION_BACKWARD = "attention", "attention backward"


def pieces(config: RunConfig, vocab_size: int) -> list[Piece]:
    """Every matrix product of one run-step of the default model, as normstudy makes them: q, k and v at once.

    Attention's are counted whole, with the half that the causal mask discards.
    """
    m, d = config.model, config.data
    width, d_ff, T, K = m.d_model, cfg.resolve(m).d_ff, d.seq_len, m.d_model // m.n_heads
    rows, heads, L = d.batch_size * T, d.batch_size * m.n_heads, m.n_layers

    def linear(name: str, n_in: int, n_out: int, count: int) -> list[Piece]:
        return [
            Piece(name, (Product(1, rows, n_in, n_out, "nt"),), count),
            Piece(f"{name}, gradient of x", (Product(1, rows, n_out, n_in, "nn"),), count),
            Piece(f"{name}, gradient of W", (Product(1, n_out, rows, n_in, "tn"),), count),
        ]

    scores, mixed, transposed = (
        Product(heads, T, K, T, "nt"), Product(heads, T, T, K, "nn"), Product(heads, T, T, K, "tn"),
    )  # fmt: skip
    return [
        *linear("q, k, v", width, 3 * width, L),
        *linear("out", width, width, L),
        *linear("w1", width, d_ff, L),
        *linear("w2", d_ff, width, L),
        *linear("unembed", width, vocab_size, 1),
        Piece(ATTENTION, (scores, mixed), L),
        # The gradients of the weights, and then of q, k and v.
        Piece(ATTENTION_BACKWARD, (scores, mixed, transposed, transposed), L),
    ]


def ways(piece: Piece, config: RunConfig, runs: int) -> dict[str, Callable[[], object]]:
    """The ways to make the products of a piece for a batch of runs; oneDNN where this torch has it."""
    import numpy as np
    import torch

    def factor(product: Product, rows: int, columns: int, transposed: bool) -> Tensor:
        shape = (columns, rows) if transposed else (rows, columns)
        x = torch.randn(runs * product.batch, *shape)
        return x.mT if transposed else x

    factors = [
        (factor(p, p.m, p.k, p.layout[0] == "t"), factor(p, p.k, p.n, p.layout[1] == "t")) for p in piece.products
    ]
    arrays = [(a.numpy(), b.numpy(), (a @ b).numpy()) for a, b in factors]
    out: dict[str, Callable[[], object]] = {
        BMM: lambda: [torch.bmm(a, b) for a, b in factors],
        NUMPY: lambda: [np.matmul(a, b, out=ab) for a, b, ab in arrays],
    }
    if piece.name in (ATTENTION, ATTENTION_BACKWARD):
        out["fused"] = fused_attention(config, runs, backward=piece.name == ATTENTION_BACKWARD)
        return out
    pairs = [(x, y) for a, b in factors for x, y in zip(a, b, strict=True)]
    out["torch.mm"] = lambda: [x @ y for x, y in pairs]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        linear = functools.partial(_linear, torch.ops.mkldnn._linear_pointwise)
        out["oneDNN"] = lambda: [linear(x, y.mT) for x, y in pairs]
        out["oneDNN, transposed"] = lambda: [linear(y.mT, x) for x, y in pairs]
    return out


def _linear(pointwise: Callable[..., Tensor], x: Tensor, w: Tensor) -> Tensor:
    """x W^T (rows, n) by oneDNN."""
    return pointwise(x, w, None, "none", [], "")


def fused_attention(config: RunConfig, runs: int, *, backward: bool) -> Callable[[], object]:
    """torch's fused attention, softmax included: where it is faster than the bare products, those are not the limit."""
    import torch
    from torch.nn import functional as F

    T, H, K = config.data.seq_len, config.model.n_heads, config.model.d_model // config.model.n_heads
    q, k, v = (
        torch.randn(runs * config.data.batch_size, T, H, K).transpose(1, 2).requires_grad_(backward) for _ in "qkv"
    )
    if not backward:
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    gradient = torch.randn_like(mixed)
    return lambda: torch.autograd.grad(mixed, [q, k, v], gradient, retain_graph=True)


def start_products(job: tuple[RunConfig, int]) -> Work[dict[tuple[str, str], float]]:
    """(config, runs of a batch) -> for each (piece, way) the seconds that all of it takes in a run-step."""
    from normstudy import data

    config, runs = job
    made = [(piece, ways(piece, config, runs)) for piece in pieces(config, data.load(config.data).vocab_size)]

    def work(milliseconds: int) -> dict[tuple[str, str], float]:
        return {
            (piece.name, way): typical_seconds(make, milliseconds / 1e3) * piece.count / runs
            for piece, by_way in made
            for way, make in by_way.items()
        }

    return work


def typical_seconds(
    call: Callable[[], object], at_least: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median time of a call, of at least three calls that take so many seconds together."""
    call()
    taken: list[float] = []
    while sum(taken) < at_least or len(taken) < 3:
        started = clock()
        call()
        taken.append(clock() - started)
    return statistics.median(taken)


def fastest(timed: Sequence[Mapping[tuple[str, str], float]]) -> tuple[float, float]:
    """Seconds that the products of a run-step take, each made in the fastest of all ways, and all by torch.bmm."""
    best: dict[str, float] = {}
    bmm: dict[str, float] = {}
    for seconds in timed:
        for (name, way), value in seconds.items():
            best[name] = min(value, best.get(name, value))
            if way == BMM:
                bmm[name] = min(value, bmm.get(name, value))
    return sum(best.values()), sum(bmm.values())


# ---- the row ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amount:
    """How long to measure: rounds, seconds of a subject's span in each, milliseconds of each way of a product.

    most_runs: of a batch, as a span of normstudy's is a whole period of its probes for all of them.
    """

    rounds: int
    seconds: float
    product_ms: int
    most_runs: int = cfg.INT_MAX


def measure(scope: Scope) -> Iterator[Sample]:
    """Row a, on the CPU whatever the scope's device."""
    if scope.quick:
        cases, amount = [D32_L4, D64_L6], Amount(rounds=2, seconds=1, product_ms=3, most_runs=16)
    else:
        cases, amount = [case for case, _, _ in GOALS_OF_CASES], Amount(rounds=5, seconds=3, product_ms=15)
    for case in cases:
        with_products = not scope.quick or case == D64_L6
        yield from measure_case(case, amount, cores(), scope.folder / case.name, with_products=with_products)


def measure_case(case: Case, amount: Amount, n: int, folder: Path, *, with_products: bool) -> Iterator[Sample]:
    """All subjects at one shape, in rounds, on n cores; normstudy's tables go to a folder."""
    config = run_config(case)
    runs = min(runs_per_batch(config), amount.most_runs)
    with contextlib.ExitStack() as stack:

        def crew(
            start: Callable[[Job], Work[Answer]], jobs: Sequence[Job], *, like_worker: bool, threads: int = 1
        ) -> list[Child[Answer]]:
            children = [Child(start, job, like_worker=like_worker, threads=threads) for job in jobs]
            for child in children:
                stack.callback(child.close)
            return children

        batches = [
            ([run_config(case, seed=core * runs + r) for r in range(runs)], folder / str(core)) for core in range(n)
        ]
        alone = [run_config(case, seed=core) for core in range(n)]
        crews = {
            NORMSTUDY: crew(start_normstudy, batches, like_worker=True),
            ALL_THREADS: crew(start_plain, alone[:1], like_worker=False, threads=n),
            PER_CORE: crew(start_plain, alone, like_worker=False),
        }
        makers = [
            crew(start_products, [(config, runs)] * n, like_worker=like_worker)
            for like_worker in (True, False)
            if with_products
        ]

        for children in crews.values():
            together(children, WARM_UP)
        for products_of in makers:
            together(products_of, 1)
        steps = {subject: steps_of_span(children, amount.seconds) for subject, children in crews.items()}
        steps[NORMSTUDY] = config.probe.every * max(1, round(steps[NORMSTUDY] / config.probe.every))
        run_steps = {NORMSTUDY: runs * n, ALL_THREADS: 1, PER_CORE: n}  # of a step of the whole crew
        for number in range(amount.rounds):
            yield Sample("a", case.name, NORMSTUDY, "runs_per_batch", "1", number, runs)
            spans = {}
            for subject in crews if number % 2 == 0 else reversed(crews):
                time.sleep(PAUSE_SECONDS)
                spans[subject], cpu = together(crews[subject], steps[subject])
                rate = steps[subject] * run_steps[subject] / spans[subject]
                yield Sample("a", case.name, subject, "run_steps_per_s", "1/s", number, rate)
                yield Sample("a", case.name, subject, "busy_cores", "1", number, sum(cpu) / spans[subject])
            if makers:
                run_step = spans[NORMSTUDY] / (steps[NORMSTUDY] * runs)  # seconds of one core
                timed = [mean_over_cores(together(children, amount.product_ms)[1]) for children in makers]
                best, bmm = fastest(timed)
                yield Sample("a", case.name, BEST, "run_steps_per_s", "1/s", number, n / best)
                yield from shares(config, case.name, number, run_step, best, bmm)


def steps_of_span(children: Sequence[Child[Answer]], seconds: float) -> int:
    """How many steps take about so long."""
    time.sleep(PAUSE_SECONDS)
    taken, _ = together(children, WARM_UP)
    return max(1, round(seconds * WARM_UP / taken))


def mean_over_cores(timed: Sequence[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Of what each core took while all were at it."""
    return {key: statistics.fmean(seconds[key] for seconds in timed) for key in timed[0]}


def shares(config: RunConfig, case: str, number: int, run_step: float, best: float, bmm: float) -> Iterator[Sample]:
    """Rates and shares of a round, from the seconds of a run-step and of its products."""
    from normstudy import data

    flops = sum(piece.flops for piece in pieces(config, data.load(config.data).vocab_size))
    for subject, seconds in ((NORMSTUDY, run_step), (BEST, best), (BMM, bmm)):
        yield Sample("a", case, subject, "product_gflop_per_s_core", "GFLOP/s", number, flops / seconds / 1e9)
    yield Sample("a", case, NORMSTUDY, "share_of_limit", "1", number, best / run_step)
    yield Sample("a", case, NORMSTUDY, "share_of_torch_bmm", "1", number, bmm / run_step)

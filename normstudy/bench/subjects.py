"""Start child processes that train with normstudy or in plain loops, and time these processes repeatedly."""

import contextlib
import gc
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from normstudy.bench.rows import Sample, Scope
from normstudy.config import INT_MAX, DataConfig, EvalConfig, ModelConfig, ProbeConfig, RunConfig, ScheduleConfig
from normstudy.processes import WORKER_ENVIRONMENT, Child, environment_with
from normstudy.study import schema
from normstudy.sweep import batching

Job = TypeVar("Job")
Work = Callable[[int], object]  # does an amount of work, such as a number of steps, and returns measurements
Crew = list[Child]


def child(start: Callable[[Job], Work], job: Job, *, like_worker: bool, threads: int = 1) -> Child:
    """Start a process that makes a function with `start(job)`, and calls the function once for each call of `together`.

    like_worker: whether the process has the environment variables and the garbage collection of a sweep's worker.
    """
    variables = WORKER_ENVIRONMENT if like_worker else dict.fromkeys(WORKER_ENVIRONMENT)
    return Child(_serve, like_worker, threads, start, job, environment=environment_with(variables))


def _serve(pipe: Connection, like_worker: bool, threads: int, start: Callable[[Job], Work], job: Job) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads, "blas")  # otherwise NumPy's BLAS threads spin on every core after each product
    if like_worker:
        gc.freeze()  # as in a sweep's worker: the garbage collector then skips torch's objects
    work = start(job)
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended or closed the pipe
        while True:
            amount: int = pipe.recv()
            try:
                answer = work(amount)
            except Exception as error:
                answer = error
            pipe.send(answer)


def together(children: Sequence[Child], amount: int) -> tuple[float, list[object]]:
    """Make all children work at the same time. Return the seconds until the last child finishes, and all results.

    Raises the error that a child's work raised, or RuntimeError if a child was killed or failed to start.
    """
    started, answers = time.perf_counter(), list[object]()
    for one in children:
        one.pipe.send(amount)
    for one in children:
        try:
            answer = one.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"a measuring process {one.how_it_ended()}") from None
        if isinstance(answer, Exception):
            raise answer
        answers.append(answer)
    return time.perf_counter() - started, answers


def in_worker(function: Callable[[Job], Iterator[Sample]], job: Job) -> Iterator[Sample]:
    """Call function(job) in a child process that is set up like a sweep's worker. Yield the function's samples."""
    with contextlib.closing(child(_next_sample, (function, job), like_worker=True)) as process:
        while isinstance(sample := together([process], 1)[1][0], Sample):
            yield sample


def _next_sample(job: tuple[Callable[[Job], Iterator[Sample]], Job]) -> Work:
    samples = job[0](job[1])
    return lambda _: next(samples, None)


NORMSTUDY = "normstudy"
D_HEAD = 16  # dimensions per attention head, as in the default model
WARM_UP = 3  # steps that each subject takes before it is timed
PAUSE_SECONDS = 0.3  # seconds between two timed spans: idle threads spin for up to 0.2 s and would slow the next span


class Case(NamedTuple):
    """The size of a run's model and batch. The name d64 L6, for example, means d_model 64 and 6 layers."""

    d_model: int
    n_layers: int
    batch_size: int
    seq_len: int

    @property
    def name(self) -> str:
        return f"d{self.d_model} L{self.n_layers}"


D32_L4, D64_L6 = Case(32, 4, 8, 32), Case(64, 6, 8, 64)


def run_config(case: Case, seed: int = 0, *, probe: ProbeConfig | None = None) -> RunConfig:
    """Configure an endless run of the default model. If `probe` is None, every 20th step is probed."""
    return RunConfig(
        study="speed", seed=seed, schedule=ScheduleConfig(n_steps=INT_MAX),
        model=ModelConfig(n_layers=case.n_layers, d_model=case.d_model, n_heads=case.d_model // D_HEAD),
        data=DataConfig(name="pydoc", seq_len=case.seq_len, batch_size=case.batch_size),
        probe=probe or ProbeConfig(dense_steps=0), eval=EvalConfig(every=INT_MAX, windows=1),
    )  # fmt: skip


def start_batch(job: tuple[list[RunConfig], Path]) -> Work:
    """Return a function that trains a batch for n steps, writes tables like a worker, and returns the CPU seconds."""
    from normstudy.data import texts
    from normstudy.model import transformer
    from normstudy.study import tables
    from normstudy.training import batch, probes
    from normstudy.workers import recording

    configs, folder = job
    text = texts.load(configs[0].data)
    records = batch.train_batch(configs, text)
    modules = probes.modules_of([name for name, _ in transformer.build(configs[0], text.vocab_size).named_parameters()])
    series = [recording.Running(f"run-{r}", {}, config.eval.every) for r, config in enumerate(configs)]
    window = schema.window_size(600)  # steps per file, as in a run of 600 steps
    tables.prepare(folder)

    def step() -> None:
        record = next(records)
        assert isinstance(record, batch.Record), f"a run must not end while its batch is timed, but one ended: {record}"
        for place, r in enumerate(record.runs):
            series[r].add(record, place, modules)
        if (record.step + 1) % window == 0:
            recording.flush(folder, series, window)

    return lambda n_steps: cpu_seconds(step, n_steps)


def start_loop(job: tuple[str, RunConfig]) -> Work:
    """Return a function that trains for n steps and returns the CPU seconds. job: (function in plain.py, config)."""
    import torch

    from normstudy.bench import plain
    from normstudy.data import texts

    text = texts.load(job[1].data)
    steps = getattr(plain, job[0])(job[1], torch.from_numpy(text.train.tokens).long(), text.vocab_size)
    return lambda n_steps: cpu_seconds(steps.__next__, n_steps)


def cpu_seconds(step: Callable[[], object], times: int) -> float:
    """Call `step` the given number of times. Return the CPU seconds that all threads of this process spent."""
    before = time.process_time()
    for _ in range(times):
        step()
    return time.process_time() - before


class Race(contextlib.ExitStack):
    """Subjects (normstudy and plain loops) of one model size, which are timed one after the other on all `n` cores.

    Each subject's number of steps in a round is chosen to make all subjects take about equally long. If `busy_cores`
    (CPU time / wall time) is below `n`, other programs probably ran at the time.
    """

    def __init__(self, row: str, case: Case, n: int, scope: Scope) -> None:
        super().__init__()
        self.row, self.case, self.n, self.scope = row, case, n, scope
        runs = batching.runs_per_batch(run_config(case), "cpu", n)  # number of runs per batch
        self.runs, self.seconds = (min(runs, 16), 1.0) if scope.quick else (runs, 3.0)
        self.subjects: dict[str, tuple[Crew, int]] = {}  # subject -> (its processes, its steps in a round)

    def crew(self, start: Callable[[Job], Work], jobs: Sequence[Job], *, like_worker: bool, threads: int = 1) -> Crew:
        """Start a child process for each job. Leaving the context ends the processes."""
        made = (child(start, job, like_worker=like_worker, threads=threads) for job in jobs)
        return [self.enter_context(contextlib.closing(process)) for process in made]

    def add(self, subject: str, crew: Crew, period: int = 1) -> None:
        """Add a subject, and choose its number of steps in a round, which is a multiple of `period`."""
        together(crew, WARM_UP)
        taken, _ = together(crew, WARM_UP)
        self.subjects[subject] = crew, period * max(1, round(self.seconds * WARM_UP / taken / period))

    def add_normstudy(self, probe: ProbeConfig) -> None:
        """Add normstudy as a subject, which trains one batch per core and writes tables into a temporary folder."""
        seeds = [range(core * self.runs, (core + 1) * self.runs) for core in range(self.n)]
        batches = [[run_config(self.case, seed, probe=probe) for seed in of] for of in seeds]
        jobs = [(batch, self.scope.folder / self.case.name / str(core)) for core, batch in enumerate(batches)]
        self.add(NORMSTUDY, self.crew(start_batch, jobs, like_worker=True), probe.every)

    def add_plain(self, subject: str, loop: str, processes: int, threads: int = 1) -> None:
        """Add a plain loop as a subject, in one or more processes. loop: the loop's function in plain.py."""
        jobs = [(loop, run_config(self.case, seed)) for seed in range(processes)]
        self.add(subject, self.crew(start_loop, jobs, like_worker=False, threads=threads))

    def round(self, number: int) -> Generator[Sample, None, dict[str, float]]:
        """Time each subject once, in reverse order if `number` is odd. Return each subject's run-steps per second."""
        rates = {}
        for subject in self.subjects if number % 2 == 0 else reversed(self.subjects):
            crew, steps = self.subjects[subject]
            time.sleep(PAUSE_SECONDS)
            span, cpu = together(crew, steps)
            busy = sum(cast(list[float], cpu)) / span
            rates[subject] = steps * len(crew) * (self.runs if subject == NORMSTUDY else 1) / span
            yield Sample(self.row, self.case.name, subject, "run_steps_per_s", "1/s", number, rates[subject])
            yield Sample(self.row, self.case.name, subject, "busy_cores", "1", number, busy)
        return rates

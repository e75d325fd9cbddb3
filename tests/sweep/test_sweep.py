"""Sweeps with real worker processes: the same bits for any execution; only missing runs are trained; clear messages."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from numerics import NUMERICS_ENV
from processes import finish, is_gone, on_terminal, start, wait_for, workers_of
from studies import REQUEST, assert_same_tables, reproduced_runs, tiny

from normstudy.analysis.outcomes import outcomes
from normstudy.config import ConfigError, ModelConfig, OptimizerConfig, RunConfig
from normstudy.study import locks, schema, tables
from normstudy.sweep import batching, execute, planning, run
from normstudy.upkeep.compact import compact_study
from normstudy.workers import pool, task
from normstudy.workers.signals import Stop

LONG = [
    "sweep", "data=synthetic", "study=long", "model.n_layers=1", "model.d_model=16", "model.n_heads=2",
    "data.seq_len=16", "schedule.n_steps=150", "seed=0,1,2,3", "execution.device=cpu",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _workers_set_their_own_environment() -> Iterator[None]:
    """Undo the environment of conftest: here the pool must set it for its workers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NUMERICS_ENV:
            patch.delenv(name, raising=False)
        patch.setenv("OPENBLAS_CORETYPE", "Prescott")  # a shell's wish, which would change every bit
        yield


def sixteen(root: Path, **execution: int | None) -> list[RunConfig]:
    """Two shapes for which bitwise equality is hard, pre and post; one run of each shape diverges."""
    shapes = (
        {"d_model": 16, "n_heads": 2, "seq_len": 8, "batch_size": 1},
        {"d_model": 24, "n_heads": 3, "seq_len": 31, "batch_size": 3},
    )
    return [
        tiny(
            root,
            placement=p,
            seed=s,
            optimizer="sgd",
            peak_lr=1e9 if (p, s) == ("post", 1) else 0.1,
            **shape,
            **execution,
        )
        for shape in shapes
        for p in ("pre", "post")
        for s in range(4)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sixteen runs in the largest batches, on one worker."""
    root = tmp_path_factory.mktemp("whole")
    execute.execute(planning.plan(sixteen(root, workers=1, runs_per_batch=8)), REQUEST)
    return root / "tiny"


@pytest.mark.parametrize(("workers", "per_batch", "backwards"), [(1, 1, False), (2, 3, False), (2, 8, True)])
def test_execution_never_changes_a_bit(
    whole: Path, tmp_path: Path, workers: int, per_batch: int, backwards: bool
) -> None:
    configs = sixteen(tmp_path, workers=workers, runs_per_batch=per_batch)
    execute.execute(planning.plan(configs[::-1] if backwards else configs), REQUEST)
    assert_same_tables(whole, tmp_path / "tiny")


def test_a_diverged_run_is_a_finished_run(whole: Path) -> None:
    runs = tables.read(whole, "runs")
    assert len(runs) == 16
    assert set(runs["status"]) == {"done"}
    found = outcomes(runs, tables.read(whole, "steps"))
    diverged = runs.set_index("run_id").loc[found[found == "diverged"].index]
    assert set(diverged["peak_lr"]) == {1e9}
    assert len(diverged) == 2
    assert not (whole / "state").exists()


def test_the_tables_hold_what_the_config_promises(whole: Path) -> None:
    """Every step; modules and residual below dense_steps, then every third step and the last; val_loss every fifth."""
    steps, modules, residual = (tables.read(whole, t) for t in schema.SERIES)
    runs = tables.read(whole, "runs").set_index("run_id")
    for run_id, rows in steps.groupby("run_id"):
        last = runs.loc[run_id, "nonfinite_step"]
        n = 12 if pd.isna(last) else int(last) + 1
        probed = [t for t in range(n) if t < 4 or t % 3 == 0 or t == 11]
        assert list(rows["step"]) == list(range(n))
        assert list(rows.loc[rows["val_loss"].notna(), "step"]) == [t for t in (0, 5, 10) if t < n]
        assert sorted(modules.loc[modules["run_id"] == run_id, "step"].unique()) == probed
        layers = residual.loc[residual["run_id"] == run_id].groupby("step")["layer"].apply(list)
        assert all(found == [0, 1] for found in layers)
        assert list(layers.index) == probed


@pytest.mark.usefixtures("without_figures")
def test_only_what_is_missing_is_trained(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two = [tiny(tmp_path, seed=s) for s in (0, 1)]
    execute.execute(planning.plan(two), REQUEST)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "tiny" / "tables").rglob("*.parquet")}
    planned = planning.plan([*two, tiny(tmp_path, seed=2), tiny(tmp_path, seed=2)])
    assert len(planned.runs) == 3
    assert [planned.runs[i].seed for i in planned.missing] == [2]
    losses = run.run_sweep([*two, tiny(tmp_path, seed=2), tiny(tmp_path, seed=2)], request=REQUEST)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert losses[2] == losses[3] is not None
    out, err = capfd.readouterr()
    assert "3 runs, 2 already finished, 1 batches" in out
    assert "1 of the 4 requested runs repeat another run" in out
    assert "\r" not in err  # no bar where there is no terminal
    assert run.run_sweep(two, request=REQUEST) == losses[:2]
    assert "2 runs, 2 already finished, 0 batches" in capfd.readouterr().out
    assert not (tmp_path / "tiny" / "state").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run.run_sweep([tiny(tmp_path, seed=s) for s in (0, 1)], dry_run=True, request=REQUEST)
    assert list(tmp_path.iterdir()) == []
    out = capfd.readouterr().out
    assert (
        "2 runs, 0 already finished, 1 batches of 2 on 1 workers (cpu), about 0.27 GB of memory, estimated time" in out
    )


def test_batches_are_near_equal_and_the_largest_cost_comes_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = {f"r{i}": tiny(tmp_path, seed=i, n_layers=1 if i < 10 else 4, runs_per_batch=8) for i in range(30)}
    batches = planning.group(runs, workers=2, device="cpu")
    assert sorted(len(b.run_ids) for b in batches) == [5, 5, 6, 7, 7]  # 10 as 5 + 5; 20 as 6 + 7 + 7
    assert [b.seconds for b in batches] == sorted((b.seconds for b in batches), reverse=True)
    assert sorted(i for b in batches for i in b.run_ids) == sorted(runs)
    many = {i: replace(c, execution=replace(c.execution, runs_per_batch=100)) for i, c in runs.items()}
    assert [len(b.run_ids) for b in planning.group(many, workers=1, device="cpu")] == [20, 10]
    run.run_sweep(list(runs.values()), dry_run=True, request=REQUEST)
    assert "5 batches of 5 to 7 on 1 workers" in capfd.readouterr().out


def test_where_nothing_is_asked_the_shape_decides_how_many_runs_train_together(tmp_path: Path) -> None:
    """Smaller runs form larger batches, up to 32 runs."""
    runs = {f"r{i}": tiny(tmp_path, seed=i) for i in range(80)}
    assert sorted(len(b.run_ids) for b in planning.group(runs, workers=1, device="cpu")) == [26, 27, 27]
    large = {i: replace(c, model=replace(c.model, d_model=4096, d_ff=64)) for i, c in runs.items()}
    most = batching.runs_per_batch(next(iter(large.values())), "cpu", 1)
    assert most < 32
    assert max(len(b.run_ids) for b in planning.group(large, workers=1, device="cpu")) <= most


def test_the_request_is_kept_beside_the_results(whole: Path) -> None:
    (path,) = (whole / "sweeps").iterdir()
    kept = pq.read_table(path)
    assert kept.schema.metadata[b"command"] == b"a test"
    assert kept.schema.metadata[b"overrides"] == b"a=1"
    assert sorted(kept["run_id"].to_pylist()) == sorted(tables.read(whole, "runs")["run_id"])


def test_a_text_that_changes_under_a_sweep_fails_its_runs_and_no_others(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 500)
    planned = planning.plan([tiny(tmp_path), tiny(tmp_path, data="file", path=str(text))])
    text.write_text("a lazy dog jumps over the quick brown fox. " * 500)
    with pytest.raises(execute.RunsFailed, match=r"1 of 2 runs failed .*the training text changed"):
        execute.execute(planned, REQUEST)
    runs = tables.read(tmp_path / "tiny", "runs").set_index("data")
    assert runs.loc["synthetic", "status"] == "done"
    assert runs.loc["file", "status"] == "failed"
    log = tmp_path / "tiny" / "state" / "logs" / f"{runs.loc['file', 'run_id']}-1.txt"
    assert "RuntimeError: the training text changed" in log.read_text()
    again = planning.plan([tiny(tmp_path, data="file", path=str(text))])
    assert again.ids[0] != runs.loc["file", "run_id"]  # another text is another run


def test_a_sealed_study_takes_only_what_it_holds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configs = [tiny(tmp_path, seed=s, warmup_steps=w) for s in (0, 1) for w in (0, 4)]
    execute.execute(planning.plan(configs), REQUEST)
    compact_study(tmp_path / "tiny", seal=True)
    before = {p: p.read_bytes() for p in (tmp_path / "tiny").rglob("*") if p.is_file()}
    losses = run.run_sweep(configs, request=REQUEST)
    assert all(loss is not None for loss in losses)
    assert "is sealed and has all 4 runs. To train them again, add study= with a new name" in capfd.readouterr().out
    with pytest.raises(ConfigError, match=r"sealed.*n_layers 2 \(the study has 1\).*study=tiny-n_layers2$"):
        run.run_sweep([tiny(tmp_path, seed=0, n_layers=2)], request=REQUEST)
    with pytest.raises(ConfigError, match=r"lacks 2 of .*: seed 2, 3 \(the study has 0, 1\)\. .*study=tiny-seed$"):
        planning.check([tiny(tmp_path, seed=s) for s in (0, 2, 3)])
    with pytest.raises(ConfigError, match=r"the training text differs.*study=tiny-text$"):
        planning.refuse_if_sealed(tmp_path / "tiny", {"x": configs[0]}, {"x": "the sha256 of another Python's library"})
    assert {p: p.read_bytes() for p in (tmp_path / "tiny").rglob("*") if p.is_file()} == before


def test_a_plan_that_is_no_longer_true_doubles_nothing(tmp_path: Path) -> None:
    """Two commands plan before either trains: the second trains only what the first did not."""
    configs = [tiny(tmp_path, seed=s) for s in (0, 1, 2)]
    first, second = planning.plan(configs[:2]), planning.plan(configs)
    execute.execute(first, REQUEST)
    compact_study(tmp_path / "tiny")
    execute.execute(second, REQUEST)
    assert sorted(tables.read(tmp_path / "tiny", "runs")["seed"]) == [0, 1, 2]
    assert len(tables.read(tmp_path / "tiny", "steps")) == 3 * 12
    stale = dataclasses.replace(first, runs={"x": configs[0]}, batches=[planning.Batch(["x"], 1.0)], texts={"x": ""})
    compact_study(tmp_path / "tiny", seal=True)
    with pytest.raises(ConfigError, match="is sealed"):
        execute.execute(stale, REQUEST)


@pytest.mark.parametrize("axis", ["seeds", "texts"])
def test_a_sweep_without_a_comparison_ends_well(tmp_path: Path, axis: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Seeds alone give no comparison, and losses on different texts are not comparable."""
    configs = [tiny(tmp_path, seed=1), tiny(tmp_path, **({"seed": 2} if axis == "seeds" else {"data": "pydoc"}))]
    assert None not in run.run_sweep(configs, request=REQUEST)
    out = capfd.readouterr().out
    assert "outcomes: 2 " in out
    assert "omparison" not in out
    assert "Final validation loss" not in out


def test_a_worker_killed_between_two_batches_loses_nothing(tmp_path: Path) -> None:
    planned = planning.plan([tiny(tmp_path, seed=s, runs_per_batch=1, workers=1) for s in range(3)])
    tasks = [
        task.Task(
            n,
            planned.study_dir,
            b.run_ids,
            [planned.runs[i] for i in b.run_ids],
            planned.texts[b.run_ids[0]],
            "cpu",
            None,
        )
        for n, b in enumerate(planned.batches)
    ]
    tables.prepare(planned.study_dir)
    with locks.hold_study(planned.study_dir, "a test") as held, Stop() as stop:
        for message in pool.run(tasks, 1, inherited=held, stop=stop, max_tries=3):
            if message.over and message.number == 0:  # its worker now waits for the next task
                (child,) = workers_of(os.getpid())
                os.kill(child, signal.SIGKILL)
                wait_for(lambda pid=child: is_gone(pid) and len(list(Path(f"/proc/{pid}/task").glob("*"))) < 2)
            assert message.error is None
    assert set(tables.statuses(planned.study_dir).values()) == {"done"}
    assert len(tables.statuses(planned.study_dir)) == 3


def test_a_failed_sweep_still_shows_what_came_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A text changes after planning: its worker refuses the new text, and the other run is drawn."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 500)
    os.utime(text, ns=(1, 1))
    configs = [tiny(tmp_path, n_layers=2), tiny(tmp_path, n_layers=2, data="file", path=str(text))]
    planning.check(configs)
    text.write_text("the quick brown fox jumps over the lazy cat. " * 500)
    os.utime(text, ns=(1, 1))  # the same time and size: only the worker reads it again
    with pytest.raises(execute.RunsFailed, match="1 of 2 runs failed"):
        run.run_sweep(configs, request=REQUEST)
    assert "outcomes: 1 " in capfd.readouterr().out
    assert (tmp_path / "tiny" / "figures" / "loss_curves.png").exists()


def test_what_an_unfinished_run_left_on_another_machine_is_not_continued(whole: Path, tmp_path: Path) -> None:
    """A window that another version of torch computed must not stay beside windows of this version."""
    columns = ["torch", "cpu_capability", "blas"]
    configs = sixteen(tmp_path)[: len(columns)]
    planned = planning.plan(configs)
    study_dir = tmp_path / "tiny"
    tables.prepare(study_dir)
    wrong = {t: {f.name: [] for f in schema.SCHEMAS[t] if f.name != "run_id"} for t in schema.SERIES}
    tables.write_windows(study_dir, [(run_id, 0, wrong) for run_id in planned.ids])
    here = {key: tables.read(whole, "runs").iloc[0][key] for key in ("torch", "cpu_capability", "blas", "device")}
    assert here["device"] == "cpu"
    for run_id, config, column in zip(planned.ids, configs, columns, strict=True):
        row = {"run_id": run_id, "status": "running", **schema.config_columns(config)}
        tables.write_runs(study_dir, [row | here | {column: "another"}])
    execute.execute(planned, REQUEST)
    theirs = tables.read(whole, "steps", run_ids=planned.ids)
    assert len(theirs) == 12 * len(columns)
    pd.testing.assert_frame_equal(tables.read(study_dir, "steps"), theirs)


# ---- readers that watch, terminals, two at once ------------------------------------------------------


def twice(read: Callable[[], int]) -> int:
    """Read twice at most: polars and duckdb open a file twice and may raise when the file is replaced in between."""
    try:
        return read()
    except (Exception, pl.exceptions.PanicException):
        return read()


def assert_one_bar(seen: str, run_steps: int) -> None:
    bars = [line for line in seen.split("\r") if "%|" in line]
    assert len(bars) >= 2
    assert re.search(rf"100%\|.*{run_steps}/{run_steps} \[.*<00:00, .*step/s, 4 \w+\]", bars[-1])
    assert any(re.search(r", [123] \w+[],]", line) for line in bars)


@dataclasses.dataclass(frozen=True)
class Watched:
    """A sweep that is trained while readers poll its tables, and what a second sweep of its words was told."""

    study: Path
    pid: int
    seen: str  # on the terminal
    second: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The long study, while three readers poll its tables. It pauses while a second sweep asks for it."""
    cwd = tmp_path_factory.mktemp("watched")
    words = [*LONG, "execution.workers=1", "execution.runs_per_batch=1"]
    folder = cwd / "results" / "long" / "tables"
    polls, rows = 0, dict.fromkeys(schema.TABLES, 0)
    with on_terminal(30, 110) as terminal:
        running = start(words, cwd, stderr=terminal.stream)
        wait_for(lambda: len(workers_of(running.pid)) == 1)
        os.killpg(running.pid, signal.SIGSTOP)
        try:
            second = finish(words, cwd)
        finally:
            os.killpg(running.pid, signal.SIGCONT)
        while running.poll() is None:
            for table in schema.TABLES:
                counts = {len(pd.read_parquet(folder / table))}
                counts.add(twice(lambda: len(pl.read_parquet(folder / table))))  # noqa: B023  # called at once
                query = f"select count(*) from '{folder}/{table}/*.parquet'"
                counts.add(twice(lambda: duckdb.sql(query).fetchall()[0][0]))  # noqa: B023
                assert min(counts) >= rows[table], f"rows of {table} went back"
                rows[table] = max(counts)
            polls += 1
            time.sleep(0.2)
        out, _ = running.communicate()
    assert running.returncode == 0, terminal.seen
    assert "outcomes: 4" in out
    assert polls > 3
    assert rows["steps"] > 0
    return Watched(cwd / "results" / "long", running.pid, terminal.seen, second)


@pytest.mark.processes
def test_a_terminal_sees_one_bar_with_time_left_and_outcomes(watched: Watched) -> None:
    assert_one_bar(watched.seen, 600)


@pytest.mark.processes
def test_a_terminal_that_reports_no_size_sees_one_bar_too(tmp_path: Path) -> None:
    """0 lines and columns, as a pseudo-terminal without a size does."""
    words = [*LONG, "schedule.n_steps=30", "study=bar", "execution.workers=1", "execution.runs_per_batch=1"]
    with on_terminal(0, 0) as terminal:
        running = start(words, tmp_path, stderr=terminal.stream)
        running.communicate()
    assert running.returncode == 0
    assert_one_bar(terminal.seen, 120)


@pytest.mark.processes
def test_the_second_sweep_on_a_study_is_told_who_holds_it(watched: Watched) -> None:
    assert watched.second.returncode == 2
    assert f"pid {watched.pid}" in watched.second.stderr
    assert len(watched.second.stderr.splitlines()) == 1


@pytest.mark.processes
def test_readers_agree(watched: Watched) -> None:
    """pandas, polars and duckdb read each table in one call: run_id as text, nullable ints as floats."""
    for table in schema.TABLES:
        folder = watched.study / "tables" / table
        frames = [
            pd.read_parquet(folder),
            pl.read_parquet(folder).to_pandas(),
            duckdb.sql(f"from '{folder}/*.parquet'").to_arrow_table().to_pandas(),
        ]
        order = schema.SORT[table]
        plain = []
        for frame in frames:
            text = [c for c in frame if str(frame[c].dtype) in ("category", "str", "object", "string")]
            frame = frame.astype(dict.fromkeys(text, object))
            numbers = [c for c in frame if pd.api.types.is_integer_dtype(frame[c])]
            frame = frame.astype(dict.fromkeys(numbers, float)).where(frame.notna(), None)
            plain.append(
                frame.sort_values(order, ignore_index=True).drop(columns=["started_at", "finished_at"], errors="ignore")
            )
        for other in plain[1:]:
            pd.testing.assert_frame_equal(plain[0], other, check_dtype=False, check_exact=True)
    assert len(reproduced_runs(watched.study)) == 4


def test_runs_whose_formulas_differ_share_no_batch() -> None:
    """Weight decay may differ within a batch, but not what it acts on."""
    rope, decayed = ModelConfig(positions="rope"), OptimizerConfig(weight_decay=0.1)
    same = [RunConfig(model=rope, optimizer=replace(decayed, weight_decay=w)) for w in (0.1, 0.2)]
    changed = replace(rope, norm_eps=1e-6), replace(rope, rope_base=5e5)
    others = [RunConfig(model=model, optimizer=decayed) for model in changed]
    others.append(RunConfig(model=rope, optimizer=replace(decayed, decay="matrices")))
    assert len({planning.shape_key(c) for c in same}) == 1
    assert len({planning.shape_key(c) for c in (*same, *others)}) == 4

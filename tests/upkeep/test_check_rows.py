"""`normstudy check` on the rows of runs and of windows."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from checked import (
    AGAIN,
    N_STEPS,
    PROBED,
    WINDOW,
    again,
    first_rows_again,
    ids,
    lacks,
    lines,
    rewrite,
    set_column,
    swap,
)

import normstudy
from normstudy.config import DataConfig, ModelConfig, OptimizerConfig, ProbeConfig, RunConfig, run_id
from normstudy.errors import MissingRows
from normstudy.study import parquet, schema, whole
from normstudy.study import tables as store
from normstudy.study.whole import Expected
from normstudy.training import probes
from normstudy.upkeep import verify


@pytest.mark.parametrize("table", schema.SERIES)
@pytest.mark.parametrize("window", [0, 1, 2])
def test_a_window_that_is_gone(table: str, window: int, study: Path) -> None:
    run = ids(study)[1]
    (study / "tables" / table / f"{run}-{window:03d}.parquet").unlink()
    wanted = list(range(N_STEPS)) if table == "steps" else PROBED
    gone = [t for t in wanted if WINDOW * window <= t < WINDOW * (window + 1)]
    what = lacks(table, len(gone), len(wanted), gone[0])
    assert lines(study) == [f"{run}: {what}: {AGAIN}"]


def test_a_run_without_windows_and_windows_without_a_run(study: Path) -> None:
    one, two, _ = ids(study)
    for path in (study / "tables").glob(f"*/{one}-*.parquet"):
        path.unlink()
    (study / "tables/runs" / f"{two}.parquet").unlink()
    missing = lacks("steps", 12, 12, 0) + " (and 2 more)"
    orphans = "tables/steps has 3 windows of this run, but tables/runs lacks the run's row"
    assert lines(study) == sorted([f"{one}: {missing}: {AGAIN}", f"{two}: {orphans}: {AGAIN}"])


@pytest.mark.parametrize("table", schema.TABLES)
def test_two_runs_whose_files_have_each_others_name(table: str, study: Path) -> None:
    one, two, _ = ids(study)
    end, instead = (".parquet", " instead of one row of {}") if table == "runs" else ("-001.parquet", "")
    folder = study / "tables" / table
    swap(folder / f"{one}{end}", folder / f"{two}{end}")
    assert lines(study) == sorted(
        f"{a}: tables/{table}/{a}{end} contains rows of {b}{instead.format(a)}: {again(study, f'{table}/{a}{end}')}"
        for a, b in ((one, two), (two, one))
    )


def test_files_that_have_the_name_of_another_window_or_table(study: Path) -> None:
    one, two, diverged = ids(study)
    tables = study / "tables"
    swap(tables / f"steps/{one}-000.parquet", tables / f"steps/{one}-001.parquet")
    swap(tables / f"steps/{two}-001.parquet", tables / f"residual/{two}-001.parquet")
    shutil.copy(tables / f"modules/{diverged}-000.parquet", tables / f"modules/{diverged}-001.parquet")
    last = pq.ParquetFile(tables / f"modules/{diverged}-001.parquet").read()["step"].to_pylist()[-1]
    swapped = again(study, f"steps/{one}-000.parquet", f"steps/{one}-001.parquet")
    others = again(study, f"steps/{two}-001.parquet", f"residual/{two}-001.parquet")
    copied = f"modules/{diverged}-001.parquet"
    whats = {
        one: f"tables/steps/{one}-000.parquet contains steps 5 to 9 instead of 0 to 4 (and 1 more): {swapped}",
        two: f"tables/steps/{two}-001.parquet is a file of the table residual (and 1 more): {others}",
        diverged: f"tables/{copied} contains steps 0 to {last} instead of 5 to 9: {again(study, copied)}",
    }
    assert lines(study) == sorted(f"{run}: {what}" for run, what in whats.items())


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("steps", first_rows_again, "{file} has 3 duplicate rows"),
        ("modules", first_rows_again, "{file} has 3 duplicate rows"),
        ("residual", first_rows_again, "{file} has 3 duplicate rows"),
        ("steps", lambda t: t.filter(pc.not_equal(t["step"], 7)), lacks("{table}", 1, 12, 7)),
        ("modules", lambda t: t.filter(pc.not_equal(t["step"], 6)), lacks("{table}", 1, 7, 6)),
        ("modules", lambda t: t.slice(1), "tables/{table} has 9 of 10 rows at step 6"),
        ("residual", lambda t: t.slice(1), "tables/{table} has 1 of 2 rows at step 6"),
        ("residual", lambda t: t.filter(pc.equal(t["layer"], 0)), "tables/{table} has 1 of 2 rows at step 6"),
        ("residual", lambda t: pa.concat_tables([t, set_column("step", 7)(t.slice(0, 1))]), "tables/{table} has "
         "1 steps too many (the first is step 7)"),
        ("steps", lambda t: pa.concat_tables([t, set_column("step", None)(t.slice(0, 1))]), "{file} contains steps -1 "
         "to 9 instead of 5 to 9"),
        ("steps", lambda t: pa.concat_tables([t, set_column("step", 10)(t.slice(0, 1))]), "{file} contains steps 5 to "
         "10 instead of 5 to 9"),
        ("steps", set_column("run_id", None), "{file} contains rows of null"),
    ],
)  # fmt: skip
def test_rows_of_a_window(table: str, change: Callable[[pa.Table], pa.Table], what: str, study: Path) -> None:
    run = ids(study)[0]
    path = study / "tables" / table / f"{run}-001.parquet"
    rewrite(path, change)
    name = f"{table}/{path.name}"
    expected = what.format(table=table, file=f"tables/{name}")
    assert lines(study) == [f"{run}: {expected}: {again(study, *([name] if '{file}' in what else []))}"]


@pytest.mark.parametrize("step", [None, 0])
def test_a_run_whose_window_has_the_steps_of_another_is_left_out(step: int | None, study: Path) -> None:
    run = ids(study)[0]
    rewrite(study / "tables" / "steps" / f"{run}-001.parquet", set_column("step", step))
    with pytest.warns(MissingRows, match=rf"{run}: tables/steps lacks 5 of 12 steps \(the first is step 5\): left out"):
        assert run not in set(normstudy.load(study).steps["run_id"])


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("status", "stopped", "status stopped is not one of running, done, failed"),
        ("final_val_loss", None, "status is done, but final_val_loss is null and nonfinite_step is null"),
        ("final_val_loss", float("inf"), "status is done, but final_val_loss is inf and nonfinite_step is null"),
        ("nonfinite_step", 9, "tables/steps has 2 steps too many (the first is step 10) (and 2 more)"),
    ],
)
def test_rows_of_runs(column: str, value: object, what: str, study: Path) -> None:
    run = ids(study)[0]
    rewrite(study / "tables/runs" / f"{run}.parquet", set_column(column, value))
    bad = [f"runs/{run}.parquet"] if column != "nonfinite_step" else []  # of the row itself
    assert lines(study) == [f"{run}: {what}: {again(study, *bad)}"]


def test_a_row_of_a_newer_version_is_not_to_be_removed(study: Path) -> None:
    run = ids(study)[0]
    rewrite(study / "tables/runs" / f"{run}.parquet", set_column("identity_version", 2))
    what = "identity_version is 2, but this version of normstudy knows only 1: update normstudy"
    assert lines(study) == [f"{run}: {what}"]


@pytest.mark.parametrize(("column", "value"), [("peak_lr", 4e-3), ("resolved_init", "gpt2"), ("data_sha256", None)])
def test_a_row_whose_values_were_changed(column: str, value: object, study: Path) -> None:
    run = ids(study)[0]
    rewrite(study / "tables/runs" / f"{run}.parquet", set_column(column, value))
    (line,) = lines(study)
    assert line.startswith(f"{run}: the run_id does not match the run's row, whose values give a run_id that ends in ")


def test_a_row_file_without_its_row(study: Path) -> None:
    run = ids(study)[0]
    rewrite(study / "tables/runs" / f"{run}.parquet", lambda t: t.slice(1))
    assert lines(study) == [f"{run}: tables/runs/{run}.parquet contains no row: {again(study, f'runs/{run}.parquet')}"]


def test_steps_at_which_rows_must_be() -> None:
    """The rule of the check equals the rule of the recording."""
    for n_steps, dense, every in itertools.product((1, 2, 7, 41), (0, 1, 5, 60), (1, 2, 3, 20, 100)):
        probe = ProbeConfig(dense_steps=dense, every=every)
        for end in (None, 0, n_steps // 2, n_steps - 1, n_steps):
            run = Expected("x", "done", n_steps, 1, dense, every, end)
            taken = range(n_steps if end is None else min(end + 1, n_steps))
            last = run.last(whole.NONE[0])
            assert whole.steps_of("steps", run, last).tolist() == list(taken)
            at = [t for t in taken if probes.is_probed(t, n_steps, probe)]
            assert whole.steps_of("modules", run, last).tolist() == at
            assert whole.steps_of("residual", run, last).tolist() == at


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(study="other", seed=3, data_seed=4, data=DataConfig(name="file", path="x")),
        RunConfig(model=ModelConfig(placement="reordered", norm="rmsnorm", activation="swiglu", positions="rope")),
        RunConfig(model=ModelConfig(placement="none", n_layers=3, tied=True, biases=False)),
        RunConfig(model=ModelConfig(placement="deepnorm", init="gpt2", force_init=True, embed_init="scaled")),
        RunConfig(model=ModelConfig(embed_init="std", embed_std=1, unembed_std=0.5, embed_norm=True, d_ff=17)),
        RunConfig(data=DataConfig(tokenizer="bpe")),
        RunConfig(data=DataConfig(tokenizer="bpe", vocab_size=300)),
        RunConfig(optimizer=OptimizerConfig(name="adamw", weight_decay=1, max_grad_norm=1)),
    ],
)
def test_the_digest_of_a_row_is_that_of_its_run_id(config: RunConfig, tmp_path: Path) -> None:
    name = run_id(config, "5" * 64)
    store.prepare(tmp_path)
    row = {"run_id": name, "status": "running", **schema.config_columns(config), "data_sha256": "5" * 64}
    store.write_runs(tmp_path, [row])
    stored = parquet.read_row(tmp_path, name)
    assert stored is not None
    assert f"-{verify.digest_of(stored)}" == name[-11:]

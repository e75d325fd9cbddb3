"""What a page knows of its studies: each run once, its cell, its command; what surrounds them."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import hydra
import pandas as pd
import pytest
from handmade import handmade_config, handmade_study, write_handmade_run
from hydra import initialize_config_dir

from normstudy import config as cfg
from normstudy.app import compose, reading
from normstudy.errors import ConfigError, MissingRows
from normstudy.report.read import command_of, read
from normstudy.study import records, tables

RESULTS = Path(__file__).parents[2] / "results"


def test_runs_that_studies_share_are_counted_once() -> None:
    """All 40 runs of `warmup` are in `peak_lr` too, and twenty in `depth`, under other ids."""
    bundle = read([RESULTS / name for name in ("warmup", "peak_lr", "depth")])
    assert len(bundle.runs) == 40 + (120 - 40) + (100 - 20)
    shared = bundle.runs[bundle.runs["also"].map(len) > 0]
    assert set(shared["of"]) == {0}
    assert sum(1 in also for also in shared["also"]) == 40
    assert sum(2 in also for also in shared["also"]) == 20
    for table in (bundle.steps, bundle.modules, bundle.residual):
        assert set(table["key"]) == set(bundle.runs["key"])


def test_a_study_beside_its_copy_adds_nothing(tmp_path: Path) -> None:
    study = handmade_study(tmp_path)
    shutil.copytree(study, tmp_path / "copy")
    one, both = read([study]), read([study, tmp_path / "copy"])
    failed = int((one.runs["status"] == "failed").sum())
    assert failed == 1
    assert len(both.runs) == len(one.runs) + failed  # a failed run has no losses by which to know it
    assert both.cells[0].title == one.cells[0].title


def test_a_study_given_twice_is_refused(tmp_path: Path) -> None:
    study = handmade_study(tmp_path, seeds=(0,))
    with pytest.raises(ConfigError, match="given twice"):
        read([study, tmp_path / "." / study.name])


def test_the_question_and_the_commands_of_a_shipped_study() -> None:
    (source,) = read([RESULTS / "warmup"]).sources
    assert source.question.startswith("Does post-norm need the learning-rate warmup that pre-norm does not need")
    assert source.commands == ("normstudy sweep experiment=warmup study=again",)


def test_cells_are_in_the_order_of_their_values() -> None:
    titles = [cell.title for cell in read([RESULTS / "warmup"]).cells]
    assert titles[:2] == ["pre-norm, lr 1e-3, no warmup", "pre-norm, lr 1e-3, warmup 100"]
    assert titles[-1] == "post-norm, lr 3e-3, warmup 100"


@pytest.mark.parametrize("study", ["warmup", "placements", "boundary", "rmsnorm"])
def test_the_command_of_a_run_trains_that_run(study: str) -> None:
    """Some of a study's runs, composed by Hydra as `normstudy run` does, have the stored identity."""
    runs = tables.read(RESULTS / study, "runs")
    for _, run in runs.iloc[:: max(1, len(runs) // 4)].iterrows():
        assert_same_run(run)


def test_the_command_of_a_run_with_every_kind_of_value(tmp_path: Path) -> None:
    config = handmade_config(tmp_path, n_layers=3, seed=2)
    config.data_seed = 7
    config.optimizer = cfg.OptimizerConfig(name="adamw", weight_decay=0.05, decay="matrices", max_grad_norm=1.0)
    config.schedule = cfg.ScheduleConfig(name="cosine", peak_lr=1.25e-4, warmup_steps=10, n_steps=60)
    config.model = cfg.ModelConfig(norm="rmsnorm", d_ff=100, tied=True, final_norm="false", activation="swiglu")
    config.data = cfg.DataConfig(name="file", path="it's a \\'text', = {x}.txt", batch_size=2)
    write_handmade_run(tmp_path / "s", config)
    (_, run), = tables.read(tmp_path / "s", "runs").iterrows()  # fmt: skip
    assert_same_run(run)


def assert_same_run(run: pd.Series[object]) -> None:
    words = command_of(run)
    program, command, *overrides = shlex.split(words)
    assert (program, command) == ("normstudy", "run")
    with initialize_config_dir(str(compose.conf_dir()), version_base=None), reading.as_written():
        config = compose.to_run_config(hydra.compose("config", overrides))
    asked = cfg.asked(config) | {"study": run["study"]}
    stored = {column: None if pd.isna(run[column]) else run[column] for column in asked}
    assert asked == stored, words


def test_critical_values_rest_on_all_runs_of_their_study(tmp_path: Path) -> None:
    """Also on those that an earlier study of the page has too."""
    (tmp_path / "critical_lr").symlink_to(RESULTS / "critical_lr")
    shutil.copytree(RESULTS / "critical_lr" / "tables", tmp_path / "grid" / "tables")
    bundle = read([tmp_path / "grid", tmp_path / "critical_lr"], ["n_layers=12,placement=post"])
    assert set(bundle.runs["of"]) == {0}
    alone = read([RESULTS / "critical_lr"], ["n_layers=12,placement=post"]).sources[0].critical
    assert bundle.sources[1].critical == alone
    assert "5.13e-4 [3.24e-4, 7.94e-4]" in alone


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read([tmp_path])


def test_a_page_does_without_damaged_records_of_sweeps(tmp_path: Path) -> None:
    study = handmade_study(tmp_path)
    for command in ("sweep a=1", "sweep \x1b[31m"):
        records.record_request(study, {"command": command}, [], {"run": cfg.RunConfig()})
    paths = [study / "sweeps" / f"2025010{n}T000000.000000.parquet" for n in range(1, 4)]
    paths[0].write_bytes(records.paths_of(study)[0].read_bytes()[:-9])
    os.mkfifo(paths[1])
    paths[2].mkdir()
    for name in ("._x.parquet", "x (1).parquet"):
        (study / "sweeps" / name).write_bytes(b"")
    with pytest.warns(MissingRows) as warned:
        (source,) = read([study]).sources
    assert source.commands == ("sweep a=1", r"sweep \x1b[31m")
    said = [str(one.message) for one in warned if "/sweeps/" in str(one.message)]
    assert len(said) == 3
    for line, path in zip(said, paths, strict=True):
        assert line.startswith(f"{path} cannot be read (")


def test_what_a_page_takes_from_the_text_of_an_experiment(tmp_path: Path) -> None:
    study = handmade_study(tmp_path / "results")
    page = tmp_path / "experiments" / f"{study.name}.md"
    page.parent.mkdir()
    page.write_bytes(b"**Question.** Why\xff \x07so?\n\n**Command.** `sweep \x1b[31m`\n")
    (source,) = read([study]).sources
    assert (source.question, source.commands) == ("Why\ufffd \\x07so?", (r"sweep \x1b[31m",))
    page.unlink()
    os.mkfifo(page)
    (source,) = read([study]).sources
    assert (source.question, source.commands) == ("", ())

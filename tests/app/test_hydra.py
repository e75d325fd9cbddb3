"""Composition, axes, planning in place, and other launchers and sweepers of Hydra."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra_plugins.normstudy
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from processes import SWEEP, TINY, start, wait_for
from studies import assert_same_tables, draw_no_figures

from normstudy import config
from normstudy.analysis.outcomes import MEANING
from normstudy.app import errors, jobs, plan
from normstudy.app.compose import conf_dir, to_run_config
from normstudy.cli import main as cli
from normstudy.config import ConfigError, RunConfig, ScheduleConfig
from normstudy.study import checkpoints, schema
from normstudy.study import tables as store

MACHINE = ["wall_time_s", "started_at", "finished_at"]  # what differs between two equal runs on one machine

Capture = pytest.CaptureFixture[str]


@functools.cache
def planned(*words: str) -> list[RunConfig]:
    """The runs of `normstudy sweep *words`."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        master = hydra.compose_config("config", list(words), RunMode.MULTIRUN, with_log_configuration=False)
        expanded = jobs.expand(master.hydra.sweeper.params or {}, _task_words(master), loader)
        return plan.Planner(loader, master).plan(expanded)


def _task_words(master: DictConfig) -> list[str]:
    words = OmegaConf.to_container(master.hydra.overrides.task, resolve=False)
    assert isinstance(words, list)
    return [str(word) for word in words]


def cells(configs: list[RunConfig], *keys: str) -> list[tuple[object, ...]]:
    """The values of dotted keys, run by run."""
    out = []
    for one in configs:
        row = []
        for key in keys:
            value: object = one
            for part in key.split("."):
                value = getattr(value, part)
            row.append(value)
        out.append(tuple(row))
    return out


def shown(capfd: Capture, *words: str) -> dict[str, object]:
    capfd.readouterr()
    assert cli.main(list(words)) == 0
    out, err = capfd.readouterr()
    assert err == ""
    loaded = yaml.safe_load(out)
    assert isinstance(loaded, dict)
    return loaded


# ---- composition --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "n_steps"), [("run", 600), ("sweep", 600), ("critical", 300)])
def test_cfg_job_shows_the_defaults_of_the_dataclasses(command: str, n_steps: int, capfd: Capture) -> None:
    expected = dataclasses.asdict(RunConfig(schedule=ScheduleConfig(n_steps=n_steps)))
    got = shown(capfd, command, "--cfg", "job")
    assert got["data_seed"] == "${seed}"
    resolved = shown(capfd, command, "--cfg", "job", "--resolve")
    assert resolved == {**expected, "optimizer": {**expected["optimizer"], "eps": 1e-8}}
    assert shown(capfd, command, "experiment=smoke", "--cfg", "job")["schedule"]["n_steps"] == 200
    assert shown(capfd, command, "schedule={n_steps:7}", "--cfg", "job")["schedule"]["n_steps"] == 7


def test_cfg_job_shows_an_experiments_base_values_and_cfg_hydra_its_axes(capfd: Capture) -> None:
    base = shown(capfd, "sweep", "experiment=quickstart", "--cfg", "job")
    assert isinstance(base["schedule"], dict)
    assert base["study"] == "quickstart"
    assert base["schedule"]["peak_lr"] == 3e-3
    axes = shown(capfd, "sweep", "experiment=quickstart", "--cfg", "hydra", "-p", "hydra.sweeper.params")
    assert axes == {"model.placement": "pre,post", "schedule.warmup_steps": "0,100", "seed": "0,1,2,3,4"}


@pytest.mark.parametrize(
    ("group", "names"),
    [("data", config.DATA_NAMES), ("optimizer", config.OPTIMIZER_NAMES), ("schedule", config.SCHEDULE_NAMES)],
)
def test_each_name_is_a_group_choice_that_sets_it(group: str, names: tuple[str, ...], tmp_path: Path) -> None:
    assert sorted(names) == sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    path = ["data.path=x"] if group == "data" else []
    for name in names:
        words = [f"{group}={name}", "seed=choice(0)", *(path if name == "file" else [])]
        assert cells(planned(*words), f"{group}.name") == [(name,)]


def test_no_file_of_conf_names_a_target() -> None:
    """A `_target_` would let a config file call anything."""
    assert [p for p in conf_dir().rglob("*.yaml") if "_target_" in p.read_text()] == []


def test_data_seed_is_the_seed_unless_given() -> None:
    assert cells(planned("seed=3,4"), "seed", "data_seed") == [(3, 3), (4, 4)]
    assert cells(planned("seed=3,4", "data_seed=9"), "seed", "data_seed") == [(3, 9), (4, 9)]
    assert cells(planned("seed=3", "data_seed=8,9"), "seed", "data_seed") == [(3, 8), (3, 9)]


def test_a_users_own_folder_works_like_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    (own / "model").mkdir()
    (own / "model" / "wide.yaml").write_text("d_model: 96\n")
    (own / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: wide\n  - override /data: synthetic\nstudy: mine\n"
        "hydra:\n  sweeper:\n    params:\n      model.placement: pre,post\n      seed: range(0,3)\n"
    )
    monkeypatch.chdir(tmp_path)
    base = shown(capfd, "run", "--config-dir", "own", "experiment=mine", "--cfg", "job")
    assert isinstance(base["model"], dict)
    assert base["model"]["d_model"] == 96
    assert cli.main(["sweep", "experiment=mine", "--config-dir", "own", "--dry-run", "model=tiny"]) == 0
    assert capfd.readouterr().out.startswith("mine: 6 runs, 0 already finished")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run"], True),
        (["run", "--no-retry-failed"], False),
        (["sweep", "--retry-failed", "--config-dir", "own", "experiment=once"], True),
        (["sweep", "--config-dir", "own", "experiment=once"], False),
        (["run", "execution.retry_failed=false", "--no-retry-failed"], False),
    ],
)
def test_flags_say_whether_failed_runs_are_tried_again(
    words: list[str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """A flag overrides the experiment's value, as the key does; without both, failed runs are tried again."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    once = "# @package _global_\nexecution:\n  retry_failed: false\n"
    (tmp_path / "own" / "experiment" / "once.yaml").write_text(once)
    monkeypatch.chdir(tmp_path)
    execution = shown(capfd, *words, "--cfg", "job")["execution"]
    assert isinstance(execution, dict)
    assert execution["retry_failed"] is expected


@pytest.mark.parametrize(
    ("command", "mode", "composed", "said"),
    [("sweep --dry-run", "RUN", 2, "s: 2 runs, 0 already"), ("run", "MULTIRUN", 1, "Training one run, without")],
)
def test_the_command_decides_what_is_trained_and_hydra_composes_it_once(
    command: str, mode: str, composed: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """A sweep composes its configuration once, and all its runs together once more."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = f"# @package _global_\nstudy: s\nhydra: {{mode: {mode}, sweeper: {{params: {{seed: '0,1'}}}}}}\n"
    (tmp_path / "own" / "experiment" / "mode.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    calls, compose = [], ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *args, **options: calls.append(1) or compose(*args, **options)
    )
    assert cli.main([*command.split(), "--config-dir", "own", "experiment=mode", *TINY]) == 0
    assert said in capfd.readouterr().out
    assert len(calls) == composed


# ---- the shipped studies ------------------------------------------------------------------------------

SHIPPED = sorted(
    path.stem for path in (conf_dir() / "experiment").glob("*.yaml")
)  # test_experiments.py counts the runs


def test_the_axes_of_the_shipped_studies() -> None:
    """Each fills the study of its name. The axes and lengths of all of them; those of a search are its cells'."""
    for name in SHIPPED:
        configs = planned(f"experiment={name}")
        assert {c.study for c in configs} == {name}
        assert len({str(dataclasses.asdict(c)) for c in configs}) == len(configs)
    axes = ("model.placement", "model.norm", "model.n_layers", "schedule.peak_lr", "schedule.warmup_steps", "seed")

    def swept(name: str) -> list[list[object]]:
        configs = planned(f"experiment={name}")
        assert {c.optimizer.name for c in configs} == {"adam"}
        assert {c.schedule.name for c in configs} == {"constant"}
        return [sorted({row[i] for row in cells(configs, *axes)}, key=str) for i in range(len(axes))]

    both, five = ["post", "pre"], [0, 1, 2, 3, 4]
    assert swept("quickstart") == [both, ["auto"], [6], [3e-3], [0, 100], five]
    assert swept("warmup") == [both, ["auto"], [6], [1e-3, 3e-3], [0, 100], five]
    assert swept("depth") == [both, ["auto"], [12, 2, 4, 6, 8], [1e-3], [0, 100], five]
    rates = [1e-3, 1e-4, 1e-2, 3e-3, 3e-4, 3e-2]
    assert swept("peak_lr") == [both, ["auto"], [6], sorted(rates, key=str), [0, 100], five]
    assert swept("rmsnorm") == [["pre"], ["layernorm", "rmsnorm"], [6], [3e-3], [0], five]
    everywhere, *others = swept("placements")
    assert set(everywhere) <= set(config.PLACEMENT_NAMES)
    assert (len(everywhere), others) == (14, [["auto"], [12, 4], [3e-3], [0, 100], five])
    assert swept("shallow") == [both, ["auto"], [2, 4], [1e-3], [0], sorted(range(5, 20), key=str)]
    assert swept("boundary") == [both, ["auto"], [12], [1e-3], [100], sorted(range(5, 25), key=str)]
    assert swept("best") == [both, ["auto"], [6], [1e-3, 2e-3, 4e-3, 8e-3], [0, 100, 200, 400], [*range(25, 30)]]
    everywhere, *others = swept("critical_lr")
    assert everywhere == ["deepnorm", "mix", "peri", "post", "pre", "residual"]
    assert others == [["auto"], [12, 4, 6], [1e-3], [0, 100], [0]]
    assert swept("critical_warmup") == [["post"], ["auto"], [12, 6], [1e-3, 2e-3, 4e-3], [0], [0]]
    steps = {name: planned(f"experiment={name}")[0].schedule.n_steps for name in SHIPPED}
    short = {"smoke": 200, "quickstart": 200, "placements": 300, "critical_lr": 300, "critical_warmup": 300}
    assert steps == {name: short.get(name, 600) for name in SHIPPED}


# ---- axes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "key", "expected"),
    [
        ("model.n_layers=2,4", "model.n_layers", [2, 4]),
        ("schedule.peak_lr=1e-3,3e-3", "schedule.peak_lr", [1e-3, 3e-3]),
        ("seed=range(0,3)", "seed", [0, 1, 2]),
        ("seed=range(4,0,step=-2)", "seed", [4, 2]),
        ("seed=choice(5,1)", "seed", [5, 1]),
        ("seed=sort(5,1)", "seed", [1, 5]),
        ("seed=choice(7)", "seed", [7]),
        ("optimizer=sgd,adam", "optimizer.name", ["sgd", "adam"]),
        ("optimizer=glob(ad*)", "optimizer.name", ["adam", "adamw"]),
        ("schedule=choice(cosine,linear)", "schedule.name", ["cosine", "linear"]),
        ("data_seed=1,null", "data_seed", [1, 0]),
    ],
)
def test_hydras_ways_to_sweep(word: str, key: str, expected: list[object]) -> None:
    assert [row[0] for row in cells(planned(word), key)] == expected


def test_the_command_line_wins_by_key() -> None:
    keys = ("model.placement", "schedule.warmup_steps", "seed")
    full = cells(planned("experiment=smoke"), *keys)
    assert full == [(p, w, s) for p in ("pre", "post") for w in (0, 20) for s in (0, 1)]
    one_seed = cells(planned("experiment=smoke", "seed=7"), *keys)
    assert sorted(one_seed) == sorted((p, w, 7) for p in ("pre", "post") for w in (0, 20))
    other_axis = cells(planned("experiment=smoke", "schedule.warmup_steps=5,10,15", "seed=0"), *keys)
    assert sorted(other_axis) == sorted((p, w, 0) for p in ("pre", "post") for w in (5, 10, 15))
    added = cells(planned("experiment=smoke", "model.n_layers=3"), "model.n_layers", *keys)
    assert sorted(added) == sorted((3, *row) for row in full)
    dropped = cells(planned("experiment=smoke", "~hydra.sweeper.params.seed"), *keys)
    assert sorted(dropped) == sorted((p, w, 0) for p in ("pre", "post") for w in (0, 20))
    last = cells(planned("experiment=smoke", "seed=1,2", "seed=3", "~hydra.sweeper.params.seed"), "seed")
    assert set(last) == {(3,)}


def test_a_group_on_the_command_line_beats_the_experiments_own() -> None:
    assert set(cells(planned("experiment=smoke", "data=pydoc"), "data.name", "data.seq_len")) == {("pydoc", 32)}
    assert set(cells(planned("experiment=smoke", "model=default"), "model.n_layers")) == {(6,)}


# ---- planning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=smoke", "optimizer=adam,sgd,adamw", "data_seed=5,${seed}", "optimizer.max_grad_norm=null,1.0"],
        ["experiment=warmup", "model.n_layers=2,12", "model=default,tiny", "data.path=null"],
        ["schedule=constant,cosine", "schedule.peak_lr=1e-3,3e-3", "seed=range(0,4)", "model.final_norm=auto,true"],
        ["model={n_layers:2},{d_model:32},{n_layers:3,d_ff:7}", "seed=0,1"],
        ["model.n_layers=2,3", "model={d_model:32},{d_model:64,n_heads:2}"],
        ["probe={every:5},{dense_steps:7},{every:9}", "seed=0,1"],
        ["data_seed=null,7", "seed=0,1,2"],
        ["schedule.warmup_steps=${eval.windows},${seed},3", "eval.windows=8,16", "seed=0,1,2"],
    ],
)
def test_planning_in_place_equals_full_composition(words: list[str]) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        master = hydra.compose_config("config", words, RunMode.MULTIRUN, with_log_configuration=False)
        expanded = jobs.expand(master.hydra.sweeper.params or {}, _task_words(master), loader)
        random.Random(0).shuffle(expanded)
        got = plan.Planner(loader, master).plan(expanded)
        for at in range(0, len(expanded), max(1, len(expanded) // 5)):
            full = loader.load_sweep_config(master, expanded[at])
            with open_dict(full):
                del full["hydra"]
            assert got[at] == to_run_config(full), expanded[at]


@pytest.mark.parametrize(
    ("words", "runs", "compositions"),
    [
        (["experiment=warmup", "optimizer=adam,sgd"], 80, 2),
        (["model=default,tiny", "optimizer=adam,sgd", "schedule=constant,linear", "seed=range(0,5)"], 40, 8),
    ],
)
def test_planning_composes_once_per_choice_of_groups(
    words: list[str], runs: int, compositions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[Sequence[str]] = []
    compose = ConfigLoaderImpl.load_sweep_config

    def counted(loader: ConfigLoaderImpl, master: DictConfig, job: list[str]) -> DictConfig:
        composed.append(job)
        return compose(loader, master, job)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    planned.cache_clear()
    assert len(planned(*words)) == runs
    assert len(composed) == compositions


def test_runs_share_the_sections_in_which_they_do_not_differ() -> None:
    """The time and memory of planning 10,000 runs depend on this sharing."""
    configs = planned("seed=range(0,3)", "schedule.peak_lr=1e-3,3e-3")
    for section in ("model", "data", "optimizer", "probe", "eval", "execution"):
        assert len({id(getattr(config, section)) for config in configs}) == 1
    assert cells(configs, "schedule.peak_lr", "seed") == [(lr, s) for s in range(3) for lr in (1e-3, 3e-3)]


def test_a_value_that_follows_another_is_never_shared() -> None:
    configs = planned("schedule.warmup_steps=3,${eval.windows}", "eval.windows=8,16")
    assert cells(configs, "schedule.warmup_steps", "eval.windows") == [(3, 8), (3, 16), (8, 8), (16, 16)]


# ---- launchers and sweepers ---------------------------------------------------------------------------


def test_the_installed_plugin_is_this_one() -> None:
    """An editable install has a copy of the plugin: after a change of the plugin, install again."""
    source = Path(jobs.__file__).parent / "plugin" / "__init__.py"
    assert Path(hydra_plugins.normstudy.__file__).read_text() == source.read_text()


def test_an_installed_plugin_of_another_version_is_one_line(tmp_path: Path) -> None:
    """The copy that an older editable install left behind imports a module that no longer exists."""
    source = (Path(jobs.__file__).parent / "plugin" / "__init__.py").read_text()
    shim = tmp_path / "hydra_plugins" / "normstudy" / "__init__.py"
    shim.parent.mkdir(parents=True)
    shim.write_text(source.replace("normstudy.app.jobs", "normstudy.launchers.batch"))
    done = subprocess.run(
        [sys.executable, "-m", "normstudy", "sweep", "seed=0,1", "--dry-run"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "error: the installed hydra_plugins.normstudy comes from another version of normstudy "
        "(No module named 'normstudy.launchers'): run pip install -e . again\n"
    )


EXPERIMENT = """# @package _global_
defaults:
  - override /model: tiny
  - override /data: synthetic
study: two
model: {n_layers: 1}
data: {seq_len: 16}
schedule: {n_steps: 3}
eval: {windows: 4}
hydra:
  sweeper:
    params:
      seed: 0,1,1  # the second is asked for twice
"""


def trained(*words: str) -> tuple[str, dict[str, pd.DataFrame]]:
    """The output and the tables of a sweep of EXPERIMENT with more words, in the working directory."""
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/two.yaml").write_text(EXPERIMENT)
    words = ("sweep", "--config-dir", "own", "experiment=two", "data_seed=${seed}", "execution.workers=1", *words)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(list(words)) == 0
    tables = {}
    for name in schema.TABLES:
        table = pd.read_parquet(Path("results/two/tables") / name)
        keys = [k for k in ("run_id", "step", "layer", "module") if k in table]
        tables[name] = table.sort_values(keys, ignore_index=True).drop(columns=MACHINE, errors="ignore")
    return printed.getvalue(), tables


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, pd.DataFrame]]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("ours")
        patch.chdir(root)
        draw_no_figures(patch)
        return root, *trained()


def test_our_sweep_leaves_no_trace_but_its_study(ours: tuple[Path, str, dict[str, pd.DataFrame]]) -> None:
    root, printed, tables = ours
    assert sorted(path.name for path in root.iterdir()) == ["own", "results"]
    assert [path.name for path in (root / "results").iterdir()] == ["two"]
    (record,) = (root / "results/two/sweeps").iterdir()  # no multirun.yaml, no folder a run
    kept = pq.ParquetFile(record).schema_arrow.metadata
    assert b"normstudy sweep" in kept[b"command"]
    assert b"data_seed=${seed}" in kept[b"overrides"]  # as typed
    assert "1 of the 3 requested runs" in printed  # identical runs are trained once, and the user is told
    assert sorted(tables["runs"]["data_seed"]) == [0, 1]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    "words",
    [
        ["hydra/sweeper=basic"],
        ["hydra/sweeper=basic", "hydra/launcher=basic"],
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], marks=pytest.mark.packages),
    ],
    ids=" ".join,
)
def test_other_launchers_and_sweepers_run_an_experiment_to_the_same_tables(
    words: list[str], ours: tuple[Path, str, dict[str, pd.DataFrame]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = trained(*words)[1]
    # a foreign sweeper's files go to sweeps/
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "results"]
    for name, table in ours[2].items():
        assert len(table) >= 2
        pd.testing.assert_frame_equal(theirs[name], table, check_exact=True)


@pytest.mark.packages
@pytest.mark.usefixtures("without_figures")
def test_a_stopped_sweep_of_joblib_goes_on_with_our_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables equal those of a sweep that was not stopped."""
    monkeypatch.chdir(tmp_path)
    words = [*SWEEP, "seed=0,1", "schedule.n_steps=500", "execution.workers=1", "execution.checkpoint_seconds=1000"]
    theirs = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert cli.main([*words, "results_dir=whole"]) == 0
    running = start([*words, *theirs], tmp_path)
    study = tmp_path / "results" / "long"
    wait_for(lambda: len(list((study / "tables" / "steps").glob("*-000.parquet"))) == 2)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    stopped = [run_id for run_id, status in store.statuses(study).items() if status != "done"]
    assert stopped  # one of the two may have been through
    saved = {path.name for path in (study / checkpoints.FOLDER).glob("*")}
    assert saved <= set(stopped)  # joblib may kill a process before its run is saved: that run starts from its windows
    assert cli.main(words) == 0
    assert_same_tables(tmp_path / "whole" / "long", study)


def test_a_bug_in_a_foreign_job_is_not_taken_for_bad_input() -> None:
    """The traceback of the bug ends in Hydra, as that of an error in the configuration does."""
    failed = JobReturn(overrides=["seed=1"], status=JobStatus.FAILED)
    failed.return_value = ValueError("a bug")
    with pytest.raises(RuntimeError, match="seed=1") as caught:
        jobs._raise_failure(failed)
    assert errors.one_line(caught.value) is None
    failed.return_value = ConfigError("a bad request")
    with pytest.raises(ConfigError, match="a bad request"):
        jobs._raise_failure(failed)


def test_dry_run_writes_nothing_with_any_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    for launcher in ("normstudy", "joblib"):
        words = ["sweep", "--dry-run", *TINY, "seed=0,1", f"hydra/launcher={launcher}"]
        assert cli.main(words) == 0
        assert "2 runs, 0 already finished" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_trains_nothing_where_nothing_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    foreign = ["hydra/launcher=basic", "hydra/sweeper=basic"]
    assert cli.main(["sweep", "--dry-run", *TINY, "seed=0,1", *foreign]) == 0
    assert capfd.readouterr().out.count("1 runs, 0 already finished") == 2
    assert not (tmp_path / "results/scratch/tables").exists()


def test_run_names_the_axes_that_it_does_not_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["seed=3", "schedule.n_steps=12", "schedule.peak_lr=1e-2", "execution.workers=1"]
    assert cli.main(["run", "experiment=smoke", *words]) == 0
    first, *_, explained, _ = capfd.readouterr().out.splitlines()
    assert explained == f"unfinished: {MEANING['unfinished']}"
    assert "model.placement=pre,post schedule.warmup_steps=0,20" in first
    assert "seed=" not in first
    runs = pd.read_parquet(tmp_path / "results/smoke/tables/runs")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # no .hydra, no outputs
    assert list(zip(runs["placement"], runs["warmup_steps"], runs["seed"], strict=True)) == [("pre", 0, 3)]

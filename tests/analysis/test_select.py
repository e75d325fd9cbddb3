"""Selecting runs by `--where`: values by the type of their column, and one line for every bad request."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import handmade_config, write_handmade_run

from normstudy.analysis.compare import values_as_text
from normstudy.analysis.load import load
from normstudy.analysis.select import conditions, native, select, values_of
from normstudy.config import ConfigError
from normstudy.study import tables


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """pre and post x two rates x two seeds; one run with clipping, one with another d_ff; one diverged."""
    root = tmp_path_factory.mktemp("study")
    for placement in ("pre", "post"):
        for peak_lr in (1e-3, 3e-3):
            for seed in (0, 1):
                config = handmade_config(root, placement=placement, peak_lr=peak_lr, seed=seed)
                diverged = placement == "post" and peak_lr == 3e-3 and seed == 0
                write_handmade_run(root / "s", config, "diverged" if diverged else "learned")
    clipped = handmade_config(root, seed=7)
    clipped.optimizer.max_grad_norm = 1.0
    write_handmade_run(root / "s", clipped)
    wide = handmade_config(root, seed=8)
    wide.model.d_ff = 128
    write_handmade_run(root / "s", wide)
    return load(root / "s").runs


@pytest.mark.parametrize(
    ("where", "n"),
    [
        (None, 10),
        ({}, 10),
        ({"placement": "pre"}, 6),
        ({"peak_lr": "3e-3"}, 4),
        ({"peak_lr": "0.003"}, 4),
        ({"peak_lr": ".0030"}, 4),
        ({"n_layers": "2"}, 10),
        ({"n_layers": "2.0"}, 10),
        ({"placement": "post", "peak_lr": "3e-3", "seed": "1"}, 1),
        ({"max_grad_norm": "null"}, 9),
        ({"max_grad_norm": "1"}, 1),
        ({"d_ff": "null"}, 9),
        ({"d_ff": "128"}, 1),
        ({"data_path": "null"}, 10),
        ({"resolved_final_norm": "true"}, 6),
        ({"resolved_final_norm": "False"}, 4),
        ({"outcome": "diverged"}, 1),
        ({"nonfinite_step": "null"}, 9),
        ({"status": "done"}, 10),
    ],
)
def test_selection(runs: pd.DataFrame, where: dict[str, str] | None, n: int) -> None:
    chosen = select(runs, where)
    assert len(chosen) == n
    assert chosen.index.isin(runs.index).all()


@pytest.mark.parametrize(
    ("words", "n"),
    [
        (["placement=pre,post"], 10),
        (["peak_lr=1e-3,0.003", "seed=0,7"], 5),
        (["seed=0,7,8"], 6),
        (["seed = 0 , 7"], 5),
        (["peak_lr>=3e-3"], 4),
        (["peak_lr>1e-3"], 4),
        (["peak_lr<0.003"], 6),
        (["peak_lr<=0.003"], 10),
        (["seed>=1,seed<8"], 5),
        (["seed!=0"], 6),
        (["seed!=0,1"], 2),
        (["d_ff!=null"], 1),
        (["d_ff>=1"], 1),  # null is on no side
        (["max_grad_norm!=1"], 9),
        (["data_path=null,placement=pre"], 6),
        (["placement='pre'"], 6),
        (["placement=\"pre\",seed='0'"], 2),
        (["started_at>=2025-01-01"], 10),
        ("placement=pre,seed=0", 2),
    ],
)
def test_conditions(runs: pd.DataFrame, words: list[str] | str, n: int) -> None:
    assert len(select(runs, words)) == n


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["placement=pre,norm=rmsnorm", "seed=3"], [("placement", "=", ("pre",)), ("norm", "=", ("rmsnorm",)),
                                                   ("seed", "=", ("3",))]),
        ([" placement = pre "], [("placement", "=", ("pre",))]),
        (["data_path=a=b"], [("data_path", "=", ("a=b",))]),
        (["data_path=\"a, b'\",'c\"d',e f,peak_lr>=1e-3"], [("data_path", "=", ("a, b'", 'c"d', "e f")),
                                                         ("peak_lr", ">=", ("1e-3",))]),
        (["data_path=it's"], [("data_path", "=", ("it's",))]),
        (["data_path=''"], [("data_path", "=", ("",))]),
    ],
)  # fmt: skip
def test_words_become_conditions(words: list[str], expected: list[object]) -> None:
    assert conditions(words) == expected


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("placement", "not COLUMN=VALUE"),
        ("", "not COLUMN=VALUE"),
        ("pre,placement=post", "not COLUMN=VALUE"),
        ("placement=", "not COLUMN=VALUE"),
        ("placement=pre,", "not COLUMN=VALUE"),
        ("placement=pre,,post", "not COLUMN=VALUE"),
        ("placement='pre", "quote a value"),
        ("placement='pre'x", "quote a value"),
        ("placement=pre,placement=post", "sets placement twice: write placement=VALUE,VALUE"),
        ("placement=pre,psot", "placement=psot selects no run; available values: post, pre"),
        ("placement!=psot", "placement!=psot selects no run; available"),
        ("placement!=pre,post", "all runs left have these values"),
        ("peak_lr>=1", "peak_lr>=1 selects no run; available values: 0.001, 0.003"),
        ("peak_lr>=1,2", "needs one number"),
        ("d_ff<null", "needs one number"),
        ("resolved_final_norm>=true", "needs one number"),
        ("n_layers>two", "n_layers must be a number, not 'two'"),
    ],
)
def test_bad_conditions_are_one_line(runs: pd.DataFrame, word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as e:
        select(runs, [word])
    assert "\n" not in str(e.value)


def test_load_reads_only_the_runs_that_meet_the_conditions(tmp_path: Path) -> None:
    for seed in range(3):
        write_handmade_run(tmp_path / "s", handmade_config(tmp_path, seed=seed))
    assert load(tmp_path / "s", where={"seed": [0, 1], "biases": True}).runs["seed"].tolist() == [0, 1]
    assert len(load(tmp_path / "s", where={"peak_lr": handmade_config(tmp_path).schedule.peak_lr}).runs) == 3
    with pytest.raises(ConfigError, match="`where` gives no value for seed"):
        load(tmp_path / "s", where={"seed": []})
    some = load(tmp_path / "s", where="seed>=1,seed!=2")
    (run_id,) = some.runs["run_id"]
    for table, every in zip(some, load(tmp_path / "s"), strict=True):
        mine = every[every["run_id"] == run_id].reset_index(drop=True)
        pd.testing.assert_frame_equal(table.reset_index(drop=True), mine)


def test_the_chosen_runs_have_the_values(runs: pd.DataFrame) -> None:
    chosen = select(runs, {"peak_lr": "3e-3", "placement": "pre"})
    assert set(chosen["peak_lr"]) == {0.003}
    assert set(chosen["placement"]) == {"pre"}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"peaklr": "1"}, ["--where", "'peaklr'", "Did you mean peak_lr?"]),
        ({"zzz": "1"}, ["--where", "'zzz'", "placement"]),
        ({"peak_lr": "1e-2"}, ["peak_lr=1e-2", "0.001, 0.003"]),
        ({"placement": "Pre"}, ["placement=Pre", "post, pre"]),
        ({"max_grad_norm": "2"}, ["max_grad_norm=2", "null, 1"]),
        ({"n_layers": "two"}, ["--where", "n_layers must be a number, not 'two'"]),
        ({"resolved_final_norm": "1"}, ["resolved_final_norm must be true or false, not '1'"]),
        # the study has the second value, but in no run with the first
        ({"seed": "7", "placement": "post"}, ["placement=post", "available values: pre"]),
        ({"placement": "null"}, ["placement=null", "post, pre"]),
    ],
)
def test_bad_requests_are_one_line(runs: pd.DataFrame, where: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as e:
        select(runs, where)
    assert "\n" not in str(e.value)
    for word in words:
        assert word in str(e.value)


def test_a_study_without_runs(tmp_path: Path) -> None:
    tables.prepare(tmp_path)
    with pytest.raises(ConfigError, match="the study has no runs"):
        select(tables.read(tmp_path, "runs"), {"placement": "pre"})


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("mix=0.5", [1]),
        ("mix=auto", [0]),
        ("mix!=0.5", [0, 2, 3]),
        ("mix=null", [2]),
        ("mix>0.1", [1, 3]),
        ("mix<b", [0]),
        ("flag=true", [0]),
        ("flag=False", [1]),
        ('study="null"', [0]),
        ("study=null", [1]),
        ({"study": "null"}, [0]),
        ({"study": None}, [1]),
        ({"n": np.array([0, 1])}, [0, 1]),
        ({"n": pd.Series([3])}, [3]),
        ({"n": np.int64(2)}, [2]),
    ],
)
def test_cells_of_several_types(where: dict[str, object] | str, chosen: list[int]) -> None:
    columns = {"mix": ["auto", 0.5, None, 2], "flag": [True, False, None, None], "study": ["null", None, "a", "b"]}
    made = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()}).assign(n=range(4))
    assert select(made, where)["n"].tolist() == chosen


def test_a_spreadsheet_runs_no_cell_of_a_csv() -> None:
    found = pd.DataFrame({"arm": ["=cmd|x", "@a", "pre", "\t=1"], "difference": [-0.5, 1.0, 2.0, 3.0]})
    assert values_as_text(found, "csv") == "arm,difference\n'=cmd|x,-0.5\n'@a,1.0\npre,2.0\n\\t=1,3.0"


def test_values_are_in_a_fixed_order(runs: pd.DataFrame) -> None:
    assert values_of(runs, "max_grad_norm") == [None, 1.0]
    assert values_of(runs, "placement") == ["post", "pre"]
    assert values_of(runs, "seed") == [0, 1, 7, 8]
    assert values_of(runs, "d_ff") == [None, 128]
    assert values_of(runs.iloc[::-1], "seed") == [0, 1, 7, 8]


def test_native_values() -> None:
    assert native("d_ff", 256.0) == 256
    assert isinstance(native("d_ff", 256.0), int)
    assert isinstance(native("peak_lr", 1.0), float)
    assert isinstance(native("n_layers", np.int64(6)), int)
    assert native("max_grad_norm", np.nan) is None
    assert native("started_at", pd.NaT) is None
    assert native("resolved_final_norm", np.True_) is True
    assert native("started_at", pd.Timestamp("2025-01-01", tz="UTC")) == "2025-01-01 00:00:00+00:00"

"""`normstudy.load`: the four tables, what is derived from them, and what is joined to the series."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import BAD, H1, H2, handmade_config, handmade_study, write_handmade_run

import normstudy
from normstudy.analysis.load import Tables
from normstudy.config import ConfigError
from normstudy.study import schema
from normstudy.study import tables as store

SERIES = ("steps", "modules", "residual")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade_study(tmp_path_factory.mktemp("study"), n_layers=(2,), peak_lrs=(3e-3,))


@pytest.fixture(scope="module")
def plain(study: Path) -> Tables:
    return normstudy.load(study)


@pytest.fixture(scope="module")
def joined(study: Path) -> Tables:
    return normstudy.load(study, join=True)


def test_the_tables_are_those_of_the_store_and_the_derived_columns(study: Path, plain: Tables) -> None:
    for table in schema.TABLES:
        stored = store.read(study, table)
        pd.testing.assert_frame_equal(getattr(plain, table)[list(stored)], stored)
    assert list(plain.runs)[-3:] == ["outcome", "gap_closed", "bits_per_byte"]
    assert list(plain.modules)[-1] == "update_ratio"


def test_load_takes_a_text_as_folder(study: Path, plain: Tables) -> None:
    pd.testing.assert_frame_equal(normstudy.load(str(study)).runs, plain.runs)


def test_outcome_of_every_run(plain: Tables) -> None:
    bad = plain.runs[(plain.runs["placement"] == "post") & (plain.runs["warmup_steps"] == 0)].sort_values("seed")
    assert bad["outcome"].tolist() == ["diverged", "stuck", None]
    assert bad["status"].tolist() == ["done", "done", "failed"]
    rest = plain.runs.drop(bad.index)
    assert set(rest["outcome"]) == {"learned"}
    assert len(bad) == len(BAD)


def test_gap_closed_and_bits_per_byte(plain: Tables, study: Path) -> None:
    run = plain.runs[plain.runs["outcome"] == "learned"].iloc[0]
    assert run["gap_closed"] == pytest.approx((H1 - run["final_val_loss"]) / (H1 - H2))
    assert run["bits_per_byte"] == pytest.approx(run["final_val_loss"] / 0.6931471805599453)
    assert plain.runs.loc[plain.runs["outcome"] == "diverged", "gap_closed"].isna().all()


def test_bits_per_byte_counts_the_bytes_of_a_token(study: Path) -> None:
    from normstudy.analysis.load import derive

    runs = store.read(study, "runs").assign(bytes_per_token=2.0, final_val_loss=math.log(4))
    assert derive(runs, {})["bits_per_byte"].to_numpy() == pytest.approx(1.0)


def test_update_ratio_is_null_where_the_parameters_are_zero(plain: Tables) -> None:
    zero = plain.modules["param_norm"] == 0
    assert zero.any()
    assert plain.modules.loc[zero, "update_ratio"].isna().all()
    rest = plain.modules[~zero]
    np.testing.assert_array_equal(rest["update_ratio"], rest["update_norm"] / rest["param_norm"])
    assert np.isfinite(rest["update_ratio"]).all()


@pytest.mark.parametrize("table", SERIES)
def test_join_adds_the_varying_columns_the_usual_ones_and_the_outcome(
    plain: Tables, joined: Tables, table: str
) -> None:
    frame = getattr(joined, table)
    added = [c for c in frame if c not in getattr(plain, table)]
    # n_layers and peak_lr do not vary in this study but are always joined; norm does not vary and is not joined
    assert added == ["seed", "data_seed", "placement", "n_layers", "peak_lr", "warmup_steps", "outcome"]
    pd.testing.assert_frame_equal(frame[list(getattr(plain, table))], getattr(plain, table))
    runs = plain.runs.set_index("run_id")
    for column in ("seed", "placement", "peak_lr", "warmup_steps"):
        assert (frame[column].to_numpy() == runs.loc[frame["run_id"], column].to_numpy()).all()
    assert set(frame.loc[frame["outcome"] == "stuck", "placement"]) == {"post"}


def test_join_adds_any_column_that_varies(tmp_path: Path) -> None:
    for norm in ("layernorm", "rmsnorm"):
        write_handmade_run(tmp_path / "s", handmade_config(tmp_path, norm=norm))
    assert set(normstudy.load(tmp_path / "s", join=True).steps["norm"]) == {"layernorm", "rmsnorm"}


def test_a_running_study_loads(tmp_path: Path) -> None:
    store.prepare(tmp_path / "s")
    assert all(len(t) == 0 for t in normstudy.load(tmp_path / "s", join=True))
    write_handmade_run(tmp_path / "s", handmade_config(tmp_path), "running")
    tables = normstudy.load(tmp_path / "s", join=True)
    assert tables.runs["outcome"].tolist() == [None]
    assert len(tables.steps) == 30
    assert tables.steps["outcome"].isna().all()


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a study"):
        normstudy.load(tmp_path)


def test_importing_normstudy_imports_nothing_heavy_and_loading_no_torch(study: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import normstudy\n"
        "assert not {'numpy', 'pandas', 'pyarrow', 'scipy'} & set(sys.modules), 'heavy'\n"
        f"assert len(normstudy.load({str(study)!r}).runs) == 12\n"
        "import normstudy.analysis.compare, normstudy.upkeep.compact"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

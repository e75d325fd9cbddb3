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
from normstudy.analysis.load import Tables, stationary_rms, update_rms
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
    assert list(plain.steps)[-1] == "update_rms"
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


def test_update_rms_is_per_parameter_and_null_where_the_rate_is_zero(plain: Tables) -> None:
    """An update of 4 norms in 16 parameters at a rate of 0.5 is 4 / (0.5 * 4)."""
    steps = pd.DataFrame({"update_norm": [4.0, 0.0, 4.0], "lr": [0.5, 0.5, 0.0]}, dtype=np.float32)
    found = update_rms(steps, 16)
    assert found.dtype == np.float32
    assert found[:2].tolist() == [2.0, 0.0]
    assert np.isnan(found[2])
    assert update_rms(steps, pd.Series([4, 16, 64]))[0] == 4.0
    # every hand-made update has norm 300 lr, and the models have 20,000 parameters
    assert set(plain.runs["n_params"]) == {20_000}
    np.testing.assert_allclose(plain.steps["update_rms"], 300 / math.sqrt(20_000), rtol=1e-6)


def test_each_run_has_its_own_number_of_parameters(tmp_path: Path) -> None:
    for n_layers in (1, 4):
        write_handmade_run(tmp_path / "s", handmade_config(tmp_path, n_layers=n_layers))
    found = normstudy.load(tmp_path / "s", join=True).steps.groupby("n_layers")["update_rms"].agg(["min", "max"])
    np.testing.assert_allclose(found.loc[1], 300 / math.sqrt(10_000), rtol=1e-6)
    np.testing.assert_allclose(found.loc[4], 300 / math.sqrt(40_000), rtol=1e-6)


def test_the_stationary_law_is_that_of_adam_on_noise() -> None:
    """The momentum of 200,000 draws of noise, divided by the root of its second moment, against the law."""
    noise = np.random.default_rng(0).normal(size=200_000)
    for beta1 in (0.0, 0.9):
        found, momentum = [], 0.0
        for g in noise:
            momentum = beta1 * momentum + (1 - beta1) * g
            found.append(momentum)
        assert np.sqrt(np.mean(np.square(found))) == pytest.approx(stationary_rms(beta1), rel=0.02)
    assert f"{stationary_rms(0.9):.3f}" == "0.229"


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

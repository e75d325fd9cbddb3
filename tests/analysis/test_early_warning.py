"""The early warning: its quantities of hand-made runs, the AUC, the thresholds and what they are learned from."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import handmade_config, write_handmade_run
from pictures import assert_committed

from normstudy.analysis import early_warning as warning
from normstudy.config import ProbeConfig
from normstudy.figures import curves
from normstudy.study import tables

RESULTS = Path(__file__).parents[2] / "results"


def made(cells: int = 4, seeds: int = 3) -> pd.DataFrame:
    """One row a run at step 30. In odd cells the runs are stuck; no two runs have equal values."""
    rows = [
        {"study": "made", "run_id": f"r{cell}{seed}", "losses": f"{cell} {seed}", "placement": "post",
         "cell": f"post-L{cell}", "seed": seed, "warmup_steps": 0, "stuck": cell % 2 == 1, "step": 30,
         "gradient_ratio": 0.001 + 0.01 * seed + 0.0001 * cell + 0.1 * cell * (cell % 2 == 0),
         "update_rms": 0.2 + 0.001 * cell + 0.01 * seed, "train_loss": 3.0 - 0.1 * cell + 0.01 * seed}
        for cell, seed in itertools.product(range(1, cells + 1), range(seeds))
    ]  # fmt: skip
    return pd.DataFrame(rows)


# ---- the quantities -----------------------------------------------------------------------------------


def test_the_quantities_of_a_run_are_those_of_its_tables(tmp_path: Path) -> None:
    study = tmp_path / "handmade"
    for fate, seed in (("learned", 0), ("stuck", 1), ("failed", 2), ("diverged", 3)):
        write_handmade_run(study, handmade_config(tmp_path, n_layers=4, seed=seed, warmup_steps=10), fate)
    write_handmade_run(study, handmade_config(tmp_path, n_layers=1))  # it has no ratio
    found = warning.observations(study)
    assert dict(found.groupby("seed")["stuck"].agg(set)) == {0: {False}, 1: {True}, 3: {False}}  # failed: no outcome
    modules, steps = tables.read(study, "modules"), tables.read(study, "steps")
    for row in found[found["step"] % 7 == 0].itertuples():
        mine = modules[(modules["run_id"] == row.run_id) & (modules["step"] == row.step)]
        norm = mine[mine["module"] == "mlp_out"].set_index("layer")["grad_norm"].astype(float)
        step = steps[(steps["run_id"] == row.run_id) & (steps["step"] == row.step)].iloc[0]
        assert row.gradient_ratio == pytest.approx(norm[0] / norm[3])
        assert row.update_rms == pytest.approx(step["update_norm"] / (step["lr"] * math.sqrt(40_000)))
        assert row.train_loss == step["train_loss"]


def test_a_run_counts_once_and_has_the_probed_steps_of_all_its_copies(tmp_path: Path) -> None:
    """The copy has another run_id. It alone is probed at step 50, and the first one alone at step 40."""
    config = handmade_config(tmp_path)
    sparse = replace(config, probe=ProbeConfig(dense_steps=25, every=25))
    other = handmade_config(tmp_path, seed=1)
    for name, configs in (("a", [config, other]), ("b", [sparse])):
        for one in configs:
            write_handmade_run(tmp_path / name, replace(one, study=name))
    both = [warning.observations(tmp_path / name) for name in "ab"]
    assert {len(set(part["run_id"])) for part in both} == {1, 2}
    for parts in (both, both[::-1]):
        found = warning.distinct(pd.concat(parts))
        assert found.groupby("seed")["losses"].nunique().tolist() == [1, 1]
        steps = found[found["seed"] == 0]["step"]
        assert steps.is_unique
        assert {40, 50, 59} <= set(steps)
        assert set(found[found["seed"] == 1]["step"]) == set(both[0][both[0]["seed"] == 1]["step"])


def test_a_row_that_is_not_finite_is_dropped_and_a_gradient_of_0_is_not() -> None:
    rows = made().assign(gradient_ratio=[np.nan, np.inf, 0.0, *[1.0] * 9])
    assert len(warning.distinct(rows)) == 10
    assert np.isfinite(warning.suspicion(warning.distinct(rows), "gradient_ratio")).all()


def test_a_run_is_looked_at_after_its_warmup() -> None:
    rows = made(2, 1).loc[[0] * 5].assign(step=[0, 10, 24, 50, 75])
    for warmup_steps, seen in ((0, [0, 24, 50]), (24, [24, 50]), (25, [50]), (76, [])):
        warmed = rows.assign(warmup_steps=warmup_steps)
        assert [step for step in warning.STEPS if len(warning.at_step(warmed, step))] == seen
        first = [step for step in (24, 50, 75) if step >= warmup_steps][:1]
        assert warning.at_step(warmed, None)["step"].tolist() == first


# ---- AUC ----------------------------------------------------------------------------------------------


def test_the_auc_counts_pairs_and_ties_half() -> None:
    stuck, score = np.array([True, True, False, False]), np.array([3.0, 1.0, 1.0, 0.0])
    assert warning.auc(stuck, score, np.ones((1, 4))) == [3.5 / 4]
    weights = np.array([[2.0, 1, 1, 1], [0, 1, 2, 0], [0, 0, 1, 1]])
    assert warning.auc(stuck, score, weights)[:2].tolist() == [5.5 / 6, 0.5]
    assert math.isnan(warning.auc(stuck, score, weights)[2])
    assert warning.auc(stuck, -score, np.ones((1, 4))) == [0.5 / 4]


def test_the_interval_is_the_same_in_any_order_and_its_cells_are_drawn_whole() -> None:
    rng = np.random.default_rng(5)
    score, cells = rng.normal(size=60), np.repeat([f"c{i}" for i in range(12)], 5)
    stuck = rng.random(60) < 1 / (1 + np.exp(-score))
    found = warning.auc_interval(stuck, score, cells)
    assert found[1] < found[0] < found[2]
    for _ in range(3):
        order = rng.permutation(60)
        assert warning.auc_interval(stuck[order], score[order], cells[order]) == found
    copies = warning.auc_interval(np.repeat(stuck, 3), np.repeat(score, 3), np.repeat(cells, 3))
    assert copies == pytest.approx(found)  # copies within the cells add no certainty
    assert all(map(math.isnan, warning.auc_interval(np.ones(60, bool), score, cells)))


# ---- thresholds ---------------------------------------------------------------------------------------


def test_the_threshold_separates_best_and_flags_few() -> None:
    stuck = np.array([True, True, False, False, True])
    assert warning.threshold(stuck, np.array([5.0, 3.0, 2.0, 1.0, 0.0])) == 2.5
    assert warning.threshold(stuck[:4], np.array([0.0, 1.0, 2.0, 3.0])) == math.inf
    assert warning.threshold(stuck[:2], np.array([0.0, 1.0])) == math.inf
    # One of two stuck runs and none of the others is as good as both stuck runs and one of the two others.
    assert warning.threshold(np.array([True, False, True, False]), np.array([4.0, 3.0, 2.0, 1.0])) == 3.5


def test_no_run_of_the_held_out_cell_or_seed_is_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, learned, plain = made(), list[set[float]](), warning.threshold
    score = warning.suspicion(rows, "gradient_ratio")
    monkeypatch.setattr(warning, "threshold", lambda s, x: learned.append(set(x)) or plain(s, x))
    flags = warning.flagged(rows, score)
    assert len(set(score)) == len(rows)
    cell, seed = rows["cell"].to_numpy(), rows["seed"].to_numpy()
    expected = [set(score[(cell != c) & (seed != s)]) for c, s in itertools.product(set(cell), set(seed))]
    assert sorted(map(sorted, learned)) == sorted(map(sorted, expected))
    assert (flags == rows["stuck"]).all()


def test_the_table_counts_by_placement_and_each_kind_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made()
    calm = rows.assign(
        placement="pre", cell="pre" + rows["cell"], losses=rows["losses"] + "pre", stuck=False, gradient_ratio=1.0
    )
    found = {"grid": pd.concat([rows, calm]), "search": made(2).assign(losses=[f"search {i}" for i in range(6)])}
    monkeypatch.setattr(warning, "observations", lambda folder: found[folder.name])
    table = warning.measure({"grids": [Path("grid")], "searches": [Path("search")]})
    first = table[table["step"].isna() & (table["quantity"] == "gradient_ratio")].set_index(["kind", "placement"])
    assert set(first.index) == {("grids", "all"), ("grids", "post"), ("searches", "all"), ("searches", "post")}
    assert first.loc[("grids", "all"), ["runs", "cells", "stuck", "stuck_cells"]].tolist() == [24, 8, 6, 2]
    assert first.loc[("grids", "post"), ["runs", "cells", "stuck", "caught", "false"]].tolist() == [12, 4, 6, 6, 0]
    assert first.loc[("searches", "all"), ["runs", "cells", "stuck"]].tolist() == [6, 2, 3]
    assert first.loc[("grids", "all"), ["auc", "low", "high"]].tolist() == [1, 1, 1]
    rule = warning.rule_of(table)
    assert (rule["step"], rule["looked"], rule["stuck"]) == (24, 6, 6)
    assert 0.021 < rule["threshold"] < 0.201
    lines = warning.markdown(table, missed=True).splitlines()
    assert "| grids | first from 24 | `post` | 6 of 6 | 0 of 6 |" in lines


# ---- the committed table ------------------------------------------------------------------------------


def test_the_figure_has_the_same_bytes_again(tmp_path: Path) -> None:
    table = pd.read_parquet(RESULTS / "robustness" / "early_warning.parquet")
    for name in ("one.png", "two.png"):
        curves.early_warning(table, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert_committed(RESULTS / "robustness" / "early_warning.png", tmp_path / "one.png")


@pytest.mark.committed
def test_the_committed_studies_give_the_committed_table() -> None:
    kinds = {kind: [RESULTS / name for name in names] for kind, names in warning.STUDIES.items()}
    table = pd.read_parquet(RESULTS / "robustness" / "early_warning.parquet")
    pd.testing.assert_frame_equal(warning.measure(kinds), table, rtol=1e-9)

"""The paired comparison on hand-made studies: cells, pairs, counts, and the interval against scipy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from handmade import handmade_config, handmade_rows, handmade_study, target_loss, write_handmade_run

from normstudy.analysis.compare import FORMATS, WIDTH, compare_study, render
from normstudy.analysis.outcomes import counts_text
from normstudy.analysis.pairs import cell_columns, compare_pairs, counted_loss, paired_t_interval, verdict
from normstudy.config import ConfigError, RunConfig
from normstudy.study import tables as store
from normstudy.upkeep.compact import compact_study

SEEDS = (0, 1, 2, 3, 4)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pre and post, 2 and 4 layers, two rates, warmup 0 and 20, 5 seeds; the bad cell is post L4 3e-3 warmup 0.

    Compacted: it is read forty times, and eighty small files take longer than one large.
    """
    folder = handmade_study(tmp_path_factory.mktemp("study"), seeds=SEEDS)
    compact_study(folder)
    return folder


def cell(comparison: pd.DataFrame, **values: object) -> pd.Series:
    """The one row that has these values."""
    keep = np.logical_and.reduce([comparison[c] == v for c, v in values.items()])
    assert keep.sum() == 1
    return comparison[keep].iloc[0]


@pytest.mark.parametrize("seed", range(20))
def test_interval_equals_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arm, base = rng.normal(2.0, 0.1, (2, 2 + seed))
    mean, low, high = paired_t_interval(arm - base)
    wanted = scipy.stats.ttest_1samp(arm - base, 0).confidence_interval(0.95)
    paired = scipy.stats.ttest_rel(arm, base).confidence_interval(0.95)
    assert mean == pytest.approx((arm - base).mean(), rel=1e-12)
    assert (low, high) == pytest.approx((wanted.low, wanted.high), rel=1e-12)
    assert (low, high) == pytest.approx((paired.low, paired.high), rel=1e-12)


def test_interval_by_hand() -> None:
    # differences 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.3027, half width 4.3027 / sqrt(3)
    mean, low, high = paired_t_interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)


def test_one_pair_has_a_difference_and_no_interval() -> None:
    mean, low, high = paired_t_interval(np.array([0.5]))
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    assert all(math.isnan(v) for v in paired_t_interval(np.array([])))


@pytest.mark.parametrize(
    ("pairs", "low", "high", "expected"),
    [
        (5, -2.0, -0.1, "lower"),
        (5, 0.1, 2.0, "higher"),
        (5, -0.1, 0.1, "no difference shown"),
        (5, 0.0, 0.1, "no difference shown"),
        (5, -0.1, 0.0, "no difference shown"),
        (4, 0.1, 2.0, "few seeds"),
        (1, math.nan, math.nan, "few seeds"),
        (0, math.nan, math.nan, "no pairs"),
    ],
)
def test_verdict(pairs: int, low: float, high: float, expected: str) -> None:
    assert verdict(pairs, low, high) == expected


def test_cells_hold_everything_but_the_field_the_seeds_and_what_is_measured() -> None:
    columns = cell_columns("warmup_steps")
    assert {"placement", "n_layers", "peak_lr", "n_steps", "init", "d_ff", "data", "data_sha256"} <= set(columns)
    assert not {"warmup_steps", "seed", "data_seed", "study", "data_path", "run_id", "n_params"} & set(columns)
    assert not {"probe_every", "probe_dense_steps", "eval_every", "eval_windows"} & set(columns)
    assert "peak_lr" not in cell_columns("peak_lr")


def test_cells_are_the_varying_columns_in_order(study: Path) -> None:
    comparison = compare_study(study, by="warmup_steps")
    assert list(comparison.columns[:4]) == ["placement", "n_layers", "peak_lr", "by"]
    places = list(zip(*(comparison[c] for c in ("placement", "n_layers", "peak_lr")), strict=True))
    assert places == [(p, n, r) for p in ("post", "pre") for n in (2, 4) for r in (1e-3, 3e-3)]
    assert set(comparison["by"]) == {"warmup_steps"}
    assert set(comparison["arm"]) == {20}
    assert set(comparison["baseline"]) == {0}


def test_difference_is_arm_minus_baseline_seed_by_seed(study: Path, tmp_path: Path) -> None:
    row = cell(compare_study(study, by="placement"), n_layers=4, peak_lr=1e-3, warmup_steps=0)
    losses = {
        placement: np.array(
            [target_loss(handmade_config(tmp_path, placement=placement, n_layers=4, seed=s)) + 0.01 for s in SEEDS]
        )
        for placement in ("pre", "post")
    }
    assert (row["arm"], row["baseline"]) == ("pre", "post")
    assert row["difference"] == pytest.approx(-0.4, abs=1e-12)
    assert row["loss"] == pytest.approx(losses["pre"].mean(), rel=1e-12)
    assert row["baseline_loss"] == pytest.approx(losses["post"].mean(), rel=1e-12)
    assert (row["pairs"], row["unpaired"], row["failed"]) == (5, 0, 0)
    assert (row["outcomes"], row["baseline_outcomes"], row["verdict"]) == ("5 learned", "5 learned", "lower")


def test_failed_runs_are_counted_and_their_partners_are_unpaired(study: Path, tmp_path: Path) -> None:
    row = cell(compare_study(study, by="warmup_steps"), placement="post", n_layers=4, peak_lr=3e-3)
    assert (row["pairs"], row["unpaired"], row["failed"]) == (4, 1, 1)
    assert row["baseline_outcomes"] == "2 learned 1 stuck 1 diverged"
    assert row["outcomes"] == "5 learned"
    assert row["verdict"] == "few seeds"
    # the diverged run counts as its loss at step 0, in the mean and in the interval
    base = {s: handmade_config(tmp_path, placement="post", n_layers=4, peak_lr=3e-3, seed=s) for s in SEEDS}
    at_init = float(np.float32(handmade_rows(base[0], "diverged")[0]["steps"]["val_loss"][0]))  # type: ignore[arg-type]
    stuck = handmade_rows(base[1], "stuck")[1]
    losses = [at_init, stuck, *(target_loss(base[s]) + 0.01 for s in (3, 4))]
    assert row["baseline_loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    arm = [
        target_loss(handmade_config(tmp_path, placement="post", n_layers=4, peak_lr=3e-3, warmup_steps=20, seed=s))
        + 0.01
        for s in (0, 1, 3, 4)
    ]
    wanted = scipy.stats.ttest_rel(arm, losses).confidence_interval(0.95)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((wanted.low, wanted.high), rel=1e-9)


def test_baseline_is_the_smallest_number_or_the_first_text_or_what_is_asked(study: Path) -> None:
    assert set(compare_study(study, by="peak_lr")["baseline"]) == {0.001}
    assert set(compare_study(study, by="placement")["baseline"]) == {"post"}
    asked = compare_study(study, by="peak_lr", baseline="3e-3")
    assert set(asked["baseline"]) == {0.003}
    assert set(asked["arm"]) == {0.001}
    usual = compare_study(study, by="peak_lr")
    np.testing.assert_allclose(asked["difference"], -usual["difference"])
    np.testing.assert_allclose(asked["ci_low"], -usual["ci_high"])


def tables(root: Path, *runs: tuple[RunConfig, str, float | None]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables `runs` and `steps` of a study with these runs; a run is its config, fate and final validation loss."""
    for config, fate, loss in runs:
        write_handmade_run(root / "handmade", config, fate, loss)
    return store.read(root / "handmade", "runs"), store.read(root / "handmade", "steps")


def test_unpaired_seeds(tmp_path: Path) -> None:
    losses = {(0, 0): 2.0, (0, 1): 2.1, (0, 2): 2.2, (20, 1): 1.6, (20, 2): 1.9, (20, 3): 9.0, (20, 4): 9.0}
    made = [(handmade_config(tmp_path, warmup_steps=w, seed=s), "learned", v) for (w, s), v in losses.items()]
    row = compare_pairs(*tables(tmp_path, *made), "warmup_steps").iloc[0]
    assert (row["pairs"], row["unpaired"]) == (2, 3)
    assert row["difference"] == pytest.approx(-0.4)
    assert row["loss"] == pytest.approx(1.75)  # runs without a partner are in neither mean
    assert row["baseline_loss"] == pytest.approx(2.15)
    assert row["outcomes"] == "2 learned 2 diverged"  # but their outcomes are listed


def test_pairs_share_the_data_seed_too(tmp_path: Path) -> None:
    a, b = (handmade_config(tmp_path, warmup_steps=w) for w in (0, 20))
    b.data_seed = 7
    row = compare_pairs(*tables(tmp_path, (a, "learned", 2.0), (b, "learned", 1.0)), "warmup_steps").iloc[0]
    assert (row["pairs"], row["unpaired"], row["verdict"]) == (0, 2, "no pairs")
    assert math.isnan(row["difference"])


def test_running_runs_take_no_part(tmp_path: Path) -> None:
    made = [(handmade_config(tmp_path, warmup_steps=w, seed=s), "learned", 2.0) for w in (0, 20) for s in (0, 1)]
    made.append((handmade_config(tmp_path, warmup_steps=40), "running", None))
    comparison = compare_pairs(*tables(tmp_path, *made), "warmup_steps")
    assert comparison["arm"].tolist() == [20]
    assert comparison["pairs"].tolist() == [2]


def test_a_cell_without_one_of_the_arms_keeps_its_row(tmp_path: Path) -> None:
    made = [(handmade_config(tmp_path, warmup_steps=w, seed=s), "learned", 2.0) for w in (0, 20) for s in (0, 1)]
    made.append((handmade_config(tmp_path, warmup_steps=0, n_layers=4), "learned", 2.0))
    made.append((handmade_config(tmp_path, warmup_steps=20, n_layers=6), "learned", 2.0))
    comparison = compare_pairs(*tables(tmp_path, *made), "warmup_steps")
    assert comparison["n_layers"].tolist() == [2, 4, 6]
    assert comparison["pairs"].tolist() == [2, 0, 0]
    assert comparison["unpaired"].tolist() == [0, 1, 1]
    assert comparison["outcomes"].tolist() == ["2 learned", "", "1 learned"]
    assert "none" in render(comparison, "table")


def test_a_run_repeated_with_other_probe_settings_counts_once(tmp_path: Path) -> None:
    a, a2, b = (handmade_config(tmp_path, warmup_steps=w) for w in (0, 0, 20))
    a2.probe.every = 1
    row = compare_pairs(
        *tables(tmp_path, (a, "learned", 2.0), (a2, "learned", 2.0), (b, "learned", 1.5)), "warmup_steps"
    ).iloc[0]
    assert (row["pairs"], row["unpaired"], row["baseline_outcomes"]) == (1, 0, "1 learned")


def test_pairs_prefer_equal_evaluations(tmp_path: Path) -> None:
    a, a2, b = (handmade_config(tmp_path, warmup_steps=w) for w in (0, 0, 20))
    a2.eval.windows = 128
    both = tables(tmp_path, (a, "learned", 2.0), (a2, "learned", 9.0), (b, "learned", 1.5))
    assert compare_pairs(*both, "warmup_steps").iloc[0]["difference"] == pytest.approx(-0.5)


def test_no_pair_mixes_texts(tmp_path: Path) -> None:
    made = [(handmade_config(tmp_path, warmup_steps=w, seed=s), "learned", 2.0) for w in (0, 20) for s in (0, 1)]
    runs, steps = tables(tmp_path, *made)
    runs.loc[(runs["warmup_steps"] == 20) & (runs["seed"] == 1), "data_sha256"] = "6" * 64
    comparison = compare_pairs(runs, steps, "warmup_steps")
    assert comparison.columns[0] == "data_sha256"  # no other column distinguishes the two texts
    assert comparison["pairs"].tolist() == [1, 0]
    assert comparison["unpaired"].tolist() == [1, 1]
    assert "5" * 10 in render(comparison, "table")
    assert "5" * 11 not in render(comparison, "table")


def test_a_text_is_shown_by_its_sha256_only_where_no_other_column_tells(tmp_path: Path) -> None:
    made = [(handmade_config(tmp_path, warmup_steps=w, seed=s), "learned", 2.0) for w in (0, 20) for s in (0, 1)]
    runs, steps = tables(tmp_path, *made)
    other = runs.assign(data="pydoc", data_sha256="6" * 64, run_id=runs["run_id"] + "x")
    steps = pd.concat([steps, steps.assign(run_id=steps["run_id"] + "x")])
    comparison = compare_pairs(pd.concat([runs, other], ignore_index=True), steps, "warmup_steps")
    assert comparison.columns[0] == "data"
    assert "data_sha256" not in comparison
    with pytest.raises(ConfigError, match="different texts"):
        compare_pairs(pd.concat([runs, other], ignore_index=True), steps, "data")


def test_a_null_value_is_a_value(tmp_path: Path) -> None:
    made = []
    for limit, loss in ((None, 2.0), (1.0, 2.5), (0.5, 3.0)):
        config = handmade_config(tmp_path)
        config.optimizer.max_grad_norm = limit
        made.append((config, "learned", loss))
    runs, steps = tables(tmp_path, *made)
    comparison = compare_pairs(runs, steps, "max_grad_norm")
    assert comparison["baseline"].tolist() == [None, None]
    assert comparison["arm"].tolist() == [0.5, 1.0]
    assert comparison["difference"].tolist() == pytest.approx([1.0, 0.5])
    turned = compare_pairs(runs, steps, "max_grad_norm", baseline="0.5")
    assert turned["arm"].tolist() == [None, 1.0]
    assert json.loads(render(turned, "json"))[0]["arm"] is None


def test_null_and_number_are_two_cells(tmp_path: Path) -> None:
    made = []
    for warmup in (0, 20):
        for d_ff in (None, 128):
            config = handmade_config(tmp_path, warmup_steps=warmup)
            config.model.d_ff = d_ff
            made.append((config, "learned", 2.0))
    comparison = compare_pairs(*tables(tmp_path, *made), "warmup_steps")
    assert comparison["pairs"].tolist() == [1, 1]
    assert [r["d_ff"] for r in json.loads(render(comparison, "json"))] == [128, None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_counts_as_the_loss_at_step_0(bad: float) -> None:
    runs = pd.DataFrame({"run_id": ["a", "b"], "final_val_loss": [bad, 2.0], "ln_vocab": [5.5, 5.5]})
    steps = pd.DataFrame({"run_id": ["a", "a", "b"], "step": [1, 0, 0], "val_loss": [1.0, 5.75, 6.0]})
    assert counted_loss(runs, steps).tolist() == [5.75, 2.0]
    steps["val_loss"] = np.inf
    assert counted_loss(runs, steps).tolist() == [5.5, 2.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: compare_study(d / "nowhere", by="norm"), ["nowhere does not exist", "results/warmup"]),
        (lambda d: compare_study(d.parent, by="norm"), ["is not a study"]),
        (lambda d: compare_study(d, by="warmup_step"), ["--by", "'warmup_step'", "Did you mean warmup_steps?"]),
        (lambda d: compare_study(d, by="zzz"), ["--by", "'zzz'", "placement, norm"]),
        (lambda d: compare_study(d, by="seed"), ["--by", "'seed'"]),
        (lambda d: compare_study(d, by="norm"), ["--by norm does not vary", "layernorm"]),
        (lambda d: compare_study(d, by="max_grad_norm"), ["does not vary", "null"]),
        (lambda d: compare_study(d, by="warmup_steps", where={"warmup_steps": "20"}), ["does not vary", "20"]),
        (lambda d: compare_study(d, by="peak_lr", baseline="1e-2"), ["--baseline 1e-2", "0.001, 0.003"]),
        (lambda d: compare_study(d, by="peak_lr", baseline="x"), ["--baseline", "must be a number, not 'x'"]),
        (lambda d: compare_study(d, by="placement", baseline="prre"), ["--baseline prre", "Did you mean pre?"]),
        (lambda d: compare_study(d, by="norm", where={"placement": "past"}), ["--where placement=past", "post, pre"]),
        (lambda d: render(compare_study(d, by="placement"), "tabel"), ["--format 'tabel'", "Did you mean table?"]),
    ],
)
def test_bad_requests_are_one_line(study: Path, call: Callable[[Path], object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as e:
        call(study)
    assert "\n" not in str(e.value)
    for word in words:
        assert word in str(e.value)


def test_a_study_without_finished_runs(tmp_path: Path) -> None:
    store.prepare(tmp_path)
    with pytest.raises(ConfigError, match="no finished run"):
        compare_study(tmp_path, by="placement")
    for placement in ("pre", "post"):
        write_handmade_run(tmp_path, handmade_config(tmp_path, placement=placement), "failed")
    with pytest.raises(ConfigError, match="no finished run"):
        compare_study(tmp_path, by="placement")


def test_where_chooses_the_runs(study: Path) -> None:
    comparison = compare_study(study, by="warmup_steps", where={"peak_lr": "3e-3", "placement": "pre"})
    assert list(comparison.columns[:2]) == ["n_layers", "by"]
    assert comparison["n_layers"].tolist() == [2, 4]


@pytest.mark.parametrize("by", ["warmup_steps", "placement", "n_layers", "peak_lr"])
def test_the_table_fits_and_says_what_it_shows(study: Path, by: str) -> None:
    comparison = compare_study(study, by=by)
    text = render(comparison, "table")
    assert max(map(len, text.splitlines())) <= WIDTH
    flat = " ".join(text.split())
    for words in (f"by {by}", "a run's loss minus the baseline's", "95 % paired t intervals over seeds"):
        assert words in flat
    assert text.count("few seeds") == (comparison["verdict"] == "few seeds").sum()
    assert "1 failed" in text
    assert "1 unpaired" in text
    assert "Every run is in a pair" not in flat


def test_the_table_in_full(study: Path) -> None:
    where = {"peak_lr": "3e-3", "n_layers": "4"}
    lines = render(compare_study(study, by="warmup_steps", where=where), "table").splitlines()
    expected = """
placement  warmup_  outcomes     loss  difference [95 %]        pairs  verdict
             steps
post             0  2 learned   3.464
                    1 stuck
                    1 diverged
                20  5 learned   2.142  -1.323 [-3.788, +1.143]      4  few seeds
                                                                       1 unpaired
                                                                       1 failed
pre              0  5 learned   2.041
                20  5 learned   2.041  +0.000 [+0.000, +0.000]      5  no difference shown
"""
    assert lines[lines.index("") + 1 :] == expected.strip("\n").splitlines()


def test_a_complete_study_says_so(study: Path) -> None:
    text = render(compare_study(study, by="warmup_steps", where={"placement": "pre"}), "table")
    assert "Every run is in a pair, and none failed." in " ".join(text.split())


def test_the_four_formats_hold_the_same_numbers(study: Path, tmp_path: Path) -> None:
    comparison = compare_study(study, by="warmup_steps")
    assert FORMATS == ("table", "csv", "json", "markdown")
    records = json.loads(render(comparison, "json"))
    (tmp_path / "c.csv").write_text(render(comparison, "csv"))
    from_csv = pd.read_csv(tmp_path / "c.csv")
    assert list(from_csv.columns) == list(comparison.columns) == list(records[0])
    for column in ("difference", "ci_low", "ci_high", "loss", "pairs", "arm"):
        np.testing.assert_allclose(from_csv[column], np.array([r[column] for r in records], float), rtol=1e-14)
        np.testing.assert_allclose(from_csv[column], comparison[column].to_numpy(float), rtol=1e-14)
    markdown = [line for line in render(comparison, "markdown").splitlines() if line.startswith("|")]
    assert len(markdown) == 2 + len(comparison)
    assert len({line.count("|") for line in markdown}) == 1


def test_rendering_twice_gives_the_same_text(study: Path) -> None:
    one, two = compare_study(study, by="n_layers"), compare_study(study, by="n_layers")
    for fmt in FORMATS:
        assert render(one, fmt) == render(two, fmt)


def test_counts_text_is_what_a_cell_says() -> None:
    assert counts_text(["stuck"] * 5) == "5 stuck"

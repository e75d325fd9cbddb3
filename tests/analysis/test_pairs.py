"""The comparison on hand-made studies: cells, pairs, shares, families of tests and verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from handmade import handmade_config, handmade_study, target_loss, write_handmade_run
from statsmodels.stats.multitest import multipletests

from normstudy.analysis.compare import FORMATS, WIDTH, compare_study, render
from normstudy.analysis.grid import Value
from normstudy.analysis.outcomes import counts_text
from normstudy.analysis.pairs import cell_columns, compare_pairs, default_baseline
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
    assert (row["arm"], row["baseline"]) == ("post", "pre")
    assert row["difference"] == pytest.approx(0.4, abs=1e-12)
    assert row["loss"] == pytest.approx(losses["post"].mean(), rel=1e-12)
    assert row["baseline_loss"] == pytest.approx(losses["pre"].mean(), rel=1e-12)
    assert (row["pairs"], row["compared"], row["unpaired"], row["crashed"]) == (5, 5, 0, 0)
    assert (row["outcomes"], row["baseline_outcomes"], row["loss_verdict"]) == ("5 learned", "5 learned", "higher")


def test_failed_runs_are_in_the_share_and_in_no_loss(study: Path, tmp_path: Path) -> None:
    """Of the baseline's five runs one crashed, one is stuck and one diverged."""
    row = cell(compare_study(study, by="warmup_steps"), placement="post", n_layers=4, peak_lr=3e-3)
    assert (row["pairs"], row["compared"], row["unpaired"]) == (4, 2, 1)
    assert (row["crashed"], row["baseline_crashed"]) == (0, 1)
    assert row["baseline_outcomes"] == "2 learned 1 stuck 1 diverged"
    assert row["outcomes"] == "5 learned"
    assert (row["failed"], row["runs"], row["baseline_failed"], row["baseline_runs"]) == (0, 5, 2, 4)
    wanted = scipy.stats.binomtest(2, 4).proportion_ci(0.95, "exact")
    assert (row["baseline_failed_low"], row["baseline_failed_high"]) == pytest.approx((wanted.low, wanted.high))
    assert row["failed_p"] == pytest.approx(scipy.stats.fisher_exact([[0, 5], [2, 2]]).pvalue)
    assert (row["loss_verdict"], row["failed_verdict"]) == ("few pairs", "no difference shown")
    made = {
        w: [
            target_loss(handmade_config(tmp_path, placement="post", n_layers=4, peak_lr=3e-3, warmup_steps=w, seed=s))
            for s in (3, 4)
        ]
        for w in (0, 20)
    }
    assert row["baseline_loss"] == pytest.approx(np.mean(made[0]) + 0.01, rel=1e-12)
    assert row["loss"] == pytest.approx(np.mean(made[20]) + 0.01, rel=1e-12)
    assert math.isnan(row["loss_p"])  # two pairs are no test


def of_fates(root: Path, *fates: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A study with one arm per argument, whose letters are the fates of its seeds: learned, stuck, x for diverged.

    The losses of learned runs rise by 0.1 per arm, with a little noise.
    """
    names = {"l": "learned", "s": "stuck", "x": "diverged"}
    noise = np.random.default_rng(0).normal(0, 0.01, (len(fates), max(map(len, fates))))
    made = [
        (handmade_config(root, seed=s, warmup_steps=20 * i), names[letter], 2 + 0.1 * i + noise[i, s])
        for i, letters in enumerate(fates)
        for s, letter in enumerate(letters)
    ]
    return tables(root, *((c, fate, loss if fate == "learned" else None) for c, fate, loss in made))


def test_two_arms_that_diverge_have_no_loss(tmp_path: Path) -> None:
    """Five runs that are not finite are not compared with five finite ones, nor with five others."""
    comparison = compare_pairs(*of_fates(tmp_path, "lllll", "xxxxx"), "warmup_steps")
    row = comparison.iloc[0]
    assert (row["failed"], row["compared"], row["failed_verdict"]) == (5, 0, "fails more often")
    assert comparison[["loss", "baseline_loss", "difference", "ci_low", "loss_p"]].isna().all(axis=None)
    assert row["loss_verdict"] == "no pairs"
    both = compare_pairs(*of_fates(tmp_path / "both", "xxxxx", "xxxxx"), "warmup_steps").iloc[0]
    assert math.isnan(both["failed_p"])
    assert (both["failed_verdict"], both["loss_verdict"], both["family"]) == ("all failed", "no pairs", 0)


def test_no_verdict_on_losses_where_the_shares_differ(tmp_path: Path) -> None:
    row = compare_pairs(*of_fates(tmp_path, "l" * 15, "l" * 6 + "s" * 9), "warmup_steps").iloc[0]
    assert (row["pairs"], row["compared"], row["family"]) == (15, 6, 2)
    assert row["failed_verdict"] == "fails more often"
    assert row["loss_holm"] < 0.001
    assert row["loss_verdict"] == "the shares differ"


def test_the_family_is_every_test_of_both_tables(tmp_path: Path) -> None:
    comparison = compare_pairs(*of_fates(tmp_path, "lllll", "lllll", "sssss", "llsll"), "warmup_steps")
    assert comparison["family"].tolist() == [3, 3, 3]  # two shares, and the loss of the one arm with five pairs
    p = [*comparison["failed_p"].dropna(), *comparison["loss_p"].dropna()]
    adjusted = [*comparison["failed_holm"].dropna(), *comparison["loss_holm"].dropna()]
    assert adjusted == pytest.approx(multipletests(p, method="holm")[1])
    assert comparison["failed_verdict"].tolist() == ["none failed", "fails more often", "no difference shown"]
    alone = compare_pairs(*of_fates(tmp_path / "alone", "llll", "ssss"), "warmup_steps").iloc[0]
    assert alone["failed_verdict"] == "fails more often"  # p is 2 / 70
    three = compare_pairs(*of_fates(tmp_path / "three", "lll", "sss"), "warmup_steps").iloc[0]
    assert three["failed_verdict"] == "too few seeds for a family of 1"  # p cannot be less than 2 / 20


def test_losses_may_differ_and_be_equivalent(tmp_path: Path) -> None:
    made = of_fates(tmp_path, "lllllll", "lllllll")
    assert compare_pairs(*made, "warmup_steps").iloc[0]["loss_verdict"] == "higher"
    both = compare_pairs(*made, "warmup_steps", margin=0.5).iloc[0]
    assert (both["family"], both["loss_verdict"]) == (2, "higher, equivalent within 0.5")
    assert compare_pairs(*made, "warmup_steps", margin=0.05).iloc[0]["loss_verdict"] == "higher"


@pytest.mark.parametrize(
    ("values", "baseline"),
    [
        (["admin", "post", "pre"], "pre"), ([None, 0.5, 1.0], None), (["full", "none", "per_head"], "none"),
        ([-1, 0, 20], 0), ([False, True], False), ([0.001, 0.003], 0.001), (["b2t", "post"], "b2t"),
    ],
)  # fmt: skip
def test_the_usual_baseline(values: list[Value], baseline: Value) -> None:
    assert default_baseline(values) is baseline


def test_the_baseline_is_the_usual_one_or_what_is_asked(study: Path) -> None:
    assert set(compare_study(study, by="peak_lr")["baseline"]) == {0.001}
    assert set(compare_study(study, by="placement")["baseline"]) == {"pre"}
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
    assert (row["pairs"], row["unpaired"], row["loss_verdict"]) == (0, 2, "no pairs")
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


def test_a_pair_is_evaluated_on_the_same_windows(tmp_path: Path) -> None:
    """Other windows change the losses of all seeds alike, which a test over seeds would call a difference."""
    a, a2, b, b2 = (handmade_config(tmp_path, warmup_steps=w) for w in (0, 0, 20, 20))
    a2.eval.windows = b2.eval.windows = 128
    other = tables(tmp_path / "other", (a2, "learned", 2.0), (b, "learned", 1.5))
    row = compare_pairs(*other, "warmup_steps").iloc[0]
    assert (row["pairs"], row["unpaired"], row["loss_verdict"]) == (0, 2, "no pairs")
    three = tables(tmp_path / "three", (a, "learned", 2.0), (a2, "learned", 9.0), (b, "learned", 1.5))
    assert compare_pairs(*three, "warmup_steps").iloc[0]["difference"] == pytest.approx(-0.5)
    runs = (a, "learned", 2.0), (a2, "learned", 2.1), (b, "learned", 1.5), (b2, "learned", 1.7)
    assert compare_pairs(*tables(tmp_path / "four", *runs), "warmup_steps").iloc[0]["difference"] == pytest.approx(-0.4)


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
    for limit, loss in ((None, 2.0), (1.0, 2.1), (0.5, 2.2)):
        config = handmade_config(tmp_path)
        config.optimizer.max_grad_norm = limit
        made.append((config, "learned", loss))
    runs, steps = tables(tmp_path, *made)
    comparison = compare_pairs(runs, steps, "max_grad_norm")
    assert comparison["baseline"].tolist() == [None, None]
    assert comparison["arm"].tolist() == [0.5, 1.0]
    assert comparison["difference"].tolist() == pytest.approx([0.2, 0.1])
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
def test_the_tables_fit_and_say_what_they_show(study: Path, by: str) -> None:
    comparison = compare_study(study, by=by, margin=0.01)
    text = render(comparison, "table")
    assert max(map(len, text.splitlines())) <= WIDTH
    flat = " ".join(text.split())
    for words in (
        f"Share of runs that failed (stuck, collapsed or diverged) by {by}", "exact 95 % intervals, not adjusted",
        f"p, adjusted for {comparison['family'].iloc[0]} test", "over the pairs in which neither run failed",
        "95 % paired t intervals over seeds, not adjusted", "lies within 0.01", "1 crashed", "1 unpaired",
    ):  # fmt: skip
        assert words in flat
    assert "lies within" not in render(compare_study(study, by=by), "table")


def test_the_tables_in_full(study: Path) -> None:
    where = {"peak_lr": "3e-3", "n_layers": "4"}
    text = render(compare_study(study, by="warmup_steps", where=where), "table")
    _, shares, _, losses = text.split("\n\n")
    expected = """
placement  warmup_  outcomes    failed [95 %]        p  Holm's  verdict
             steps                                           p
post             0  2 learned   2 of 4 [7, 93 %]
                    1 stuck
                    1 diverged
                    1 crashed
                20  5 learned   0 of 5 [0, 52 %]  0.17    0.33  no difference shown
pre              0  5 learned   0 of 5 [0, 52 %]
                20  5 learned   0 of 5 [0, 52 %]                none failed
"""
    assert shares.splitlines() == expected.strip("\n").splitlines()
    expected = """
placement  warmup_   loss  baseline's  difference [95 %]        pairs       p  Holm's  verdict
             steps                                                                  p
post            20  2.149       2.449  -0.300 [-0.300, -0.300]  2 of 4                 few pairs
                                                                1 unpaired
pre             20  2.041       2.041  +0.000 [+0.000, +0.000]  5 of 5      1       1  no difference
                                                                                       shown
"""
    assert losses.splitlines() == expected.strip("\n").splitlines()


def test_cells_that_do_not_fit_have_lines_of_their_own(study: Path) -> None:
    text = render(compare_study(study, by="warmup_steps", margin=0.01), "table").split("\n\n")[3]
    expected = """
placement=post n_layers=4 peak_lr=0.003
     20  2.149       2.449  -0.300 [-0.300, -0.300]  2 of 4                         few pairs
                                                     1 unpaired
placement=pre n_layers=2 peak_lr=0.001
"""
    assert text.splitlines()[11:15] == expected.strip("\n").splitlines()


def test_the_four_formats_hold_the_same_numbers(study: Path, tmp_path: Path) -> None:
    comparison = compare_study(study, by="warmup_steps")
    assert FORMATS == ("table", "csv", "json", "markdown")
    records = json.loads(render(comparison, "json"))
    (tmp_path / "c.csv").write_text(render(comparison, "csv"))
    from_csv = pd.read_csv(tmp_path / "c.csv")
    assert list(from_csv.columns) == list(comparison.columns) == list(records[0])
    for column in ("failed", "failed_low", "failed_p", "difference", "ci_low", "ci_high", "loss", "pairs", "arm"):
        np.testing.assert_allclose(from_csv[column], np.array([r[column] for r in records], float), rtol=1e-14)
        np.testing.assert_allclose(from_csv[column], comparison[column].to_numpy(float), rtol=1e-14)
    markdown = [line for line in render(comparison, "markdown").splitlines() if line.startswith("|")]
    assert len(markdown) == 2 + 2 * len(comparison) + 2 + len(comparison)  # a baseline's row in each cell
    assert len({line.count("|") for line in markdown}) == 2


def test_rendering_twice_gives_the_same_text(study: Path) -> None:
    one, two = compare_study(study, by="n_layers"), compare_study(study, by="n_layers")
    for fmt in FORMATS:
        assert render(one, fmt) == render(two, fmt)


def test_counts_text_is_what_a_cell_says() -> None:
    assert counts_text(["stuck"] * 5) == "5 stuck"

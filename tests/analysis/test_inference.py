"""Intervals and tests against scipy and statsmodels, and `compare` against a slow version of its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st
from properties import PROPERTY
from simulated import FATES, Tables, copies, one_run
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from normstudy.analysis import inference, pairs
from normstudy.analysis.outcomes import FAILED, UNJUDGED


@pytest.mark.parametrize(("k", "n"), [(k, n) for n in (1, 2, 5, 20, 40) for k in range(0, n + 1, max(1, n // 5))])
def test_the_interval_of_a_share_is_clopper_and_pearsons(k: int, n: int) -> None:
    wanted = scipy.stats.binomtest(k, n).proportion_ci(0.95, "exact")
    assert inference.share_interval(k, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_five_of_five_and_three_of_five() -> None:
    """By hand: 5 of 5 has the lower end 0.025^(1/5) = 0.4782."""
    assert inference.share_interval(5, 5) == pytest.approx((0.025**0.2, 1.0))
    assert inference.share_interval(3, 5) == pytest.approx((0.1466, 0.9473), abs=1e-4)
    assert np.isnan(inference.share_interval(0, 0)).all()


def test_the_test_of_two_shares_is_fishers() -> None:
    for n, base_n in itertools.product((1, 3, 5, 12), (2, 5, 9)):
        for k, base_k in itertools.product(range(n + 1), range(base_n + 1)):
            found = inference.share_test(k, n, base_k, base_n)
            if 0 < k + base_k < n + base_n:
                wanted = scipy.stats.fisher_exact([[k, n - k], [base_k, base_n - base_k]]).pvalue
                assert found == pytest.approx(wanted, rel=1e-9), (k, n, base_k, base_n)
            else:  # scipy says 1
                assert math.isnan(found)
    assert inference.share_test(5, 5, 0, 5) == pytest.approx(2 / 252)  # of the 252 ways to draw 5 of 10
    assert math.isnan(inference.share_test(0, 0, 0, 5))


def test_no_outcome_of_two_arms_has_a_smaller_p_than_all_against_none() -> None:
    """`_judge` takes this one for the least p that the numbers of runs allow."""
    for n, base_n in itertools.product(range(1, 8), range(1, 8)):
        found = [inference.share_test(k, n, base_k, base_n) for k in range(n + 1) for base_k in range(base_n + 1)]
        assert inference.share_test(n, n, 0, base_n) == pytest.approx(np.nanmin(found))


differences = st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=2, max_size=12).map(np.array)


@PROPERTY
@given(differences, st.floats(0.01, 2))
@example(np.array([0.688, 0.688, 0.688]), 1.0)  # whose mean is 0.6879999999999999
def test_the_t_interval_and_the_two_t_tests(found: np.ndarray[tuple[int], np.dtype[np.float64]], margin: float) -> None:
    mean, low, high = inference.paired_t_interval(found)
    if np.ptp(found) < 1e-9:  # no spread, so the difference is certain; scipy warns there
        assert inference.paired_t_test(found) == float(abs(mean) < 1e-12)
        assert low == mean == high
        return
    ours = scipy.stats.ttest_1samp(found, 0)
    wanted = ours.confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((found.mean(), wanted.low, wanted.high), rel=1e-9, abs=1e-12)
    assert inference.paired_t_test(found) == pytest.approx(ours.pvalue, rel=1e-9)
    assert inference.equivalence_test(found, margin) == pytest.approx(
        DescrStatsW(found).ttost_mean(-margin, margin)[0], rel=1e-9, abs=1e-15
    )


def test_one_pair_has_a_difference_and_no_interval_and_no_test() -> None:
    one, none = np.array([0.5]), np.array([])
    assert inference.paired_t_interval(one)[0] == 0.5
    assert np.isnan(inference.paired_t_interval(one)[1:]).all()
    assert np.isnan(inference.paired_t_interval(none)).all()
    assert math.isnan(inference.paired_t_test(one))
    assert math.isnan(inference.equivalence_test(one, 0.1))


@PROPERTY
@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=30))
def test_holms_p(p: list[float]) -> None:
    made = [value for value in p if not math.isnan(value)]
    found = inference.holm(p)
    assert [math.isnan(value) for value in found] == [math.isnan(value) for value in p]
    wanted = multipletests(made, method="holm")[1] if made else []
    assert [value for value in found if not math.isnan(value)] == pytest.approx(list(wanted), rel=1e-12, abs=1e-300)


@PROPERTY
@given(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=12), st.floats(0, 1))
def test_a_test_is_reachable_if_holm_would_reject_it_at_its_best(p: list[float], best: float) -> None:
    place = len(p)  # of a test whose p is `best` or larger
    now = best + (1 - best) / 2
    assert inference.reachable([*p, now], best) == (inference.holm([*p, best])[place] <= inference.ALPHA)


# ---- `compare` ----------------------------------------------------------------------------------------

Arm = dict[int, tuple[str, float]]  # seed -> outcome, and by how much the final loss lies below that of FATES
arms = st.dictionaries(
    st.integers(0, 7), st.tuples(st.sampled_from([*FATES, "learned"]), st.floats(0, 0.04)), max_size=8
)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return one_run(tmp_path_factory.mktemp("one"))


@PROPERTY
@given(st.lists(arms, min_size=2, max_size=4), st.none() | st.floats(0.01, 0.1))
def test_compare_is_its_definition(one: Tables, made: list[Arm], margin: float | None) -> None:
    """The first arm is the baseline."""
    made = [made[0] or {0: ("learned", 0.0)}, *(arm for arm in made[1:] if arm)]
    if len(made) < 2:
        return
    rows = [
        (i, seed, FATES[name][0] - less, FATES[name][1] - less)
        for i, arm in enumerate(made)
        for seed, (name, less) in arm.items()
    ]
    names = ("warmup_steps", "seed", "final_val_loss", "late_val_loss")
    runs, steps = copies(one, dict(zip(names, zip(*rows, strict=True), strict=True)))
    found = pairs.compare_pairs(runs, steps, "warmup_steps", margin=margin).to_dict("records")
    for ours, wanted in zip(found, definition(made, margin), strict=True):
        for name, value in wanted.items():
            assert ours[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6, nan_ok=True)), (
                name
            )


def definition(made: list[Arm], margin: float | None) -> list[dict[str, float | str]]:
    """What `compare` prints, by docs/statistics.md, slowly and with scipy.stats and statsmodels."""
    rows: list[dict[str, float | str]] = []
    tests: dict[tuple[int, str], float] = {}
    base = made[0]
    for i, arm in enumerate(made[1:]):
        known = [[name for name, _ in one.values() if name != UNJUDGED] for one in (arm, base)]
        failed = [sum(name in FAILED for name in names) for names in known]
        row: dict[str, float | str] = {"failed": failed[0], "baseline_failed": failed[1]}
        if all(known) and len({*known[0], *known[1]} & {*FAILED}) and not {*known[0], *known[1]} <= {*FAILED}:
            table = [[k, len(names) - k] for k, names in zip(failed, known, strict=True)]
            tests[i, "failed"] = scipy.stats.fisher_exact(table).pvalue
        both = sorted(arm.keys() & base.keys())
        kept = [s for s in both if not {arm[s][0], base[s][0]} & {*FAILED, UNJUDGED}]
        row |= {"pairs": len(both), "compared": len(kept), "unpaired": len(arm) + len(base) - 2 * len(both)}
        loss = [[FATES[one[s][0]][0] - one[s][1] for s in kept] for one in (arm, base)]
        difference = np.subtract(*loss)
        row["difference"] = float(difference.mean()) if kept else math.nan
        if len(kept) >= pairs.MIN_PAIRS and np.ptp(difference) > 1e-9:
            found = scipy.stats.ttest_rel(*loss)
            row |= {"ci_low": found.confidence_interval().low, "ci_high": found.confidence_interval().high}
            tests[i, "loss"] = found.pvalue
            if margin is not None:
                tests[i, "equivalent"] = DescrStatsW(difference).ttost_mean(-margin, margin)[0]
        elif len(kept) >= pairs.MIN_PAIRS:  # all differences are equal
            tests[i, "loss"] = float(abs(difference.mean()) < 1e-12)
            if margin is not None:
                tests[i, "equivalent"] = float(abs(difference.mean()) > margin)
        rows.append(row)
    adjusted = dict(zip(tests, multipletests(list(tests.values()), method="holm")[1], strict=True)) if tests else {}
    for i, row in enumerate(rows):
        row["family"] = len(tests)
        for name in ("failed", "loss", "equivalent"):
            row[f"{name}_p"] = tests.get((i, name), math.nan)
            row[f"{name}_holm"] = adjusted.get((i, name), math.nan)
        shares_differ = adjusted.get((i, "failed"), 1) <= 0.05
        if row["pairs"] and row["compared"] and not shares_differ and (i, "loss") in tests:
            word = "no difference shown"
            if adjusted[i, "loss"] <= 0.05:
                word = "lower" if float(row["difference"]) < 0 else "higher"
            same = adjusted.get((i, "equivalent"), 1) <= 0.05
            row["loss_verdict"] = word + (f", equivalent within {margin:g}" if same else "")
        else:
            reason = "the shares differ" if shares_differ else "few pairs"
            row["loss_verdict"] = reason if row["compared"] else "no pairs"
    return rows

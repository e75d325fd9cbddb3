"""The outcome rules on hand-made series: one per class, one per boundary.

H1 = 2 and H2 = 1, so g = 2 - final validation loss; ln(vocab) = 4. A threshold that is a binary fraction is met
exactly; elsewhere losses lie just beside the threshold.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import handmade_config, handmade_study, write_handmade_run
from hypothesis import given
from hypothesis import strategies as st
from properties import PROPERTY

from normstudy.analysis.outcomes import (
    OUTCOMES,
    UNJUDGED,
    counts_text,
    gap_closed,
    mean_window,
    outcome,
    outcome_counts,
    outcomes,
    trailing_mean,
)
from normstudy.config import late_step
from normstudy.study import tables

EPS = 1e-9


def of(
    train: list[float], final: float, val: dict[int, float] | None = None, *, window: int = 1, nonfinite: bool = False
) -> str:
    """The outcome of a run of len(train) steps; val: step -> validation loss."""
    val = {0: 3.0} if val is None else val
    return outcome(
        np.array(train, dtype=float),
        first_val_loss=val.get(0, math.nan),
        late_val_loss=val.get(late_step(len(train)), math.nan),
        final_val_loss=final,
        window=window,
        ln_vocab=4.0,
        unigram_entropy=2.0,
        bigram_entropy=1.0,
        nonfinite=nonfinite,
    )


FLAT = {0: 3.0, 5: 1.9}  # step 5 is late_step(8)


def down(end: float) -> list[float]:
    """Eight training losses that fall from 3 to `end`."""
    return list(np.linspace(3.0, end, 8))


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ("learned", of(down(1.0), 1.0, {0: 3.0, 5: 1.0})),
        ("partial", of(down(1.5), 1.5, {0: 3.0, 5: 1.5})),
        ("stuck", of(down(1.9), 1.9, FLAT)),
        ("collapsed", of([3, 2, 1, 1, 1, 1.9, 1.9, 1.9], 1.9, FLAT)),
        ("spiked", of([3, 2, 1, 2, 1, 1, 1, 1], 1.0, {0: 3.0, 5: 1.0})),
        ("diverged", of(down(2.0), 4.5)),
        ("unfinished", of(down(1.9), 1.8, FLAT)),
    ],
)
def test_each_class(expected: str, got: str) -> None:
    assert got == expected


def test_classes_are_named() -> None:
    assert set(OUTCOMES) == {"learned", "partial", "stuck", "collapsed", "spiked", "diverged", "unfinished", "unjudged"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_any_non_finite_loss_is_diverged(bad: float) -> None:
    good = down(1.0)
    assert of([*good[:-1], bad], 1.0) == "diverged"
    assert of(good, bad) == "diverged"


def test_a_set_nonfinite_step_is_diverged_whatever_the_losses_say() -> None:
    assert of(down(1.0), 1.0, nonfinite=True) == "diverged"


def test_diverged_needs_more_than_both_ln_vocab_and_the_loss_at_step_0() -> None:
    assert of(down(2.0), 4.0, {0: 3.0, 5: 4.0}) == "stuck"  # exactly ln(vocab)
    assert of(down(2.0), 4.0 + EPS, {0: 3.0, 5: 4.0}) == "diverged"
    assert of(down(2.0), 5.0, {0: 5.0, 5: 5.0}) == "stuck"  # exactly the loss at init, which may exceed ln(vocab)
    assert of(down(2.0), 5.0 + EPS, {0: 5.0, 5: 5.0}) == "diverged"
    assert of(down(2.0), 4.5, {0: 3.0, 5: 6.0}) == "diverged"  # only the evaluation at step 0 counts


def test_boundary_of_collapsed() -> None:
    # ends 0.4 above a minimum of 0: exactly at the threshold, without rounding
    assert of([0, 0, 0, 0, 0, 0, 0, 0.4], 1.9, FLAT) == "collapsed"
    assert of([3, 2, 0, 0, 0, 0, 0, 0.4 - EPS], 1.9, FLAT) == "stuck"
    # with g = 2 - 1.6, which is not below 0.4, the same series has not collapsed
    assert of([3, 2, 0, 0, 0, 0, 0, 0.4 + EPS], 1.6 - EPS, FLAT) == "unfinished"
    assert of([3, 2, 0, 0, 0, 0, 0, 0.4 + EPS], 1.6 - EPS, {0: 3.0, 5: 1.6}) == "partial"


def test_collapse_looks_at_the_end_and_at_the_mean() -> None:
    assert of([3, 1, 1, 2, 2, 1, 1, 1], 1.9, FLAT) == "stuck"  # rose midway and fell again
    spike = [3, 1, 1, 1, 1, 1, 1, 1.7]
    assert of(spike, 1.9, FLAT, window=1) == "collapsed"
    assert of(spike, 1.9, FLAT, window=2) == "stuck"  # the mean of two rose by 0.35


def test_boundary_of_unfinished_in_nats() -> None:
    assert of(down(1.9), 0.05 + 1.25 - 0.05, {0: 3.0, 5: 1.25}) == "learned"  # g = 0.75: never unfinished
    assert of(down(1.9), 1.5, {0: 3.0, 5: 1.55 + EPS}) == "unfinished"
    assert of(down(1.9), 1.5, {0: 3.0, 5: 1.55 - EPS}) == "partial"
    assert of(down(1.9), 1.9, {0: 3.0, 5: 1.95 + EPS}) == "unfinished"  # comes before stuck
    assert of(down(1.9), 1.9, {0: 3.0, 5: 1.95 - EPS}) == "stuck"


def test_a_run_without_that_evaluation_is_unjudged_only_where_it_matters() -> None:
    elsewhere = {0: 3.0, 4: 1.9, 6: 1.9}
    assert of(down(1.9), 1.9, elsewhere) == of(down(1.5), 1.5, elsewhere) == UNJUDGED
    assert of(down(1.0), 1.0, elsewhere) == "learned"
    assert of([3, 2, 1, 2, 1, 1, 1, 1], 1.0, elsewhere) == "spiked"
    assert of([3, 2, 1, 1, 1, 1.9, 1.9, 1.9], 1.9, elsewhere) == "collapsed"
    assert of(down(2.0), 4.5, elsewhere) == "diverged"


def test_boundary_of_stuck_and_of_partial() -> None:
    flat = down(1.9)
    assert gap_closed(0.6, 1.0, 0.0) == 0.4

    def exactly(final: float) -> str:
        return outcome(
            np.array(flat), first_val_loss=3.0, late_val_loss=0.6, final_val_loss=final, window=1, ln_vocab=4.0,
            unigram_entropy=1.0, bigram_entropy=0.0,
        )  # fmt: skip

    assert exactly(0.6) == "partial"
    assert exactly(0.6 + EPS) == "stuck"
    assert of(flat, 1.25, {0: 3.0, 5: 1.25}) == "learned"  # g = 0.75 exactly
    assert of(flat, 1.25 + EPS, {0: 3.0, 5: 1.25}) == "partial"


def test_boundary_of_spiked() -> None:
    calm = {0: 3.0, 5: 1.0}
    assert of([0, 0, 0, 0.4, 0, 0, 0, 0], 1.0, calm) == "spiked"  # exactly, no rounding
    assert of([3, 1, 0, 0.4 - EPS, 0, 0, 0, 0], 1.0, calm) == "learned"
    assert of([3, 1, 0, 0.4, 0, 0, 0, 0], 1.25 + EPS, {0: 3.0, 5: 1.25}) == "partial"  # comes before spiked
    assert of([1, 1.5, 1, 1, 1, 0.5, 0.5, 0.5], 1.0, calm) == "spiked"  # over the running minimum, not the last
    assert of([3, 2.5, 2, 1.5, 1.5, 1, 1, 1.3], 1.0, calm) == "learned"


def test_mean_window() -> None:
    assert mean_window(600, 8, 64) == 20  # 10,240 tokens
    assert mean_window(60, 8, 64) == 15  # a quarter of the run
    assert mean_window(3, 8, 64) == 1
    assert mean_window(1, 1, 1) == 1
    assert mean_window(10_000, 512, 1024) == 1  # a batch of more than 10,240 tokens
    assert mean_window(600, 8, 32) == 40


def test_trailing_mean_by_hand() -> None:
    np.testing.assert_array_equal(trailing_mean(np.array([1.0, 3.0, 5.0, 1.0]), 2), [2.0, 4.0, 3.0])
    np.testing.assert_array_equal(trailing_mean(np.array([1.0, 3.0]), 2), [2.0])
    assert len(trailing_mean(np.array([1.0]), 2)) == 0


def test_a_run_of_one_step_has_an_outcome() -> None:
    assert of([3.0], 3.0) == "stuck"


def test_outcomes_of_a_study(tmp_path: Path) -> None:
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,))
    runs, steps = tables.read(study, "runs"), tables.read(study, "steps")
    found = outcomes(runs, steps)
    bad = runs[(runs["placement"] == "post") & (runs["warmup_steps"] == 0)].set_index("seed")["run_id"]
    assert found[bad[0]] == "diverged"
    assert found[bad[1]] == "stuck"
    assert bad[2] not in found.index  # failed: no outcome
    assert list(found.index) == list(runs.loc[runs["status"] == "done", "run_id"])
    assert outcome_counts(found) == {"learned": 9, "stuck": 1, "diverged": 1}
    # the order of the rows does not matter
    shuffled = outcomes(runs, steps.sample(frac=1, random_state=0))
    pd.testing.assert_series_equal(shuffled, found)


def test_only_the_evaluations_at_step_0_and_at_two_thirds_count(tmp_path: Path) -> None:
    """The one at two thirds lies in `steps` or, where eval.every does not give it, in late_val_loss."""
    study = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,))
    runs, steps = tables.read(study, "runs"), tables.read(study, "steps")
    found = outcomes(runs, steps)
    assert late_step(60) == 40
    at_late = steps[steps["step"] == 40].set_index("run_id")["val_loss"]
    for bad in (np.nan, np.inf, 1e9):  # elsewhere
        others = steps.assign(val_loss=steps["val_loss"].where(steps["step"].isin([0, 40]), bad))
        pd.testing.assert_series_equal(outcomes(runs, others), found)
    without = steps.assign(val_loss=steps["val_loss"].where(steps["step"] == 0))
    in_column = runs.assign(late_val_loss=runs["run_id"].map(at_late))
    pd.testing.assert_series_equal(outcomes(in_column, without), found)
    unjudged = outcomes(runs, without)
    assert set(unjudged[found == "stuck"]) == {UNJUDGED}
    assert (unjudged[found != "stuck"] == found[found != "stuck"]).all()


@PROPERTY
@given(
    st.integers(1, 14).flatmap(
        lambda n: st.tuples(
            *[st.lists(st.floats(0.5, 5) | st.just(math.inf), min_size=n, max_size=n) for _ in range(2)]
        )
    ),
    st.floats(0.5, 5) | st.just(math.nan),
)
def test_the_outcome_does_not_depend_on_how_often_a_run_is_evaluated(
    losses: tuple[list[float], list[float]], final: float
) -> None:
    """For every eval.every the tables hold what a run writes: evaluations at its multiples, or else late_val_loss."""
    train, val = (np.array(one, dtype=np.float32).astype(float) for one in losses)
    n, late = len(train), late_step(len(train))
    step = np.arange(n)
    found = set()
    for every in range(1, n + 1):
        runs = pd.DataFrame(
            {
                "run_id": ["a"], "status": ["done"], "n_steps": [n], "batch_size": [8], "seq_len": [64],
                "ln_vocab": [4.0], "unigram_entropy": [3.0], "bigram_entropy": [2.0], "final_val_loss": [final],
                "nonfinite_step": [math.nan], "late_val_loss": [math.nan if late % every == 0 else val[late]],
            }
        )  # fmt: skip
        looks = np.where(step % every == 0, val, math.nan)
        steps = pd.DataFrame({"run_id": "a", "step": step, "train_loss": train, "val_loss": looks})
        found |= set(outcomes(runs, steps))
    assert len(found) == 1
    assert UNJUDGED not in found


def test_w_follows_the_batch_of_each_run(tmp_path: Path) -> None:
    study = tmp_path / "handmade"
    write_handmade_run(study, handmade_config(tmp_path))
    runs, steps = tables.read(study, "runs"), tables.read(study, "steps")
    steps["train_loss"] = 1.0
    steps.loc[40, "train_loss"] = 1.0 + 2.0  # over w = 15 steps: 0.13, over w = 3 steps: 0.67
    assert outcomes(runs, steps).iloc[0] == "learned"
    runs["seq_len"] = 427  # 10,240 tokens are three steps
    assert outcomes(runs, steps).iloc[0] == "spiked"


def test_a_run_that_blew_up_in_its_last_evaluation_is_diverged(tmp_path: Path) -> None:
    study = tmp_path / "handmade"
    write_handmade_run(study, handmade_config(tmp_path))
    runs, steps = tables.read(study, "runs"), tables.read(study, "steps")
    assert outcomes(runs.assign(nonfinite_step=60.0), steps).iloc[0] == "diverged"
    assert outcomes(runs.assign(final_val_loss=np.nan), steps).iloc[0] == "diverged"


def test_no_run_gives_no_outcome(tmp_path: Path) -> None:
    tables.prepare(tmp_path)
    found = outcomes(tables.read(tmp_path, "runs"), tables.read(tmp_path, "steps"))
    assert len(found) == 0
    assert outcome_counts(found) == {}


def test_a_finished_run_without_series_has_no_outcome(tmp_path: Path) -> None:
    study = tmp_path / "handmade"
    name = write_handmade_run(study, handmade_config(tmp_path))
    runs, steps = tables.read(study, "runs"), tables.read(study, "steps")
    assert outcomes(runs, steps.iloc[:0]).to_dict() == {name: UNJUDGED}


def test_counts_are_in_a_fixed_order() -> None:
    assert counts_text(["partial", "learned", "learned"]) == "2 learned 1 partial"
    assert counts_text([]) == ""

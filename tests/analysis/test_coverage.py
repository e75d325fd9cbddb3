"""By simulation: how often the intervals of `compare` hold the truth, and how often a family has a false verdict."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated import FATES, Tables, copies, one_run

from normstudy.analysis.inference import share_interval
from normstudy.analysis.pairs import MIN_PAIRS, compare_pairs

KEPT = Path(__file__).parents[2] / "results" / "robustness" / "coverage.parquet"
SEED = 7
STUCK = 0.0, 0.05, 0.2, 0.5  # the probability that a run is stuck
SPREAD = (
    0.02  # nats per token: standard deviation of what a seed adds to both losses, and of what a run adds to its own
)
FEWEST = 200  # intervals printed, for a statement about their coverage

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def losses(rng: np.random.Generator, arms: int, seeds: int, stuck: float) -> tuple[Floats, Floats]:
    """Final losses (arms, seeds) of learned runs, and whether each is stuck instead.

    A run with a high loss is more likely to be stuck, so that the pairs in which neither failed are a selection.
    """
    own = rng.normal(0, 1, (arms, seeds))
    shared = rng.normal(0, 1, seeds)
    bar = rng.normal(0, 1, (arms, seeds)) + own
    is_stuck = bar > math.sqrt(2) * _quantile(1 - stuck)
    return FATES["learned"][0] + SPREAD * (own + shared), is_stuck


def _quantile(p: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(p))


def comparison(one: Tables, loss: Floats, stuck: Floats) -> pd.DataFrame:
    """Compare the arms after the first with the first."""
    arms, seeds = loss.shape
    ends = np.where(stuck, FATES["stuck"][0], loss).ravel()
    columns = {
        "warmup_steps": np.repeat(np.arange(arms), seeds), "seed": np.tile(np.arange(seeds), arms),
        "final_val_loss": ends, "late_val_loss": ends,
    }  # fmt: skip
    return compare_pairs(*copies(one, columns), "warmup_steps")


def simulate(one: Tables, repeats: int, seed: int) -> pd.DataFrame:
    """A row for each quantity and setting: repeats, how many were printed and how many of these held, or were false.

    The two arms are alike, so the true difference of losses is 0, also among the pairs in which neither failed.
    """
    rng, rows = np.random.default_rng(seed), []
    for seeds in (5, 10, 20):
        for stuck in STUCK:
            found = pd.concat([comparison(one, *losses(rng, 2, seeds, stuck)) for _ in range(repeats)])
            shares = [
                (found[f"{arm}failed_low"] <= stuck) & (stuck <= found[f"{arm}failed_high"])
                for arm in ("", "baseline_")
            ]
            printed = found[found["compared"] >= MIN_PAIRS]
            held = (printed["ci_low"] <= 0) & (printed["ci_high"] >= 0)
            rows.append(("share's interval holds it", 1, seeds, stuck, 2 * repeats, sum(int(s.sum()) for s in shares)))
            rows.append(("loss interval holds it", 1, seeds, stuck, len(printed), int(held.sum())))
    for seeds in (5, 10):
        for stuck in STUCK:
            false = 0
            for _ in range(repeats):
                table = comparison(one, *losses(rng, 14, seeds, stuck))
                words = [*table["failed_verdict"], *table["loss_verdict"]]
                false += any(word.startswith(("fails", "lower", "higher")) for word in words)
            rows.append(("a family has a false verdict", 26, seeds, stuck, repeats, false))
    names = ["quantity", "tests", "seeds", "stuck", "printed", "count"]
    frame = pd.DataFrame(rows, columns=names).assign(share=lambda t: t["count"] / t["printed"].mask(t["printed"] == 0))
    ends = [share_interval(k, n) for k, n in zip(frame["count"], frame["printed"], strict=True)]
    return frame.assign(low=[low for low, _ in ends], high=[high for _, high in ends], seed=seed)


def check(frame: pd.DataFrame) -> None:
    """What docs/statistics.md promises of each quantity."""
    for row in frame.itertuples():
        if row.quantity.startswith("share"):
            assert row.high >= 0.95, row
        elif row.quantity.startswith("loss") and row.printed >= FEWEST:
            assert 0.93 <= row.share <= 0.975, row
        elif row.quantity.startswith("a family"):
            assert row.low <= 0.05, row


def test_the_committed_simulation_holds_what_the_page_promises() -> None:
    frame = pd.read_parquet(KEPT)
    assert set(frame["stuck"]) == set(STUCK)
    assert (frame["printed"] >= FEWEST).sum() >= 24
    check(frame)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [("share", {"high": 0.94}), ("loss", {"share": 0.9}), ("loss", {"share": 0.98}), ("a family", {"low": 0.06})],
)
def test_a_wrong_rate_would_be_found(kind: str, wrong: dict[str, float]) -> None:
    frame = pd.read_parquet(KEPT)
    frame.loc[frame["quantity"].str.startswith(kind), list(wrong)] = list(wrong.values())
    with pytest.raises(AssertionError):
        check(frame)


@pytest.mark.slow
def test_intervals_hold_the_truth_and_verdicts_are_right(tmp_path: Path) -> None:
    """By hand, some ten minutes: pytest -m slow tests/analysis/test_coverage.py -n0. What it found is kept."""
    frame = simulate(one_run(tmp_path), 1000, SEED)
    check(frame)
    KEPT.parent.mkdir(exist_ok=True)
    frame.to_parquet(KEPT, index=False)

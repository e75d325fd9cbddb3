"""By simulation: how often the intervals of `compare` hold the truth, and how often a family has a false verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from simulated import FATES, Tables, copies, one_run

from normstudy.analysis.inference import share_interval
from normstudy.analysis.pairs import MIN_PAIRS, compare_pairs

KEPT = Path(__file__).parents[2] / "results" / "robustness" / "coverage.parquet"
SEED = 7
STUCK = 0.0, 0.05, 0.2, 0.5  # the probability that a run is stuck
UNEQUAL = (0.0, 0.2), (0.0, 0.5), (0.05, 0.2), (0.2, 0.5)  # the same, of the baseline and of the other arm
# Nats per token: the standard deviation of what a seed adds to both losses, and of what a run adds to its own.
SPREAD = 0.02
FEWEST = 200  # intervals printed, for a statement about their coverage


class Row(NamedTuple):
    """baseline_stuck, stuck: each arm's probability. printed, count: what `compare` printed, and how many held."""

    quantity: str
    seeds: int
    baseline_stuck: float
    stuck: float
    printed: int
    count: int
    losses: str = "normal"


Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Losses = tuple[Floats, Floats]


def losses(rng: np.random.Generator, stuck: Sequence[float], seeds: int, shape: str = "normal") -> Losses:
    """Final losses (arms, seeds) of learned runs, and whether each is stuck instead.

    stuck: one probability per arm. shape: of what a run adds to its loss, "normal", or "skewed" in all arms but one.
    A run with a high loss is more likely to be stuck, so that the pairs in which neither failed are a selection.
    """
    own = rng.normal(0, 1, (len(stuck), seeds))
    shared = rng.normal(0, 1, seeds)
    bar = rng.normal(0, 1, own.shape) + own
    is_stuck = bar > math.sqrt(2) * np.array([[_quantile(1 - p)] for p in stuck])
    if shape == "skewed":  # log-normal, with a skewness of 1.75 and a variance of 1
        own[1:] = (np.exp(own[1:] / 2) - math.exp(1 / 8)) / math.sqrt(math.exp(1 / 2) - math.exp(1 / 4))
    return FATES["learned"][0] + SPREAD * (own + shared), is_stuck


def true_difference(stuck: Sequence[float], shape: str) -> float:
    """The mean loss of the second arm's learned runs minus that of the first arm's, from a million runs of each."""
    loss, is_stuck = losses(np.random.default_rng(SEED + 1), stuck, 1_000_000, shape)
    first, second = (loss[arm][~is_stuck[arm]].mean() for arm in (0, 1))
    return float(second - first)


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


def alike(one: Tables, repeats: int, seed: int) -> Iterator[Row]:
    """Two arms that are alike, so that the true difference of losses is 0; then 14 such arms."""
    rng = np.random.default_rng(seed)
    for seeds in (5, 10, 20):
        for stuck in STUCK:
            found = pd.concat([comparison(one, *losses(rng, [stuck] * 2, seeds)) for _ in range(repeats)])
            shares = [
                (found[f"{arm}failed_low"] <= stuck) & (stuck <= found[f"{arm}failed_high"])
                for arm in ("", "baseline_")
            ]
            yield Row("share's interval holds it", seeds, stuck, stuck, 2 * repeats, sum(int(s.sum()) for s in shares))
            yield Row("loss interval holds it", seeds, stuck, stuck, *held(found, 0))
    for seeds in (5, 10):
        for stuck in STUCK:
            tables = [comparison(one, *losses(rng, [stuck] * 14, seeds)) for _ in range(repeats)]
            yield Row("a family has a false verdict", seeds, stuck, stuck, repeats, sum(map(has_verdict, tables)))


def unlike(one: Tables, repeats: int, seed: int) -> Iterator[Row]:
    """Two arms that fail at different rates, or of which one has skewed losses; then 14 arms of which some differ."""
    rng = np.random.default_rng(seed)
    for shape, settings in (("normal", UNEQUAL), ("skewed", ((0.0, 0.0), (0.2, 0.2), (0.0, 0.5)))):
        for stuck in settings:
            truth = true_difference(stuck, shape)
            for seeds in (5, 10, 20):
                found = pd.concat([comparison(one, *losses(rng, stuck, seeds, shape)) for _ in range(repeats)])
                yield Row("loss interval holds it", seeds, *stuck, *held(found, truth), losses=shape)
    for seeds in (5, 10):
        for stuck in STUCK:
            false = 0
            for _ in range(repeats):
                loss, is_stuck = losses(rng, [stuck] * 11 + [0.9] * 3, seeds)
                loss[8:11] += 5 * SPREAD
                false += has_verdict(comparison(one, loss, is_stuck)[:7])
            yield Row("a family in which six arms differ has a false verdict", seeds, stuck, stuck, repeats, false)


def held(found: pd.DataFrame, truth: float) -> tuple[int, int]:
    """How many loss intervals were printed, and how many of them hold the true difference."""
    printed = found[found["compared"] >= MIN_PAIRS]
    return len(printed), int(((printed["ci_low"] <= truth) & (truth <= printed["ci_high"])).sum())


def has_verdict(table: pd.DataFrame) -> bool:
    words = [*table["failed_verdict"], *table["loss_verdict"]]
    return any(word.startswith(("fails", "lower", "higher")) for word in words)


def simulate(one: Tables, repeats: int, seed: int) -> pd.DataFrame:
    """A row for each quantity and setting, with its share of what was printed and the share's exact interval."""
    frame = pd.DataFrame([*alike(one, repeats, seed), *unlike(one, repeats, seed + 1)])
    frame["share"] = frame["count"] / frame["printed"].mask(frame["printed"] == 0)
    ends = [share_interval(k, n) for k, n in zip(frame["count"], frame["printed"], strict=True)]
    return frame.assign(low=[low for low, _ in ends], high=[high for _, high in ends], seed=seed)


def check(frame: pd.DataFrame) -> None:
    """What docs/statistics.md promises of each quantity."""
    for row in frame.itertuples():
        if row.quantity.startswith("share"):
            assert row.high >= 0.95, row
        elif row.quantity.startswith("loss") and row.printed >= FEWEST:
            alike = row.losses == "normal" and row.baseline_stuck == row.stuck
            low, high = (row.share, row.share) if alike else (row.low, row.high)
            assert low <= 0.975, row
            assert high >= 0.93, row
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
    """By hand, some twenty minutes: pytest -m slow tests/analysis/test_coverage.py -n0. What it found is kept."""
    frame = simulate(one_run(tmp_path), 1000, SEED)
    check(frame)
    KEPT.parent.mkdir(exist_ok=True)
    frame.to_parquet(KEPT, index=False)

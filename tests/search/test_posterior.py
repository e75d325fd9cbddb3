"""The posterior of a threshold, against SciPy's optimizer and integrals of the likelihood written down again."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit

from normstudy.search.posterior import LAPSES, PAD, WIDTHS, posterior

LOW, HIGH = -300, 0  # 1e-3 to 1
DATA = [  # position -> (failed, others)
    {-150: (2, 2)},
    {-200: (0, 4), -100: (4, 0)},
    {-200: (0, 3), -150: (1, 3), -100: (3, 1), -50: (4, 0)},
    {-260: (0, 1), -255: (1, 0)},
    {-220: (1, 7), -120: (0, 5), -80: (6, 0)},  # one lapse
    {-300: (0, 4), -200: (0, 4), -100: (0, 4), 0: (0, 4)},
    {-300: (4, 0), -200: (4, 0), -100: (4, 0), 0: (4, 0)},
    {-180: (5, 5), -140: (8, 2), -220: (2, 8)},
    {-100: (0, 9), -99: (9, 0)},
    {-290: (1, 1), -190: (1, 1), -90: (1, 1), -10: (1, 1)},
]


def log_likelihood(data: dict[int, tuple[int, int]], t: float, s: float, lapse: float) -> float:
    total = 0.0
    for position, (failed, others) in data.items():
        p = lapse + (1 - 2 * lapse) * expit((position / 100 - t) / s)
        total += failed * math.log(p) + others * math.log(1 - p)
    return total


@pytest.mark.parametrize("data", DATA)
def test_mode_and_quantiles_are_those_of_the_likelihood(data: dict[int, tuple[int, int]]) -> None:
    found = posterior(data, LOW, HIGH)
    pairs = list(itertools.product(WIDTHS, LAPSES))
    for i, (s, lapse) in enumerate(pairs):
        column = found.weights[:, i]
        first = (LOW - PAD + int(np.argmax(column))) / 100
        best = minimize_scalar(
            lambda t, s=s, lapse=lapse: -log_likelihood(data, t, s, lapse),
            bounds=(max(first - 0.02, (LOW - PAD) / 100), min(first + 0.02, (HIGH + PAD) / 100)), method="bounded",
        )  # fmt: skip
        assert -best.fun >= log_likelihood(data, first, s, lapse) - 1e-4
        assert log_likelihood(data, first, s, lapse) > -best.fun - 0.5  # within a step, of a width of 0.02
    fine = np.arange((LOW - PAD) / 100, (HIGH + PAD) / 100 + 1e-9, 0.005)
    density = np.array([sum(math.exp(log_likelihood(data, t, s, lapse)) for s, lapse in pairs) for t in fine])
    share = np.cumsum((density[1:] + density[:-1]) / 2)
    for q in (0.025, 0.125, 0.5, 0.875, 0.975):
        exact = 100 * fine[1 + int(np.searchsorted(share, q * share[-1]))]
        assert abs(found.quantile(q) - exact) <= 1.01


def test_the_order_of_the_runs_changes_no_bit() -> None:
    data = {-10 * k: (k % 3, k % 5) for k in range(1, 30)}
    shuffled = list(data.items())
    random.Random(1).shuffle(shuffled)
    assert (posterior(data, LOW, HIGH).weights == posterior(dict(shuffled), LOW, HIGH).weights).all()


def test_no_failing_run_and_only_failing_runs_put_the_threshold_outside() -> None:
    assert posterior(DATA[5], LOW, HIGH).above > 0.9
    assert posterior(DATA[6], LOW, HIGH).below > 0.9
    nothing = posterior({}, LOW, HIGH)
    assert nothing.above == pytest.approx(PAD / (HIGH - LOW + 2 * PAD + 1))
    assert nothing.below == pytest.approx(nothing.above)


def test_a_run_far_outside_the_range_says_what_one_at_the_edge_of_the_grid_says() -> None:
    assert (posterior({900: (3, 1)}, LOW, HIGH).weights == posterior({HIGH + PAD: (3, 1)}, LOW, HIGH).weights).all()


def test_the_expected_share_is_half_at_the_median_of_symmetric_data() -> None:
    found = posterior({-200: (0, 4), -100: (4, 0)}, LOW, HIGH)
    assert found.share(-150) == pytest.approx(0.5, abs=1e-6)
    assert found.share(-300) < 0.05 < 0.95 < found.share(0)

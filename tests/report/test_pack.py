"""Numbers of a page: three digits as Python rounds them, and steps that thin a series evenly on a logarithmic axis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reported import unpack

from normstudy.report import pack

NUMBERS = st.floats(1e-36, 9e35, allow_nan=False) | st.sampled_from([1e-36, 0.0995, 9.995, 99.95, 1.005, 0.12345, 9e35])


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(NUMBERS, min_size=1))
def test_a_number_is_what_three_digits_of_it_print(values: list[float]) -> None:
    assert unpack(pack.pack(np.array(values))).tolist() == [float(f"{value:.3g}") for value in values]


def test_what_is_no_number_of_three_digits_is_told_apart() -> None:
    values = np.array([np.nan, -1.0, 0.0, np.inf, 3.4e38, 1e-38])
    found = unpack(pack.pack(values))
    assert np.array_equal(found, [np.nan, np.nan, 0.0, np.inf, np.inf, 1e-36], equal_nan=True)
    assert pack.pack(np.array([])) == ""


def test_equal_numbers_are_equal_text() -> None:
    assert pack.pack(np.array([0.1, 2.5])) == pack.pack(np.array([0.1, 2.5], np.float32))


@pytest.mark.parametrize("last", [0, 1, 84, 599, 100_000])
def test_the_steps_of_a_loss_curve(last: int) -> None:
    steps = pack.loss_steps(last)
    assert (steps[0], steps[-1]) == (0, last)
    assert len(steps) <= pack.LOSSES
    assert (np.diff(steps) > 0).all()


@pytest.mark.parametrize("limit", pack.LADDER)
def test_thinned_steps_keep_both_ends_and_the_first_updates(limit: int) -> None:
    steps = [*range(50), *range(60, 600, 20), 599]
    kept = pack.thinned(tuple(steps), limit)
    assert (kept[0], kept[-1]) == (0, 599)
    assert len(kept) <= limit
    assert set(kept) <= set(steps)
    assert 1 in kept
    assert len(kept) > 0.9 * limit
    assert pack.thinned(tuple(steps[:limit]), limit).tolist() == steps[:limit]

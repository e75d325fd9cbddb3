"""Which runs a search asks for, when it ends, and that it goes on where it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from normstudy.errors import ConfigError
from normstudy.search import simulate
from normstudy.search.rounds import CRASHED, FAIL, NOT_LEARN, ROUND, SENTINELS, Progress, Run, replay
from normstudy.search.settings import AXES, Settings, find
from normstudy.search.simulate import Edge, estimate, outcomes_at

RATES = Settings("peak_lr", 1e-3, 1.0)
WARMUPS = Settings("warmup_steps", 0, 300)


def sharp(settings: Settings, threshold: float) -> Edge:
    return Edge(settings.axis.position(threshold), 0.03)


# ---- axes ---------------------------------------------------------------------------------------------


def test_rates_have_three_digits_and_distinct_values_that_return_to_their_position() -> None:
    axis = find("schedule.peak_lr")
    values = [axis.value(k) for k in range(-600, 101)]
    assert len(set(values)) == len(values)
    assert [axis.position(value) for value in values] == list(range(-600, 101))
    assert axis.value(-252) == 0.00302


@pytest.mark.parametrize("name", ["warmup_steps", "n_layers"])
def test_whole_values_return_to_themselves(name: str) -> None:
    axis = AXES[name]
    values = list(range(int(axis.least), 44))
    assert [axis.value(axis.position(v)) for v in values] == values


def test_runs_fail_more_often_with_less_warmup() -> None:
    assert [WARMUPS.axis.position(v) for v in (0, 9, 99)] == [0, -100, -200]
    assert WARMUPS.ends == (WARMUPS.axis.position(300), 0)


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--of 'placement' .* Use one of peak_lr, warmup_steps, n_layers\.$"):
        find("placement")
    with pytest.raises(ConfigError, match=r"Did you mean peak_lr\?$"):
        find("peak_rl")


# ---- rounds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "threshold"), [(RATES, 0.02), (RATES, 0.3), (WARMUPS, 40)])
def test_a_sharp_edge_is_found_within_its_interval(settings: Settings, threshold: float) -> None:
    edge = sharp(settings, threshold)
    done = replay(settings, outcomes_at(edge, settings, np.random.default_rng(3)))
    median, low, high = estimate(done, settings)
    assert low <= edge.threshold <= high
    assert (high - low) / 100 < settings.width
    assert abs(median - edge.threshold) < 15
    assert done.decided == {FAIL: "interval", NOT_LEARN: "interval"}
    assert 2 * ROUND < len(done.outcomes) <= 40
    assert done.contradicted == {FAIL: [], NOT_LEARN: []}
    seeds = [run.seed for run in done.outcomes]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(("share", "bound"), [(0.0, "above"), (1.0, "below")])
def test_without_or_with_only_failing_runs_the_answer_is_a_bound(share: float, bound: str) -> None:
    done = replay(RATES, lambda run: "stuck" if share else "learned")
    assert done.decided == {FAIL: bound, NOT_LEARN: bound}
    assert len(done.outcomes) <= 24


def test_an_edge_at_the_very_end_takes_at_most_max_runs() -> None:
    used = []
    for seed in range(20):
        done = replay(RATES, outcomes_at(sharp(RATES, 1.0), RATES, np.random.default_rng(seed)))
        used.append(len(done.outcomes))
        assert used[-1] <= RATES.max_runs + 2 * SENTINELS
    assert np.mean(used) <= 40


@pytest.mark.parametrize("of", [("n_layers", 2, 4), ("n_layers", 50, 51), ("peak_lr", 0.01, 0.012)])
def test_a_range_narrower_than_the_width_is_searched(of: tuple[str, float, float]) -> None:
    """Without a run, the interval lies on both ends of the range, and says nothing."""
    settings = Settings(*of)
    for outcome, bound in (("learned", "above"), ("stuck", "below")):
        done = replay(settings, lambda run, outcome=outcome: outcome)  # type: ignore[misc]
        assert done.decided == {FAIL: bound, NOT_LEARN: bound}
        assert sum(run.seed < 1000 for run in done.outcomes) >= ROUND
    assert simulate.expected(settings, searches=2).grid_runs >= simulate.GRID_SEEDS


def test_partial_runs_tell_the_two_edges_apart() -> None:
    def outcome_of(run: Run) -> str:
        return "learned" if run.value < 0.01 else "partial" if run.value < 0.2 else "diverged"

    done = replay(RATES, outcome_of)
    runs = {edge: [r.value for r, o in done.outcomes.items() if r.seed < 1000] for edge in (FAIL, NOT_LEARN)}
    assert done.decided == {FAIL: "interval", NOT_LEARN: "interval"}
    assert min(abs(np.log10(v / 0.01)) for v in runs[NOT_LEARN]) < 0.2
    assert min(abs(np.log10(v / 0.2)) for v in runs[FAIL]) < 0.2


def test_a_search_stopped_at_any_run_goes_on_to_the_same_runs() -> None:
    """Also one that gets a smaller width afterwards: its first rounds are those of the larger width."""
    outcome_of = outcomes_at(Edge(-130, 0.1), RATES, np.random.default_rng(5))
    whole = replay(RATES, outcome_of)
    known: dict[Run, str] = {}
    for _ in range(200):
        part = replay(RATES, known.get)
        if not part.wanted:
            break
        known[part.wanted[0]] = outcome_of(part.wanted[0])  # one run at a time: killed after each
    assert (part.outcomes, part.decided) == (whole.outcomes, whole.decided)
    narrow = Settings("peak_lr", 1e-3, 1.0, width=0.2)
    rounds = [run for run in whole.outcomes if run.seed < 1000]
    assert [run for run in replay(narrow, outcome_of).outcomes if run.seed < 1000][: len(rounds)] == rounds


def test_a_crashed_run_counts_as_missing() -> None:
    outcome_of = outcomes_at(Edge(-130, 0.05), RATES, np.random.default_rng(6))
    done = replay(RATES, lambda run: CRASHED if run.seed in (1, 6) else outcome_of(run))
    assert list(done.outcomes.values()).count(CRASHED) == 2
    assert done.decided[FAIL] == "interval"
    everything: Progress = replay(RATES, lambda run: CRASHED)
    assert everything.decided == {FAIL: "max_runs", NOT_LEARN: "max_runs"}


def test_a_band_of_failures_below_the_edge_is_told() -> None:
    told = []
    for seed, low in itertools.product(range(5), (-280, -220)):
        drawn = outcomes_at(Edge(-60, 0.05), RATES, np.random.default_rng(seed))

        def outcome_of(run: Run, low: int = low, drawn: Callable[[Run], str] = drawn) -> str:
            outcome = drawn(run)  # also in the band, so that every run has its own random number
            return "stuck" if low <= RATES.axis.position(run.value) <= low + 60 else outcome

        told.append(bool(replay(RATES, outcome_of).contradicted[FAIL]))
    assert sum(told) >= 9

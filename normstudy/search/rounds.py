"""Choose the runs of each round of a search from the outcomes of all earlier rounds.

A search stores no state. `replay` repeats the rounds from the first round on, and stops at the first round in which a
run has no outcome yet. So a search that was killed, or that gets a smaller width, continues where it stopped.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from normstudy.analysis.outcomes import FAILED, UNJUDGED
from normstudy.search.posterior import CONFIDENCE, posterior
from normstudy.search.settings import DECADE, Axis, Settings

FAIL, NOT_LEARN = "half fail", "half do not learn"  # the two edges that a search looks for
# Edge -> the outcomes that place a run beyond the edge.
COUNTS_AS: dict[str, tuple[str, ...]] = {FAIL: FAILED, NOT_LEARN: (*FAILED, "partial")}
CRASHED = "crashed"  # stands for the outcome of a run that crashed too often
UNKNOWN = (CRASHED, UNJUDGED)  # outcomes that do not count for an edge
ROUND = 4  # runs of a round
SENTINELS = 6  # runs spread over the range, whose outcomes may contradict a single threshold
REPEATS = 2  # further runs at the value of a sentinel that contradicts the threshold
SURPRISE = 0.25  # a sentinel is repeated if its outcome was expected with at most this probability
CONTRADICTION = 0.03  # a sentinel and its repeats contradict the threshold if their outcomes were at most this likely
AT_AN_END = 0.2, 0.8  # an edge is at an end of the range if P(edge beyond this end) is between these two numbers
SENTINEL_SEED, REPEAT_SEED = 1000, 2000  # added to the search's first seed


class Run(NamedTuple):
    value: float
    seed: int


@dataclass
class Progress:
    """The progress of a cell's search."""

    wanted: list[Run] = field(default_factory=list)  # runs of the current round that have no outcome yet
    outcomes: dict[Run, str] = field(default_factory=dict)
    decided: dict[str, str] = field(default_factory=dict)  # edge -> what `decision` returns, or "max_runs"
    contradicted: dict[str, list[float]] = field(default_factory=dict)  # edge -> values of contradicting sentinels


class Summary(NamedTuple):
    """Summary of an edge's posterior. proposals: positions of the next round's runs if only this edge is undecided."""

    proposals: tuple[int, ...]
    median: int
    low: int  # ends of the interval
    high: int
    below: float
    above: float


@functools.lru_cache(maxsize=50_000)
def summary_of(counts: tuple[tuple[int, tuple[int, int]], ...], ends: tuple[int, int]) -> Summary:
    """Summarize the posterior. counts: items of the dictionary that `count` returns. ends: ends of the range."""
    found = posterior(dict(counts), *ends)
    proposals = tuple(min(max(found.quantile((j + 0.5) / ROUND), ends[0]), ends[1]) for j in range(ROUND))
    return Summary(proposals, found.quantile(0.5), *found.interval, found.below, found.above)


def count(edge: str, outcomes: Iterable[tuple[int, str]]) -> dict[int, tuple[int, int]]:
    """Return position -> (runs beyond the edge, other runs), sorted. outcomes: (position, outcome) of each run."""
    known = [(position, outcome in COUNTS_AS[edge]) for position, outcome in outcomes if outcome not in UNKNOWN]
    counts = Counter(known)
    return {position: (counts[position, True], counts[position, False]) for position in sorted(dict(known))}


def replay(settings: Settings, outcome_of: Callable[[Run], str | None]) -> Progress:
    """Go through the rounds. outcome_of(run): the run's outcome, CRASHED, or None if the run has no outcome yet."""
    axis, ends, progress = settings.axis, settings.ends, Progress()

    def take(runs: list[Run]) -> bool:
        """Add the outcomes of some runs. Return whether all these runs have an outcome."""
        found = {run: outcome_of(run) for run in runs}
        progress.wanted = [run for run, outcome in found.items() if outcome is None]
        progress.outcomes |= {run: outcome for run, outcome in found.items() if outcome is not None}
        return not progress.wanted

    while True:
        pairs = pairs_of(progress.outcomes, axis)
        found = {edge: summary_of(tuple(count(edge, pairs).items()), ends) for edge in COUNTS_AS}
        progress.decided = {edge: why for edge, one in found.items() if (why := decision(one, settings))}
        if len(progress.outcomes) + ROUND + SENTINELS > settings.max_runs:
            progress.decided = {edge: progress.decided.get(edge, "max_runs") for edge in COUNTS_AS}
        undecided = [edge for edge in COUNTS_AS if edge not in progress.decided]
        if not undecided:
            break
        chosen = [found[undecided[j % len(undecided)]].proposals[j] for j in range(ROUND)]
        first = settings.seed + len(progress.outcomes)
        if not take([Run(settings.value(position), first + j) for j, position in enumerate(chosen)]):
            return progress

    spread = [ends[0] + round((ends[1] - ends[0]) * (i + 0.5) / SENTINELS) for i in range(SENTINELS)]
    sentinels = [Run(settings.value(at), settings.seed + SENTINEL_SEED + i) for i, at in enumerate(spread)]
    if not take(sentinels):
        return progress
    expected = {edge: posterior(count(edge, pairs), *ends) for edge in COUNTS_AS}  # without the sentinels

    def chance(edge: str, run: Run) -> float:
        """Return the probability of a run's outcome (beyond the edge or not), estimated without the sentinels."""
        share, outcome = expected[edge].share(axis.position(run.value)), progress.outcomes[run]
        return 1.0 if outcome in UNKNOWN else share if outcome in COUNTS_AS[edge] else 1 - share

    repeats = {
        run: [Run(run.value, seed) for seed in repeat_seeds(settings)[REPEATS * i : REPEATS * (i + 1)]]
        for i, run in enumerate(sentinels)
        if min(chance(edge, run) for edge in COUNTS_AS) <= SURPRISE
    }
    if not take([run for more in repeats.values() for run in more]):
        return progress
    for edge in COUNTS_AS:
        progress.contradicted[edge] = []
        for run, more in repeats.items():
            p, n = chance(edge, run), 1 + REPEATS
            k = sum(chance(edge, one) == p for one in (run, *more))  # runs with the same outcome as the sentinel
            if sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)) <= CONTRADICTION:
                progress.contradicted[edge].append(run.value)
    return progress


def repeat_seeds(settings: Settings) -> range:
    """Return the seeds of the runs that repeat sentinels. All other runs of a search have smaller seeds."""
    first = settings.seed + REPEAT_SEED
    return range(first, first + REPEATS * SENTINELS)


def pairs_of(outcomes: Mapping[Run, str], axis: Axis) -> list[tuple[int, str]]:
    return [(axis.position(run.value), outcome) for run, outcome in outcomes.items()]


def decision(found: Summary, settings: Settings) -> str | None:
    """Return why an edge is decided: "below" or "above" the range, or a narrow "interval". Return None if undecided."""
    if found.below >= CONFIDENCE:
        return "below"
    if found.above >= CONFIDENCE:
        return "above"
    # No runs lie beyond the range, so an interval cannot become narrower there. If the edge may lie beyond one end of
    # the range, measure only the part of its interval inside the range.
    at_low, at_high = (AT_AN_END[0] < beyond < AT_AN_END[1] for beyond in (found.below, found.above))
    low = max(found.low, settings.ends[0]) if at_low and not at_high else found.low
    high = min(found.high, settings.ends[1]) if at_high and not at_low else found.high
    return "interval" if (high - low) / DECADE < settings.width else None

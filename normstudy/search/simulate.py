"""Simulate searches with known edges: how many runs does a search need, and how often is its interval right?"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from normstudy.search.posterior import WIDTHS, posterior
from normstudy.search.rounds import FAIL, Progress, Run, count, pairs_of, replay
from normstudy.search.settings import DECADE, Settings

GRID_SEEDS = 5  # runs at each value of a grid


class Edge(NamedTuple):
    """The share of runs that fail: a logistic function of the position."""

    threshold: float  # a position
    width: float  # in decades

    def share(self, position: int) -> float:
        return 0.5 * (1 + math.tanh((position - self.threshold) / DECADE / self.width / 2))


def outcomes_at(edge: Edge, settings: Settings, rng: np.random.Generator) -> Callable[[Run], str]:
    """Return a function that draws a run's outcome. Repeated calls for one run return the same outcome."""

    @functools.cache
    def outcome_of(run: Run) -> str:
        return "stuck" if rng.random() < edge.share(settings.axis.position(run.value)) else "learned"

    return outcome_of


def estimate(progress: Progress, settings: Settings) -> tuple[int, int, int]:
    """Return three positions for the edge FAIL (half of the runs fail): the median and the interval's ends."""
    found = posterior(count(FAIL, pairs_of(progress.outcomes, settings.axis)), *settings.ends)
    return found.quantile(0.5), *found.interval


class Expected(NamedTuple):
    """Simulated searches of a cell. runs: mean run count. error: root mean square error of the edge, in decades."""

    runs: float
    error: float
    grid_runs: float  # runs of a grid with an equal error


def expected(settings: Settings, searches: int = 40) -> Expected:
    """Simulate searches with random edges in the range. Find the coarsest grid whose error is no larger than theirs."""
    rng = np.random.default_rng(0)
    low, high = settings.ends
    edges = [Edge(rng.uniform(low, high), rng.choice(WIDTHS[:4])) for _ in range(searches)]
    done = [replay(settings, outcomes_at(edge, settings, rng)) for edge in edges]
    error = rms([(estimate(p, settings)[0] - e.threshold) / DECADE for p, e in zip(done, edges, strict=True)])
    spacing = max(1, (high - low) // 2)
    while spacing > 1 and rms(grid_errors(edges, settings, spacing, rng)) > error:
        spacing = max(1, round(0.85 * spacing))
    return Expected(float(np.mean([len(p.outcomes) for p in done])), error, GRID_SEEDS * ((high - low) // spacing + 1))


def rms(errors: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def grid_errors(edges: Sequence[Edge], settings: Settings, spacing: int, rng: np.random.Generator) -> list[float]:
    """Return the error of each edge, in decades, if the Spearman-Kaerber method estimates it from a grid of runs."""
    low, high = settings.ends  # the share of runs that did not fail is the part of the range below the edge
    positions = range(low, high + 1, spacing)
    failed = (rng.binomial(GRID_SEEDS, [edge.share(p) for p in positions]) / GRID_SEEDS for edge in edges)
    found = (low - spacing / 2 + spacing * float(np.sum(1 - share)) for share in failed)
    return [(value - edge.threshold) / DECADE for value, edge in zip(found, edges, strict=True)]

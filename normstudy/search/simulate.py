"""Simulate searches with known edges, to see how many runs they take and how often their intervals are right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from normstudy.search.axis import DECADE
from normstudy.search.posterior import WIDTHS, posterior
from normstudy.search.rounds import FAIL, Progress, Run, count, pairs_of, replay
from normstudy.search.settings import Settings

GRID_SEEDS = 5  # runs at each value of a grid


class Edge(NamedTuple):
    """A share of failing runs: a logistic in the position, with lapses, and perhaps a band of failures.

    threshold, band: positions. width: decades.
    """

    threshold: float
    width: float
    lapse: float = 0.0
    band: tuple[int, int] | None = None

    def share(self, position: int) -> float:
        if self.band is not None and self.band[0] <= position <= self.band[1]:
            return 1 - self.lapse
        logistic = 0.5 * (1 + math.tanh((position - self.threshold) / DECADE / self.width / 2))
        return self.lapse + (1 - 2 * self.lapse) * logistic


def outcomes_at(edge: Edge, settings: Settings, rng: np.random.Generator) -> Callable[[Run], str]:
    """Return a function that draws a run's outcome; a run that is asked for again has the same."""
    known: dict[Run, str] = {}

    def outcome_of(run: Run) -> str:
        if run not in known:
            known[run] = "stuck" if rng.random() < edge.share(settings.axis.position(run.value)) else "learned"
        return known[run]

    return outcome_of


def search(edge: Edge, settings: Settings, rng: np.random.Generator) -> Progress:
    return replay(settings, outcomes_at(edge, settings, rng))


def estimate(progress: Progress, settings: Settings) -> tuple[int, int, int]:
    """Return the median and the ends of the interval, as positions."""
    found = posterior(count(FAIL, pairs_of(progress.outcomes, settings.axis)), *settings.ends)
    return found.quantile(0.5), *found.interval


class Expected(NamedTuple):
    """What searches of one cell need on average. error: root mean square, in decades."""

    runs: float
    error: float
    grid_runs: float  # of a grid with the same error


def expected(settings: Settings, searches: int = 40) -> Expected:
    """Simulate searches whose edges lie anywhere in the range, and grids that are read as accurately."""
    rng = np.random.default_rng(0)
    low, high = settings.ends
    used, errors = [], []
    edges = [Edge(rng.uniform(low, high), rng.choice(WIDTHS[:4])) for _ in range(searches)]
    for edge in edges:
        progress = search(edge, settings, rng)
        used.append(len(progress.outcomes))
        errors.append((estimate(progress, settings)[0] - edge.threshold) / DECADE)
    error = rms(errors)
    spacing = max(1, (high - low) // 2)
    while spacing > 1 and rms(grid_errors(edges, settings, spacing, rng)) > error:
        spacing = max(1, round(0.85 * spacing))
    return Expected(float(np.mean(used)), error, GRID_SEEDS * ((high - low) // spacing + 1))


def rms(errors: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def grid_errors(edges: Sequence[Edge], settings: Settings, spacing: int, rng: np.random.Generator) -> list[float]:
    """Return the errors, in decades, of a grid over the range, read by the estimator of Spearman and Kaerber.

    The estimator is the value below which as much of the range lies as the share of runs that did not fail.
    """
    low, high = settings.ends
    positions = np.arange(low, high + 1, spacing)
    errors = []
    for edge in edges:
        share = rng.binomial(GRID_SEEDS, [edge.share(int(p)) for p in positions]) / GRID_SEEDS
        errors.append((low - spacing / 2 + spacing * float(np.sum(1 - share)) - edge.threshold) / DECADE)
    return errors

"""Simulate searches with known edges, and grids of the same error.

    python tests/search/simulated.py [--searches 2000] [--out results/robustness]

Writes critical.parquet; results/README.md describes it. Takes some minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from normstudy.search import simulate
from normstudy.search.posterior import posterior
from normstudy.search.rounds import FAIL, Run, replay
from normstudy.search.settings import DECADE, Settings
from normstudy.search.simulate import GRID_SEEDS, estimate, outcomes_at, rms

SETTINGS = Settings("peak_lr", 3e-4, 1.0)
WIDTHS, LAPSES = (0.03, 0.08, 0.15, 0.25), (0.0, 0.02, 0.05)
SPACINGS = (50, 40, 30, 25, 20, 15, 12, 10, 8, 6, 5, 4, 3)  # positions between two values of a grid
BAND = 60  # positions; a band of failures is as wide, and lies anywhere below the edge


class Edge(NamedTuple):
    """The edge of `simulate`, with lapses and perhaps a band of failures."""

    threshold: float  # a position
    width: float  # in decades
    lapse: float = 0.0
    band: tuple[int, int] | None = None  # between these two positions runs fail, except for lapses

    def share(self, position: int) -> float:
        if self.band is not None and self.band[0] <= position <= self.band[1]:
            return 1 - self.lapse
        return self.lapse + (1 - 2 * self.lapse) * simulate.Edge(self.threshold, self.width).share(position)


def grid_errors(edges: list[Edge], spacing: int, rng: np.random.Generator) -> tuple[list[float], list[float]]:
    """The errors of grids, in decades, read at the midpoint where more than half fail first, and by the posterior."""
    low, high = SETTINGS.ends
    positions = np.arange(low, high + 1, spacing)
    midpoint, model = [], []
    for edge in edges:
        failed = rng.binomial(GRID_SEEDS, [edge.share(int(p)) for p in positions])
        first = next((p for p, n in zip(positions, failed, strict=True) if 2 * n > GRID_SEEDS), high + spacing)
        midpoint.append((float(first) - spacing / 2 - edge.threshold) / DECADE)
        counts = {int(p): (int(n), GRID_SEEDS - int(n)) for p, n in zip(positions, failed, strict=True)}
        model.append((posterior(counts, low, high).quantile(0.5) - edge.threshold) / DECADE)
    return midpoint, model


def runs_of_grids(edges: list[Edge], error: float, rng: np.random.Generator) -> dict[str, float]:
    """The runs of the coarsest grid that is as accurate as `error`, for both ways to read it; NaN: none is."""
    low, high = SETTINGS.ends
    found = {"grid_midpoint": np.nan, "grid_posterior": np.nan}
    for spacing in SPACINGS:
        for name, errors in zip(found, grid_errors(edges, spacing, rng), strict=True):
            if np.isnan(found[name]) and rms(errors) <= error:
                found[name] = GRID_SEEDS * ((high - low) // spacing + 1)
    return found


def searched(kind: str, edges: list[Edge], rng: np.random.Generator) -> dict[str, object]:
    """A row of the table, without the grids."""
    errors, runs, covered, told = [], [], [], []
    for edge in edges:
        done = replay(SETTINGS, outcomes_at(edge, SETTINGS, rng))
        median, low, high = estimate(done, SETTINGS)
        errors.append((median - edge.threshold) / DECADE)
        runs.append(len(done.outcomes))
        covered.append(low <= edge.threshold <= high)
        told.append(bool(done.contradicted[FAIL]))
    return {
        "kind": kind, "width": edges[0].width, "lapse": edges[0].lapse, "searches": len(edges),
        "runs": np.mean(runs), "rms": rms(errors), "bias": np.mean(errors), "coverage": np.mean(covered),
        "told": np.mean(told),
    }  # fmt: skip


def seconds_of_a_round(cells: int, rng: np.random.Generator) -> float:
    """Seconds to choose the sixth round of so many cells, whose first five have outcomes."""
    low, high = SETTINGS.ends
    seconds = 0.0
    for _ in range(cells):
        outcome_of = outcomes_at(Edge(rng.uniform(low + 30, high - 30), 0.08), SETTINGS, rng)
        known: dict[Run, str] = {}
        for number in range(6):
            began = time.perf_counter()
            wanted = replay(SETTINGS, known.get).wanted
            seconds += (number == 5) * (time.perf_counter() - began)
            known |= {run: outcome_of(run) for run in wanted}
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--searches", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("results/robustness"))
    args = parser.parse_args()
    low, high = SETTINGS.ends
    rng, rows, n = np.random.default_rng(0), [], args.searches
    for width, lapse in itertools.product(WIDTHS, LAPSES):
        edges = [Edge(rng.uniform(low + 30, high - 30), width, lapse) for _ in range(n)]
        row = searched("edge", edges, rng)
        rows.append(row | (runs_of_grids(edges[: n // 4], float(row["rms"]), rng) if lapse == 0 else {}))
    for width, lapse in itertools.product(WIDTHS[:3], LAPSES[:2]):
        at = [rng.uniform(low + 2 * BAND, high - 10) for _ in range(n // 4)]
        bands = [int(rng.uniform(low, t - 1.5 * BAND)) for t in at]
        rows.append(
            searched("band", [Edge(t, width, lapse, (b, b + BAND)) for t, b in zip(at, bands, strict=True)], rng)
        )
    for width in WIDTHS[:3]:
        rows.append(searched("end", [Edge(float(high), width) for _ in range(n // 4)], rng))
    frame = pd.DataFrame(rows)
    frame["seconds_100_cells"] = seconds_of_a_round(100, rng)
    frame.to_parquet(args.out / "critical.parquet", index=False)
    print(frame.round(3).to_string())


if __name__ == "__main__":
    main()

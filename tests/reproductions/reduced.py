"""All reproductions measured once at reduced sizes, in this process, and the committed ones."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pandas as pd

from normstudy.reproductions import run, tables
from normstudy.reproductions.entry import Reading, Sizes
from normstudy.reproductions.measure import measure
from normstudy.reproductions.run import REPRODUCTIONS

STORED = Path(__file__).parents[2] / "results" / "reproductions"
REDUCED = Sizes(d_model=16, n_heads=2, batch_size=2, seq_len=8, vocab_size=32, depths=(4, 5, 7), seeds=3, many_seeds=4)


@functools.cache
def measured() -> dict[str, pd.DataFrame]:
    """name -> table, measured in REDUCED."""
    needs = {name: entry.needs(REDUCED) for name, entry in REPRODUCTIONS.items()}
    rows: dict[run.Unit, list[Reading]] = {}
    for job in run.jobs(run.units(itertools.chain.from_iterable(needs.values())), REDUCED):
        found = measure(job)
        for seed in job.seeds:
            rows[job.kind, job.variant, job.depth, seed] = [row for row in found if row[2] == seed]
    return {name: run.frame(run.units(part), rows) for name, part in needs.items()}


def stored(name: str) -> pd.DataFrame:
    """A committed table."""
    return tables.read(STORED, name)

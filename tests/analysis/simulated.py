"""Tables of many runs that are copies of one, but for some columns: for comparisons by the thousand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from handmade import handmade_config, write_handmade_run

from normstudy.analysis.outcomes import UNJUDGED
from normstudy.study import tables

Tables = tuple[pd.DataFrame, pd.DataFrame]

# Outcome -> final loss, late loss (H1 is 3.26 and H2 2.46 nats per token).
FATES = {
    "learned": (2.5, 2.5), "partial": (2.8, 2.8), "stuck": (3.2, 3.2), "unfinished": (3.0, 3.2),
    "diverged": (math.nan, 3.0), UNJUDGED: (3.0, math.nan),
}  # fmt: skip


def one_run(root: Path) -> Tables:
    """The tables `runs` and `steps` of one run, with one step."""
    write_handmade_run(root / "handmade", handmade_config(root), "learned", 2.5)
    runs, steps = (tables.read(root / "handmade", table) for table in ("runs", "steps"))
    return runs, steps.iloc[:1]


def copies(one: Tables, columns: Mapping[str, Sequence[object]]) -> Tables:
    """Copies of a run with other values in some columns of `runs`."""
    n = len(columns["seed"])
    columns = {**columns, "run_id": [str(i) for i in range(n)], "data_seed": columns["seed"]}
    runs, steps = (table.iloc[[0] * n].reset_index(drop=True) for table in one)
    return runs.assign(**columns), steps.assign(run_id=columns["run_id"])

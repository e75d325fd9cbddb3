"""Collect the numbers that each run recorded at each step, under the names that experiment trackers show.

A slash in a name makes a tracker put the number into a group. Examples of names, for each table:

from `steps`     train_loss val_loss lr grad_norm param_norm update_norm
from `modules`   grad_norm/layer 0/attn_in   grad_norm/embed   (also param_norm and update_norm)
from `residual`  residual_rms/layer 0   residual_grad_norm/layer 0
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa
from tqdm import tqdm

from normstudy.errors import bar_options
from normstudy.exports.source import Source
from normstudy.study import schema

# For `steps`, `modules` and `residual`: column to export -> its name in the export.
NAMES = (
    {n: n for n in ("train_loss", "val_loss", "lr", "grad_norm", "param_norm", "update_norm")},
    {n: n for n in ("grad_norm", "param_norm", "update_norm")},
    {"rms": "residual_rms", "grad_norm": "residual_grad_norm"},
)

Scalars = dict[str, float]  # name -> number


class ExportedRun(NamedTuple):
    """Hold a run to export."""

    run_id: str
    row: Mapping[str, object]  # the run's row in the table `runs`
    steps: dict[int, Scalars]  # step -> name -> number, sorted by step; nulls are left out

    def time(self, step: int) -> float:
        """Estimate when a step ended, in seconds since 1970.

        All steps are assumed to take equally long: 1 s each if the start or the end of the run is unknown.
        """
        start, end = (self.row[name] for name in ("started_at", "finished_at"))
        if not isinstance(start, datetime.datetime):
            return step + (end.timestamp() if isinstance(end, datetime.datetime) else 0.0)
        each = 1.0
        if isinstance(end, datetime.datetime) and self.steps:
            each = (end - start).total_seconds() / (1 + max(self.steps))
        return start.timestamp() + each * (step + 1)


def runs_of(source: Source, what: str) -> Iterator[ExportedRun]:
    """Yield the runs one by one; on a terminal, a progress bar shows `what` and the time left."""
    series = zip(*(source.rows(table) for table in schema.SERIES), strict=True)
    rows = (row for batch in source.runs.to_batches(1) for row in batch.to_pylist())
    runs = zip(source.run_ids, rows, series, strict=True)
    for run_id, row, of_run in tqdm(runs, total=len(source.run_ids), unit="run", desc=what, **bar_options()):
        yield ExportedRun(run_id, row, by_step(*of_run))


def by_step(*tables: pa.Table) -> dict[int, Scalars]:
    """Return step -> name -> number, sorted by step, from one run's rows in `steps`, `modules` and `residual`."""
    found: dict[int, Scalars] = {}
    for rows, names in zip(tables, NAMES, strict=True):
        steps, places = rows["step"].to_pylist(), places_of(rows)
        for column, name in names.items():
            for step, place, value in zip(steps, places, rows[column].to_pylist(), strict=True):
                if value is not None:
                    found.setdefault(step, {})[name + place] = value
    return dict(sorted(found.items()))


def places_of(rows: pa.Table) -> list[str]:
    """Return each row's layer and module as text such as `/layer 0/attn_in`. Null values are left out of the text."""
    places = [""] * rows.num_rows
    for column, prefix in (("layer", "/layer "), ("module", "/")):
        if column in rows.column_names:
            values = rows[column].to_pylist()
            places = [p if v is None else f"{p}{prefix}{v}" for p, v in zip(places, values, strict=True)]
    return places

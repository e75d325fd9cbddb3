"""Each run's numbers step by step, for tools that follow runs, under names that these tools group by their slashes.

train_loss val_loss lr grad_norm param_norm update_norm      of `steps`
grad_norm/layer 0/attn_in   grad_norm/embed                   of `modules`, also param_norm and update_norm
residual_rms/layer 0   residual_grad_norm/layer 0             of `residual`
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
from tqdm import tqdm

from normstudy import terminal
from normstudy.exports.source import Source
from normstudy.study import schema

STEP_NUMBERS = ("train_loss", "val_loss", "lr", "grad_norm", "param_norm", "update_norm")
MODULE_NUMBERS = ("grad_norm", "param_norm", "update_norm")
RESIDUAL_NUMBERS = {"rms": "residual_rms", "grad_norm": "residual_grad_norm"}

Scalars = dict[str, float]  # by name


@dataclass(frozen=True)
class ExportedRun:
    """A run to export. row: its row of `runs`; steps: step -> the numbers recorded at this step, without nulls.

    Only steps with numbers are listed, in order; a run that failed before its first step has none.
    """

    row: Mapping[str, object]
    steps: dict[int, Scalars]

    @property
    def run_id(self) -> str:
        """The run_id."""
        return str(self.row["run_id"])

    def time(self, step: int) -> float:
        """A made-up time of a step in seconds since 1970, because no time is recorded for each step.

        The steps are spread evenly between the start and the end of the run. If either is unknown, as for a running
        run, consecutive steps are one second apart.
        """
        start, end = (self.row[name] for name in ("started_at", "finished_at"))
        if not isinstance(start, datetime.datetime):
            return step + (end.timestamp() if isinstance(end, datetime.datetime) else 0.0)
        each = 1.0
        if isinstance(end, datetime.datetime) and self.steps:
            each = (end - start).total_seconds() / (1 + max(self.steps))
        return start.timestamp() + each * (step + 1)


def runs_of(source: Source, what: str) -> Iterator[ExportedRun]:
    """Yields the runs one by one; on a terminal a progress bar shows `what` and the time left."""
    series = zip(*(source.rows(table) for table in schema.SERIES), strict=True)
    rows = (row for batch in source.runs.to_batches(1) for row in batch.to_pylist())
    with tqdm(total=source.n_runs, unit="run", desc=what, **terminal.fit()) as bar:
        for row, (steps, modules, residual) in zip(rows, series, strict=True):
            yield ExportedRun(row, by_step(steps, modules, residual))
            bar.update()


def by_step(steps: pa.Table, modules: pa.Table, residual: pa.Table) -> dict[int, Scalars]:
    """step -> name -> number, sorted by step, from the rows of one run."""
    found: dict[int, Scalars] = {}

    def add(rows: pa.Table, names: Mapping[str, str], places: list[str]) -> None:
        at = rows["step"].to_pylist()
        for column, name in names.items():
            for step, place, value in zip(at, places, rows[column].to_pylist(), strict=True):
                if value is not None:
                    found.setdefault(step, {})[name + place] = value

    add(steps, {name: name for name in STEP_NUMBERS}, [""] * steps.num_rows)
    add(modules, {name: name for name in MODULE_NUMBERS}, places_of(modules))
    add(residual, RESIDUAL_NUMBERS, places_of(residual))
    return dict(sorted(found.items()))


def places_of(rows: pa.Table) -> list[str]:
    """The layer and module of each row as `/layer 0/attn_in`; a row without a layer or module omits that part."""
    layers = ["" if layer is None else f"/layer {layer}" for layer in rows["layer"].to_pylist()]
    if "module" not in rows.column_names:
        return layers
    return [f"{layer}/{module}" for layer, module in zip(layers, rows["module"].to_pylist(), strict=True)]

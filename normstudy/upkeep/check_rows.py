"""Verify, for `normstudy check`, the rows of `runs`, and whether each run has the right rows in the other tables."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from normstudy import config as cfg
from normstudy.analysis.grid import count_text
from normstudy.study import parquet

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

STATUSES = ("running", "done", "failed")


class Expected(NamedTuple):
    """The columns of a `runs` row that determine which rows the run must have in the other tables."""

    name: str  # the run_id
    status: str
    n_steps: int
    n_layers: int
    dense_steps: int  # the run's probe_dense_steps
    every: int  # the run's probe_every
    nonfinite_step: int | None  # the step at which the run diverged; None if it did not


class Counted(NamedTuple):
    """The counts of one run's rows in one table other than `runs`."""

    steps: Ints  # the distinct steps, sorted; -1 stands for null
    rows: Ints  # the number of rows at each step of `steps`
    duplicates: int


def expected_of(row: Mapping[str, object]) -> Expected:
    """Return the columns of a `runs` row that determine which rows the run must have in the other tables."""
    keys = ("run_id", "status", "n_steps", "n_layers", "probe_dense_steps", "probe_every", "nonfinite_step")
    return Expected(*(row[key] for key in keys))  # type: ignore[arg-type]


def wrong_in_row(row: Mapping[str, object]) -> str:
    """Describe what is wrong with a `runs` row, in a string that is empty if the row is sound."""
    if row["status"] not in STATUSES:
        return f"status {row['status']} is not one of {', '.join(STATUSES)}"
    if (found := row["identity_version"]) != cfg.IDENTITY_VERSION:
        return f"identity_version is {found}, but this version of normstudy knows only {cfg.IDENTITY_VERSION}"
    digest = digest_of(row)
    has_text = row["data_sha256"] is not None or row["status"] == "done"  # a run can fail before its text is known
    if has_text and digest != str(row["run_id"]).rpartition("-")[2]:
        return f"the run_id does not match the run's row, whose values give a run_id that ends in {digest}"
    loss = row["final_val_loss"]
    must_end = row["status"] == "done" and row["nonfinite_step"] is None
    if must_end and not (isinstance(loss, float) and math.isfinite(loss)):
        return f"status is done, but final_val_loss is {'null' if loss is None else loss} and nonfinite_step is null"
    return ""


def digest_of(row: Mapping[str, object]) -> str:
    """Compute from a `runs` row the hexadecimal digits at the end of the run_id, as `config.run_id` does."""
    values = {c: row[c] for c in (*cfg.asked_types(), "placement_sha256", "norm_sha256")}
    values |= {f.name: row[f"resolved_{f.name}"] for f in dataclasses.fields(cfg.Resolved)}
    return cfg.digest(cfg.identity_of(values, {c: row[c] for c in ("identity_version", "numerics", "data_sha256")}))


def steps_of(table: str, run: Expected) -> Ints:
    """Return the steps at which a finished run must have rows. Repeats `probes.is_probed`, which would import torch."""
    last = run.n_steps - 1 if run.nonfinite_step is None else min(run.nonfinite_step, run.n_steps - 1)
    t = np.arange(last + 1)
    return t if table == "steps" else t[(t < run.dense_steps) | (t % run.every == 0) | (t == run.n_steps - 1)]


def lacking(table: str, run: Expected, counts: Counted) -> str:
    """Describe which rows a finished run lacks or has in excess, in a string that is empty if the rows are right."""
    steps, rows, _ = counts
    wanted = steps_of(table, run)
    missing, strange = np.setdiff1d(wanted, steps), np.setdiff1d(steps, wanted)
    if len(missing):
        lacks = f"lacks {len(missing)} of the run's {len(wanted)} steps (the first is step {missing[0]})"
        return f"status is done, but tables/{table} {lacks}"
    if len(strange):
        return f"tables/{table} has {count_text(len(strange), 'step')} too many (the first is step {strange[0]})"
    at_each = {"steps": 1, "residual": run.n_layers + 1}.get(table, int(rows.max(initial=0)))
    uneven = np.flatnonzero(rows != at_each)
    return f"tables/{table} has {rows[uneven[0]]} of {at_each} rows at step {steps[uneven[0]]}" if len(uneven) else ""


def count(rows: pa.Table) -> Counted:
    """Count one run's rows in one table other than `runs`."""
    columns = [_codes(rows[name]) for name in ("step", "layer", "module") if name in rows.schema.names]
    keys = columns[0]
    for codes in columns[1:]:
        keys = keys * (codes.max(initial=0) + 2) + codes + 1
    steps, at_each = np.unique(columns[0], return_counts=True)
    return Counted(steps, at_each, len(keys) - len(np.unique(keys)))


def _codes(column: pa.ChunkedArray) -> Ints:
    """Return a column as integers: a number stays the same, each name gets an integer, and null becomes -1."""
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries().combine_chunks().indices
    return np.asarray(column.fill_null(-1).to_numpy(), np.int64)


def runs_of(parts: Iterable[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    """Yield (run_id, rows) for each run of a table. parts: the table's row groups, sorted by run."""
    pieces = (piece for part in parts for piece in parquet.runs_in(part))
    for run_id, same in itertools.groupby(pieces, key=operator.itemgetter(0)):
        yield run_id, pa.concat_tables([rows for _, rows in same])

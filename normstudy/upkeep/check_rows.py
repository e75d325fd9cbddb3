"""Verify, for `normstudy check`, the rows of `runs`, and whether each run has the right rows in the other tables."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa

from normstudy import config as cfg
from normstudy.analysis.grid import count_text
from normstudy.study import parquet, schema

STATUSES = ("running", "done", "failed")


def newer(row: Mapping[str, object]) -> str:
    """Say that a newer version of normstudy wrote a `runs` row, in a string that is empty otherwise."""
    found, known = row["identity_version"], cfg.IDENTITY_VERSION
    return "" if found == known else f"identity_version is {found}, but this version of normstudy knows only {known}"


def wrong_in_row(row: Mapping[str, object]) -> str:
    """Describe what is wrong with a `runs` row, in a string that is empty if the row is sound."""
    if row["status"] not in STATUSES:
        return f"status {row['status']} is not one of {', '.join(STATUSES)}"
    if row["source"] == schema.WATCH:
        return ""  # its id is random, and it may have no final loss
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


def duplicates_in(rows: pa.Table) -> str:
    """Say how many rows of a run in a table other than `runs` are there twice, in a string that may be empty."""
    keys = [name for name in ("step", "layer", "module") if name in rows.schema.names]
    n = rows.num_rows - rows.group_by(keys).aggregate([]).num_rows
    return f"has {count_text(n, 'duplicate row')}" if n else ""


def runs_of(parts: Iterable[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    """Yield (run_id, rows) for each run of a table. parts: the table's row groups, sorted by run."""
    pieces = (piece for part in parts for piece in parquet.runs_in(part))
    for run_id, same in itertools.groupby(pieces, key=operator.itemgetter(0)):
        yield run_id, pa.concat_tables([rows for _, rows in same])

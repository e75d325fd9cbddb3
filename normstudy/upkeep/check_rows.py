"""The rules by which `normstudy check` verifies rows: each `runs` row, and the series rows that it implies."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from normstudy import config as cfg

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

STATUSES = ("running", "done", "failed")


class Expected(NamedTuple):
    """The `runs` columns that determine which series rows a run must have."""

    name: str  # the run_id
    status: str
    n_steps: int
    n_layers: int
    dense_steps: int  # the run's probe_dense_steps
    every: int  # the run's probe_every
    nonfinite_step: int | None  # the step at which a diverged run ended


class Keys(NamedTuple):
    """The key columns of one run's rows; a column that the table lacks is all 0."""

    step: Ints
    layer: Ints  # layer numbers, -1 for null
    module: Ints  # a code for each module name


class Counted(NamedTuple):
    """The counts of one run's rows."""

    steps: Ints  # the distinct steps, sorted
    rows: Ints  # the number of rows at each of the steps
    twice: int  # the number of duplicate rows


def counted(n: int, word: str) -> str:
    """Format a count, e.g. `1 run` or `1,000 runs`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


# ---- runs ---------------------------------------------------------------------------------------------


def expected_of(row: Mapping[str, object]) -> Expected:
    """Extract from a `runs` row what the run's series must contain."""
    keys = ("run_id", "status", "n_steps", "n_layers", "probe_dense_steps", "probe_every", "nonfinite_step")
    return Expected(*(row[key] for key in keys))  # type: ignore[arg-type]


def wrong_in_row(row: Mapping[str, object]) -> str:
    """Describe what is wrong with a `runs` row; empty if it is sound."""
    if row["status"] not in STATUSES:
        return f"its status {row['status']} is not one of {', '.join(STATUSES)}"
    if row["identity_version"] != cfg.IDENTITY_VERSION:
        return f"its identity_version is {row['identity_version']}, but this version knows only {cfg.IDENTITY_VERSION}"
    digest = digest_of(row)
    has_text = row["data_sha256"] is not None or row["status"] == "done"  # a run can fail before its text is known
    if has_text and digest != str(row["run_id"]).rpartition("-")[2]:
        return f"the values in its row do not match its run_id, which would have to end in {digest}"
    loss = row["final_val_loss"]
    must_end = row["status"] == "done" and row["nonfinite_step"] is None
    if must_end and not (isinstance(loss, float) and math.isfinite(loss)):
        return f"its status is done, but final_val_loss is {'null' if loss is None else loss}, nonfinite_step is null"
    return ""


def digest_of(row: Mapping[str, object]) -> str:
    """Compute the hexadecimal digits that end a run_id from the run's `runs` row, as `config.run_id` does."""
    values = {c: row[c] for c in (*cfg.asked_types(), "placement_sha256", "norm_sha256")}
    values |= {f.name: row[f"resolved_{f.name}"] for f in dataclasses.fields(cfg.Resolved)}
    return cfg.digest(cfg.identity_of(values, {c: row[c] for c in ("identity_version", "numerics", "data_sha256")}))


# ---- series -------------------------------------------------------------------------------------------


def steps_of(table: str, run: Expected) -> Ints:
    """Return the steps at which a finished run must have rows. Repeats the rule of `probes.is_probed` without torch."""
    last = run.n_steps - 1 if run.nonfinite_step is None else min(run.nonfinite_step, run.n_steps - 1)
    t = np.arange(last + 1)
    return t if table == "steps" else t[(t < run.dense_steps) | (t % run.every == 0) | (t == run.n_steps - 1)]


def lacking(table: str, run: Expected, steps: Ints, rows: Ints) -> str:
    """Describe which rows a finished run lacks or has in excess; empty if none. rows: the number of rows per step."""
    wanted = steps_of(table, run)
    missing, strange = np.setdiff1d(wanted, steps), np.setdiff1d(steps, wanted)
    if len(missing):
        lacks = f"lacks {len(missing)} of its {len(wanted)} steps (first: step {missing[0]})"
        return f"its status is done, but tables/{table} {lacks}"
    if len(strange):
        return f"tables/{table} has {counted(len(strange), 'step')} too many (first: step {strange[0]})"
    at_each = {"steps": 1, "residual": run.n_layers + 1}.get(table, int(rows.max(initial=0)))
    uneven = np.flatnonzero(rows != at_each)
    return f"tables/{table} has {rows[uneven[0]]} of {at_each} rows at step {steps[uneven[0]]}" if len(uneven) else ""


def count(rows: Keys) -> Counted:
    """Count one run's rows, of which there must be at least one."""
    keys = (rows.step * (rows.layer.max() + 2) + rows.layer + 1) * (rows.module.max() + 1) + rows.module
    steps, at_each = np.unique(rows.step, return_counts=True)
    return Counted(steps, at_each, len(keys) - len(np.unique(keys)))


def runs_of(parts: Iterable[pa.Table]) -> Iterator[tuple[str, Keys]]:
    """Yield (run_id, keys) for each run of a series. parts: row groups sorted by run, read one at a time."""
    codes: dict[str, int] = {}  # module name -> code; each row group may have its own dictionary of names
    name, held = "", list[Keys]()
    for part in parts:
        run_ids, run = _names(part, "run_id")
        module = np.zeros(len(run), np.int64)
        if "module" in part.schema.names:
            modules, places = _names(part, "module")
            module = np.array([codes.setdefault(m, len(codes)) for m in modules])[places]
        step, layer = _numbers(part, "step"), _numbers(part, "layer")
        for low, high in itertools.pairwise([0, *(np.flatnonzero(np.diff(run)) + 1), len(run)]):
            if low == high:
                continue  # the row group is empty
            if held and run_ids[run[low]] != name:
                yield name, _joined(held)
                held = []
            name = run_ids[run[low]]
            held.append(Keys(step[low:high], layer[low:high], module[low:high]))
    if held:
        yield name, _joined(held)


def _joined(held: list[Keys]) -> Keys:
    return held[0] if len(held) == 1 else Keys(*(np.concatenate(columns) for columns in zip(*held, strict=True)))


def _numbers(part: pa.Table, column: str) -> Ints:
    """Return a column's integers, with -1 for null; all 0 if the table does not have the column."""
    if column not in part.schema.names:
        return np.zeros(part.num_rows, np.int64)
    return np.asarray(part[column].fill_null(-1).to_numpy(), np.int64)


def _names(part: pa.Table, column: str) -> tuple[list[str], Ints]:
    """Return a column's distinct names, followed by `null`, and the index of each row's name among them."""
    values = part[column].unify_dictionaries()
    names = values.chunk(0).dictionary.to_pylist() if values.num_chunks else []
    places = [chunk.indices.fill_null(len(names)).to_numpy() for chunk in values.chunks]
    return [*names, "null"], np.concatenate([np.empty(0, np.int64), *places])

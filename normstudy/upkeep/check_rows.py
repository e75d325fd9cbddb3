"""What `normstudy check` asks of rows: those of `runs` by themselves, those of a series by the run's own row."""

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


class Run(NamedTuple):
    """What a row of `runs` says of its series. nonfinite_step: where it ended, None where at its last step."""

    name: str
    status: str
    n_steps: int
    n_layers: int
    dense_steps: int
    every: int
    nonfinite_step: int | None


class Rows(NamedTuple):
    """The keys of rows of one run; layer -1 for null, module as a code, both 0 where the table has none."""

    step: Ints
    layer: Ints
    module: Ints


class Counted(NamedTuple):
    """Rows by step: steps in order, the rows at each, and how many are there twice."""

    steps: Ints
    rows: Ints
    twice: int


# ---- runs ---------------------------------------------------------------------------------------------


def run_of(row: Mapping[str, object]) -> Run:
    """The run of a row of `runs`."""
    keys = ("run_id", "status", "n_steps", "n_layers", "probe_dense_steps", "probe_every", "nonfinite_step")
    return Run(*(row[key] for key in keys))  # type: ignore[arg-type]


def wrong_in_row(row: Mapping[str, object]) -> str:
    """What is wrong with a row of `runs`, empty for nothing."""
    if row["status"] not in STATUSES:
        return f"its status {row['status']} is none of {', '.join(STATUSES)}"
    if row["identity_version"] != cfg.IDENTITY_VERSION:
        return f"its identity_version {row['identity_version']} is not {cfg.IDENTITY_VERSION}, the one known here"
    digest = digest_of(row)
    has_text = row["data_sha256"] is not None or row["status"] == "done"  # a run may fail before it has read it
    if has_text and digest != str(row["run_id"]).rpartition("-")[2]:
        return f"its row has other values than its run_id stands for, which would end in {digest}"
    loss = row["final_val_loss"]
    must_end = row["status"] == "done" and row["nonfinite_step"] is None
    if must_end and not (isinstance(loss, float) and math.isfinite(loss)):
        return f"it is done with final_val_loss {'null' if loss is None else loss} and nonfinite_step null"
    return ""


def digest_of(row: Mapping[str, object]) -> str:
    """The hexadecimal digits that end the run_id of a row of `runs`, as `config.run_id` computes them."""
    values = {c: row[c] for c in (*cfg.asked_types(), "placement_sha256", "norm_sha256")}
    values |= {f.name: row[f"resolved_{f.name}"] for f in dataclasses.fields(cfg.Resolved)}
    return cfg.digest(cfg.identity_of(values, {c: row[c] for c in ("identity_version", "numerics", "data_sha256")}))


# ---- series -------------------------------------------------------------------------------------------


def steps_of(table: str, run: Run) -> Ints:
    """The steps at which a finished run has rows in a series table (`probes.is_probed`, without torch)."""
    last = run.n_steps - 1 if run.nonfinite_step is None else min(run.nonfinite_step, run.n_steps - 1)
    t = np.arange(last + 1)
    return t if table == "steps" else t[(t < run.dense_steps) | (t % run.every == 0) | (t == run.n_steps - 1)]


def lacking(table: str, run: Run, steps: Ints, rows: Ints) -> str:
    """What the rows of a finished run lack, or have too many of, empty for nothing. rows: at each of its steps."""
    wanted = steps_of(table, run)
    missing, strange = np.setdiff1d(wanted, steps), np.setdiff1d(steps, wanted)
    if len(missing):
        return f"it is done, and tables/{table} lacks {len(missing)} of its {len(wanted)} steps, from {missing[0]} on"
    if len(strange):
        return f"tables/{table} has steps that it should not have: {len(strange)}, from {strange[0]} on"
    at_each = {"steps": 1, "residual": run.n_layers + 1}.get(table, int(rows.max(initial=0)))
    uneven = np.flatnonzero(rows != at_each)
    return f"tables/{table} has {rows[uneven[0]]} of {at_each} rows at step {steps[uneven[0]]}" if len(uneven) else ""


def count(rows: Rows) -> Counted:
    """Count the rows, at least one, of one run."""
    keys = (rows.step * (rows.layer.max() + 2) + rows.layer + 1) * (rows.module.max() + 1) + rows.module
    steps, at_each = np.unique(rows.step, return_counts=True)
    return Counted(steps, at_each, len(keys) - len(np.unique(keys)))


def runs_of(parts: Iterable[pa.Table]) -> Iterator[tuple[str, Rows]]:
    """(run_id, rows) of each run of a series table sorted by run, given in parts, of which memory holds one."""
    codes: dict[str, int] = {}  # of modules: each part may have a dictionary of its own
    name, held = "", list[Rows]()
    for part in parts:
        run_ids, run = _names(part, "run_id")
        module = np.zeros(len(run), np.int64)
        if "module" in part.schema.names:
            modules, places = _names(part, "module")
            module = np.array([codes.setdefault(m, len(codes)) for m in modules])[places]
        step, layer = _numbers(part, "step"), _numbers(part, "layer")
        for low, high in itertools.pairwise([0, *(np.flatnonzero(np.diff(run)) + 1), len(run)]):
            if low == high:
                continue  # a part without rows
            if held and run_ids[run[low]] != name:
                yield name, _joined(held)
                held = []
            name = run_ids[run[low]]
            held.append(Rows(step[low:high], layer[low:high], module[low:high]))
    if held:
        yield name, _joined(held)


def _joined(held: list[Rows]) -> Rows:
    return held[0] if len(held) == 1 else Rows(*(np.concatenate(columns) for columns in zip(*held, strict=True)))


def _numbers(part: pa.Table, column: str) -> Ints:
    """A column of integers, -1 for null; 0 everywhere where the table has none of that name."""
    if column not in part.schema.names:
        return np.zeros(part.num_rows, np.int64)
    return np.asarray(part[column].fill_null(-1).to_numpy(), np.int64)


def _names(part: pa.Table, column: str) -> tuple[list[str], Ints]:
    """The names in a column, the last for null, and each row's place among them."""
    values = part[column].unify_dictionaries()
    names = values.chunk(0).dictionary.to_pylist() if values.num_chunks else []
    places = [chunk.indices.fill_null(len(names)).to_numpy() for chunk in values.chunks]
    return [*names, "null"], np.concatenate([np.empty(0, np.int64), *places])

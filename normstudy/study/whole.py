"""Find runs that lack rows, so that no result is computed from only some of a run's rows.

A run's row in the table `runs` determines which rows the other tables must have. A row can be missing because a file
was lost or replaced, or because a bit was flipped in the part of a file that says how many rows the file has.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from normstudy.errors import ConfigError, warn
from normstudy.study import checkpoints, parquet, schema, tables
from normstudy.study.parquet import Ints, Stretch

# The columns of `runs` that determine which rows a run must have in the other tables.
COLUMNS = ("run_id", "status", "n_steps", "n_layers", "probe_dense_steps", "probe_every", "nonfinite_step", "source")
NONE = (np.empty(0, np.int64), np.empty(0, np.int64))  # the steps of a run without rows, and their numbers of rows


class Expected(NamedTuple):
    """A run's values of COLUMNS, and the step of its checkpoint."""

    name: str  # the run_id
    status: str
    n_steps: int
    n_layers: int
    dense_steps: int  # the run's probe_dense_steps
    every: int  # the run's probe_every
    nonfinite_step: float | None  # the step at which the run diverged; None or NaN if it did not
    source: object = None  # schema.WATCH for a run that normstudy.watch recorded
    saved: int = 0  # the step at which an unfinished run resumes from its checkpoint

    def last(self, steps: Ints) -> int:
        """Return the last step that must have rows. steps: the steps that have rows.

        An unfinished run needs rows up to the last of `steps`, and at least for all full windows before its checkpoint.
        An unfinished watched run has no checkpoint, so it needs rows at least for its n_steps, the steps stored so far.
        """
        if self.status == "done":
            found = None if self.source == schema.WATCH else self.nonfinite_step
            return self.n_steps - 1 if found is None or found != found else min(int(found), self.n_steps - 1)
        size = schema.window_size(self.n_steps, self.source)
        saved = self.n_steps if self.source == schema.WATCH else self.saved // size * size
        return max(saved - 1, int(steps.max(initial=-1)))


def expected_of(study_dir: Path | str, values: Iterable[object]) -> Expected:
    """Return the values that determine which rows a run must have. values: the run's values of COLUMNS.

    Call this function before reading the other tables. If a sweep saves rows and a checkpoint after the tables are
    read, that checkpoint would require rows that were not read.
    """
    run = Expected(*values)  # type: ignore[arg-type]
    return run if run.status == "done" else run._replace(saved=checkpoints.head_of(Path(study_dir), run.name).step)


def steps_of(table: str, run: Expected, last: int) -> Ints:
    """Return the steps up to `last` that must have rows: the rule of training.probes, repeated here without torch.

    A watched run does not probe its last step, which is unknown in advance. A watched model without a residual stream
    has no rows in `residual`.
    """
    watched = run.source == schema.WATCH
    t = np.arange(0 if watched and table == "residual" and run.n_layers == 0 else last + 1)
    end = -1 if watched else run.n_steps - 1
    return t if table == "steps" else t[(t < run.dense_steps) | (t % run.every == 0) | (t == end)]


def lacking(table: str, run: Expected, steps: Ints, rows: Ints) -> str:
    """Describe which rows a run lacks or has in excess; "" if the rows are right.

    steps: the distinct steps, sorted; rows: the number of rows at each step, which must be equal at all steps.
    """
    wanted = steps_of(table, run, run.last(steps))
    if not np.array_equal(wanted, steps):  # array_equal is faster than setdiff1d, and most runs lack no rows
        if len(missing := np.setdiff1d(wanted, steps)):
            return f"lacks {len(missing)} of {len(wanted)} steps (the first is step {missing[0]})"
        strange = np.setdiff1d(steps, wanted)
        return f"has {len(strange)} steps too many (the first is step {strange[0]})"
    at_each = {"steps": 1, "residual": run.n_layers + 1}.get(table, int(rows.max(initial=0)))
    uneven = np.flatnonzero(rows != at_each)
    return f"has {rows[uneven[0]]} of {at_each} rows at step {steps[uneven[0]]}" if len(uneven) else ""


def wrong_in(table: str, run: Expected, rows: pa.Table) -> str:
    """Check the rows of a run in a table, and describe missing or surplus rows; "" if the rows are right."""
    return _wrong_of(table, [run], parquet.rows_by_step(rows)).get(run.name, "")


def _wrong_of(table: str, runs: Sequence[Expected], counted: Sequence[Stretch]) -> dict[str, str]:
    """Return run_id -> what is wrong, for runs that lack rows. counted: what parquet.rows_by_step returned."""
    parts: dict[str, list[tuple[Ints, Ints]]] = {}
    for run_id, steps, rows in counted:
        parts.setdefault(run_id, [NONE]).append((steps, rows))
    wrong = {}
    for run in runs:
        steps, rows = (np.concatenate(column) for column in zip(*parts.get(run.name, [NONE]), strict=True))
        if np.any(steps[1:] <= steps[:-1]):
            steps, at = np.unique(steps, return_inverse=True)
            rows = np.bincount(at, rows).astype(int)
        if what := lacking(table, run, steps, rows):
            wrong[run.name] = f"tables/{table} {what}"
    return wrong


def read(
    study_dir: Path | str,
    table: str,
    runs: pd.DataFrame,
    columns: list[str] | None = None,
    module: str | None = None,
    *,
    text: bool = True,
) -> pd.DataFrame:
    """Read one table as tables.read does, but leave out the runs that lack rows, and warn that they are left out.

    runs: rows of the table `runs` with COLUMNS. The other arguments are those of tables.read.
    """
    every = [expected_of(study_dir, row) for row in runs[list(COLUMNS)].itertuples(index=False, name=None)]
    counted: list[Stretch] = []
    frame = tables.read(study_dir, table, columns, list(runs["run_id"]), module, text=text, counted=counted)
    wrong = _wrong_of(table, every, counted)
    warn_of(study_dir, wrong)
    return frame[~frame["run_id"].isin(list(wrong))].reset_index(drop=True) if wrong else frame


def find(study_dir: Path, run_ids: Sequence[str]) -> dict[str, str]:
    """Return run_id -> which rows are missing, only for runs that lack rows. run_ids: the finished runs to check."""
    wrong: dict[str, str] = {}
    if run_ids:
        runs = tables.read(study_dir, "runs", list(COLUMNS), run_ids)
        every = [expected_of(study_dir, row) for row in runs.itertuples(index=False, name=None)]
        for table in schema.SERIES:
            counted: list[Stretch] = []
            tables.rows(study_dir / "tables" / table, schema.KEYS[table], run_ids, counted=counted)
            wrong = _wrong_of(table, every, counted) | wrong
    return wrong


def wrong_in_files(study_dir: Path, run: Expected, *, is_new: bool) -> str:
    """Describe what is wrong with the files of an unfinished run; "" if they are sound.

    is_new: whether the run has neither a row in `runs` nor a checkpoint; then it must have no windows.
    """
    windows = range(math.ceil(run.n_steps / schema.window_size(run.n_steps, run.source)))
    for table in schema.SERIES:
        folder = study_dir / "tables" / table  # do not list this folder, which may contain files of thousands of runs
        paths = [path for w in windows if (path := folder / schema.window_name(run.name, w)).exists()]
        if paths and is_new:
            return f"tables/{table}/{paths[0].name} has no row in tables/runs"
        try:
            parts = [part for path in paths for part in parquet.read_file(path, schema.KEYS[table])]
        except ConfigError as error:
            return str(error)
        if wrong := _wrong_of(table, [run], [one for part in parts for one in parquet.rows_by_step(part)]):
            return wrong[run.name]
    return ""


def warn_of(study_dir: Path | str, wrong: Mapping[str, str]) -> None:
    """Warn that runs are left out because they lack rows. wrong: run_id -> what is wrong; if empty, print nothing."""
    if wrong:
        warn(f"{said(wrong)}: left out; {remedy(Path(study_dir))}")


def remedy(study_dir: Path) -> str:
    """Return what the user can do about runs that lack rows."""
    no_sweep = (study_dir / schema.SEALED).exists() or tables.is_watched(study_dir)
    again = "" if no_sweep else "rerun its sweep to train the run again, or "
    return f"{again}restore its files (see normstudy check {study_dir})"


def said(wrong: Mapping[str, str]) -> str:
    """Describe the first run that lacks rows, and count the others, in one line. wrong: run_id -> what is wrong."""
    (run_id, what), *more = wrong.items()
    return f"{run_id}: {what}" + (f" (and of {len(more)} more run{'s' * (len(more) > 1)})" if more else "")

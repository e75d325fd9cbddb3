"""Select the runs to export, read one run after another to save memory, and add the columns of `normstudy.load`.

An experiment tracker shows one curve per run and name. Names are, for example, train_loss, grad_norm/embed,
grad_norm/layer 0/attn_in and residual_rms/layer 0. Names with the same text before the first slash form a group.
"""

import contextlib
import itertools
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from tqdm import tqdm

from normstudy.analysis import load
from normstudy.analysis.outcomes import outcomes
from normstudy.analysis.select import Where, select, tell_sources_apart
from normstudy.errors import ConfigError, bar_options
from normstudy.study import parquet, tables, whole
from normstudy.study.schema import COMPACTED_FILE, FLOAT_TYPE, SCHEMA_FILE, SCHEMAS, SERIES, SORT, plain_schema, run_of

JUDGED = ["run_id", "step", "train_loss", "val_loss"]  # columns of `steps` on which outcomes depend
RUNS_AT_ONCE = 8  # outcomes are computed for this many runs at once, because pandas is much slower run by run
# For each table: the columns that `normstudy.load` derives.
DERIVED = {
    "runs": pa.schema([("outcome", pa.string()), ("gap_closed", pa.float64()), ("bits_per_byte", pa.float64())]),
    "steps": pa.schema([("update_rms", FLOAT_TYPE)]),
    "modules": pa.schema([("update_ratio", FLOAT_TYPE)]),
}


class Source(NamedTuple):
    """The part of a study to export. runs: sorted by run_id. joined: columns of `runs` to add to all other tables."""

    study_dir: Path
    runs: pa.Table
    joined: pa.Table

    def rows(self, table: str) -> Iterator[pa.Table]:
        """Yield a table's selected rows, sorted by run_id: all rows of `runs` at once, and other tables run by run."""
        if table == "runs":
            yield self.runs
            return
        sizes = self.runs["n_params"].to_pandas()  # NaN for null
        found = by_run(self.study_dir, table, self.runs)
        for rows, row, n_params in zip(found, self.joined.to_pylist(), sizes, strict=True):
            if table != "residual":
                frame = rows.select(["update_norm", "lr" if table == "steps" else "param_norm"]).to_pandas()
                made = load.update_rms(frame, n_params) if table == "steps" else load.update_ratio(frame)
                rows = rows.append_column(DERIVED[table].field(0), pa.array(made, FLOAT_TYPE))
            for f in self.joined.schema:
                rows = rows.append_column(f, pa.repeat(pa.scalar(row[f.name], f.type), rows.num_rows))
            yield rows

    def schema(self, table: str) -> pa.Schema:
        joined = self.joined.schema if table != "runs" else []
        return pa.schema([*plain_schema(table), *DERIVED.get(table, []), *joined])


def choose(study_dir: Path, where: Where, *, join: bool = False) -> Source:
    """Select runs to export. join: as in `load`. Raises ConfigError if none exist or a run_id cannot name a file."""
    began = tables.runs_with_windows(study_dir)
    pieces = (piece for path in _files(study_dir, "runs") for piece in _pieces("runs", path))
    content = pa.concat_tables([SCHEMAS["runs"].empty_table(), *pieces]).sort_by("run_id")
    if not content.num_rows:
        raise ConfigError(f"{study_dir} has no runs to export: start its sweep")
    tables.warn_of_lost(study_dir, began.difference(content["run_id"].to_pylist()))
    chosen = select(tell_sources_apart(content.to_pandas()), where)
    for name in map(str, chosen["run_id"]):  # a run_id with a slash could make a tool write into another folder
        if not name.isprintable() or name in ("", ".", "..") or {"/", "\\"} & set(name):
            what = f"has a run_id that cannot be a file name, {name!r}: run normstudy check {study_dir}"
            raise ConfigError(f"{study_dir} {what}")
    done = chosen[chosen["status"] == "done"]
    steps = by_run(study_dir, "steps", content.take(pa.array(done.index)))
    found: dict[Hashable, str] = {}
    for i in range(0, len(done), RUNS_AT_ONCE):
        rows = pa.concat_tables(itertools.islice(steps, RUNS_AT_ONCE)).select(JUDGED)
        found |= outcomes(done[i : i + RUNS_AT_ONCE], rows.to_pandas()).to_dict()
    chosen = load.derive(chosen, found)
    runs = content.take(pa.array(chosen.index))
    derived = pa.Table.from_pandas(chosen, pa.schema([*runs.schema, *DERIVED["runs"]]), preserve_index=False)
    for f in DERIVED["runs"]:  # `derived` has null for NaN, and hashes in names of blocks: use only its new columns
        runs = runs.append_column(f, derived[f.name])
    return Source(study_dir, runs, derived.select(load.joined_columns(chosen) if join else []))


def by_run(study_dir: Path, table: str, runs: pa.Table) -> Iterator[pa.Table]:
    """Yield each run's rows of a table, in the order of `runs`. If rows of a run are missing, warn and yield no rows.

    At any time, only one run and one row group are in memory.
    """
    own: dict[str, list[Path]] = {}
    values = zip(*(runs[column].to_pylist() for column in whole.COLUMNS), strict=True)
    expected = [whole.expected_of(study_dir, row) for row in values]
    gathered: Iterator[tuple[str, pa.Table]] = iter(())
    for path in _files(study_dir, table):
        if path.name == COMPACTED_FILE:
            gathered = _runs_of(table, path)
        else:
            own.setdefault(run_of(table, path.name), []).append(path)
    schema = plain_schema(table)
    order = [(name, "ascending") for name in SORT[table] if name != "run_id"]
    ahead = next(gathered, None)
    wrong: dict[str, str] = {}
    try:
        for run in expected:
            parts = [part for path in own.get(run.name, []) for part in _pieces(table, path)]
            while ahead is not None and ahead[0] <= run.name:
                if ahead[0] == run.name:
                    parts.append(ahead[1])
                ahead = next(gathered, None)
            rows = pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)]).sort_by(order)
            if what := whole.wrong_in(table, run, rows):
                wrong[run.name] = what
                rows = schema.empty_table()
            yield rows
    finally:
        whole.warn_of(study_dir, wrong)


def _runs_of(table: str, path: Path) -> Iterator[tuple[str, pa.Table]]:
    """Yield (run_id, rows) for each run in a compacted file. A run in several row groups is yielded several times."""
    before = ""
    for piece in _pieces(table, path):
        for run_id, rows in parquet.runs_in(piece):
            if run_id < before:
                raise ConfigError(f"{path} is not sorted by run_id: run normstudy check {path.parents[2]}")
            before = run_id
            yield run_id, rows


def _files(study_dir: Path, table: str) -> list[Path]:
    folder = study_dir / "tables" / table
    with _present(folder):
        names = tables.names_in(folder)
    return [folder / name for name in names if name != SCHEMA_FILE]


def _pieces(table: str, path: Path) -> Iterator[pa.Table]:
    """Yield a file's row groups, converted to the schema of this normstudy version."""
    with _present(path):
        yield from parquet.read_file(path, SCHEMAS[table])


@contextlib.contextmanager
def _present(path: Path) -> Iterator[None]:
    """If the `with` block finds a file missing, raise ConfigError: a compaction has moved the file meanwhile."""
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{path} was moved while it was read: rerun the same command") from None


# For `steps`, `modules` and `residual`: column to export -> its name in the export.
NAMES = (
    {n: n for n in ("train_loss", "val_loss", "lr", "grad_norm", "param_norm", "update_norm")},
    {n: n for n in ("grad_norm", "param_norm", "update_norm")},
    {"rms": "residual_rms", "grad_norm": "residual_grad_norm"},
)


class ExportedRun(NamedTuple):
    """A run to export to an experiment tracker."""

    row: Mapping[str, Any]  # the run's row in the table `runs`
    steps: dict[int, dict[str, float]]  # step -> name -> number, sorted by step; nulls are left out

    def time(self, step: int) -> float:
        """Estimate when a step ended, in seconds since 1970. A step takes the run's mean time, or 1 s if unknown."""
        start, end = self.row["started_at"], self.row["finished_at"]
        if start is None:
            return step + (end.timestamp() if end else 0.0)
        each = (end - start).total_seconds() / (1 + max(self.steps)) if end and self.steps else 1.0
        return float(start.timestamp() + each * (step + 1))


def runs_of(source: Source, what: str) -> Iterator[ExportedRun]:
    """Yield the runs one by one. On a terminal, a progress bar shows `what` and the time left."""
    series = zip(*(source.rows(table) for table in SERIES), strict=True)
    runs = zip((row for batch in source.runs.to_batches(1) for row in batch.to_pylist()), series, strict=True)
    for row, of_run in tqdm(runs, total=source.runs.num_rows, unit="run", desc=what, **bar_options()):
        yield ExportedRun(row, _by_step(*of_run))


def _by_step(*series: pa.Table) -> dict[int, dict[str, float]]:
    """Return step -> name -> number from one run's rows in `steps`, `modules` and `residual`."""
    found: dict[int, dict[str, float]] = {}
    for rows, names in zip(series, NAMES, strict=True):
        places = [""] * rows.num_rows  # layer and module of each row, if known
        for column, prefix in (("layer", "/layer "), ("module", "/")):
            values = rows[column].to_pylist() if column in rows.column_names else [None] * rows.num_rows
            places = [p if v is None else f"{p}{prefix}{v}" for p, v in zip(places, values, strict=True)]
        for column, name in names.items():
            for step, place, value in zip(rows["step"].to_pylist(), places, rows[column].to_pylist(), strict=True):
                if value is not None:
                    found.setdefault(step, {})[name + place] = value
    return dict(sorted(found.items()))

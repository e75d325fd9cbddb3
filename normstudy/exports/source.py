"""Select the runs to export, and read their rows. To save memory, the large tables are read run by run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from normstudy.analysis.select import select, tell_sources_apart
from normstudy.errors import ConfigError
from normstudy.study import parquet
from normstudy.study.schema import COMPACTED_FILE, SCHEMA_FILE, SCHEMAS, SORT, plain_schema, run_of


@dataclass(frozen=True)
class Source:
    """The part of a study to export. runs: the selected rows of the table `runs`, sorted by run_id."""

    study_dir: Path
    runs: pa.Table

    @property
    def run_ids(self) -> list[str]:
        """Return the selected run_ids in alphabetical order."""
        return [str(name) for name in self.runs["run_id"].to_pylist()]

    def rows(self, table: str) -> Iterator[pa.Table]:
        """Yield a table's selected rows, sorted by run_id. `runs` is yielded as a whole, other tables run by run."""
        return iter([self.runs]) if table == "runs" else by_run(self.study_dir, table, self.run_ids)


def choose(study_dir: Path, where: Mapping[str, str]) -> Source:
    """Select the runs to export. Raises ConfigError if there are none, or if a run_id cannot be a file name."""
    pieces = (piece for path in _files(study_dir, "runs") for piece in _pieces("runs", path))
    content = pa.concat_tables([SCHEMAS["runs"].empty_table(), *pieces]).sort_by("run_id")
    if not content.num_rows:
        raise ConfigError(f"{study_dir} has no runs to export: start its sweep")
    chosen = select(tell_sources_apart(content.to_pandas()), where)
    source = Source(study_dir, content.take(pa.array(chosen.index)))
    for name in source.run_ids:
        if not is_name(name):
            raise ConfigError(
                f"{study_dir} has a run_id that cannot be a file name, {name!r}: run normstudy check {study_dir}"
            )
    return source


def is_name(run_id: str) -> bool:
    """Return whether a run_id is a plain file name. A slash could make a tool write into another folder."""
    return run_id.isprintable() and run_id not in ("", ".", "..") and not {"/", "\\"} & set(run_id)


def by_run(study_dir: Path, table: str, run_ids: Sequence[str]) -> Iterator[pa.Table]:
    """Yield a table's rows, run by run; `run_ids` must be sorted. Memory holds one run and one row group at a time."""
    own: dict[str, list[Path]] = {}
    gathered: Iterator[tuple[str, pa.Table]] = iter(())
    for path in _files(study_dir, table):
        if path.name == COMPACTED_FILE:
            gathered = _runs_of(table, path)
        else:
            own.setdefault(run_of(table, path.name), []).append(path)
    schema = plain_schema(table)
    order = [(name, "ascending") for name in SORT[table] if name != "run_id"]
    ahead = next(gathered, None)
    for run_id in run_ids:
        parts = [part for path in own.get(run_id, []) for part in _pieces(table, path)]
        while ahead is not None and ahead[0] <= run_id:
            if ahead[0] == run_id:
                parts.append(ahead[1])
            ahead = next(gathered, None)
        yield pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)]).sort_by(order)


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
        names = sorted(os.listdir(folder))
    return [folder / name for name in names if name.endswith(".parquet") and name != SCHEMA_FILE]


def _pieces(table: str, path: Path) -> Iterator[pa.Table]:
    """Yield a file's row groups, converted to the schema of this normstudy version."""
    with _present(path):
        yield from parquet.read_file(path, SCHEMAS[table])


@contextlib.contextmanager
def _present(path: Path) -> Iterator[None]:
    """If a file that the caller's `with` block reads is missing, because a compaction moved it, raise a ConfigError."""
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{path} was moved while it was read: rerun the same command") from None

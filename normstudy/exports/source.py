"""The runs that are exported, and their rows run by run: memory never holds a whole series."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from normstudy.analysis.select import select, tell_sources_apart
from normstudy.config import ConfigError
from normstudy.study import files, parquet
from normstudy.study.schema import COMPACTED_FILE, SCHEMA_FILE, SCHEMAS, SORT, run_of


@dataclass(frozen=True)
class Source:
    """What is exported of a study. runs: the chosen rows of `runs`, in the order of run_id."""

    study_dir: Path
    runs: pa.Table

    @property
    def run_ids(self) -> list[str]:
        """The chosen runs, in the alphabet's order."""
        return [str(name) for name in self.runs["run_id"].to_pylist()]

    @property
    def n_runs(self) -> int:
        """How many they are."""
        return int(self.runs.num_rows)

    def rows(self, table: str) -> Iterator[pa.Table]:
        """The rows of a series in the table's order, one piece a run; a run without rows has an empty one."""
        return by_run(self.study_dir, table, self.run_ids)


def choose(study_dir: Path, where: Mapping[str, str]) -> Source:
    """The runs of a study that have the values, as `--where` chooses them for plot and compare.

    Raises ConfigError for a study without a run, for a run_id that is no name, and as select does.
    """
    pieces = (piece for path in _files(study_dir, "runs") for piece in _pieces("runs", path))
    content = pa.concat_tables([SCHEMAS["runs"].empty_table(), *pieces])
    content = content.sort_by("run_id")
    if not content.num_rows:
        raise ConfigError(f"{study_dir} has no run to export: start its sweep")
    chosen = select(tell_sources_apart(content.to_pandas()), where)
    source = Source(study_dir, content.take(pa.array(chosen.index)))
    for name in source.run_ids:
        if not is_name(name):
            raise ConfigError(f"{study_dir} has a run_id that is no name, {name!r}: run normstudy check {study_dir}")
    return source


def is_name(run_id: str) -> bool:
    """Whether a run_id, which other tools make a file's name of, names a file in the folder where it is asked for."""
    return run_id.isprintable() and run_id not in ("", ".", "..") and not {"/", "\\"} & set(run_id)


def plain_schema(table: str) -> pa.Schema:
    """The schema of a table, with its names as plain text."""
    return pa.schema([(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in SCHEMAS[table]])


def by_run(study_dir: Path, table: str, run_ids: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of each of the runs, which must be in the alphabet's order; names are plain text.

    Memory holds a row group of the compacted file and the rows of a run.
    """
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
    """The rows of a compacted file in pieces of one run each; a run has several where row groups end within it."""
    before = ""
    for piece in _pieces(table, path):
        runs = pc.run_end_encode(piece["run_id"].cast(pa.string()).combine_chunks())
        ends = [0, *runs.run_ends.to_pylist()]
        for run_id, (start, end) in zip(runs.values.to_pylist(), itertools.pairwise(ends), strict=True):
            if run_id < before:
                raise ConfigError(f"{path} is not sorted: run normstudy check {path.parents[2]}")
            before = run_id
            yield run_id, piece.slice(start, end - start)


def _files(study_dir: Path, table: str) -> list[Path]:
    folder = study_dir / "tables" / table
    with _reading(folder):
        names = sorted(os.listdir(folder))
    return [folder / name for name in names if name.endswith(".parquet") and name != SCHEMA_FILE]


def _pieces(table: str, path: Path) -> Iterator[pa.Table]:
    """The row groups of a file, in the schema of this version; every page's checksum is verified."""
    with _reading(path):
        # A file of one run is read in one call; the compacted one is too large for that.
        source = path if path.name == COMPACTED_FILE else pa.BufferReader(path.read_bytes())
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            for i in range(file.num_row_groups):
                piece = file.read_row_group(i, use_threads=path.name == COMPACTED_FILE)
                yield piece if piece.schema.equals(SCHEMAS[table]) else parquet.conform(table, piece)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """As files.reading, and a line where the file is gone: other commands may move a study's files meanwhile."""
    try:
        with files.reading(path, next(folder.parent for folder in path.parents if folder.name == "tables")):
            yield
    except FileNotFoundError:
        raise ConfigError(f"{path} went away while it was read: give the same command again") from None

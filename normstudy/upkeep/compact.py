"""`normstudy compact`: one file per table for the finished runs of a study, and the seal on a complete one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from normstudy import __version__
from normstudy.config import ConfigError
from normstudy.slurm import arrays
from normstudy.study import files, locks, parquet, swap, tables
from normstudy.study.schema import COMPACTED_FILE, SCHEMA_FILE, SCHEMAS, SEALED, SORT, TABLES, run_of

# On study tables the floats are all that weighs: level 15 saves a tenth over the default, 19 nothing more.
ZSTD_LEVEL = 15


def compact_study(study_dir: Path, *, seal: bool = False) -> str:
    """Sort the finished runs of a study into one file per table; returns what was done, in one line.

    Files of runs that are not finished are kept beside it. The new tables folder is swapped in by rename, under the
    study's lock. Tables of an older schema get the columns that they lack. A second time gives the same bytes.
    seal: also write SEALED and remove state/; a sealed study stays sealed. Raises ConfigError for a folder that is
    no study, one that is in use or has no finished run, a seal on unfinished or failed runs, a damaged file, and
    tables that have columns unknown to this version.
    """
    if not swap.swap_interrupted(study_dir):
        tables.check_is_study(study_dir)
        _finished(study_dir)
    seal = seal or (study_dir / SEALED).exists()
    if seal:
        arrays.refuse_while_alive(study_dir)  # of jobs that wait there may be no row yet
    with locks.hold(study_dir, f"normstudy compact {study_dir}"):
        try:
            return _compact(study_dir, seal)
        except OSError as e:
            raise ConfigError(f"{study_dir} cannot be compacted: {e.strerror}. Nothing in its tables is lost") from e


def _compact(study_dir: Path, seal: bool) -> str:
    status = tables.finished_ids(study_dir)
    done = _finished(study_dir)
    counts = Counter(status.values())
    if seal and len(done) < len(status):
        raise ConfigError(
            f"{study_dir} cannot be sealed: {counts['running']} runs are unfinished, {counts['failed']} failed. "
            "Run its sweep again, or compact without --seal"
        )
    before = _size(study_dir / "tables")
    for table in TABLES:
        _write_table(study_dir, table, done)
    files.fsync(study_dir / swap.NEW_TABLES)
    swap.swap(study_dir)
    after = _size(study_dir / "tables")
    if seal:
        files.place(study_dir, SEALED, seal_text(study_dir, len(done)))
        shutil.rmtree(study_dir / "state", ignore_errors=True)  # it may already hold the next command's lock
    sealed = ", sealed" if seal else ""
    rest = len(status) - len(done)
    kept = f"; {rest} unfinished or failed kept as they are" if rest else ""
    return f"{study_dir}: {len(done)} finished runs in one file per table{sealed} ({before} -> {after}){kept}"


def _finished(study_dir: Path) -> set[str]:
    done = {run for run, status in tables.finished_ids(study_dir).items() if status == "done"}
    if not done:
        raise ConfigError(f"{study_dir} has no finished run to compact: start or resume its sweep")
    return done


def seal_text(study_dir: Path, n_runs: int) -> bytes:
    """The content of SEALED: the version of normstudy, the number of runs, and the sha256 of each table's file."""
    files = [f"tables/{table}/{COMPACTED_FILE}" for table in TABLES]
    sha256 = {f: hashlib.sha256((study_dir / f).read_bytes()).hexdigest() for f in files}
    return (json.dumps({"normstudy": __version__, "runs": n_runs, "sha256": sha256}, indent=1) + "\n").encode()


def _write_table(study_dir: Path, table: str, done: set[str]) -> None:
    source, target = study_dir / "tables" / table, study_dir / swap.NEW_TABLES / table
    target.mkdir(parents=True)
    joined, parts = [SCHEMAS[table].empty_table()], list[pa.Table]()
    for path in sorted(source.glob("*.parquet")):
        if path.name == SCHEMA_FILE:
            continue
        finished = path.name == COMPACTED_FILE or run_of(table, path.name) in done
        with files.reading(path, study_dir):
            content = pq.ParquetFile(path, page_checksum_verification=True).read()
            conformed = parquet.conform(table, content)
        if finished:
            parts.append(conformed)
            if len(parts) == tables.FILES_AT_ONCE:  # one array a column: of each file's own they take far more memory
                joined.append(pa.concat_tables(parts).unify_dictionaries().combine_chunks())
                parts = []
        elif content.schema.equals(SCHEMAS[table]):
            _write(target / path.name, path.read_bytes())
        else:
            _write(target / path.name, parquet.encode(table, conformed))
    _write(target / SCHEMA_FILE, parquet.encode(table, SCHEMAS[table].empty_table()))
    _write(target / COMPACTED_FILE, _encode(table, ordered(table, pa.concat_tables([*joined, *parts]))))
    files.fsync(target)


def ordered(table: str, content: pa.Table) -> pa.Table:
    """The rows in the table's order, nulls last; dictionaries in the order in which their names occur."""
    schema = SCHEMAS[table]
    plain = pa.schema([(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in schema])
    content = content.cast(plain)
    content = content.sort_by([(name, "ascending") for name in SORT[table]]).combine_chunks()
    return content.cast(schema)


def _encode(table: str, content: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    options = {**parquet.write_options(table), "compression": "zstd", "compression_level": ZSTD_LEVEL}
    pq.write_table(content, sink, **options)
    return bytes(sink.getvalue())


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _size(folder: Path) -> str:
    files = [p.stat().st_size for p in folder.rglob("*.parquet")]
    return f"{sum(files) / 1e6:.1f} MB in {len(files)} files"

"""DuckDB: one database file with the four tables, types as in Parquet, `run_id` and `module` as VARCHAR.

DuckDB could read the files itself, in half the time, but it ignores the checksums of their pages: a flipped bit would
become a number. It is handed the rows instead, whose checksums were verified.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from normstudy.config import ConfigError
from normstudy.exports.source import Source, plain_schema
from normstudy.study import files, schema

MEMORY = "500MB"  # of DuckDB's own; its default is most of the machine's
STORAGE = "v0.10.2"  # every DuckDB from this version on reads the file; version 2 alone reads its own default


def write(source: Source, target: Path, scratch: Path) -> None:
    """Make the database file. Raises ConfigError where DuckDB fails, OSError for a disk that does not take it."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY,
        "storage_compatibility_version": STORAGE,
    }
    failed: list[BaseException] = []

    def batches(table: str) -> Iterator[pa.RecordBatch]:
        try:
            for rows in [source.runs] if table == "runs" else source.rows(table):
                yield from rows.to_batches()
        except BaseException as error:  # DuckDB would make an error of its own of it
            failed.append(error)
            raise

    try:
        # Absolute, as `s3://` at the beginning of a relative path would be taken for a server's.
        with duckdb.connect(str(target.absolute()), config=settings) as database:
            database.execute("set temp_directory = $folder", {"folder": str(scratch.absolute())})
            for table in schema.TABLES:
                # One statement a table: pieces that are inserted one by one take nearly twice the space.
                reader = pa.RecordBatchReader.from_batches(plain_schema(table), batches(table))
                database.register("rows", reader)
                database.execute(f"create table {table} as from rows")
    except Exception as error:
        if failed:
            raise failed[0] from None
        if not isinstance(error, duckdb.Error):
            raise
        line = str(error).partition("\n")[0]
        for number in files.REMEDIES:  # DuckDB has the system's words for what is wrong with a disk, and no number
            if line.endswith(os.strerror(number)):
                raise OSError(number, os.strerror(number)) from error
        raise ConfigError(f"duckdb cannot make the database: {line}") from error


def opens(out: Path) -> str:
    """The command that shows one of its tables."""
    program = f"import duckdb; study = duckdb.connect({str(out)!r}, read_only=True); print(study.sql('from runs'))"
    return "python -c " + shlex.quote(program)

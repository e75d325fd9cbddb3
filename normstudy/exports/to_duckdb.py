"""Export to DuckDB: write one database file with the four tables.

Columns have the types of Parquet, except that `run_id` and `module` are VARCHAR. DuckDB could read the Parquet files
itself in half the time. But DuckDB does not verify checksums: a damaged file could become wrong numbers.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from normstudy.errors import ConfigError
from normstudy.exports.source import Source
from normstudy.study import files, schema

SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "500MB",  # by default, DuckDB uses most of the machine's memory
    "storage_compatibility_version": "v0.10.2",  # oldest DuckDB version that can read the file
}


def write(source: Source, target: Path, scratch: Path) -> None:
    """Write the database file. Raises ConfigError if DuckDB fails, and OSError if the disk fails."""
    failed: list[BaseException] = []

    def batches(table: str) -> Iterator[pa.RecordBatch]:
        try:
            for rows in source.rows(table):
                yield from rows.to_batches()
        except BaseException as error:  # DuckDB will raise another error in place of this error
            failed.append(error)
            raise

    try:
        # Use absolute paths, because DuckDB would treat a relative path that begins with `s3://` as a remote address.
        with duckdb.connect(str(target.absolute()), config=SETTINGS) as database:
            database.execute("set temp_directory = $folder", {"folder": str(scratch.absolute())})
            for table in schema.TABLES:
                # Use one statement per table, because inserting run by run makes the file nearly twice as large.
                database.register("rows", pa.RecordBatchReader.from_batches(source.schema(table), batches(table)))
                database.execute(f"create table {table} as from rows")
    except Exception as error:
        if failed:
            raise failed[0] from None
        if not isinstance(error, duckdb.Error | RuntimeError):  # DuckDB raises RuntimeError if the path is not UTF-8
            raise
        line = str(error).partition("\n")[0]
        for number in files.REMEDIES:  # DuckDB's error has no errno, but its text ends with the system's message
            if line.endswith(os.strerror(number)):
                raise OSError(number, os.strerror(number)) from error
        raise ConfigError(f"duckdb cannot write the database ({line}): choose another --out or --to") from error

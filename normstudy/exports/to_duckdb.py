"""DuckDB: one database file with the four tables, types as in Parquet, `run_id` and `module` as VARCHAR.

DuckDB reads the files of the series itself, which is three times as fast as handing it rows. The few rows of `runs` it
is given: a sweep may replace their files while they are read.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import duckdb

from normstudy import files, store
from normstudy.config import ConfigError
from normstudy.exports.source import Source, files_of

MEMORY = "500MB"  # that sorting may take; what is more goes to scratch. 1 GB is no faster on 10 to 50 million rows
THREADS = 4  # at most: each needs its share of that memory


def write(source: Source, target: Path, scratch: Path) -> None:
    """Make the database file. Raises ConfigError for files that DuckDB cannot read, OSError for a disk."""
    settings = {
        "memory_limit": MEMORY, "temp_directory": str(scratch),
        "threads": str(min(THREADS, len(os.sched_getaffinity(0)))),
    }  # fmt: skip
    try:
        # Absolute, as `s3://` at the beginning of a relative path would be taken for a server's.
        with duckdb.connect(str(target.absolute()), config=settings) as database:
            database.register("chosen", source.runs)
            database.execute("create table runs as from chosen")
            for table in store.SERIES:
                paths = [literally(path) for path in files_of(source.study_dir, table)]
                columns, order = ", ".join(store.SCHEMAS[table].names), ", ".join(store.SORT[table])
                # A list must not be empty, hence the file without rows; a folder such as a=1 is no column.
                database.execute(
                    f"create table {table} as select {columns} from read_parquet($paths, hive_partitioning=false) "
                    f"where run_id in (select run_id from runs) order by {order}",
                    {"paths": [literally(source.study_dir / "tables" / table / store.SCHEMA_FILE), *paths]},
                )
    except duckdb.Error as error:
        line = str(error).partition("\n")[0]
        for number in files.REMEDIES:  # DuckDB has the system's words for what is wrong with a disk, and no number
            if line.endswith(os.strerror(number)):
                raise OSError(number, os.strerror(number)) from error
        raise ConfigError(f"duckdb cannot make the database: {line}") from error


def literally(path: Path) -> str:
    """A path as DuckDB takes it: the characters of its patterns stand for themselves."""
    return re.sub(r"[*?\[]", r"[\g<0>]", str(path.absolute()))


def opens(out: Path) -> str:
    """The command that shows one of its tables."""
    program = f"import duckdb; print(duckdb.connect({str(out)!r}, read_only=True).sql('from runs'))"
    return "python -c " + shlex.quote(program)

"""Export to CSV, one file per table: floats with full precision, nulls as empty cells, NaN and inf as text."""

from __future__ import annotations

import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import CSVWriter

from normstudy.exports.source import Source
from normstudy.study.schema import TABLES

BUFFER = 1024 * 1024  # bytes buffered before each write

# Spreadsheets run text that begins with one of these characters as a formula; see OWASP on CSV injection.
FORMULA = r"^([=+\-@\t\r\n\x00])"


def write(source: Source, target: Path, scratch: Path) -> None:
    """Write the four tables as files into a new folder `target`."""
    target.mkdir()
    for table in TABLES:
        with open(target / f"{table}.csv", "wb", BUFFER) as file, CSVWriter(file, source.schema(table)) as writer:
            for rows in source.rows(table):
                writer.write_table(harmless(rows))


def harmless(rows: pa.Table) -> pa.Table:
    """Return the rows with a single quote before each text that a spreadsheet would run as a formula."""
    for i, f in enumerate(rows.schema):
        if pa.types.is_string(f.type):
            rows = rows.set_column(i, f, pc.replace_substring_regex(rows.column(i), FORMULA, r"'\1"))
    return rows


def opens(out: Path) -> str:
    """Return the command that prints the table `runs`."""
    return "python -c " + shlex.quote(f"import pandas; print(pandas.read_csv({str(out / 'runs.csv')!r}))")

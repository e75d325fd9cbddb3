"""CSV: one file a table. Floats have all digits that their type needs, a null is an empty cell, NaN and inf say so."""

from __future__ import annotations

import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import CSVWriter

from normstudy.exports.source import Source, plain_schema
from normstudy.study.schema import TABLES

BUFFER = 1024 * 1024  # bytes between two writes

# A spreadsheet takes text that begins so for a formula, or removes the character and then does (OWASP, CSV injection).
FORMULA = r"^([=+\-@\t\r\n\x00])"


def write(source: Source, target: Path, scratch: Path) -> None:
    """Make the folder of the four files."""
    target.mkdir()
    for table in TABLES:
        schema = plain_schema(table)
        with open(target / f"{table}.csv", "wb", BUFFER) as file, CSVWriter(file, schema) as writer:
            for rows in [source.runs] if table == "runs" else source.rows(table):
                writer.write_table(harmless(rows))


def harmless(rows: pa.Table) -> pa.Table:
    """The rows with a single quote before each text that a spreadsheet would take for a formula."""
    for i, f in enumerate(rows.schema):
        if pa.types.is_string(f.type):
            rows = rows.set_column(i, f, pc.replace_substring_regex(rows.column(i), FORMULA, r"'\1"))
    return rows


def opens(out: Path) -> str:
    """The command that shows one of them."""
    return "python -c " + shlex.quote(f"import pandas; print(pandas.read_csv({str(out / 'runs.csv')!r}))")

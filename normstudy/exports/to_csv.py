"""Export to CSV, one file per table. Floats have full precision, nulls are empty cells, NaN and inf are text."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import CSVWriter

from normstudy.analysis.grid import FORMULA
from normstudy.errors import printable
from normstudy.exports.source import Source
from normstudy.study.schema import TABLES

BUFFER = 1024 * 1024  # bytes buffered before each write
CONTROL = r"[\p{C}\p{Zl}\p{Zp}]"


def write(source: Source, target: Path, scratch: Path) -> None:
    target.mkdir()
    for table in TABLES:
        with open(target / f"{table}.csv", "wb", BUFFER) as file, CSVWriter(file, source.schema(table)) as writer:
            for rows in source.rows(table):
                writer.write_table(harmless(rows))


def harmless(rows: pa.Table) -> pa.Table:
    """Escape control characters. Put a quote before text that a spreadsheet would run as a formula."""
    for i, f in enumerate(rows.schema):
        if pa.types.is_string(f.type):
            text = pc.replace_substring_regex(rows.column(i), FORMULA, r"'\1")
            if pc.any(pc.match_substring_regex(text, CONTROL)).as_py():
                text = pa.array([None if v is None else printable(v) for v in text.to_pylist()], f.type)
            rows = rows.set_column(i, f, text)
    return rows

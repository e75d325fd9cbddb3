"""Parquet: the only code that turns rows into the bytes of a file, and files into rows."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from normstudy import config as cfg
from normstudy.config import ConfigError
from normstudy.study import files
from normstudy.study.schema import COMPACTED_FILE, FLOAT_TYPE, NAME_TYPE, SCHEMAS

# ---- writing ------------------------------------------------------------------------------------------


def bytes_of(content: pa.Table, **options: object) -> bytes:
    """The bytes of a Parquet file. options: as pyarrow's write_table takes them."""
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink, **options)
    return bytes(sink.getvalue())


def write_options(table: str) -> dict[str, object]:
    """The write options of a table: fast for the many one-row files of `runs`, compact for the series."""
    if table == "runs":
        return {
            "compression": "none", "use_dictionary": False, "write_statistics": False,
            "store_schema": False, "write_page_checksum": True,
        }  # fmt: skip
    schema = SCHEMAS[table]
    floats = [f.name for f in schema if f.type == FLOAT_TYPE]
    names = [f.name for f in schema if f.type == NAME_TYPE]
    return {
        "compression": "zstd", "use_dictionary": [*names, "step", *(["layer"] if "layer" in schema.names else [])],
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT"), "write_page_checksum": True,
    }  # fmt: skip


def encode(table: str, content: pa.Table, **options: object) -> bytes:
    """Encode one file of a study's table as bytes. options: override those of write_options."""
    return bytes_of(content, **(write_options(table) | options))


def encode_values(content: pa.Table) -> bytes:
    """The bytes of a table of measurements: one column `value` of floats; all other columns repeat a few values."""
    return bytes_of(
        content, compression="zstd", use_dictionary=[name for name in content.column_names if name != "value"],
        column_encoding={"value": "BYTE_STREAM_SPLIT"}, write_page_checksum=True,
    )  # fmt: skip


# ---- reading ------------------------------------------------------------------------------------------


def open_file(source: Path | bytes) -> pq.ParquetFile:
    """A Parquet file, given by its path or its bytes. Reading a page verifies the page's checksum."""
    opened = pa.BufferReader(source) if isinstance(source, bytes) else source
    return pq.ParquetFile(opened, page_checksum_verification=True)


def open_table(path: Path) -> pq.ParquetFile:
    """A file of a study's table. Small files are read whole, which is faster; the compacted file may be large."""
    return open_file(path if path.name == COMPACTED_FILE else path.read_bytes())


def read(source: Path | bytes) -> pa.Table:
    """All rows of a Parquet file."""
    return open_file(source).read()


def row_groups(
    file: pq.ParquetFile, columns: list[str] | None = None, chosen: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The row groups of a file, one in memory at a time. chosen: sorted run_ids; skip groups that hold none of them."""
    for i in range(file.num_row_groups):
        if chosen is None or _may_hold(file.metadata.row_group(i), chosen):
            yield file.read_row_group(i, columns, use_threads=False)


def read_row(study_dir: Path, run_id: str) -> dict[str, object] | None:
    """The row of `runs` in a run's own file; None if there is no such file. Raises ConfigError for a damaged file."""
    path = study_dir / "tables" / "runs" / f"{run_id}.parquet"
    try:
        with files.reading(path, study_dir):
            row: dict[str, object] = read(path).to_pylist()[0]
    except FileNotFoundError:
        return None
    return row


def conform(table: str, content: pa.Table) -> pa.Table:
    """`content` in the schema of this version; returned unchanged if it has that schema.

    A missing config column gets the value that older runs stand for; any other missing column is null. Raises
    ConfigError for a column that this version does not know.
    """
    schema = SCHEMAS[table]
    if content.schema.equals(schema):
        return content
    unknown = sorted(set(content.schema.names) - set(schema.names))
    if unknown:
        raise ConfigError(
            f"{table} has columns unknown to normstudy {version('normstudy')}: {unknown}. Update normstudy"
        )
    known: dict[str, object] = {**cfg.ABSENT, "resolved_qk_norm": "none"} if table == "runs" else {}
    for f in schema:
        if f.name in content.schema.names:
            continue
        if f.name == "resolved_norm":
            column = content["norm"]  # before this column was added, norm was never `auto`
        else:
            column = pa.array([known.get(f.name)] * content.num_rows, f.type)
        content = content.append_column(f, column)
    return content.select(schema.names).cast(schema)


def join(parts: Sequence[pa.Table]) -> pa.Table:
    """Join tables into one array per column; one array per one-row file would take a hundred times the memory."""
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def read_file(
    path: Path, schema: pa.Schema, chosen: Sequence[str] | None = None, module: str | None = None
) -> Iterator[pa.Table]:
    """The columns of `schema` from a table's file, one row group at a time.

    chosen: sorted run_ids; select the rows of these runs from the compacted file. module: only the rows of this module.
    """
    with files.reading(path, path.parents[2]):
        chosen = chosen if path.name == COMPACTED_FILE else None
        file = open_table(path)
        same = pa.schema([f for f in file.schema_arrow if f.name in schema.names]).equals(schema)
        for part in row_groups(file, schema.names if same else None, chosen):
            if not same:  # another version of normstudy wrote the file
                part = conform(path.parent.name, part).select(schema.names)
            if chosen is not None:
                part = part.filter(pc.is_in(part["run_id"], pa.array(chosen, pa.string())))
            yield part if module is None else part.filter(pc.equal(part["module"], module))


def _may_hold(group: pq.RowGroupMetaData, chosen: Sequence[str]) -> bool:
    """Whether one of the runs lies between the first and the last run_id of a row group."""
    statistics = group.column(0).statistics  # `runs` is written without statistics, as it is small
    if statistics is None or not statistics.has_min_max:
        return True
    at = bisect.bisect_left(chosen, statistics.min)
    return at < len(chosen) and chosen[at] <= statistics.max

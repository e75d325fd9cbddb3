"""Parquet: rows to the bytes of a file, and files to rows."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from normstudy import config as cfg
from normstudy.config import ConfigError
from normstudy.study import files
from normstudy.study.schema import _F, COMPACTED_FILE, NAME_TYPE, SCHEMAS


def write_options(table: str) -> dict[str, object]:
    """How a table is encoded: `runs` for many one-row files, the series for size (FACTS measured both)."""
    if table == "runs":
        return {
            "compression": "none", "use_dictionary": False, "write_statistics": False,
            "store_schema": False, "write_page_checksum": True,
        }  # fmt: skip
    schema = SCHEMAS[table]
    floats = [f.name for f in schema if f.type == _F]
    names = [f.name for f in schema if f.type == NAME_TYPE]
    return {
        "compression": "zstd", "use_dictionary": [*names, "step", *(["layer"] if "layer" in schema.names else [])],
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT"), "write_page_checksum": True,
    }  # fmt: skip


def check_out(out: Path) -> None:
    """Raise a ConfigError where a folder asked for as --out cannot be made or written."""
    there = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ConfigError(f"--out {out}: {there} is a file, give a folder")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"--out {out}: {there} cannot be written, give another folder")


def encode(table: str, content: pa.Table) -> bytes:
    """The Parquet bytes of one file of a table."""
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink, **write_options(table))
    return bytes(sink.getvalue())


def read_row(study_dir: Path, run_id: str) -> dict[str, object] | None:
    """The row of a run that has a file of its own in `runs`, None where there is none.

    Raises ConfigError where it is damaged.
    """
    path = study_dir / "tables" / "runs" / f"{run_id}.parquet"
    try:
        with files.reading(path, study_dir):
            row: dict[str, object] = pq.ParquetFile(path, page_checksum_verification=True).read().to_pylist()[0]
    except FileNotFoundError:
        return None
    return row


def conform(table: str, content: pa.Table) -> pa.Table:
    """`content` in the schema of this version.

    A config column that it lacks has the value that older runs stand for, any other is null.
    """
    schema = SCHEMAS[table]
    unknown = sorted(set(content.schema.names) - set(schema.names))
    if unknown:
        raise ConfigError(f"{table} has columns unknown to normstudy {version('normstudy')}: {unknown}. Update it")
    known: dict[str, object] = {**cfg.ABSENT, "resolved_qk_norm": "none"} if table == "runs" else {}
    for f in schema:
        if f.name in content.schema.names:
            continue
        if f.name == "resolved_norm":
            column = content["norm"]  # older runs had no auto
        else:
            column = pa.array([known.get(f.name)] * content.num_rows, f.type)
        content = content.append_column(f, column)
    return content.select(schema.names).cast(schema)


def read_file(path: Path, schema: pa.Schema, chosen: list[str] | None, module: str | None) -> Iterator[pa.Table]:
    """Some columns of a table's file, a row group at a time: memory never holds the rows of all modules.

    chosen: of a compacted file only the rows of these runs, in order; row groups that hold none are not read.
    Most files are windows of a few hundred rows, thousands of them: those are read in one call, and threads or
    reading column by column would only cost time.
    """
    with files.reading(path, path.parents[2]):
        chosen = chosen if path.name == COMPACTED_FILE else None
        source = path if path.name == COMPACTED_FILE else pa.BufferReader(path.read_bytes())
        file = pq.ParquetFile(source, page_checksum_verification=True)
        for i in range(file.num_row_groups):
            if chosen is not None and not _may_hold(file.metadata.row_group(i), chosen):
                continue
            part = file.read_row_group(i, schema.names, use_threads=False)
            if not part.schema.equals(schema):  # written by another version
                part = conform(path.parent.name, file.read_row_group(i, use_threads=False)).select(schema.names)
            if chosen is not None:
                part = part.filter(pc.is_in(part["run_id"], pa.array(chosen, pa.string())))
            yield part if module is None else part.filter(pc.equal(part["module"], module))


def _may_hold(group: pq.RowGroupMetaData, chosen: Sequence[str]) -> bool:
    """Whether a row group may hold a row of one of the runs, in order: it says what its first and last run_id are."""
    statistics = group.column(0).statistics  # none in `runs`, which is small
    if statistics is None or not statistics.has_min_max:
        return True
    at = bisect.bisect_left(chosen, statistics.min)
    return at < len(chosen) and chosen[at] <= statistics.max

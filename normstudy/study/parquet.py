"""Encode tables as Parquet, and read Parquet files. All Parquet files of normstudy pass through this module."""

import bisect
import contextlib
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from normstudy import __version__
from normstudy import config as cfg
from normstudy.config import places
from normstudy.errors import ConfigError, Damaged
from normstudy.study import files
from normstudy.study.schema import COMPACTED_FILE, FLOAT_TYPE, SCHEMAS, run_of

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Stretch = tuple[str, Ints, Ints]  # consecutive rows of one run: run_id, distinct steps, number of rows at each step
# With level 15, a compacted file is a tenth smaller than with zstd's default level. Level 19 makes the file no smaller.
COMPACTED_OPTIONS = {"compression": "zstd", "compression_level": 15}
MARK = b"nsfooter"
TAIL = 1 << 20  # search at least this many bytes at a file's end for MARK, as the footer's stored length may be damaged


def bytes_of(content: pa.Table, **options: object) -> bytes:
    """Encode a table as Parquet bytes. options: keyword arguments of pyarrow's write_table.

    The Parquet format has no checksum for a file's footer. A flipped bit in the footer could crash pyarrow, hide rows
    or swap two columns. So MARK and a checksum are stored before the footer, where Parquet readers ignore them.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink, **options)
    data = bytes(sink.getvalue())
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:start] + MARK + zlib.crc32(data[start:]).to_bytes(4, "little") + data[start:]


def write_options(table: str) -> dict[str, object]:
    """Return a table's write options, which make files of `runs` fast to write and files of other tables small."""
    if table == "runs":
        return {
            "compression": "none", "use_dictionary": False, "write_statistics": False,
            "store_schema": False, "write_page_checksum": True,
        }  # fmt: skip
    return _compact(SCHEMAS[table].names, [f.name for f in SCHEMAS[table] if f.type == FLOAT_TYPE])


def _compact(names: Sequence[str], floats: Sequence[str]) -> dict[str, object]:
    """Return write options for small files: float columns are byte-stream-split, other columns dictionary-encoded."""
    return {
        "compression": "zstd", "use_dictionary": [name for name in names if name not in floats],
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT"), "write_page_checksum": True,
    }  # fmt: skip


def encode(table: str, content: pa.Table, **options: object) -> bytes:
    """Encode one file of a study's table as Parquet bytes. `options` override what write_options returns."""
    return bytes_of(content, **(write_options(table) | options))


def encode_values(content: pa.Table) -> bytes:
    """Encode a table of measurements as compact Parquet bytes. `value` is its only column of floats."""
    return bytes_of(content, **_compact(content.column_names, ["value"]))


def open_file(source: Path | bytes) -> pq.ParquetFile:
    """Open a Parquet file, given its path or its bytes. Each page's checksum is verified when the page is read."""
    if isinstance(source, Path) and source.name != COMPACTED_FILE:  # small, so it is fastest to read the file at once
        source = places.read(source)
    if isinstance(source, Path):
        os.close(places.opener(str(source), os.O_RDONLY))
    # Do not pass the path to ParquetFile, which would read x:y as an address and refuse a name that is not UTF-8.
    opened = pa.OSFile(os.fsencode(source)) if isinstance(source, Path) else pa.BufferReader(source)
    _check_footer(opened)
    file = pq.ParquetFile(opened, page_checksum_verification=True)
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    # Older versions wrote no checksum of the footer, so a flipped bit in a row count could hide rows.
    uneven = any(g.num_columns and g.column(0).num_values != g.num_rows for g in groups)
    if uneven or sum(g.num_rows for g in groups) != file.metadata.num_rows:
        raise ValueError("its footer states contradictory numbers of rows")
    return file


def _check_footer(file: pa.NativeFile) -> None:
    """Raise ArrowInvalid if a file's footer does not match its checksum. Files of older versions have no checksum."""
    size = file.size()
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - max(length + 20, TAIL)))
    tail = file.read()
    start = tail.rfind(MARK) + len(MARK) + 4
    given = tail[start - 4 : start]
    if MARK in tail and (start != len(tail) - 8 - length or zlib.crc32(tail[start:]).to_bytes(4, "little") != given):
        raise pa.ArrowInvalid("its footer does not match its checksum")
    file.seek(0)


def read(source: Path | bytes, columns: list[str] | None = None) -> pa.Table:
    return open_file(source).read(columns, use_threads=False)  # a thread that freed the bytes at exit would abort


def row_groups(
    file: pq.ParquetFile, columns: list[str] | None = None, chosen: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield a file's row groups one by one. chosen: sorted run_ids; groups without any of these runs are skipped."""
    for i in range(file.num_row_groups):
        if chosen is None or _may_hold(file.metadata.row_group(i), chosen):
            yield file.read_row_group(i, columns, use_threads=False)


def runs_in(part: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield (run_id, rows) for each run of a row group that is sorted by run. "null" replaces a missing run_id."""
    runs = pc.run_end_encode(part["run_id"].cast(pa.string()).fill_null("null").combine_chunks())
    ends = [0, *runs.run_ends.to_pylist()]
    for run_id, (start, end) in zip(runs.values.to_pylist(), itertools.pairwise(ends), strict=True):
        yield run_id, part.slice(start, end - start)


def read_row(study_dir: Path, run_id: str) -> dict[str, object] | None:
    """Read a run's uncompacted `runs` file; None if it does not exist. Raises ConfigError if it is damaged."""
    path = study_dir / "tables" / "runs" / f"{run_id}.parquet"
    with contextlib.suppress(FileNotFoundError), files.reading(path, study_dir):
        row: dict[str, object] = read(path).to_pylist()[0]
        return row
    return None


def unknown_columns(table: str, names: Sequence[str]) -> list[str]:
    """Return the columns in `names` that a newer version added. Newer versions keep all of this version's columns.

    Raises ArrowInvalid if `names` has an unknown column but lacks a known one: then the unknown name is damaged.
    """
    unknown, missing = sorted({*names} - {*SCHEMAS[table].names}), [f for f in SCHEMAS[table].names if f not in names]
    if unknown and missing:
        raise pa.ArrowInvalid(f"it has an unknown column {unknown[0]!r} but no column {missing[0]!r}")
    return unknown


def conform(table: str, content: pa.Table) -> pa.Table:
    """Return `content` in this version's schema, unchanged if it already has that schema.

    A missing config column gets the value that the older version always used; other missing columns are null.
    Raises ConfigError for a newer version's columns, and ArrowInvalid for a column whose name or type is damaged.
    """
    fields = SCHEMAS[table]
    if content.schema.equals(fields):
        return content
    if unknown := unknown_columns(table, content.schema.names):
        raise ConfigError(f"{table} has columns unknown to normstudy {__version__}: {unknown}. Update normstudy")
    for f in content.schema:  # older versions wrote no checksum of the types, and a wrong type changes the values
        kind = fields.field(f.name).type
        # Accept floats as integers: pandas writes integers with nulls as floats. The cast below rejects fractions.
        alike = pa.types.is_integer(kind) and pa.types.is_floating(f.type)
        if f.type != kind and not alike and not (_is_text(f.type) and _is_text(kind)):
            raise pa.ArrowInvalid(f"its column {f.name} has the type {f.type} instead of {kind}")
    known: dict[str, object] = {**cfg.ABSENT, "resolved_qk_norm": "none"} if table == "runs" else {}
    for f in [f for f in fields if f.name not in content.schema.names]:
        # Versions without the column resolved_norm had no norm `auto`, so their resolved norm is the requested norm.
        implied = pa.array([known.get(f.name)] * content.num_rows, f.type)
        content = content.append_column(f, content["norm"] if f.name == "resolved_norm" else implied)
    return content.select(fields.names).cast(fields)


def read_conformed(path: Path) -> tuple[pa.Table, bool]:
    """Read a table's file in this version's schema; also returns whether the file already has that schema."""
    with files.reading(path, path.parents[2]):
        content = read(path)
        conformed = conform(path.parent.name, content)
    return conformed, conformed is content


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def join(parts: Sequence[pa.Table]) -> pa.Table:
    """Join tables, and copy each column into one array: many one-row arrays would need a hundred times the memory."""
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def rows_by_step(part: pa.Table) -> list[Stretch]:
    """For each stretch of consecutive rows of one run, count the consecutive rows at each step."""
    ids, steps = part["run_id"].dictionary_encode().combine_chunks(), part["step"].fill_null(-1).to_numpy()
    codes = ids.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.diff(codes, prepend=-2) | np.diff(steps, prepend=-2))
    rows, codes, steps = np.diff(starts, append=len(codes)), codes[starts], steps[starts]
    ends = [*np.flatnonzero(np.diff(codes, prepend=-2)), len(codes)]
    names = [*ids.dictionary.to_pylist(), "null"]  # the last name, at index -1, replaces a missing run_id
    return [(str(names[codes[a]]), steps[a:b], rows[a:b]) for a, b in itertools.pairwise(ends)]


def read_file(path: Path, wanted: pa.Schema, chosen: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read a table's file, one row group at a time. wanted: the columns to read, including the table's keys.

    chosen: sorted run_ids; only the rows of these runs are read from a compacted file (default: all rows). Raises
    ConfigError if the file is damaged, or if its rows do not belong to the run in its name.
    """
    with files.reading(path, path.parents[2]):
        chosen = chosen if path.name == COMPACTED_FILE else None
        file, names = open_file(path), wanted.names
        fields = file.schema_arrow
        same = fields.equals(wanted) or pa.schema([f for f in fields if f.name in names]).equals(wanted)
        for part in row_groups(file, names if same else None, chosen):
            if not same:  # the file was written by another version of normstudy
                part = conform(path.parent.name, part).select(names)
            if chosen is not None:
                part = part.filter(pc.is_in(part["run_id"], pa.array(chosen, pa.string())))
            elif path.name != COMPACTED_FILE:
                _check_name(path, part)
            yield part


def _check_name(path: Path, part: pa.Table) -> None:
    """Raise ConfigError if a file's rows do not belong to the run in its name. whole.py checks the rows' steps."""
    held = sorted(map(str, part["run_id"].unique().to_pylist()))
    if held and held != [run_of(path.parent.name, path.name)]:
        what = f"rows of {', '.join(held)}, which contradicts its name"
        raise Damaged(f"{path} contains {what}: run normstudy check {path.parents[2]}")


def _may_hold(group: pq.RowGroupMetaData, chosen: Sequence[str]) -> bool:
    """Whether one of the sorted run_ids `chosen` lies between the first and the last run_id of a row group."""
    statistics = group.column(0).statistics  # without statistics (in the table `runs`), any run may be in the row group
    if statistics is None or not statistics.has_min_max:
        return True
    at = bisect.bisect_left(chosen, statistics.min)
    return at < len(chosen) and chosen[at] <= statistics.max

"""The Parquet tables of a study: their schemas, and the only code that writes or reads them.

    results/<study>/tables/runs/<run_id>.parquet                        one row a run
    results/<study>/tables/{steps,modules,residual}/<run_id>-<window>.parquet
    results/<study>/state/                                              files being written, logs, the lock

A window is a fixed range of steps, part of the format. Its file is written whole in state/ and moved in once;
one that exists is left. So a table folder holds finished files only, and no series file is ever changed.
Every folder holds `0-schema.parquet`, which has no rows, so that readers see the columns from the first moment.
`results/README.md` says what each column means.
"""

from __future__ import annotations

import bisect
import dataclasses
import datetime
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from normstudy import config as cfg
from normstudy import files
from normstudy.config import ConfigError, RunConfig

SERIES = ("steps", "modules", "residual")
TABLES = ("runs", *SERIES)
Rows = Mapping[str, Mapping[str, Sequence[object]]]  # of a window: rows[table][column], run_id excepted
SCHEMA_FILE = "0-schema.parquet"
COMPACTED_FILE = "1-compacted.parquet"
SEALED = "SEALED"
FILES_AT_ONCE = 64  # of a table, read by one thread: a study that has just been swept has thousands
OLD_TABLES = "state/tables.old"  # a compaction moves tables here, for the moment of the swap
SWAPPING = "{0} was left in the middle of a compaction: run normstudy compact {0}"

MODULES = (
    "embed", "pos", "embed_norm", "attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2", "norm1_out",
    "norm2_out", "norm1_inner", "norm2_inner", "qkv_norm", "scale", "own", "final_norm", "unembed",
)  # fmt: skip

# Columns of `runs` that two executions of the same run may differ in (DESIGN: outside the promise of equal bits).
NOT_REPRODUCED = (
    "wall_time_s", "started_at", "finished_at", "git_commit", "data_path", "python", "torch", "cpu_capability",
    "blas", "device",
)  # fmt: skip

_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
_NAME = pa.dictionary(pa.int32(), pa.string())


def _runs_schema() -> pa.Schema:
    asked = [(column, _ARROW[kind]) for column, kind in cfg.asked_types().items()]
    return pa.schema(
        [
            ("run_id", pa.string()),
            ("status", pa.string()),
            *asked,
            ("resolved_init", pa.string()),
            ("resolved_d_ff", pa.int64()),
            ("resolved_final_norm", pa.bool_()),
            ("resolved_norm", pa.string()),
            ("resolved_qk_norm", pa.string()),
            ("resolved_embed_std", pa.float64()),
            ("placement_sha256", pa.string()),
            ("norm_sha256", pa.string()),
            ("resolved_vocab_size", pa.int64()),
            ("n_params", pa.int64()),
            ("data_sha256", pa.string()),
            ("bytes_per_token", pa.float64()),
            ("ln_vocab", pa.float64()),
            ("unigram_entropy", pa.float64()),
            ("bigram_entropy", pa.float64()),
            ("source_entropy", pa.float64()),
            ("final_val_loss", pa.float64()),
            ("final_train_loss", pa.float64()),
            ("nonfinite_step", pa.int64()),
            ("identity_version", pa.int64()),
            ("numerics", pa.int64()),
            ("wall_time_s", pa.float64()),
            ("started_at", pa.timestamp("us", tz="UTC")),
            ("finished_at", pa.timestamp("us", tz="UTC")),
            ("git_commit", pa.string()),
            ("python", pa.string()),
            ("torch", pa.string()),
            ("cpu_capability", pa.string()),
            ("blas", pa.string()),
            ("device", pa.string()),
        ]
    )


_F = pa.float32()
SCHEMAS: dict[str, pa.Schema] = {
    "runs": _runs_schema(),
    "steps": pa.schema(
        [
            ("run_id", _NAME), ("step", pa.int32()), ("train_loss", _F), ("val_loss", _F), ("lr", _F),
            ("grad_norm", _F), ("param_norm", _F), ("update_norm", _F),
        ]
    ),
    "modules": pa.schema(
        [
            ("run_id", _NAME), ("step", pa.int32()), ("layer", pa.int32()), ("module", _NAME),
            ("grad_norm", _F), ("param_norm", _F), ("update_norm", _F),
        ]
    ),
    "residual": pa.schema(
        [("run_id", _NAME), ("step", pa.int32()), ("layer", pa.int32()), ("rms", _F), ("grad_norm", _F)]
    ),
}  # fmt: skip

SORT = {
    "runs": ["run_id"],
    "steps": ["run_id", "step"],
    "modules": ["run_id", "step", "layer", "module"],
    "residual": ["run_id", "step", "layer"],
}


def window_size(n_steps: int) -> int:
    """Steps in one window of a run of `n_steps`."""
    return max(200, math.ceil(n_steps / 10))


# ---- writing ------------------------------------------------------------------------------------------


def write_options(table: str) -> dict[str, object]:
    """How a table is encoded: `runs` for many one-row files, the series for size (FACTS measured both)."""
    if table == "runs":
        return {
            "compression": "none", "use_dictionary": False, "write_statistics": False,
            "store_schema": False, "write_page_checksum": True,
        }  # fmt: skip
    schema = SCHEMAS[table]
    floats = [f.name for f in schema if f.type == _F]
    names = [f.name for f in schema if f.type == _NAME]
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


def prepare(study_dir: Path) -> None:
    """Make the folders of a study and the zero-row file of each table.

    Raises ConfigError for a study of another schema, as its files and new ones could not be read together, and where
    one of these files is damaged.
    """
    for table in TABLES:
        folder = study_dir / "tables" / table
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SCHEMA_FILE).exists():
            with files.reading(folder / SCHEMA_FILE, study_dir):
                there = pq.ParquetFile(folder / SCHEMA_FILE).schema_arrow.names
            if there != SCHEMAS[table].names:
                raise ConfigError(
                    f"{study_dir} was written by another version of normstudy ({table} has {len(there)} columns, now "
                    f"{len(SCHEMAS[table].names)}): run normstudy compact {study_dir} first, or give another study"
                )
        else:
            empty = SCHEMAS[table].empty_table()
            files.place(study_dir, f"tables/{table}/{SCHEMA_FILE}", encode(table, empty))


def write_window(study_dir: Path, run_id: str, window: int, rows: Rows) -> None:
    """Write one window of a run's series. An existing file is left."""
    write_windows(study_dir, [(run_id, window, rows)])


def write_windows(study_dir: Path, windows: Iterable[tuple[str, int, Rows]]) -> None:
    """Write windows of several runs' series, (run_id, window, rows) each. An existing file is left.

    Raises StorageError where the disk does not take them.
    """
    with files.storing(study_dir):
        files.place_all(study_dir, _window_files(study_dir, windows))


def window_name(run_id: str, window: int) -> str:
    """The name of a window's file."""
    return f"{run_id}-{window:03d}.parquet"


def _window_files(study_dir: Path, windows: Iterable[tuple[str, int, Rows]]) -> Iterator[tuple[str, bytes | None]]:
    for run_id, window, rows in windows:
        for table in SERIES:
            relative = f"tables/{table}/{window_name(run_id, window)}"
            if (study_dir / relative).exists():
                yield relative, None
                continue
            schema, columns = SCHEMAS[table], dict(rows[table])
            n = len(next(iter(columns.values())))
            columns["run_id"] = [run_id] * n
            content = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
            yield relative, encode(table, content)


def write_run(study_dir: Path, row: Mapping[str, object]) -> None:
    """Write the `runs` row of one run; missing columns are null. A `done` row is never taken back."""
    write_runs(study_dir, [row])


def write_runs(study_dir: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the `runs` rows of several runs; missing columns are null. A `done` row is never taken back.

    Raises StorageError where the disk does not take them.
    """
    kept = [row for row in rows if row["status"] == "done" or not is_done(study_dir, str(row["run_id"]))]
    schema = SCHEMAS["runs"]
    unknown = {name for row in kept for name in row} - set(schema.names)
    if unknown:
        raise KeyError(f"no such columns in runs: {sorted(unknown)}")
    content = pa.table([pa.array([row.get(f.name) for row in kept], f.type) for f in schema], schema=schema)
    names = [f"tables/runs/{row['run_id']}.parquet" for row in kept]
    with files.storing(study_dir):
        files.place_all(study_dir, ((name, encode("runs", content.slice(i, 1))) for i, name in enumerate(names)))


def is_done(study_dir: Path, run_id: str) -> bool:
    """Whether a run of its own file is finished."""
    row = read_row(study_dir, run_id)
    return row is not None and row["status"] == "done"


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


def remove_windows(study_dir: Path, run_id: str) -> None:
    """Remove every window of a run, which is to start from zero in other bits."""
    with files.storing(study_dir):
        for table in SERIES:
            for path in (study_dir / "tables" / table).glob(f"{run_id}-*.parquet"):
                if run_of(table, path.name) == run_id:
                    path.unlink(missing_ok=True)
            files.fsync(study_dir / "tables" / table)  # before any row says that what is there was computed here


def config_columns(config: RunConfig) -> dict[str, object]:
    """The asked and resolved config columns of a `runs` row."""
    resolved = cfg.resolve(config.model)
    return {
        **cfg.asked(config),
        **{f"resolved_{name}": value for name, value in dataclasses.asdict(resolved).items()},
        **cfg.own_sources(config.model),
        "identity_version": cfg.IDENTITY_VERSION,
        "numerics": cfg.NUMERICS,
    }


def now() -> datetime.datetime:
    """The time now, in UTC."""
    return datetime.datetime.now(datetime.UTC)


# ---- reading ------------------------------------------------------------------------------------------


def check_is_study(study_dir: Path) -> None:
    """Raise a ConfigError unless the folder is one of a study."""
    check_not_swapping(study_dir)
    if not (study_dir / "tables" / "runs").is_dir():
        what = "is not a study: it has no tables/runs" if study_dir.is_dir() else "does not exist"
        raise ConfigError(f"{study_dir} {what}. Give the folder of a sweep, such as results/warmup")


def check_not_swapping(study_dir: Path) -> None:
    """Raise a ConfigError where tables are away: a compaction is at its swap, or was killed there."""
    if (study_dir / OLD_TABLES).exists() and not (study_dir / "tables").exists():
        raise ConfigError(SWAPPING.format(study_dir))


def read(
    study_dir: Path | str,
    table: str,
    columns: list[str] | None = None,
    run_ids: Sequence[str] | None = None,
    module: str | None = None,
    *,
    text: bool = True,
) -> pd.DataFrame:
    """One table of a study, sorted, as a DataFrame; `run_id` and `module` as plain text.

    columns: only these; run_ids: only the rows of these runs; module: of `modules`, only the rows of this one.
    text=False leaves the names of a series as categories, in the alphabet's order: a million rows then cost no
    million texts. Raises ConfigError for a folder that is no study, and for a damaged file.
    """
    check_is_study(Path(study_dir))
    wanted = SCHEMAS[table].names if columns is None else {*SORT[table], *columns}
    schema = pa.schema([f for f in SCHEMAS[table] if f.name in wanted])
    frame: pd.DataFrame = _rows(Path(study_dir, "tables", table), schema, run_ids, module).to_pandas()
    names = [f.name for f in SCHEMAS[table] if f.type == _NAME and f.name in frame]
    for name in names:
        frame[name] = frame[name].cat.reorder_categories(sorted(frame[name].cat.categories))
    frame = frame.sort_values(SORT[table], kind="stable", ignore_index=True)
    for name in names if text else []:
        frame[name] = frame[name].astype(object).astype(str)
    return frame if columns is None else frame[columns]


def _rows(folder: Path, schema: pa.Schema, run_ids: Sequence[str] | None, module: str | None) -> pa.Table:
    """The rows of a table's folder as `read` chooses them, in no order; one dictionary a column of names."""
    table = folder.name
    names = sorted(name for name in os.listdir(folder) if name.endswith(".parquet"))
    chosen = None if run_ids is None else sorted(run_ids)
    if chosen is not None:
        held = set(chosen)
        names = [f for f in names if f in (SCHEMA_FILE, COMPACTED_FILE) or run_of(table, f) in held]
    large = [folder / COMPACTED_FILE] if COMPACTED_FILE in names else []
    small = [folder / name for name in names if name != COMPACTED_FILE]
    bundles = [large, *(small[i : i + FILES_AT_ONCE] for i in range(0, len(small), FILES_AT_ONCE))]

    def read_all(bundle: Sequence[Path]) -> list[pa.Table]:
        parts = [part for path in bundle for part in _read_file(path, schema, chosen, module)]
        if bundle is large or not parts:
            return parts
        # One array a column: of each file's own, a row of `runs` takes a hundred times its bytes.
        with files.reading(folder, folder.parents[1]):  # a name's place beyond its dictionary, say
            return [pa.concat_tables(parts).unify_dictionaries().combine_chunks()]

    with ThreadPoolExecutor(min(len(bundles), len(os.sched_getaffinity(0)))) as threads:
        parts = [part for bundle in threads.map(read_all, bundles) for part in bundle]
    with files.reading(folder, folder.parents[1]):
        # No file yet: another command is about to place the first, the one without rows.
        return pa.concat_tables(parts or [schema.empty_table()]).unify_dictionaries()


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


def _read_file(path: Path, schema: pa.Schema, chosen: list[str] | None, module: str | None) -> Iterator[pa.Table]:
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


def run_of(table: str, file_name: str) -> str:
    stem = file_name.removesuffix(".parquet")
    return stem if table == "runs" else stem.rpartition("-")[0]


def finished_ids(study_dir: Path) -> dict[str, str]:
    """run_id -> status of every run of a study (empty where there is none yet)."""
    check_not_swapping(study_dir)
    if not (study_dir / "tables" / "runs").is_dir():
        return {}
    runs = read(study_dir, "runs", ["run_id", "status"])
    return dict(zip(runs["run_id"], runs["status"], strict=True))

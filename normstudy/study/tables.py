"""Write and read the four tables of a study.

    results/<study>/tables/runs/<run_id>.parquet                        one row per run
    results/<study>/tables/{steps,modules,residual}/<run_id>-<window>.parquet
    results/<study>/state/                                              partial files, logs, locks, checkpoints

A window is a fixed range of steps. A window's file is written in state/ and moved into its table's folder, so readers
find only complete files. It is never changed, except that a newer version adds its columns. Each table also has a file
`0-schema.parquet` without rows, so that readers find the columns even if no run has begun. `results/README.md`
documents every column.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa

from normstudy.errors import ConfigError
from normstudy.study import files, parquet
from normstudy.study.parquet import COMPACTED_OPTIONS, conform, encode, join, open_file, read_file, read_row
from normstudy.study.schema import COMPACTED_FILE, SCHEMA_FILE, SCHEMAS, SERIES, SORT, TABLES, Rows, run_of, window_name
from normstudy.study.swap import check_not_swapping

FILES_AT_ONCE = 64  # files that a thread reads and joins at a time; an uncompacted table has thousands of files


def prepare(study_dir: Path, *, shared: bool = False) -> None:
    """Create the study's folder, and the folder and schema file of each table. The caller must hold the study's lock.

    If an older version wrote a table with fewer columns, add the missing columns to its files. shared: whether other
    commands may write to the study at the same time; then no file is changed. Raises ConfigError for a damaged file,
    for columns that this version does not know, and for missing columns that cannot be added.
    """
    for table in TABLES:
        folder = study_dir / "tables" / table
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SCHEMA_FILE).exists():
            with files.reading(folder / SCHEMA_FILE, study_dir):
                there = open_file(folder / SCHEMA_FILE).schema_arrow.names
            if there == SCHEMAS[table].names:
                continue
            if shared:
                raise ConfigError(
                    f"an older version of normstudy wrote {study_dir}, without columns that this version has: run its "
                    f"sweep, which adds them, or normstudy compact {study_dir}, before other commands"
                )
        if not shared:
            _add_columns(study_dir, table)
        # Written last, so that the next sweep goes on with files that a killed process has left unchanged.
        files.place(study_dir, f"tables/{table}/{SCHEMA_FILE}", encode(table, SCHEMAS[table].empty_table()))


def _add_columns(study_dir: Path, table: str) -> None:
    """Rewrite each file of a table that lacks columns of this version."""
    paths = sorted((study_dir / "tables" / table).glob("*.parquet"))
    for start in range(0, len(paths), FILES_AT_ONCE):
        grown = []
        for path in paths[start : start + FILES_AT_ONCE]:
            with files.reading(path, study_dir):
                content = parquet.read(path)
                conformed = conform(table, content)
            if conformed is not content and path.name != SCHEMA_FILE:
                options = COMPACTED_OPTIONS if path.name == COMPACTED_FILE else {}
                grown.append((f"tables/{table}/{path.name}", encode(table, conformed, **options)))
        with files.storing(study_dir):
            files.place_all(study_dir, grown)


def write_windows(study_dir: Path, windows: Iterable[tuple[str, int, Rows]]) -> None:
    """Write windows, given as (run_id, window index, rows), to new files; leave existing files. Raises StorageError."""
    with files.storing(study_dir):
        files.place_all(study_dir, _window_files(study_dir, windows))


def _window_files(study_dir: Path, windows: Iterable[tuple[str, int, Rows]]) -> Iterator[tuple[str, bytes | None]]:
    for run_id, window, rows in windows:
        for table in SERIES:
            relative = f"tables/{table}/{window_name(run_id, window)}"
            if (study_dir / relative).exists():
                yield relative, None
                continue
            columns = {**rows[table], "run_id": [run_id] * len(rows[table]["step"])}
            yield relative, encode(table, pa.Table.from_pydict(columns, SCHEMAS[table]))


def write_runs(study_dir: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `runs` rows, null for missing columns. `done` is never replaced by another status. Raises StorageError."""
    kept = [row for row in rows if row["status"] == "done" or not is_done(study_dir, str(row["run_id"]))]
    if unknown := {name for row in kept for name in row} - set(SCHEMAS["runs"].names):
        raise KeyError(f"the table runs has no columns named {sorted(unknown)}")
    content = pa.Table.from_pylist(kept, SCHEMAS["runs"])
    names = [f"tables/runs/{row['run_id']}.parquet" for row in kept]
    with files.storing(study_dir):
        files.place_all(study_dir, ((name, encode("runs", content.slice(i, 1))) for i, name in enumerate(names)))


def is_done(study_dir: Path, run_id: str) -> bool:
    """Whether a run has an uncompacted `runs` file in which the status is `done`."""
    row = read_row(study_dir, run_id)
    return row is not None and row["status"] == "done"


def remove_windows(study_dir: Path, run_id: str) -> None:
    """Remove all windows of an unfinished run, because training it again may record different bits."""
    with files.storing(study_dir):
        for table in SERIES:
            for path in (study_dir / "tables" / table).glob(f"{run_id}-*.parquet"):
                if run_of(table, path.name) == run_id:
                    path.unlink(missing_ok=True)
            # Without this fsync, a power failure could undo the removal, and old windows would mix with new ones.
            files.fsync(study_dir / "tables" / table)


def now() -> datetime.datetime:
    """Return the current time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def check_is_study(study_dir: Path) -> None:
    """Raise ConfigError unless the folder is a study."""
    check_not_swapping(study_dir)
    if not (study_dir / "tables" / "runs").is_dir():
        what = "is not a study: it has no tables/runs" if study_dir.is_dir() else "does not exist"
        raise ConfigError(f"{study_dir} {what}. Choose the folder of a study, such as results/warmup")


def read(
    study_dir: Path | str,
    table: str,
    columns: list[str] | None = None,
    run_ids: Sequence[str] | None = None,
    module: str | None = None,
    *,
    text: bool = True,
) -> pd.DataFrame:
    """Read one table of a study as a DataFrame, sorted by SORT[table].

    columns, run_ids, module: what to read (default: everything).
    text: whether to return `run_id` and `module` as text; if False, they are pandas categories in alphabetical order,
    which need far less memory. Raises ConfigError for a damaged file or a folder that is not a study.
    """
    check_is_study(Path(study_dir))
    wanted = SCHEMAS[table].names if columns is None else {*SORT[table], *columns}
    schema = pa.schema([f for f in SCHEMAS[table] if f.name in wanted])
    frame: pd.DataFrame = _rows(Path(study_dir, "tables", table), schema, run_ids, module).to_pandas()
    categories = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    for name in categories:
        frame[name] = frame[name].cat.reorder_categories(sorted(frame[name].cat.categories))
    frame = frame.sort_values(SORT[table], kind="stable", ignore_index=True)
    for name in categories if text else []:
        frame[name] = frame[name].astype(object).astype(str)
    return frame if columns is None else frame[columns]


def _rows(folder: Path, schema: pa.Schema, run_ids: Sequence[str] | None, module: str | None) -> pa.Table:
    """Read the selected rows of a table's folder, unsorted. Each dictionary column has one dictionary for all rows."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".parquet"))
    if run_ids is not None:
        run_ids = sorted(run_ids)
        own = set(run_ids)
        names = [name for name in names if name in (SCHEMA_FILE, COMPACTED_FILE) or run_of(folder.name, name) in own]
    large = [folder / COMPACTED_FILE] if COMPACTED_FILE in names else []
    small = [folder / name for name in names if name != COMPACTED_FILE]
    bundles = [large, *(small[i : i + FILES_AT_ONCE] for i in range(0, len(small), FILES_AT_ONCE))]

    def read_all(bundle: Sequence[Path]) -> list[pa.Table]:
        parts = [part for path in bundle for part in read_file(path, schema, run_ids, module)]
        return parts if bundle is large or not parts else [join(parts)]

    with (
        # The tables are joined inside files.reading, because joining can detect damage that reading has not detected.
        files.reading(folder, folder.parents[1]),
        ThreadPoolExecutor(min(len(bundles), len(os.sched_getaffinity(0)))) as threads,
    ):
        parts = [part for bundle in threads.map(read_all, bundles) for part in bundle]
        # The folder has no files if another command has just created it and is about to write the schema file.
        return pa.concat_tables(parts or [schema.empty_table()]).unify_dictionaries()


def statuses(study_dir: Path) -> dict[str, str]:
    """Return run_id -> status for all runs of a study; empty before the first run."""
    check_not_swapping(study_dir)
    if not (study_dir / "tables" / "runs").is_dir():
        return {}
    runs = read(study_dir, "runs", ["run_id", "status"])
    return dict(zip(runs["run_id"], runs["status"], strict=True))

"""Write and read the four tables of a study.

    results/<study>/tables/runs/<run_id>.parquet                        one row per run
    results/<study>/tables/{steps,modules,residual}/<run_id>-<window>.parquet
    results/<study>/state/                                              partial files, logs, locks, checkpoints

A window is a fixed range of steps. Its file is written in state/ and moved into its table's folder. A sweep changes
the file only if a newer version adds columns or the run is trained again. Each table has a file `0-schema.parquet`
without rows, from which readers learn the columns before any run has begun. `results/README.md` documents every column.
"""

import contextlib
import datetime
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from normstudy.errors import ConfigError, warn
from normstudy.study import checkpoints, files, parquet, schema
from normstudy.study.parquet import COMPACTED_OPTIONS, Stretch, encode, join, open_file, read_file, read_row
from normstudy.study.schema import COMPACTED_FILE, SCHEMA_FILE, SCHEMAS, SERIES, SORT, TABLES, Rows, run_of, window_name

FILES_AT_ONCE = 64  # files that a thread reads and joins at a time; an uncompacted table has thousands of files


def prepare(study_dir: Path, *, shared: bool = False) -> None:
    """Create the study's folders and schema files, and add the columns that an older version's files lack.

    The caller must hold the study's lock. If a schema file is up to date, its table's other files are not read.
    shared: whether other commands may write to the study at the same time. If so, no existing file is changed.
    Raises ConfigError if a file is damaged or has unknown columns, or if columns are missing and `shared` is true.
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
                    f"{study_dir} was written by an older version of normstudy and lacks new columns: to add the "
                    f"columns, run its sweep or normstudy compact {study_dir} before other commands"
                )
        if not shared:
            _add_columns(study_dir, table)
        # Write the schema file last: if this process is killed earlier, the next sweep adds the missing columns.
        files.place(study_dir, f"tables/{table}/{SCHEMA_FILE}", encode(table, SCHEMAS[table].empty_table()))


def _add_columns(study_dir: Path, table: str) -> None:
    """Rewrite each file of a table that lacks columns of this version."""
    paths = [study_dir / "tables" / table / name for name in names_in(study_dir / "tables" / table)]
    for start in range(0, len(paths), FILES_AT_ONCE):
        grown = []
        for path in paths[start : start + FILES_AT_ONCE]:
            conformed, is_same = parquet.read_conformed(path)
            if not is_same and path.name != SCHEMA_FILE:
                options = COMPACTED_OPTIONS if path.name == COMPACTED_FILE else {}
                grown.append((f"tables/{table}/{path.name}", encode(table, conformed, **options)))
        with files.storing(study_dir):
            files.place_all(study_dir, grown)


def write_windows(study_dir: Path, windows: Iterable[tuple[str, int, Rows]]) -> None:
    """Write each window (run_id, window index, rows) that is not in a file yet. Raises StorageError."""
    with files.storing(study_dir):
        files.place_all(study_dir, _window_files(study_dir, windows))


def _window_files(study_dir: Path, windows: Iterable[tuple[str, int, Rows]]) -> Iterator[tuple[str, bytes | None]]:
    for run_id, window, rows in windows:
        for table in SERIES:
            relative = f"tables/{table}/{window_name(run_id, window)}"
            if (study_dir / relative).exists():
                yield relative, None
                continue
            n = len(rows[table]["step"])
            columns = {**dict.fromkeys(SCHEMAS[table].names, [None] * n), **rows[table], "run_id": [run_id] * n}
            yield relative, encode(table, pa.Table.from_pydict(columns, SCHEMAS[table]))


def write_runs(study_dir: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `runs` rows; missing columns are null. Only `done` rows can replace `done` rows. Raises StorageError."""
    kept = [row for row in rows if row["status"] == "done" or not is_done(study_dir, str(row["run_id"]))]
    if unknown := {name for row in kept for name in row} - set(SCHEMAS["runs"].names):
        raise KeyError(f"the table runs has no columns named {sorted(unknown)}")
    content = pa.Table.from_pylist(kept, SCHEMAS["runs"])
    found = ((f"tables/runs/{row['run_id']}.parquet", encode("runs", content[i : i + 1])) for i, row in enumerate(kept))
    with files.storing(study_dir):
        files.place_all(study_dir, found)


def is_done(study_dir: Path, run_id: str) -> bool:
    """Whether a run has an uncompacted `runs` file in which the status is `done`."""
    return (read_row(study_dir, run_id) or {}).get("status") == "done"


def damaged_and_unfinished(study_dir: Path) -> list[str]:
    """Return the unfinished runs (those with a checkpoint) whose row in `runs` cannot be read."""
    found = []
    for run_id in sorted(path.name for path in (study_dir / checkpoints.FOLDER).glob("*")):
        try:
            read_row(study_dir, run_id)
        except ConfigError:
            found.append(run_id)
    return found


def remove_windows(study_dir: Path, run_ids: Collection[str]) -> None:
    """Remove the windows (files of steps) of runs that are trained again; otherwise write_windows would keep them."""
    with files.storing(study_dir):
        for table in SERIES:
            for name in names_in(study_dir / "tables" / table):
                if run_of(table, name) in run_ids:
                    (study_dir / "tables" / table / name).unlink(missing_ok=True)
            # Without this fsync, a power failure could undo the removal, and old windows would mix with new ones.
            files.fsync(study_dir / "tables" / table)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def names_in(folder: Path) -> list[str]:
    """Return the sorted names of a table's files, and warn of other files, which are never read."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        if folder.exists() or not folder.parent.exists():  # a compaction is replacing the tables
            raise
        return []
    if strange := {name for name in names if not schema.is_stored(folder.name, name)}:
        first, *more = sorted(strange)
        also = f" and {len(more)} more" if more else ""
        warn(f"{folder}/{first}{also}: ignored, because normstudy never writes files with such names: move them away")
    return [name for name in names if name not in strange]


def check_is_study(study_dir: Path) -> None:
    """Raise ConfigError unless the folder is a study that has the table `runs`."""
    if not _has_runs(study_dir):
        what = "is not a study: it has no tables/runs" if study_dir.is_dir() else "does not exist"
        raise ConfigError(f"{study_dir} {what}. Choose the folder of a study, such as results/warmup")


def _has_runs(study_dir: Path) -> bool:
    """Return whether the table `runs` exists. Raises ConfigError if other tables are compacted but `runs` is not."""
    files.check_not_swapping(study_dir)
    # A compaction may create the files while this line runs. Look for the file of `runs` last, so as not to miss it.
    compacted = [table for table in (*SERIES, "runs") if (study_dir / "tables" / table / COMPACTED_FILE).exists()]
    if compacted and "runs" not in compacted:
        raise _lacks_runs(study_dir, "is missing", compacted[0])
    return (study_dir / "tables" / "runs").is_dir()


def _lacks_runs(study_dir: Path | str, what: str, table: str) -> ConfigError:
    return ConfigError(
        f"{study_dir}/tables/runs/{COMPACTED_FILE} {what}, but tables/{table} has rows of the missing runs: restore "
        f"the file from a copy, or move {study_dir} away and rerun the sweep"
    )


def gathered(study_dir: Path, table: str) -> set[str]:
    """Return the runs in a table's compacted file; an empty set if the file is missing or damaged."""
    path = study_dir / "tables" / table / COMPACTED_FILE
    with contextlib.suppress(FileNotFoundError, ConfigError), files.reading(path, study_dir):
        return set(parquet.read(path, ["run_id"])["run_id"].unique().to_pylist())
    return set()


def is_watched(study_dir: Path) -> bool:
    """Whether normstudy.watch recorded the study's runs. No command can train watched runs again."""
    return kind_of(study_dir) == schema.WATCH


def kind_of(study_dir: Path) -> str | None:
    """Return the `source` of a study's runs: schema.WATCH, or None for a sweep; "" if no row of `runs` can be read."""
    folder, fields = study_dir / "tables" / "runs", pa.schema([SCHEMAS["runs"].field(n) for n in ("run_id", "source")])
    for name in sorted(path.name for path in folder.glob("*.parquet") if schema.is_stored("runs", path.name)):
        with contextlib.suppress(ConfigError):
            for rows in read_file(folder / name, fields):
                if rows.num_rows:
                    return rows["source"][0].as_py()  # type: ignore[no-any-return]
    return ""


def read(
    study_dir: Path | str,
    table: str,
    columns: list[str] | None = None,
    run_ids: Sequence[str] | None = None,
    module: str | None = None,
    *,
    text: bool = True,
    skip: Collection[str] = (),
    counted: list[Stretch] | None = None,
) -> pd.DataFrame:
    """Read one table of a study as a DataFrame, sorted by SORT[table]. To detect missing rows, use `whole.read`.

    columns, run_ids, module: what to read (default: everything).
    text: whether to return `run_id` and `module` as text; if False, they are pandas categories in alphabetical order,
    which need far less memory. skip: run_ids whose uncompacted files are not read. counted: a list to which the
    results of parquet.rows_by_step are added; they count the rows of all modules, whatever `module` is.
    Raises ConfigError for a damaged file or a folder that is not a study.
    """
    check_is_study(Path(study_dir))
    every = table == "runs" and run_ids is None
    # List the runs with windows, then read `runs`. In the opposite order, a new run could seem to lack its row.
    began = runs_with_windows(Path(study_dir)) if every else set()
    compacted = gathered(Path(study_dir), "steps") if every else set()
    wanted = SCHEMAS[table].names if columns is None else {*SORT[table], *columns}
    fields = pa.schema([f for f in SCHEMAS[table] if f.name in wanted])
    frame: pd.DataFrame = rows(Path(study_dir, "tables", table), fields, run_ids, module, skip, counted).to_pandas()
    categories = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    for name in categories:
        frame[name] = frame[name].cat.reorder_categories(sorted(frame[name].cat.categories))
    frame = frame.sort_values(SORT[table], kind="stable", ignore_index=True)
    if lost := compacted.difference(frame["run_id"]):
        raise _lacks_runs(study_dir, f"lacks {min(lost)}", "steps")
    if began:
        warn_of_lost(study_dir, began.difference(frame["run_id"], skip))
    for name in categories if text else []:
        frame[name] = frame[name].astype(object).astype(str)
    return frame if columns is None else frame[columns]


def runs_with_windows(study_dir: Path) -> set[str]:
    """Return the runs that have an uncompacted window. Each must have a row in `runs`, which is written earlier."""
    names = ((table, name) for table in SERIES for name in names_in(study_dir / "tables" / table))
    return {run_of(table, name) for table, name in names if name not in (SCHEMA_FILE, COMPACTED_FILE)}


def warn_of_lost(study_dir: Path | str, run_ids: Collection[str]) -> None:
    """Warn of runs that have windows but no row in `runs`. If `run_ids` is empty, print nothing."""
    if run_ids:
        also = f" (and of {len(run_ids) - 1} more)" if len(run_ids) > 1 else ""
        what = f"{study_dir}/tables/runs lacks the row of {min(run_ids)}{also}"
        again = "restore its file from a copy" if is_watched(Path(study_dir)) else "rerun its sweep to train it again"
        warn(f"{what}: not read; {again}")


def rows(
    folder: Path,
    fields: pa.Schema,
    run_ids: Sequence[str] | None = None,
    module: str | None = None,
    skip: Collection[str] = (),
    counted: list[Stretch] | None = None,
) -> pa.Table:
    """Read a table's rows, unsorted, with the arguments of `read`. The chunks of a column share one dictionary."""
    names = [name for name in names_in(folder) if run_of(folder.name, name) not in skip]
    if run_ids is not None:
        run_ids, own = sorted(run_ids), set(run_ids)
        names = [name for name in names if name in (SCHEMA_FILE, COMPACTED_FILE) or run_of(folder.name, name) in own]
    large = [folder / COMPACTED_FILE] if COMPACTED_FILE in names else []
    small = [folder / name for name in names if name != COMPACTED_FILE]
    bundles = [large, *(small[i : i + FILES_AT_ONCE] for i in range(0, len(small), FILES_AT_ONCE))]

    def chosen(part: pa.Table) -> pa.Table:
        if counted is not None:
            counted.extend(parquet.rows_by_step(part))
        return part if module is None else part.filter(pc.equal(part["module"], module))

    def read_all(bundle: Sequence[Path]) -> list[pa.Table]:
        parts = (part for path in bundle for part in read_file(path, fields, run_ids))
        if bundle is large:
            return [chosen(part) for part in parts]
        found = list(parts)
        return [chosen(join(found))] if found else []

    with (
        # The tables are joined inside files.reading, because joining can detect damage that reading has not detected.
        files.reading(folder, folder.parents[1]),
        ThreadPoolExecutor(min(len(bundles), len(os.sched_getaffinity(0)))) as threads,
    ):
        parts = [part for bundle in threads.map(read_all, bundles) for part in bundle]
        # The folder has no files if another command has just created it and is about to write the schema file.
        return pa.concat_tables(parts or [fields.empty_table()]).unify_dictionaries()


def statuses(study_dir: Path, skip: Collection[str] = ()) -> dict[str, str]:
    """Return run_id -> status for all runs of a study; empty before the first run. skip: run_ids to leave out."""
    if not _has_runs(study_dir):
        files.check_not_swapping(study_dir)  # a compaction may have moved the tables since _has_runs checked this
        return {}
    runs = read(study_dir, "runs", ["run_id", "status"], skip=skip)
    return dict(zip(runs["run_id"], runs["status"], strict=True))

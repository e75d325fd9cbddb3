"""Implement `normstudy check`: verify every file of a study, and say what to do about each damaged or missing file.

The check changes nothing and takes no lock, so a sweep may be writing at the same time. A sweep writes a finished
run's `runs` row last. The check reads `runs` first, so each run that it sees as finished has all its rows.
"""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from normstudy import config as cfg
from normstudy.analysis.grid import count_text
from normstudy.config import places
from normstudy.errors import printable
from normstudy.study import files, parquet, schema, tables, whole
from normstudy.study.schema import COMPACTED_FILE, SCHEMA_FILE, SCHEMAS, SERIES
from normstudy.study.whole import Expected
from normstudy.upkeep import verify


class CheckResult(NamedTuple):
    """The result of a check: the text to print, and whether the study is sound."""

    text: str
    sound: bool


class Wrong(Exception):
    """The error for a bad file. The message, such as `is damaged (...)`, is printed after the file's name."""


@dataclass
class Found:
    """Collects the findings of a check."""

    study: Path
    watched: bool  # whether normstudy.watch recorded the runs: a removed file with rows would be lost for ever
    n_files: int = 0
    names: set[str] = field(default_factory=set)  # all run_ids in `runs`
    compacted: set[str] = field(default_factory=set)  # run_ids in the compacted `runs` file
    beside: set[str] = field(default_factory=set)  # run_ids with uncompacted files
    lines: list[str] = field(default_factory=list)  # findings about files
    of_runs: dict[str, list[str]] = field(default_factory=dict)  # run_id -> findings about the run
    lost: set[str] = field(default_factory=set)  # run_ids that lack rows, so that the sweep trains them again
    bad: dict[str, list[str]] = field(default_factory=dict)  # run_id -> its files to be removed
    # For each file that another version of normstudy wrote: the table, and the unknown columns as text ("" if none).
    others: list[tuple[str, str]] = field(default_factory=list)
    columns: dict[str, set[str]] = field(default_factory=dict)  # table -> each file's columns, joined by spaces
    damaged: set[str] = field(default_factory=set)  # tables from which not all runs could be read

    def wrong(self, run_id: str, what: str, *bad: str, lost: bool = False) -> None:
        """Add the finding `what` unless it is "". bad: files in tables/ to remove. lost: whether the run lacks rows."""
        if what:
            self.of_runs.setdefault(run_id, []).append(what)
            self.bad.setdefault(run_id, []).extend(bad)
            self.lost |= {run_id} if lost else set()

    def unknown(self, table: str) -> bool:
        """Whether a file of the table was not read because it has columns unknown to this version of normstudy."""
        return any(name == table and columns for name, columns in self.others)

    @property
    def renew(self) -> str:
        """Return the advice for missing schema files and columns."""
        return f"{'' if self.watched else 'rerun the sweep or '}run normstudy compact {self.study}"

    @property
    def restore(self) -> str:
        """Return the advice for a damaged compacted file."""
        again = "" if self.watched else f", or move {self.study} away and rerun the sweep"
        return f"restore the compacted file from a copy{again}"

    def remedy(self, run_id: str) -> str:
        """Return the advice for a run: remove its bad files, and let the sweep train it again if rows are lost."""
        remove = shlex.join(["rm", *(str(self.study / "tables" / name) for name in dict.fromkeys(self.bad[run_id]))])
        again = "rerun the sweep to train the run again"
        if self.watched and not (self.bad[run_id] and run_id in self.compacted):
            return "restore its files from a copy: no command can train a watched run again"
        if self.bad[run_id]:
            return remove if run_id in self.compacted else f"{remove}, then {again}"
        if run_id in self.beside:
            return again
        restore = "restore the compacted file from a copy"
        if (self.study / schema.SEALED).exists():
            return restore
        return f"{restore}, or {again}" if run_id in self.lost else self.restore

    def findings(self) -> list[str]:
        out = list(self.lines)
        for (table, unknown), n in sorted(Counter(self.others).items()):
            do = f"update normstudy to read the columns {unknown}" if unknown else f"run normstudy compact {self.study}"
            out.append(f"tables/{table}: another version of normstudy wrote {count_text(n, 'file')}: {do}")
        for table in (name for name, found in self.columns.items() if len(found) > 1 and not self.unknown(name)):
            out.append(f"tables/{table}: not all files have the same columns: {self.renew}")
        for run_id, (what, *more) in sorted(self.of_runs.items()):
            out.append(f"{run_id}: {what}{f' (and {len(more)} more)' if more else ''}: {self.remedy(run_id)}")
        return out


def check_study(study: Path) -> CheckResult:
    """Verify every file of a study. Raises ConfigError for a folder that is not a study."""
    while True:
        if files.swap_interrupted(study):
            return CheckResult(f"{study}: 1 finding\n{files.SWAPPING.format(study)}", False)
        tables.check_is_study(study)
        before = _inode(study / "tables")
        result = _check(study)
        if _inode(study / "tables") == before:  # otherwise a compaction has replaced the tables, so check again
            return result


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _check(study: Path) -> CheckResult:
    found = Found(study, tables.is_watched(study))
    for path in sorted((study / "tables").iterdir()):
        if path.name not in schema.TABLES:
            what = "is not a table, so normstudy compact would delete it"
            found.lines.append(f"tables/{path.name}: {what}: move it out of tables/")
    runs = _check_runs(found, _files(found, "runs"))
    names = {table: _files(found, table) for table in SERIES}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for table in SERIES:
            _check_series(found, table, names[table], runs, threads)
    found.lines += verify.wrong_in_checkpoints(study) + verify.wrong_in_records(study)
    if (study / schema.SEALED).exists():
        n_runs = None if found.damaged else len(found.compacted)
        found.lines += verify.wrong_with_seal(study, n_runs, len(found.beside))
    findings = found.findings()
    verdict = count_text(len(findings), "finding") if findings else "sound"
    head = f"{study}: {count_text(len(found.names), 'run')}, {count_text(found.n_files, 'file')}, {verdict}"
    notes = verify.notes(study, Counter(run.status for run in runs.values()))
    lines = [head, *findings, *(f"note: {note}" for note in notes)]
    return CheckResult("\n".join(map(printable, lines)), not findings)


def _files(found: Found, table: str) -> list[str]:
    """Check a table's file names and its schema file; returns the sorted names of the table's other files."""
    folder, names = found.study / "tables" / table, []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() or not schema.is_stored(table, path.name):
            what = "does not belong to this table and can prevent other tools from reading the table"
            found.lines.append(f"tables/{table}/{path.name}: {what}: move it out of tables/")
        else:
            names.append(path.name)
    found.n_files += len(names)
    if SCHEMA_FILE not in names:
        if names or found.names:  # if there are no runs, report nothing: a sweep may be about to write the file
            found.lines.append(f"tables/{table}/{SCHEMA_FILE}: is missing: {found.renew}")
        return names
    try:
        if n := sum(part.num_rows for part in _parts(found, table, SCHEMA_FILE)):
            raise Wrong(f"has {count_text(n, 'row')} instead of 0")
    except Wrong as why:
        remove = f"rm {shlex.quote(str(folder / SCHEMA_FILE))}"
        found.lines.append(f"tables/{table}/{SCHEMA_FILE}: {why}: {remove}, then {found.renew}")
    return [name for name in names if name != SCHEMA_FILE]


def _parts(found: Found, table: str, name: str) -> Iterator[pa.Table]:
    """Yield a file's row groups in this version's schema; none if the file was removed or has unknown columns.

    Raises Wrong if the file is damaged or belongs to another table.
    """
    path = found.study / "tables" / table / name
    try:
        with open(path, "rb", opener=places.opener) as f:
            if f.read(4) != b"PAR1":
                raise Wrong("is damaged (the first four bytes are not PAR1)")
        file = parquet.open_file(path)
        columns = file.schema_arrow.names
        if other := [t for t in schema.TABLES if t != table and columns == SCHEMAS[t].names]:
            raise Wrong(f"is a file of the table {other[0]}")
        found.columns.setdefault(table, set()).add(" ".join(columns))
        if not file.schema_arrow.equals(SCHEMAS[table]):
            unknown = parquet.unknown_columns(table, columns)
            if unknown or not file.schema_arrow.equals(pa.schema([f for f in SCHEMAS[table] if f.name in columns])):
                found.others.append((table, ", ".join(unknown)))
            if unknown:
                return
        for part in parquet.row_groups(file):
            part.validate(full=True)  # detects damage that checksums miss, such as an index beyond its dictionary
            yield parquet.conform(table, part)
    except FileNotFoundError:
        return
    except Exception as error:  # damaged bytes can cause any type of exception
        if isinstance(error, Wrong) or not files.is_damage(error):
            raise
        raise Wrong(f"is damaged ({files.damage(error)})") from None


def _check_runs(found: Found, names: Sequence[str]) -> dict[str, Expected]:
    """Check the table `runs`; returns run_id -> Expected for every run whose row is sound."""
    runs: dict[str, Expected] = {}
    for name in names:
        if name == COMPACTED_FILE:
            _check_compacted_runs(found, runs)
            continue
        run_id = name.removesuffix(".parquet")
        twice = f"tables/runs has the run's row in {COMPACTED_FILE} and also in {name}" if run_id in found.names else ""
        found.wrong(run_id, twice, f"runs/{name}")
        found.names.add(run_id)
        found.beside.add(run_id)
        try:
            rows = [row for part in _parts(found, "runs", name) for row in part.to_pylist()]
            held = [str(row["run_id"]) for row in rows]
            if held != [run_id] and not found.unknown("runs"):
                what = f"rows of {', '.join(held)} instead of one row of {run_id}" if held else "no row"
                raise Wrong(f"contains {what}")
            _add_runs(found, runs, rows, f"runs/{name}")
        except Wrong as why:
            found.wrong(run_id, f"tables/runs/{name} {why}", f"runs/{name}")
    if found.unknown("runs"):
        found.damaged.add("runs")
    return runs


def _check_compacted_runs(found: Found, runs: dict[str, Expected]) -> None:
    try:
        for part in _parts(found, "runs", COMPACTED_FILE):
            rows = part.to_pylist()
            for run_id in (str(row["run_id"]) for row in rows):
                found.wrong(run_id, "tables/runs has two rows of this run" if run_id in found.names else "")
                found.names.add(run_id)
                found.compacted.add(run_id)
            _add_runs(found, runs, rows)
    except Wrong as why:
        found.damaged.add("runs")
        found.lines.append(f"tables/runs/{COMPACTED_FILE}: {why}: {found.restore}")


def _add_runs(found: Found, runs: dict[str, Expected], rows: Sequence[Mapping[str, object]], *bad: str) -> None:
    for row in rows:
        run = whole.expected_of(found.study, (row[column] for column in whole.COLUMNS))
        if (version := row["identity_version"]) != cfg.IDENTITY_VERSION:
            what = f"identity_version is {version}, but this version of normstudy knows only {cfg.IDENTITY_VERSION}"
            found.lines.append(f"{run.name}: {what}: update normstudy")
            continue
        what = verify.wrong_in_row(row)
        found.wrong(run.name, what, *bad)
        if not what:
            runs.setdefault(run.name, run)


def _check_series(
    found: Found, table: str, names: Sequence[str], runs: Mapping[str, Expected], threads: ThreadPoolExecutor
) -> None:
    windows: dict[str, list[str]] = {}
    for name in names:
        if name != COMPACTED_FILE:
            windows.setdefault(schema.run_of(table, name), []).append(name)
    found.beside |= windows.keys()
    compacted = _check_compacted(found, table, runs) if COMPACTED_FILE in names else set()
    for run_id, of_run in sorted(windows.items()):
        n = count_text(len(of_run), "window")
        if run_id in compacted:
            what = f"tables/{table} has the run's rows in {COMPACTED_FILE} and also in {n}"
            found.wrong(run_id, what, *(f"{table}/{name}" for name in of_run))
        elif run_id in found.names or run_id in found.of_runs or "runs" in found.damaged:
            continue
        elif not (found.study / "tables" / "runs" / f"{run_id}.parquet").exists():
            # The `elif` looks for the row on disk, because the run may have started after the check read tables/runs.
            found.wrong(run_id, f"tables/{table} has {n} of this run, but tables/runs lacks the run's row")
    unread = found.compacted if table in found.damaged else set()
    left = [run for run in runs.values() if run.name not in compacted | unread]
    whats = threads.map(lambda run: _wrong_in_windows(found, table, run, windows.get(run.name, [])), left)
    for run, found_in in zip(left, whats, strict=True):
        for bad, what in found_in:
            found.wrong(run.name, what, *bad, lost=not bad)


def _check_compacted(found: Found, table: str, runs: Mapping[str, Expected]) -> set[str]:
    """Check the compacted file of a table other than `runs`; returns the run_ids in the file."""
    held: set[str] = set()
    where = f"tables/{table}/{COMPACTED_FILE}"
    try:
        for run_id, rows in verify.runs_of(_parts(found, table, COMPACTED_FILE)):
            if run_id in held:
                raise Wrong(f"has rows of other runs between the rows of {run_id}")
            held.add(run_id)
            if run_id in runs:
                if twice := verify.duplicates_in(rows):
                    found.wrong(run_id, f"{where} {twice} of this run")
                else:
                    found.wrong(run_id, whole.wrong_in(table, runs[run_id], rows), lost=True)
            elif run_id not in found.names and "runs" not in found.damaged:
                found.wrong(run_id, f"{where} has rows of this run, but tables/runs lacks the run's row")
    except Wrong as why:
        found.damaged.add(table)
        found.lines.append(f"{where}: {why}: {found.restore}")
    return held


def _wrong_in_windows(found: Found, table: str, run: Expected, names: Sequence[str]) -> list[tuple[list[str], str]]:
    """Check a run's windows in one table; returns (bad files, what is wrong) for each finding."""
    whats: list[tuple[list[str], str]] = []
    size, parts = schema.window_size(run.n_steps, run.source), [SCHEMAS[table].empty_table()]
    for name in names:
        low = int(name.removesuffix(".parquet").rpartition("-")[2]) * size
        try:
            for run_id, rows in verify.runs_of(_parts(found, table, name)):
                parts.append(rows)
                steps = rows["step"].fill_null(-1).to_numpy()
                first, last = steps.min(), steps.max()
                if run_id != run.name:
                    raise Wrong(f"contains rows of {run_id}")
                if first < low or last >= low + size:
                    raise Wrong(f"contains steps {first} to {last} instead of {low} to {low + size - 1}")
                if twice := verify.duplicates_in(rows):
                    raise Wrong(twice)
        except Wrong as why:
            whats.append(([f"{table}/{name}"], f"tables/{table}/{name} {why}"))
    if whats or found.unknown(table):
        return whats
    return [([], whole.wrong_in(table, run, pa.concat_tables(parts)))]

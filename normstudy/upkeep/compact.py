"""Implement `normstudy compact`: gather a study's finished runs in one file per table, and seal a complete study."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from normstudy import __version__
from normstudy.analysis.grid import count_text
from normstudy.config import places
from normstudy.errors import ConfigError
from normstudy.slurm import arrays
from normstudy.study import files, locks, parquet, schema, tables, whole
from normstudy.study.schema import COMPACTED_FILE, SCHEMA_FILE, SCHEMAS, SEALED, SORT, TABLES, plain_schema, run_of
from normstudy.upkeep import verify


def compact_study(study_dir: Path, *, seal: bool = False) -> str:
    """Gather the study's finished runs in one sorted file per table; returns one line that says what was done.

    Other runs keep separate files. Compacting twice gives the same bytes. seal: whether to also write SEALED and remove
    state/; a sealed study stays sealed. Raises ConfigError if the folder is not a study, or if the study is in use, has
    no finished run, or has a damaged file or unknown columns. Sealing also raises it if a run is unfinished or failed.
    """
    if not files.swap_interrupted(study_dir):
        tables.check_is_study(study_dir)
        _statuses(study_dir)
    seal = seal or (study_dir / SEALED).exists()
    if seal:
        # A queued Slurm job's runs have no `runs` rows yet, so the tables alone would make the study look complete.
        arrays.refuse_while_alive(study_dir)
    with locks.hold_study(study_dir, f"normstudy compact {study_dir}"):
        try:
            return _compact(study_dir, seal)
        except OSError as e:
            do = f"{files.remedy(e)} and rerun the same command"
            raise ConfigError(f"{study_dir} cannot be compacted: {e.strerror}. Its tables are intact; {do}") from e


def forget(study_dir: Path, run_ids: Sequence[str], *, shared: bool) -> None:
    """Remove runs from a study's tables, so that a sweep trains them again. The caller must hold the study's lock.

    shared: whether other commands may be writing to the study. If so, raises ConfigError for a compacted run.
    """
    compacted = tables.gathered(study_dir, "runs")
    gathered = [run_id for run_id in run_ids if run_id in compacted]
    if gathered:
        _refuse_strange(study_dir)
    if gathered and shared:
        raise ConfigError(f"the compacted tables of {study_dir} lack rows of {gathered[0]}: rerun the study's sweep")
    tables.remove_windows(study_dir, set(run_ids))
    for run_id in run_ids:
        (study_dir / "tables" / "runs" / f"{run_id}.parquet").unlink(missing_ok=True)
    if gathered:
        for table in TABLES:
            _write_table(study_dir, table, set(), without=gathered)
        files.fsync(study_dir / files.NEW_TABLES)
        files.swap_tables(study_dir)


def _refuse_strange(study_dir: Path) -> None:
    """Raise ConfigError if tables/ has a file that normstudy did not write, because a compaction would delete it."""
    for path in sorted((study_dir / "tables").rglob("*")):
        table = path.parent.name
        if path.name not in TABLES if path.parent == study_dir / "tables" else not schema.is_stored(table, path.name):
            raise ConfigError(f"{study_dir} cannot be compacted, because that would delete {path}: move it away")


def _compact(study_dir: Path, seal: bool) -> str:
    _refuse_strange(study_dir)
    statuses = _statuses(study_dir)
    done = {run_id for run_id, status in statuses.items() if status == "done"}
    lacking = whole.find(study_dir, sorted(done))
    lacking |= dict.fromkeys(tables.runs_with_windows(study_dir) - statuses.keys(), "tables/runs lacks its row")
    if lacking:
        raise ConfigError(f"{study_dir} cannot be compacted: {whole.said(lacking)}; {whole.remedy(study_dir)}")
    counts = Counter(statuses.values())
    if seal and len(done) < len(statuses):
        left = f"{count_text(counts['running'], 'run')} unfinished, {counts['failed']} failed"
        do = "Compact without --seal" if tables.is_watched(study_dir) else "Rerun its sweep, or compact without --seal"
        raise ConfigError(f"{study_dir} cannot be sealed: {left}. {do}")
    before = _size(study_dir / "tables")
    for table in TABLES:
        _write_table(study_dir, table, done)
    files.fsync(study_dir / files.NEW_TABLES)
    (study_dir / SEALED).unlink(missing_ok=True)  # if this process is killed now, the study is sound but not sealed
    files.swap_tables(study_dir)
    after = _size(study_dir / "tables")
    if seal:
        names = [f"tables/{table}/{COMPACTED_FILE}" for table in TABLES]
        sha256 = {name: hashlib.sha256(places.read(study_dir / name)).hexdigest() for name in names}
        text = json.dumps({"normstudy": __version__, "runs": len(done), "sha256": sha256}, indent=1) + "\n"
        files.place(study_dir, SEALED, text.encode())
        shutil.rmtree(study_dir / "state", ignore_errors=True)  # another command may have just put a lock file there
    sealed = " and sealed the study" if seal else ""
    rest = len(statuses) - len(done)
    kept = f"; the files of {count_text(rest, 'unfinished or failed run')} stay separate" if rest else ""
    what = f"gathered {count_text(len(done), 'finished run')} in one file per table{sealed}"
    return f"{study_dir}: {what} ({before} before, {after} now){kept}"


def _statuses(study_dir: Path) -> dict[str, str]:
    """Return run_id -> status. Raises ConfigError if no run is finished, or if a sealed study has changed."""
    if (study_dir / SEALED).exists() and (changed := verify.wrong_with_seal(study_dir)):
        raise ConfigError(f"{study_dir} cannot be compacted: {changed[0]}")
    statuses = tables.statuses(study_dir)
    if "done" not in statuses.values():
        raise ConfigError(f"{study_dir} has no finished run to compact: start or resume its sweep")
    return statuses


def _write_table(study_dir: Path, table: str, done: set[str], without: Sequence[str] = ()) -> None:
    source, target = study_dir / "tables" / table, study_dir / files.NEW_TABLES / table
    target.mkdir(parents=True)
    joined, parts = [SCHEMAS[table].empty_table()], list[pa.Table]()
    for path in (source / name for name in tables.names_in(source) if name != SCHEMA_FILE):
        conformed, is_same = parquet.read_conformed(path)
        if without and path.name == COMPACTED_FILE:
            conformed = conformed.filter(pc.invert(pc.is_in(conformed["run_id"], pa.array(without, pa.string()))))
        if path.name == COMPACTED_FILE or run_of(table, path.name) in done:
            parts.append(conformed)
            if len(parts) == tables.FILES_AT_ONCE:
                joined.append(parquet.join(parts))
                parts = []
        else:
            _write(target / path.name, path.read_bytes() if is_same else parquet.encode(table, conformed))
    _write(target / SCHEMA_FILE, parquet.encode(table, SCHEMAS[table].empty_table()))
    # Rows are sorted, nulls last, and then encoded as dictionaries, so that equal rows give equal bytes.
    content = pa.concat_tables([*joined, *parts]).cast(plain_schema(table))
    content = content.sort_by([(name, "ascending") for name in SORT[table]]).combine_chunks().cast(SCHEMAS[table])
    _write(target / COMPACTED_FILE, parquet.encode(table, content, **parquet.COMPACTED_OPTIONS))
    files.fsync(target)


def _write(path: Path, data: bytes) -> None:
    files.write_bytes(path, data)
    files.fsync(path)


def _size(folder: Path) -> str:
    sizes = [p.stat().st_size for p in folder.rglob("*.parquet")]
    return f"{sum(sizes) / 1e6:.1f} MB in {len(sizes)} files"

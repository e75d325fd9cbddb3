"""Verify parts of a study for `normstudy check`: rows, checkpoints, records of sweeps, state/ and the seal."""

import dataclasses
import hashlib
import itertools
import json
import math
import operator
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from normstudy import config as cfg
from normstudy.analysis.grid import count_text
from normstudy.config import places
from normstudy.errors import ConfigError, Damaged
from normstudy.search import settings
from normstudy.study import checkpoints, files, locks, parquet, records, schema, tables
from normstudy.upkeep.status_text import AGAIN

STATUSES = ("running", "done", "failed")


def wrong_in_row(row: Mapping[str, object]) -> str:
    """Describe what is wrong with a `runs` row; "" if the row is sound."""
    if row["status"] not in STATUSES:
        return f"status {row['status']} is not one of {', '.join(STATUSES)}"
    if row["source"] == schema.WATCH:
        return ""  # a watched run has a random id, and may have no final loss
    digest = digest_of(row)
    has_text = row["data_sha256"] is not None or row["status"] == "done"  # a run can fail before its text is known
    if has_text and digest != str(row["run_id"]).rpartition("-")[2]:
        return f"the run_id does not match the run's row, whose values give a run_id that ends in {digest}"
    loss = row["final_val_loss"]
    must_end = row["status"] == "done" and row["nonfinite_step"] is None
    if must_end and not (isinstance(loss, float) and math.isfinite(loss)):
        return f"status is done, but final_val_loss is {'null' if loss is None else loss} and nonfinite_step is null"
    return ""


def digest_of(row: Mapping[str, object]) -> str:
    """Compute the hexadecimal digits at the end of a run's id from its `runs` row, as `config.run_id` does."""
    values = {c: row[c] for c in (*cfg.asked_types(), "placement_sha256", "norm_sha256")}
    values |= {f.name: row[f"resolved_{f.name}"] for f in dataclasses.fields(cfg.Resolved)}
    return cfg.digest(cfg.identity_of(values, {c: row[c] for c in ("identity_version", "numerics", "data_sha256")}))


def duplicates_in(rows: pa.Table) -> str:
    """Return e.g. `has 2 duplicate rows`, given a run's rows in a table other than `runs`; "" if there are none."""
    keys = [name for name in ("step", "layer", "module") if name in rows.schema.names]
    n = rows.num_rows - rows.group_by(keys).aggregate([]).num_rows
    return f"has {count_text(n, 'duplicate row')}" if n else ""


def runs_of(parts: Iterable[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    """Yield (run_id, rows) for each run of a table. parts: the table's row groups, sorted by run."""
    pieces = (piece for part in parts for piece in parquet.runs_in(part))
    for run_id, same in itertools.groupby(pieces, key=operator.itemgetter(0)):
        yield run_id, pa.concat_tables([rows for _, rows in same])


def wrong_in_checkpoints(study: Path) -> list[str]:
    """Return a finding for each checkpoint from which no run can resume."""
    do = f"the next sweep moves the file to {checkpoints.SET_ASIDE} and restarts the run from step 0"
    found = [(path, _wrong_in_checkpoint(path)) for path in sorted((study / checkpoints.FOLDER).glob("*"))]
    return [f"{checkpoints.FOLDER}/{path.name}: {what}: {do}" for path, what in found if what]


def _wrong_in_checkpoint(path: Path) -> str:
    """Describe what is wrong with a checkpoint; "" if the file is sound or was removed."""
    try:
        with open(path, "rb", opener=places.opener) as file:
            if what := checkpoints.wrong_in(file):
                return what
            run_id = checkpoints.metadata_of(file)["run_id"]
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if run_id == path.name else f"is the checkpoint of another run, {run_id}"


def wrong_in_records(study: Path) -> list[str]:
    """Find files in sweeps/ that are damaged or not records, and lost or damaged settings of `normstudy critical`."""
    lines, searched = [], ""
    for path in sorted((study / "sweeps").glob("*.parquet")):
        if path.is_dir() or records.began_of(path.name) is None:
            lines.append(f"sweeps/{path.name}: is not a record of a sweep: move it out of sweeps/")
            continue
        try:
            command = records.read_record(path)[0].command
            searched = command if command.startswith("normstudy critical") else searched
        except FileNotFoundError:
            continue
        except Damaged as error:
            do = f"rm {shlex.quote(str(path))} (then normstudy status no longer knows what this sweep requested)"
            lines.append(f"sweeps/{path.name}: is damaged ({files.damage(error.__cause__ or error)}): {do}")
    try:
        if settings.read(study) is None and searched:
            lines.append(f"{settings.FILE}: is missing, so the settings of a search are lost: rerun {searched}")
    except ConfigError as error:
        lines.append(str(error).replace(f"{study / settings.FILE} ", f"{settings.FILE}: "))
    return lines


def notes(study: Path, statuses: Mapping[str, int]) -> list[str]:
    """Return notes, such as how many runs are unfinished. statuses: status -> number of runs."""
    holder, watched, lines = locks.holder_of(study), tables.is_watched(study), []
    if holder is not None:
        lines.append(f"the study is in use by {holder.text}, so files not written yet are not reported as missing")
    elif n := statuses.get("running"):
        again = AGAIN if watched else "rerun the same sweep to resume"
        lines.append(f"the study has {count_text(n, 'unfinished run')}: {again}")
    if n := statuses.get("failed"):
        logs = f"the tracebacks are in {study / records.LOGS}; rerun the same sweep to retry"
        logs = "the program ended with an error" if watched else logs
        lines.append(f"the study has {count_text(n, 'failed run')}: {logs}")
    n_parts = len(list((study / "state").glob("*.part")))
    left = [f"{count_text(n_parts, 'file')} state/*.part"] if n_parts else []
    left += [name for name in (files.NEW_TABLES, files.OLD_TABLES) if (study / name).exists()]
    if left and holder is None:
        lines.append(f"a killed command left {' and '.join(left)}, which the next sweep removes")
    if n := len(list((study / checkpoints.SET_ASIDE).glob("*"))):
        folder, unusable = study / checkpoints.SET_ASIDE, count_text(n, "unusable checkpoint")
        lines.append(f"{folder} contains {unusable}, which no command needs: inspect or delete them")
    return lines


def wrong_with_seal(study: Path, n_runs: int | None = None, n_beside: int = 0) -> list[str]:
    """Return a finding for each difference between a sealed study and the file SEALED.

    n_runs: number of runs in the compacted tables, None if unknown; n_beside: number of runs with uncompacted files.
    """
    again = f"rm {shlex.quote(str(study / schema.SEALED))} && normstudy compact {shlex.quote(str(study))} --seal"
    do = f"restore the file from a copy, or seal the study again with {again}"
    what = f"the study is sealed, but has uncompacted files of {count_text(n_beside, 'run')}"
    add = f"move these files away, or add them with normstudy compact {study}"
    beside = [f"{schema.SEALED}: {what}: {add}"] if n_beside else []
    try:
        seal = json.loads(places.read(study / schema.SEALED))
        sealed, sha256 = int(seal["runs"]), dict(seal["sha256"])
    except Exception as error:  # damaged text can cause any type of exception
        if not files.is_damage(error):
            raise
        return [f"{schema.SEALED}: is damaged: {do}", *beside]
    lines = []
    for name in (f"tables/{table}/{schema.COMPACTED_FILE}" for table in schema.TABLES):
        if not (study / name).is_file():
            lines.append(f"{name}: is missing, although the study is sealed: restore the file from a copy")
        elif hashlib.sha256(places.read(study / name)).hexdigest() != sha256.get(name):
            lines.append(f"{name}: has changed since the study was sealed: {do}")
    lines += beside
    if n_runs not in (None, sealed):
        what = f"records {count_text(sealed, 'run')}, but the tables have {n_runs}"
        lines.append(f"{schema.SEALED}: {what}: {do}")
    return lines

"""The rules by which `normstudy check` verifies checkpoints, records of sweeps, state/ and the seal.

Each function returns findings in the form `path: what is wrong: what to do`, or notes about harmless facts.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from normstudy.study import checkpoints, locks, parquet, records, schema, swap
from normstudy.study.files import damage
from normstudy.upkeep.check_rows import counted


def wrong_in_checkpoints(study: Path) -> list[str]:
    """Return a finding for each checkpoint from which no run can resume."""
    do = "the next sweep sets it aside and restarts the run from step 0"
    found = [(path, _wrong_in_checkpoint(path)) for path in sorted((study / checkpoints.FOLDER).glob("*"))]
    return [f"{checkpoints.FOLDER}/{path.name}: {what}: {do}" for path, what in found if what]


def _wrong_in_checkpoint(path: Path) -> str:
    """Describe what is wrong with a checkpoint; empty if it is sound or has just been removed."""
    try:
        with open(path, "rb") as file:
            if what := checkpoints.wrong_in(file):
                return what
            run_id = checkpoints.metadata_of(file)["run_id"]
    except FileNotFoundError:
        return ""
    return "" if run_id == path.name else f"belongs to another run, {run_id}"


def wrong_in_records(study: Path) -> list[str]:
    """Return a finding for each unreadable record of a sweep."""
    lines = []
    for path in sorted((study / "sweeps").glob("*.parquet")):
        try:
            parquet.read(path)
        except (FileNotFoundError, PermissionError):
            continue
        except Exception as error:  # damaged bytes can cause any type of exception
            do = f"rm {shlex.quote(str(path))}; normstudy status then no longer knows this sweep's request"
            lines.append(f"sweeps/{path.name}: is damaged ({damage(error)}): {do}")
    return lines


def notes(study: Path, statuses: Mapping[str, int]) -> list[str]:
    """Return notes about harmless facts, such as unfinished runs or leftover files. statuses: status -> run count."""
    holder, lines = locks.holder_of(study), []
    if holder is not None:
        lines.append(f"in use by {holder.text}: files that it has not written yet are not reported")
    elif n := statuses.get("running"):
        lines.append(f"{counted(n, 'unfinished run')}: rerun the same sweep to resume")
    if n := statuses.get("failed"):
        logs = f"the tracebacks are in {study / records.LOGS}; rerun the same sweep to retry"
        lines.append(f"{counted(n, 'failed run')}: {logs}")
    n_parts = len(list((study / "state").glob("*.part")))
    left = [f"{counted(n_parts, 'file')} state/*.part"] if n_parts else []
    left += [name for name in (swap.NEW_TABLES, swap.OLD_TABLES) if (study / name).exists()]
    if left and holder is None:
        lines.append(f"a killed command left {' and '.join(left)}: the next sweep removes such leftovers")
    if n := len(list((study / checkpoints.SET_ASIDE).glob("*"))):
        lines.append(f"{counted(n, 'checkpoint')} set aside in {study / checkpoints.SET_ASIDE}: no command reads them")
    return lines


def wrong_with_seal(study: Path, n_runs: int | None, n_beside: int) -> list[str]:
    """Return a finding for each difference between a sealed study and its seal.

    n_runs: number of runs in the compacted tables, None if unknown; n_beside: number of runs with their own files.
    """
    again = f"or rm {shlex.quote(str(study / schema.SEALED))} && normstudy compact {study} --seal"
    try:
        seal = json.loads((study / schema.SEALED).read_bytes())
        sealed, sha256 = int(seal["runs"]), dict(seal["sha256"])
    except (ValueError, KeyError, TypeError):
        return [f"{schema.SEALED}: is damaged: restore it from a copy, {again}"]
    lines = []
    for name in (f"tables/{table}/{schema.COMPACTED_FILE}" for table in schema.TABLES):
        if not (study / name).is_file():
            lines.append(f"{name}: is missing, although the study is sealed: restore it from a copy")
            continue
        with open(study / name, "rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != sha256.get(name):
                lines.append(f"{name}: differs from the file that was sealed: restore it from a copy, {again}")
    if n_beside:
        what = f"the study is sealed, but also has files of {counted(n_beside, 'run')} beside the sealed ones"
        lines.append(f"{schema.SEALED}: {what}: move them away, or run normstudy compact {study} to seal them too")
    if n_runs is not None and n_runs != sealed:
        what = f"records {counted(sealed, 'run')}, but the tables have {n_runs}"
        lines.append(f"{schema.SEALED}: {what}: restore it from a copy, {again}")
    return lines

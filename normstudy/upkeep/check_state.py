"""What `normstudy check` asks of a study beside its tables: checkpoints and what else is in state/, records, the seal.

Each function gives lines: `path: what is wrong: what to do`, or what is to be told and harms nothing.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import zlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from normstudy.study import records, schema, swap
from normstudy.study.checkpoints import CRC_BYTES, FOLDER, FORMAT, SET_ASIDE, metadata
from normstudy.study.files import damage
from normstudy.study.holder import holder_of

BLOCK = 1024 * 1024  # bytes of a checkpoint in memory at once, more than the head that names its tensors


def counted(n: int, word: str) -> str:
    """`1 run`, `1,000 runs`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def wrong_in_checkpoints(study: Path) -> list[str]:
    """A line for each checkpoint from which no run can go on."""
    do = "the same sweep sets it aside and starts the run from zero"
    found = [(path, _wrong_in_checkpoint(path)) for path in sorted((study / FOLDER).glob("*"))]
    return [f"{FOLDER}/{path.name}: {what}: {do}" for path, what in found if what]


def _wrong_in_checkpoint(path: Path) -> str:
    """What is wrong with a checkpoint, empty for nothing, or where it went meanwhile."""
    try:
        with open(path, "rb") as f:
            head = f.read(len(FORMAT) + CRC_BYTES)
            first = block = f.read(BLOCK)
            crc = 0
            while block:
                crc = zlib.crc32(block, crc)
                block = f.read(BLOCK)
    except FileNotFoundError:
        return ""
    if not head.startswith(FORMAT):
        return "is damaged, or of another version of normstudy"
    if head[len(FORMAT) :] != f"{crc:08x}\n".encode():
        return "is damaged (its checksum is another)"
    run_id = metadata(first)["run_id"]
    return "" if run_id == path.name else f"is of another run, {run_id}"


def wrong_in_records(study: Path) -> list[str]:
    """A line for each record of a sweep that cannot be read."""
    lines = []
    for path in sorted((study / "sweeps").glob("*.parquet")):
        try:
            pq.ParquetFile(path).read()
        except (FileNotFoundError, PermissionError):
            continue
        except Exception as error:  # damaged bytes raise whatever they lead to
            do = f"rm {shlex.quote(str(path))}, and normstudy status knows less of what was asked"
            lines.append(f"sweeps/{path.name}: is damaged ({damage(error)}): {do}")
    return lines


def told(study: Path, statuses: Mapping[str, int]) -> list[str]:
    """What harms nothing: who uses the study, runs that are not done, what killed commands left.

    statuses: status -> number of runs.
    """
    holder, lines = holder_of(study), []
    if holder is not None:
        lines.append(f"in use by {holder.text}: what it has yet to write is no finding")
    elif n := statuses.get("running"):
        lines.append(f"{counted(n, 'run')} unfinished: the same sweep goes on with what is there")
    if n := statuses.get("failed"):
        logs = f"tracebacks are in {study / records.LOGS}, and the same sweep tries them again"
        lines.append(f"{counted(n, 'run')} failed: {logs}")
    n_parts = len(list((study / "state").glob("*.part")))
    left = [f"{counted(n_parts, 'file')} state/*.part"] if n_parts else []
    left += [name for name in (swap.NEW_TABLES, swap.OLD_TABLES) if (study / name).exists()]
    if left and holder is None:
        lines.append(f"a killed command left {' and '.join(left)}: the next sweep removes that")
    if n := len(list((study / SET_ASIDE).glob("*"))):
        lines.append(f"{counted(n, 'checkpoint')} set aside in {study / SET_ASIDE}: nothing reads them")
    return lines


def wrong_with_seal(study: Path, n_runs: int | None, n_beside: int) -> list[str]:
    """What the seal of a sealed study does not hold.

    n_runs: in the compacted tables, None where they cannot be counted; n_beside: runs with files beside those.
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
            lines.append(f"{name}: is missing, and the study is sealed: restore it from a copy")
            continue
        with open(study / name, "rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != sha256.get(name):
                lines.append(f"{name}: is not the file that was sealed: restore it from a copy, {again}")
    if n_beside:
        what = f"the study is sealed, and has files of {counted(n_beside, 'run')} beside the sealed ones"
        lines.append(f"{schema.SEALED}: {what}: move them away, or normstudy compact {study} seals them too")
    if n_runs is not None and n_runs != sealed:
        what = f"names {counted(sealed, 'run')}, and the tables have {n_runs}"
        lines.append(f"{schema.SEALED}: {what}: restore it from a copy, {again}")
    return lines

"""Write and read the checkpoints of unfinished runs: one file state/checkpoints/<run_id> per run.

    normstudy checkpoint 1      the format
    1c291ca3                    crc32 of the bytes below this line
    safetensors                 parameters, optimizer slots, and the rows that are not in the tables yet

safetensors executes no code when it loads a file, but does not detect a flipped bit, so a checksum is added. A
checkpoint is refused if the parameters' layout, NUMERICS or recording.COMPUTED_BY differs: results could then differ.
"""

import errno
import hashlib
import io
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load, save

from normstudy.config import NUMERICS, places
from normstudy.study import files, parquet
from normstudy.study.checkpoints import CRC_BYTES, FOLDER, FORMAT, SET_ASIDE, metadata_of, wrong_in
from normstudy.study.schema import RECORDED, SCHEMAS, SERIES
from normstudy.training.batch import ResumePoint
from normstudy.training.probes import Layout

Buffered = dict[str, dict[str, list[object]]]  # rows not yet written: table -> column -> values
FLOATS = ("train_loss", "wall_time_s", "late_val_loss")  # the fields of a Checkpoint in a file's metadata


class Refused(Exception):
    """Raised if a run cannot resume from its checkpoint; the message says why, e.g. `the checkpoint is damaged`."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of one run between two steps."""

    start: ResumePoint
    rows: Buffered  # rows that have been recorded but are not in the tables yet
    train_loss: float  # the last step's training loss
    late_val_loss: float | None  # see recording.Running
    wall_time_s: float  # the run's training time so far, in seconds


def write(study_dir: Path, made: Mapping[str, Checkpoint], layout: Layout, computed_by: Mapping[str, object]) -> None:
    """Write the checkpoint of each run_id, replacing the run's previous checkpoint."""
    content = ((f"{FOLDER}/{i}", encode(one, stamp(i, layout, computed_by))) for i, one in made.items())
    with files.storing(study_dir):
        (study_dir / FOLDER).mkdir(parents=True, exist_ok=True)
        files.place_all(study_dir, content)


def read(study_dir: Path, run_id: str, layout: Layout, computed_by: Mapping[str, object]) -> Checkpoint | None:
    """Read a run's checkpoint; None if the file does not exist. Raises Refused."""
    try:
        data = places.read(study_dir / FOLDER / run_id)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Refused("the checkpoint cannot be read from the disk") from None
    return decode(data, stamp(run_id, layout, computed_by))


def set_aside(study_dir: Path, run_id: str) -> None:
    """Move a refused checkpoint to the folder SET_ASIDE; no run resumes from the checkpoints in that folder."""
    with files.storing(study_dir):
        (study_dir / SET_ASIDE).mkdir(parents=True, exist_ok=True)
        os.replace(study_dir / FOLDER / run_id, study_dir / SET_ASIDE / run_id)


def remove(study_dir: Path, run_ids: list[str]) -> None:
    with files.storing(study_dir):
        for run_id in run_ids:
            (study_dir / FOLDER / run_id).unlink(missing_ok=True)


def stamp(run_id: str, layout: Layout, computed_by: Mapping[str, object]) -> dict[str, str]:
    """Return the metadata that must be equal in a checkpoint and in the run that resumes from the checkpoint."""
    places = repr((layout.names, [tuple(s) for s in layout.shapes], layout.starts, layout.width))
    found = {"run_id": run_id, "layout": hashlib.sha256(places.encode()).hexdigest(), "numerics": str(NUMERICS)}
    return found | {key: str(value) for key, value in computed_by.items()}


def encode(checkpoint: Checkpoint, stamped: Mapping[str, str]) -> bytes:
    start = checkpoint.start
    tensors = {"params": start.params, **{f"slot.{name}": values for name, values in start.state.items()}}
    for table, rows in checkpoint.rows.items():
        schema = pa.schema([f for f in SCHEMAS[table] if f.name in RECORDED[table]])
        packed = parquet.bytes_of(pa.table(rows, schema=schema), compression="zstd")
        # safetensors stores only tensors. The copy avoids torch's warning for read-only memory.
        tensors[f"rows.{table}"] = torch.from_numpy(np.frombuffer(packed, np.uint8).copy())
    floats = {name: getattr(checkpoint, name) for name in FLOATS}
    metadata = {**stamped, "step": str(start.step), **{k: v.hex() for k, v in floats.items() if v is not None}}
    body = bytes(save({name: t.contiguous() for name, t in tensors.items()}, metadata=metadata))
    return FORMAT + f"{zlib.crc32(body):08x}\n".encode() + body


def decode(data: bytes, stamped: Mapping[str, str]) -> Checkpoint:
    """Parse a checkpoint file's content. Raises Refused for damaged content, or metadata that differ from `stamped`."""
    file = io.BytesIO(data)
    if what := wrong_in(file):
        raise Refused(f"the checkpoint {what}")
    metadata, body = metadata_of(file), data[len(FORMAT) + CRC_BYTES :]
    for key, value in stamped.items():
        if metadata.get(key) != value:
            raise Refused(f"the checkpoint was written with {key} {metadata.get(key)}, but this process has {value}")
    tensors = load(body)
    state = {name.removeprefix("slot."): t for name, t in tensors.items() if name.startswith("slot.")}
    rows = {table: parquet.read(tensors[f"rows.{table}"].numpy().tobytes()).to_pydict() for table in SERIES}
    start = ResumePoint(int(metadata["step"]), tensors["params"], state)
    floats: dict[str, Any] = {k: float.fromhex(metadata[k]) if k in metadata else None for k in FLOATS}
    return Checkpoint(start, rows, **floats)

"""Verify checkpoints and read their metadata without importing torch. `workers.checkpoint` reads the tensors."""

import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from normstudy.config import places

FOLDER = "state/checkpoints"
SET_ASIDE = "state/set_aside"  # folder of unusable checkpoints, kept for inspection
FORMAT = b"normstudy checkpoint 1\n"
CRC_BYTES = 9  # length of the checksum line: eight hexadecimal digits and a newline
BLOCK = 1 << 20  # bytes read at a time while the checksum is computed
MAX_HEADER = 1 << 20  # maximum bytes of safetensors' JSON header; a longer header means that the file is damaged


class Head(NamedTuple):
    """A run's progress, read from its checkpoint without torch."""

    step: int  # the run's next step
    written: float  # when the file was written, in seconds since 1970


NO_HEAD = Head(0, 0.0)  # of a run without a readable checkpoint


def wrong_in(file: BinaryIO) -> str:
    """Return what is wrong with a checkpoint, e.g. `is damaged (wrong checksum)`, or "" if the checkpoint is sound."""
    head, crc = file.read(len(FORMAT) + CRC_BYTES), 0
    while block := file.read(BLOCK):
        crc = zlib.crc32(block, crc)
    if not head.startswith(FORMAT):
        return "is damaged, or was written by another version of normstudy"
    return "" if head[len(FORMAT) :] == f"{crc:08x}\n".encode() else "is damaged (wrong checksum)"


def metadata_of(file: BinaryIO) -> dict[str, str]:
    """Read a checkpoint's metadata without verifying the checksum; a damaged file may cause any parsing error."""
    file.seek(len(FORMAT) + CRC_BYTES)
    size = int.from_bytes(file.read(8), "little")
    found: dict[str, str] = json.loads(file.read(min(MAX_HEADER, size)))["__metadata__"]
    return found


def head_of(study_dir: Path, run_id: str) -> Head:
    """Read a run's progress from its checkpoint; NO_HEAD if the file cannot be read. The checksum is not verified."""
    try:
        with open(study_dir / FOLDER / run_id, "rb", opener=places.opener) as file:
            is_checkpoint = file.read(len(FORMAT)) == FORMAT
            return Head(int(metadata_of(file)["step"]), os.fstat(file.fileno()).st_mtime) if is_checkpoint else NO_HEAD
    except (OSError, ValueError, KeyError, TypeError):
        return NO_HEAD

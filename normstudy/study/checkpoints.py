"""Where checkpoints lie, and how to read their heads without torch. `workers.checkpoint` reads and writes the rest."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

FOLDER = "state/checkpoints"
SET_ASIDE = "state/set_aside"  # unusable checkpoints, kept for inspection
FORMAT = b"normstudy checkpoint 1\n"
CRC_BYTES = 9  # eight hexadecimal digits and a newline
BLOCK = 1 << 20  # bytes held in memory while the checksum is computed
MAX_HEADER = 1 << 20  # bytes; a longer header is damaged


class Head(NamedTuple):
    """The head of a checkpoint. step: the run's next step; written: the file's time, in seconds since 1970.

    seconds: the training time of the run until then.
    """

    step: int
    written: float
    seconds: float


def wrong_in(file: BinaryIO) -> str:
    """What is wrong with the bytes of a checkpoint, as a phrase: `is damaged (wrong checksum)`; empty if nothing is."""
    head, crc = file.read(len(FORMAT) + CRC_BYTES), 0
    while block := file.read(BLOCK):
        crc = zlib.crc32(block, crc)
    if not head.startswith(FORMAT):
        return "is damaged, or was written by another version of normstudy"
    return "" if head[len(FORMAT) :] == f"{crc:08x}\n".encode() else "is damaged (wrong checksum)"


def metadata_of(file: BinaryIO) -> dict[str, str]:
    """The metadata of a checkpoint. The checksum is not verified: damage may raise any error of parsing."""
    file.seek(len(FORMAT) + CRC_BYTES)
    size = int.from_bytes(file.read(8), "little")
    found: dict[str, str] = json.loads(file.read(min(MAX_HEADER, size)))["__metadata__"]
    return found


def head_of(study_dir: Path, run_id: str) -> Head | None:
    """The head of a run's checkpoint, without verifying the checksum; None if it is missing or unreadable."""
    try:
        with open(study_dir / FOLDER / run_id, "rb") as file:
            if file.read(len(FORMAT)) != FORMAT:
                return None
            found, written = metadata_of(file), os.fstat(file.fileno()).st_mtime
        return Head(int(found["step"]), written, float.fromhex(found["wall_time_s"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None

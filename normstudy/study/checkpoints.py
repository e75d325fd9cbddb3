"""Where checkpoints lie and what their heads tell, without torch; checkpoint.py has the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

FOLDER = "state/checkpoints"
SET_ASIDE = "state/set_aside"  # what could not be read, for whoever wants to know why
FORMAT = b"normstudy checkpoint 1\n"
CRC_BYTES = 9  # eight hexadecimal digits and a newline
MOST_HEADER = 1 << 20  # bytes; a longer one is no header of a checkpoint


class Head(NamedTuple):
    """What the head of a checkpoint tells. step: the next of the run; written: when, in seconds since 1970.

    seconds: that the run had taken.
    """

    step: int
    written: float
    seconds: float


def metadata(body: bytes) -> dict[str, str]:
    """What is told beside the tensors, in the bytes of a safetensors file."""
    told: dict[str, str] = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
    return told


def head_of(study_dir: Path, run_id: str) -> Head | None:
    """The head of a run's checkpoint, its checksum not looked at; None where there is none that can be read."""
    try:
        with open(study_dir / FOLDER / run_id, "rb") as file:
            if file.read(len(FORMAT)) != FORMAT:
                return None
            file.seek(CRC_BYTES, os.SEEK_CUR)
            size = file.read(8)
            told = metadata(size + file.read(min(MOST_HEADER, int.from_bytes(size, "little"))))
            written = os.fstat(file.fileno()).st_mtime
        return Head(int(told["step"]), written, float.fromhex(told["wall_time_s"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None

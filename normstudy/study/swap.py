"""Replace a study's tables/ by a new folder in two renames. The next command completes an interrupted replacement."""

import os
import shutil
from pathlib import Path

from normstudy.errors import ConfigError, short
from normstudy.study import files, schema

SWAPPING = "{0} has an interrupted compaction: to complete it, run normstudy compact {0}"
NEW_TABLES = "state/tables.new"  # folder where a compaction writes the new tables before the swap
OLD_TABLES = "state/tables.old"  # folder of the old tables during the swap


def check_not_swapping(study_dir: Path) -> None:
    """Raise ConfigError if a compaction, alive or killed, has moved tables/ away, or if the study cannot be read."""
    try:
        swapping = (study_dir / OLD_TABLES).exists() and not (study_dir / "tables").exists()
    except OSError as error:
        raise ConfigError(f"{short(str(study_dir))} cannot be read: {error.strerror}") from None
    if swapping:
        raise ConfigError(SWAPPING.format(study_dir))


def swap_interrupted(study_dir: Path) -> bool:
    """Whether a compaction was killed after moving the old tables away and before moving the new tables into place."""
    old, new, now = (study_dir / name for name in (OLD_TABLES, NEW_TABLES, "tables"))
    return old.is_dir() and (new.is_dir() or not now.exists())


def swap(study_dir: Path) -> None:
    """Replace tables/ by NEW_TABLES. The caller must hold the study's lock."""
    os.rename(study_dir / "tables", study_dir / OLD_TABLES)
    finish_swap(study_dir)


def finish_swap(study_dir: Path) -> None:
    """Complete an interrupted swap, and remove a compaction's leftovers. The caller must hold the study's lock.

    Raises ConfigError and changes nothing if files were written to tables/ since the interruption.
    """
    old, new, now = (study_dir / name for name in (OLD_TABLES, NEW_TABLES, "tables"))
    if swap_interrupted(study_dir):
        if any(p.is_file() and p.name != schema.SCHEMA_FILE for p in now.rglob("*")):
            raise ConfigError(
                f"{old} contains the tables that an interrupted compaction was replacing, but {now} has newer files: "
                f"to keep the old tables, move {now} away; to keep the newer files, move {old} away"
            )
        # If tables/ exists, a command created this folder after the interruption. Remove the folder, which has no rows.
        shutil.rmtree(now, ignore_errors=True)
        os.rename(new if new.is_dir() else old, now)
        files.fsync(study_dir)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)

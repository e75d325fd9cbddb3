"""Replace the tables folder of a study: two renames. The next command completes an interrupted replacement."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from normstudy.config import ConfigError
from normstudy.study import files, schema

SWAPPING = "{0} was left in the middle of a compaction: run normstudy compact {0}"


def check_not_swapping(study_dir: Path) -> None:
    """Raise a ConfigError where tables are away: a compaction is at its swap, or was killed there."""
    if (study_dir / OLD_TABLES).exists() and not (study_dir / "tables").exists():
        raise ConfigError(SWAPPING.format(study_dir))


NEW_TABLES = "state/tables.new"  # what a compaction writes, before it is swapped in
OLD_TABLES = "state/tables.old"  # where a compaction moves the old tables during the swap


def swap_interrupted(study_dir: Path) -> bool:
    """Whether a compaction was killed after the old tables were moved away and before the new ones came."""
    old, new, now = (study_dir / name for name in (OLD_TABLES, NEW_TABLES, "tables"))
    return old.is_dir() and (new.is_dir() or not now.exists())


def swap(study_dir: Path) -> None:
    """Put the new tables in the place of the old ones. Needs the lock."""
    os.rename(study_dir / "tables", study_dir / OLD_TABLES)
    finish_swap(study_dir)


def finish_swap(study_dir: Path) -> None:
    """Bring tables back where a swap was interrupted, and remove what a compaction left. Needs the lock.

    Raises ConfigError where something was written into tables since: then nothing is touched.
    """
    old, new, now = (study_dir / name for name in (OLD_TABLES, NEW_TABLES, "tables"))
    if swap_interrupted(study_dir):
        if any(p.is_file() and p.name != schema.SCHEMA_FILE for p in now.rglob("*")):
            raise ConfigError(
                f"{old} holds the tables of an interrupted compaction, and {now} has files of its own: "
                "move one of the two away"
            )
        shutil.rmtree(now, ignore_errors=True)  # no more than the rowless files of a study that looked empty
        os.rename(new if new.is_dir() else old, now)
        files.fsync(study_dir)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)

"""Where the files of a study may lie: in its own folder below results_dir, and not among another study's own files."""

from __future__ import annotations

import os
from pathlib import Path

from normstudy.errors import ConfigError

OWN_FOLDERS = ("tables", "state", "sweeps")  # whose content is the study's alone


def check_study(results_dir: str, study: str) -> None:
    """Raise a ConfigError where the folder of a study would lie elsewhere than its name says.

    study: a name that config.check_study_name accepts.
    """
    if not results_dir.isprintable():
        raise ConfigError(f"results_dir {results_dir!r} holds a control character: give a plain path")
    folder = Path(results_dir, study)
    if folder.is_symlink():
        raise ConfigError(_told(folder) + ": give the folder itself, by its results_dir and study, or another study")
    check_own_folders(folder)
    check_outside_of_studies(folder, "another results_dir")


def check_own_folders(study_dir: Path) -> None:
    """Raise a ConfigError where what is written into a study would land elsewhere."""
    tables = study_dir / "tables"
    for folder in (*(study_dir / name for name in OWN_FOLDERS), *(tables.iterdir() if tables.is_dir() else ())):
        if folder.is_symlink():
            raise ConfigError(_told(folder) + ", and a study's own files lie in its own folder: move them there")


def check_outside_of_studies(path: Path, other: str) -> None:
    """Raise a ConfigError where a path lies among the files that a study is read from, or that it removes itself.

    other: what to give instead.
    """
    place = Path(os.path.realpath(path))  # which no loop of links troubles
    for folder in (place, *place.parents):
        if folder.name in OWN_FOLDERS and (folder.parent / "tables" / "runs").is_dir():
            raise ConfigError(f"{path} lies in {folder}, which holds the study's own files and no others: give {other}")


def _told(link: Path) -> str:
    return f"{link} is a symbolic link to {os.readlink(link)}"

"""Raise a ConfigError for a path to which a command must not write.

A study's folders must not be symbolic links. Only a study's own files may be in its tables/, state/ and sweeps/.
"""

import os
import re
from pathlib import Path

from normstudy.errors import ConfigError

# duckdb and polars expand patterns and read key=value as a partition; pyarrow and pandas read x:y as an address.
MISREAD = re.compile(r"[=*?[]|^[A-Za-z][\w+.-]*:")
OWN_FOLDERS = ("tables", "state", "sweeps")  # folders reserved for the study's own files


def check_study(results_dir: str, study: str) -> None:
    """Raise ConfigError if a study's folder is a symbolic link, contains linked folders or lies in another study."""
    folder = Path(results_dir, study)
    if not results_dir.isprintable():
        raise ConfigError(f"results_dir {results_dir!r} contains a control character or is not UTF-8: choose another")
    misread = MISREAD.search(str(folder))
    if misread and not (folder / "tables" / "runs").is_dir():  # a study of an older version may have any path
        raise ConfigError(
            f"results_dir {results_dir!r} with study {study!r} has {misread[0]!r} in its path, which other programs "
            f"read as part of an address, a pattern or a partition: choose a path without {misread[0]!r}"
        )
    if folder.is_symlink():
        raise ConfigError(_link(folder) + ", but a study's folder must not be a link: choose another study")
    check_own_folders(folder)
    check_outside_of_studies(folder, "another results_dir")


def check_own_folders(study_dir: Path) -> Path:
    """Return `study_dir`. Raise ConfigError if one of the study's own folders is a symbolic link."""
    inside = (path for name in ("tables", "state") for path in (study_dir / name).glob("*"))
    for folder in (*(study_dir / name for name in (*OWN_FOLDERS, "figures", "export")), *inside):
        if folder.is_symlink():
            raise ConfigError(_link(folder) + ", but a study's files must lie in the study's folder: move them there")
    return study_dir


def check_outside_of_studies(path: Path, other: str) -> None:
    """Raise ConfigError if a path is in a study's OWN_FOLDERS. other: what to choose instead, e.g. `another --out`."""
    place = Path(os.path.realpath(path))  # Path.resolve would fail on a loop of symbolic links
    for folder in (place, *place.parents):
        if folder.name in OWN_FOLDERS and (folder.parent / "tables" / "runs").is_dir():
            raise ConfigError(f"{path} lies in {folder}, which is reserved for the study's own files: choose {other}")


def check_out(out: Path) -> None:
    """Raise ConfigError if the folder given as --out cannot be created or written."""
    there = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ConfigError(f"--out {out} cannot be a folder because {there} is a file: choose another --out")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"--out {out} cannot be written because {there} is not writable: choose another --out")


def _link(link: Path) -> str:
    return f"{link} is a symbolic link to {os.readlink(link)}"

"""Parse the arguments that several commands share: STUDY, lists of names, --out."""

from __future__ import annotations

import typing
from pathlib import Path

from normstudy.errors import ConfigError, nearest

if typing.TYPE_CHECKING:
    import argparse


def parser(command: str, *, study: bool = True, where: bool = False) -> argparse.ArgumentParser:
    """Return a command's parser, whose errors are ConfigErrors. study, where: whether it takes STUDY and --where."""
    import argparse

    class CommandParser(argparse.ArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise ConfigError(f"{message}: see normstudy {command} --help")

    made = CommandParser(prog=f"normstudy {command}", add_help=False, allow_abbrev=False)
    if study:
        made.add_argument("study", metavar="STUDY", type=folder)
    if where:
        made.add_argument("--where", action="append", default=[])
    return made


def names(given: str) -> list[str]:
    """Split a list of names: `a,b` -> `["a", "b"]`."""
    found = [name.strip() for name in given.split(",")]
    if not all(found):
        raise ConfigError(f"{given!r} contains an empty name: write NAME,NAME")
    return found


def out(given: str) -> Path:
    """Return the path of --out. Raises a ConfigError if the path is empty or lies among a study's own files."""
    from normstudy.config import places
    from normstudy.study import paths

    if not given or not given.isprintable():
        raise ConfigError(f"--out {given!r} is not a path: name the file or folder to write")
    path = Path(places.expanded(given, "--out"))
    paths.check_outside_of_studies(path, "another --out")
    return path


def folder(given: str) -> Path:
    """Return the folder STUDY. Raises a ConfigError, with the nearest study's path, if the folder does not exist."""
    from normstudy.config import places

    path = Path(places.expanded(given, "STUDY"))
    if path.is_dir():
        return path
    studies = {runs.parents[1] for root in (Path("results"), path.parent) for runs in root.glob("*/tables/runs")}
    hint = nearest(path.name, (), {study.name.lower(): str(study) for study in sorted(studies)})
    raise ConfigError(f"{given}: no such folder.{hint or ' Name the folder of a study, such as results/warmup.'}")

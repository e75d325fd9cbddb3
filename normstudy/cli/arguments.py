"""Parse the arguments that several commands share: STUDY, --where, lists of names, --out."""

from __future__ import annotations

import typing
from pathlib import Path

from normstudy.errors import ConfigError

if typing.TYPE_CHECKING:
    import argparse


def parser(command: str, *, study: bool = True) -> argparse.ArgumentParser:
    """Return a command's argument parser, whose errors are ConfigErrors. study: whether STUDY is the first argument."""
    import argparse

    class CommandParser(argparse.ArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise ConfigError(f"{message}: see normstudy {command} --help")

    made = CommandParser(prog=f"normstudy {command}", add_help=False, allow_abbrev=False)
    if study:
        made.add_argument("study", metavar="STUDY", type=folder)
    return made


def where(given: list[str]) -> dict[str, str]:
    """Parse the values of --where: `["placement=pre,norm=rmsnorm"]` -> `{"placement": "pre", "norm": "rmsnorm"}`."""
    values: dict[str, str] = {}
    for word in ",".join(given).split(",") if given else []:
        column, equals, value = (part.strip() for part in word.partition("="))
        if not (column and equals and value):
            raise ConfigError(f"--where {word!r} is not COLUMN=VALUE: write, for example, --where placement=pre,seed=0")
        if column in values:
            raise ConfigError(f"--where sets {column} twice, to {values[column]} and {value}: keep one value")
        values[column] = value
    return values


def names(given: str) -> list[str]:
    """Split a list of names: `a,b` -> `["a", "b"]`."""
    found = [name.strip() for name in given.split(",")]
    if not all(found):
        raise ConfigError(f"{given!r} contains an empty name: write NAME,NAME")
    return found


def out(given: str) -> Path:
    """Return the path of --out. Raises a ConfigError if the path is empty or lies among a study's own files."""
    from normstudy.study import paths

    if not given or not given.isprintable():
        raise ConfigError(f"--out {given!r} is not a path: name the file or folder to write")
    paths.check_outside_of_studies(Path(given), "another --out")
    return Path(given)


def folder(given: str) -> Path:
    """Return the folder STUDY. Raises a ConfigError if the folder does not exist."""
    if Path(given).is_dir():
        return Path(given)
    under = Path("results") / given
    hint = f" Did you mean {under}?" if under.is_dir() else " Name the folder of a study, such as results/warmup."
    raise ConfigError(f"{given}: no such folder.{hint}")

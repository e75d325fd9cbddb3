"""Errors that the user sees as one line, and the hint at what a misspelled word may mean."""

from __future__ import annotations

import difflib
import typing


class ConfigError(Exception):
    """A request that cannot be run. Its text is the one line that the user sees."""


class StorageError(ConfigError):
    """Results cannot be written: full disk, read-only folder, too many open files. Files already written stay whole."""


def nearest(word: str, names: typing.Iterable[str], aliases: typing.Mapping[str, str] | None = None) -> str:
    """`" Did you mean X?"` for the name closest to `word`, or the empty string.

    aliases: other word -> the name it stands for; an alias is understood in this hint only.
    """
    folded = {n.lower(): n for n in names} | (dict(aliases) if aliases else {})
    close = difflib.get_close_matches(word.strip().lower(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]}?" if close else ""

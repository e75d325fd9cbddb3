"""The error of a request that cannot be run, and what may have been meant."""

from __future__ import annotations

import difflib
import typing


class ConfigError(Exception):
    """A request that cannot be run; its text is the one line that the user sees."""


class StorageError(ConfigError):
    """Results cannot be written: a full disk, a read-only folder, too many open files. What is written stays whole."""


def nearest(word: str, names: typing.Iterable[str], aliases: typing.Mapping[str, str] | None = None) -> str:
    """`" Did you mean X?"` for the name closest to `word`, or the empty string.

    aliases: other words for a name, which are understood here only.
    """
    folded = {n.lower(): n for n in names} | (dict(aliases) if aliases else {})
    close = difflib.get_close_matches(word.strip().lower(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]}?" if close else ""

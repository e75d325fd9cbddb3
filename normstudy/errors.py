"""Define the errors that the user sees as one line, and the spelling hint at the end of some of these lines."""

from __future__ import annotations

import difflib
import typing


class ConfigError(Exception):
    """Raised for a request that cannot be carried out. The message is the one line that the user sees."""


class StorageError(ConfigError):
    """Raised if results cannot be written, for example to a full disk. Files already written stay complete."""


def nearest(word: str, names: typing.Iterable[str], aliases: typing.Mapping[str, str] | None = None) -> str:
    """Return " Did you mean X?" for the name X closest to `word`, or "". aliases: other spelling -> name."""
    folded = {n.lower(): n for n in names} | (dict(aliases) if aliases else {})
    close = difflib.get_close_matches(word.strip().lower(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]}?" if close else ""

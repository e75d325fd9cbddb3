"""Define what commands print on standard error: one-line errors, warnings, spelling hints and progress bars."""

import difflib
import os
import re
import sys
import threading
import typing
import warnings

ONE_THREAD = threading.RLock()  # held while settings of the whole process are changed, such as warning filters


class ConfigError(Exception):
    """Raised for a request that cannot be carried out. The message is the one line that the user sees."""


class StorageError(ConfigError):
    """Raised if results cannot be written, for example to a full disk. Files already written stay complete."""


class Damaged(ConfigError):
    """Raised if a file of a study cannot be read, or if its rows do not match its file name."""


class Failed(Exception):
    """Raised after a command's work, if a part of it failed. The message is one line; the exit code is 1."""


class MissingRows(UserWarning):
    """Warns that a run or a file of a study is ignored, because it lacks rows or does not belong to the study."""


def warn(line: str) -> None:
    """Warn in one line that a run or a file of a study is ignored."""
    warnings.warn(line, MissingRows, stacklevel=2)


def nearest(word: str, names: typing.Iterable[str], aliases: typing.Mapping[str, str] | None = None) -> str:
    """Return " Did you mean X?" for the name X closest to `word`, or "". aliases: other spelling -> name."""
    folded = {n.lower(): n for n in names} | (dict(aliases) if aliases else {})
    close = difflib.get_close_matches(word.strip().lower(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]}?" if close else ""


def printable(text: str) -> str:
    """Return untrusted text, such as a file's name, as one line. Escape its control characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def short(text: str) -> str:
    """Shorten each word that is too long for a file's name or path, then apply `printable` to the text."""
    return printable(re.sub(r"\S{4097,}|[^\s/]{256,}", lambda word: f"{word[0][:100]}...", text))


def say(text: object) -> None:
    """Print untrusted text, which may have several lines. Escape its control characters, except newlines."""
    print("\n".join(map(printable, str(text).split("\n"))), flush=True)


def bar_options() -> dict[str, typing.Any]:
    """Return arguments for tqdm that show a progress bar on a terminal and no bar elsewhere."""
    terminal = sys.stderr.isatty()
    # A pseudo-terminal may report 0 columns or 0 lines. tqdm would then print nothing.
    unsized = terminal and 0 in os.get_terminal_size(sys.stderr.fileno())
    width, height = (80, 24) if unsized else (None, None)
    return {"ncols": width, "nrows": height, "dynamic_ncols": not unsized, "disable": not terminal}

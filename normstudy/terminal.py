"""How a progress bar fits where it is shown."""

from __future__ import annotations

import os
import sys
from typing import TypedDict


class Fit(TypedDict):
    """Arguments of tqdm."""

    ncols: int | None
    nrows: int | None
    dynamic_ncols: bool
    disable: bool


def fit() -> Fit:
    """A bar on a terminal, nothing in a pipe."""
    terminal = sys.stderr.isatty()
    # A pseudo-terminal may say that it has no columns or no lines; tqdm would then print nothing at all.
    unsized = terminal and 0 in os.get_terminal_size(sys.stderr.fileno())
    width, height = (80, 24) if unsized else (None, None)
    return {"ncols": width, "nrows": height, "dynamic_ncols": not unsized, "disable": not terminal}

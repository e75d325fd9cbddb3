"""Decide whether progress bars are shown, and how wide they are."""

from __future__ import annotations

import os
import sys
from typing import TypedDict


class Fit(TypedDict):
    """Declare the types of the tqdm arguments that depend on the terminal."""

    ncols: int | None
    nrows: int | None
    dynamic_ncols: bool
    disable: bool


def fit() -> Fit:
    """Return arguments for tqdm that show a progress bar on a terminal and no bar elsewhere."""
    terminal = sys.stderr.isatty()
    # A pseudo-terminal may report 0 columns or 0 lines. tqdm would then print nothing.
    unsized = terminal and 0 in os.get_terminal_size(sys.stderr.fileno())
    width, height = (80, 24) if unsized else (None, None)
    return {"ncols": width, "nrows": height, "dynamic_ncols": not unsized, "disable": not terminal}

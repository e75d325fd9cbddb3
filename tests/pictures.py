"""Compare a figure drawn here with the committed one."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

# Another version of matplotlib places text differently and moves panels by some pixels. So images are averaged over
# squares of SQUARE pixels, and their root mean square difference, of 255, is bounded. Between matplotlib 3.11.2 and
# 3.9.0 or 3.10.7 it is at most 10.5.
SQUARE, MAX_RMS = 32, 12
# The same version draws the same bytes on one CPU. NumPy's logarithm rounds differently with AVX-512 and with AVX2,
# which was seen to change at most 95 pixels at the edges of lines, by at most 2 of 255.
MAX_PIXELS, MAX_GREY = 1_000, 4


def assert_committed(committed: Path, drawn: Path) -> None:
    """Assert equal pixels, up to rounding, if both were drawn by one version of matplotlib; else assert MAX_RMS.

    Each PNG names the version that drew it.
    """
    with Image.open(committed) as image:
        same_version = image.info["Software"] == f"Matplotlib {mpl.__version__}"
    if same_version:
        assert_same_pixels(committed, drawn)
    else:
        assert rms(committed, drawn) < MAX_RMS, committed.name


def assert_same_pixels(committed: Path, drawn: Path) -> None:
    one, other = pixels(committed), pixels(drawn)
    assert one.shape == other.shape, committed.name
    change = np.abs(one - other).max(axis=-1)
    assert change.max() <= MAX_GREY, f"{committed.name}: a pixel differs by {change.max():.0f} of 255"
    assert (change > 0).sum() <= MAX_PIXELS, f"{committed.name}: {(change > 0).sum()} pixels differ"


def pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Height x width x 3, from 0 to 255; averaged to `size` (width, height) if given."""
    with Image.open(path) as image:
        shown = image.convert("RGB")
        return np.asarray(shown.resize(size, Image.Resampling.BOX) if size else shown, float)


def rms(one: Path, other: Path) -> float:
    sizes = []
    for path in (one, other):
        with Image.open(path) as image:
            sizes.append((image.width // SQUARE, image.height // SQUARE))
    assert sizes[0] == sizes[1]
    return float(np.sqrt(((pixels(one, sizes[0]) - pixels(other, sizes[1])) ** 2).mean()))

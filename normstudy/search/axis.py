"""Define the axes on which a critical value can be searched, and the positions of their values.

A position is an integer in hundredths of a decade. Runs fail more often at larger positions. A peak_lr of 10^(k/100)
has the position `k`, and a warmup of `n` steps has the position -100 log10(1 + n).
"""

import math
from typing import NamedTuple

from normstudy.errors import ConfigError, nearest

DECADE = 100  # positions per decade


class Axis(NamedTuple):
    """A key of the configuration whose critical value can be searched."""

    column: str  # name in the table `runs`
    key: str  # dotted key of the configuration
    low: float  # default ends of the range
    high: float
    least: float  # smallest value that a run may have
    sign: int = 1  # -1: runs fail more often at smaller values
    offset: int = 0  # added to a value before its logarithm is taken
    whole: bool = True  # whether values are integers

    def position(self, value: float) -> int:
        return self.sign * round(DECADE * math.log10(value + self.offset))

    def value(self, position: int) -> float:
        """Return the value at a position, rounded to an integer or to three significant digits."""
        value = self.exact(position)
        return float(max(self.least, round(value))) if self.whole else float(f"{value:.3g}")

    def exact(self, position: float) -> float:
        """Return the value at a position, not rounded."""
        return float(10 ** (self.sign * position / DECADE) - self.offset)


AXES = {
    axis.column: axis
    for axis in (
        Axis("peak_lr", "schedule.peak_lr", 1e-4, 1.0, 1e-9, whole=False),
        Axis("warmup_steps", "schedule.warmup_steps", 0, 1000, 0, sign=-1, offset=1),
        Axis("n_layers", "model.n_layers", 1, 32, 1),
    )
}


def find(name: str) -> Axis:
    """Return the axis with this column or dotted key."""
    for axis in AXES.values():
        if name in (axis.column, axis.key):
            return axis
    hint = nearest(name, AXES) or f" Use one of {', '.join(AXES)}."
    raise ConfigError(f"--of {name!r} is not a key whose critical value can be searched.{hint}")

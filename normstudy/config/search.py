"""Define and check the settings of a search for critical values."""

from __future__ import annotations

from dataclasses import dataclass

from normstudy.config.checks import at_least, finite
from normstudy.errors import ConfigError

MOST_RUNS = 1000  # further seeds belong to the runs that look for failures which contradict a threshold
LEAST_RUNS = 10  # those of the first round, and those that look for failures which contradict a threshold


@dataclass
class SearchConfig:
    """What `normstudy critical` searches. Other commands ignore it, and it is no part of a run's identity."""

    of: str = "peak_lr"  # the axis: peak_lr | warmup_steps | n_layers
    low: float | None = None  # smallest value to try; null: depends on the axis
    high: float | None = None  # largest value to try; null: depends on the axis
    width: float = 0.4  # decades; a cell is decided when its 95 % intervals are narrower than this
    max_runs: int = 60  # runs of a cell after which its search ends anyway

    def __post_init__(self) -> None:
        finite("search.low", self.low, 0, strict=False)
        finite("search.high", self.high, 0, strict=False)
        finite("search.width", self.width, 0, strict=True)
        at_least("search.max_runs", self.max_runs, LEAST_RUNS)
        if self.max_runs > MOST_RUNS:
            raise ConfigError(f"search.max_runs {self.max_runs} exceeds {MOST_RUNS}: reduce it")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ConfigError(
                f"search.low {self.low:g} is not below search.high {self.high:g}: write the smaller one first"
            )

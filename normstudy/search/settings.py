"""Hold a search's settings, and keep those that its rounds depend on with the records of the study's sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from normstudy.config import RunConfig
from normstudy.errors import ConfigError, Damaged
from normstudy.search.axis import Axis, find
from normstudy.study import files

FILE = "sweeps/search.json"
VERSION = 1  # of the rounds' rule and of the prior; raise it when either changes
STOP = ("width", "max_runs")  # settings on which no round depends, so a later search may change them


class Settings(NamedTuple):
    """What a search was asked. low, high: the range of values, in the axis's unit. width: in decades.

    The search of a cell ends when both intervals are narrower than `width` or lie outside the range, or when another
    round and the sentinels would exceed max_runs.
    """

    of: str
    low: float
    high: float
    width: float = 0.4
    max_runs: int = 60
    seed: int = 0  # of the first run
    version: int = VERSION

    @property
    def axis(self) -> Axis:
        return find(self.of)

    @property
    def ends(self) -> tuple[int, int]:
        """Return the positions of the range's ends; runs fail more often at the second."""
        low, high = sorted(self.axis.position(value) for value in (self.low, self.high))
        return low, high

    def value(self, position: int) -> float:
        """Return the value at a position; rounding never leaves the range."""
        return min(max(self.axis.value(position), self.low), self.high)


def settings_of(config: RunConfig) -> Settings:
    """Return the settings that a composed configuration asks for. Raises a ConfigError for an impossible range."""
    asked, axis = config.search, find(config.search.of)
    low = axis.low if asked.low is None else asked.low
    high = min(axis.high, config.schedule.n_steps) if axis.column == "warmup_steps" else axis.high
    high = high if asked.high is None else asked.high
    for key, value in (("search.low", low), ("search.high", high)):
        if value < axis.least or (axis.whole and value != int(value)):
            raise ConfigError(
                f"{key} {value:g} is no value of {axis.column}: use {axis.kind} of at least {axis.least:g}"
            )
    made = Settings(axis.column, low, high, asked.width, asked.max_runs, config.seed)
    if low >= high or made.ends[0] == made.ends[1]:
        raise ConfigError(f"search.low {low:g} is not below search.high {high:g}: choose another range")
    return made


def read(study_dir: Path) -> Settings | None:
    """Return the settings of the study's search, or None if the study has none. Raises Damaged for other content."""
    path = study_dir / FILE
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(text)
        low, high, width = (float(found[key]) for key in ("low", "high", "width"))
        max_runs, seed, version = (int(found[key]) for key in ("max_runs", "seed", "version"))
        made = Settings(str(found["of"]), low, high, width, max_runs, seed, version)
        if made.low < made.high and made.axis:
            return made
    except (ConfigError, ValueError, TypeError, AttributeError, KeyError):
        pass
    raise Damaged(f"{path} does not hold the settings of a search: restore it from a copy, or remove it")


def keep(study_dir: Path, settings: Settings) -> None:
    """Record the settings in the study's folder."""
    (study_dir / FILE).parent.mkdir(parents=True, exist_ok=True)
    files.place(study_dir, FILE, json.dumps(settings._asdict(), indent=1).encode() + b"\n")


def check_same(study_dir: Path, settings: Settings) -> None:
    """Raise a ConfigError if the study's search has other settings, on which its rounds depend."""
    before = read(study_dir)
    for name, value in settings._asdict().items():
        if before is not None and name not in STOP and (old := getattr(before, name)) != value:
            key = name if name in ("seed", "version") else f"search.{name}"
            raise ConfigError(
                f"{key} {value} differs from {old}, with which {study_dir} was searched: use the same, or another study"
            )

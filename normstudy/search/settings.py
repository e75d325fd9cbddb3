"""Hold a search's settings, and keep those that its rounds depend on with the records of the study's sweeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from normstudy import config as cfg
from normstudy.analysis.grid import value_text
from normstudy.config import RunConfig, places
from normstudy.config.search import SearchConfig
from normstudy.errors import ConfigError, Damaged
from normstudy.search.axis import Axis, find
from normstudy.study import files, tables

FILE = "sweeps/search.json"
VERSION = 1  # of the rounds' rule and of the prior; raise it when either changes


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
    alike: dict[str, Any] | None = None  # key -> value of what no two cells differ in; None: not recorded

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


def settings_of(cells: Sequence[RunConfig]) -> Settings:
    """Return the settings for which the cells' configurations ask. Raises a ConfigError for an impossible request.

    The cells may not differ in seeds, nor in how runs are evaluated and probed: a run's outcome would depend on it,
    and the answer's rows do not tell such cells apart.
    """
    keys = cfg.dotted_keys()
    shared = ["seed", "data_seed", *(c for c in keys if c.startswith(tuple(f"{one}_" for one in cfg.PREFIXED)))]
    found: list[dict[str, Any]] = []
    for cell in cells:
        asked = cfg.asked(cell)
        found.append({keys[c]: asked[c] for c in shared} | {f"search.{k}": v for k, v in vars(cell.search).items()})
    for key in found[0]:
        if len(several := list(dict.fromkeys(value_text(one[key]) for one in found))) > 1:
            raise ConfigError(f"{key} has several values ({', '.join(several)}), but a search has one: give one")
    search, axis = cells[0].search, find(cells[0].search.of)
    low = axis.low if search.low is None else search.low
    high = axis.high if axis.column != "warmup_steps" else min(axis.high, *(cell.schedule.n_steps for cell in cells))
    high = high if search.high is None else search.high
    alike = {keys[c]: found[0][keys[c]] for c in shared[1:]}
    return _checked(Settings(axis.column, low, high, search.width, search.max_runs, cells[0].seed, alike=alike))


def _checked(settings: Settings) -> Settings:
    """Return the settings. Raises a ConfigError if their range is impossible."""
    axis, low, high = settings.axis, settings.low, settings.high
    for key, value in (("search.low", low), ("search.high", high)):
        if value < axis.least or (axis.whole and value != int(value)):
            raise ConfigError(
                f"{key} {value:g} is no value of {axis.column}: use {axis.kind} of at least {axis.least:g}"
            )
    if low >= high or settings.ends[0] == settings.ends[1]:
        raise ConfigError(f"search.low {low:g} is not below search.high {high:g}: choose another range")
    return settings


def read(study_dir: Path) -> Settings | None:
    """Return the settings of the study's search, or None if the study has none. Raises Damaged for other content."""
    path = study_dir / FILE
    try:
        found = json.loads(places.read(path))
        low, high, width = (float(found[key]) for key in ("low", "high", "width"))
        max_runs, seed, version = (int(found[key]) for key in ("max_runs", "seed", "version"))
        SearchConfig(found["of"], low, high, width, max_runs)  # raises if a value is illegal
        alike = None if found.get("alike") is None else dict(found["alike"])
        return _checked(Settings(str(found["of"]), low, high, width, max_runs, seed, version, alike))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ConfigError, OSError, ValueError, ArithmeticError, RecursionError, TypeError, AttributeError, KeyError):
        do = "restore it from a copy, or remove it and repeat the search"
        raise Damaged(f"{path} cannot be read as the settings of a search: {do}") from None


def keep(study_dir: Path, settings: Settings) -> None:
    """Record the settings in the study's folder, whose lock the caller holds. Raises a ConfigError as `check_same`."""
    check_same(study_dir, settings)
    with files.storing(study_dir):
        (study_dir / FILE).parent.mkdir(parents=True, exist_ok=True)
        files.place(study_dir, FILE, json.dumps(settings._asdict(), indent=1).encode() + b"\n")


def check_same(study_dir: Path, settings: Settings) -> None:
    """Raise a ConfigError if the study's search has other settings, on which its rounds depend."""
    before = read(study_dir)
    old = {} if before is None or not tables.statuses(study_dir) else _binding(before)
    for key, value in _binding(settings).items():
        if old.get(key, value) != value:
            raise ConfigError(
                f"{key} {value_text(value, str)} differs from {value_text(old[key], str)}, with which {study_dir} was "
                "searched: use the same, or another study"
            )


def _binding(settings: Settings) -> dict[str, Any]:
    """Return key -> value of the settings on which the rounds depend; these are all but search.width and .max_runs."""
    of, low, high, _, _, seed, version, alike = settings
    return {"search.of": of, "search.low": low, "search.high": high, "seed": seed, "version": version, **(alike or {})}

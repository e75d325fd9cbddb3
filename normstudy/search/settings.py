"""Define the axes and the settings of a search, and store the settings with the records of the study's sweeps."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from normstudy import config as cfg
from normstudy.analysis.grid import value_text
from normstudy.config import RunConfig, places
from normstudy.config.execution import SearchConfig
from normstudy.errors import ConfigError, Damaged, nearest
from normstudy.study import files, schema

FILE = "sweeps/search.json"
VERSION = 1  # version of the rounds and the prior; increase it if a finished search would then train other runs
MOST = 1e9  # largest value of any axis
DECADE = 100  # positions per decade


class Axis(NamedTuple):
    """A key of the configuration whose critical value can be searched.

    A position is an integer in hundredths of a decade. Runs fail more often at larger positions. A peak_lr of
    10^(k/100) has the position `k`, and a warmup of `n` steps has the position -100 log10(1 + n).
    """

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


AXES = {  # column -> axis
    "peak_lr": Axis("peak_lr", "schedule.peak_lr", 1e-4, 1.0, 1e-9, whole=False),
    "warmup_steps": Axis("warmup_steps", "schedule.warmup_steps", 0, 1000, 0, sign=-1, offset=1),
    "n_layers": Axis("n_layers", "model.n_layers", 1, 32, 1),
}


def find(name: str) -> Axis:
    """Return the axis with this column or dotted key."""
    for axis in AXES.values():
        if name in (axis.column, axis.key):
            return axis
    hint = nearest(name, AXES) or f" Use one of {', '.join(AXES)}."
    raise ConfigError(f"--of {name!r} is not a key whose critical value can be searched.{hint}")


class Settings(NamedTuple):
    """The settings of a search."""

    of: str
    low: float  # the range of values, in the axis's unit
    high: float
    width: float = 0.4  # in decades; a narrower interval decides an edge, as does an interval outside the range
    max_runs: int = 60  # most runs in each cell
    seed: int = 0  # seed of the first run
    version: int = VERSION
    alike: dict[str, Any] | None = None  # what `alike` returns; None: not recorded

    @property
    def axis(self) -> Axis:
        return find(self.of)

    @property
    def ends(self) -> tuple[int, int]:
        """Return the positions of the range's ends. Runs fail more often at the second end."""
        low, high = sorted(self.axis.position(value) for value in (self.low, self.high))
        return low, high

    def value(self, position: int) -> float:
        """Return the value at a position, limited to the range."""
        return min(max(self.axis.value(position), self.low), self.high)


def settings_of(cells: Sequence[RunConfig]) -> Settings:
    """Return the cells' common settings of the search. Raises ConfigError if settings differ or are impossible."""
    one_value({"seed": [cell.seed for cell in cells]})
    one_value({f"search.{key}": [vars(cell.search)[key] for cell in cells] for key in vars(cells[0].search)})
    search, axis = cells[0].search, find(cells[0].search.of)
    low = axis.low if search.low is None else search.low
    high = axis.high if axis.column != "warmup_steps" else min(axis.high, *(cell.schedule.n_steps for cell in cells))
    high = high if search.high is None else search.high
    return _checked(Settings(axis.column, low, high, search.width, search.max_runs, cells[0].seed))


def alike(runs: Sequence[RunConfig]) -> dict[str, Any]:
    """Return key -> value for the `shared_keys`. The value of data_seed is None if each run's data_seed is its seed.

    Raises ConfigError if runs differ in a key's value: outcomes depend on it, but the answer has no column for it.
    """
    asked = [cfg.asked(run) for run in runs]
    if all(one["data_seed"] == one["seed"] for one in asked):
        asked = [one | {"data_seed": None} for one in asked]
    return one_value({key: [one[column] for one in asked] for key, column in shared_keys().items()})


def shared_keys() -> dict[str, str]:
    """Return a dictionary from data_seed and each key of `eval` and `probe` to the key's column in `runs`."""
    sections = tuple(f"{section}_" for section in cfg.PREFIXED)
    return {key: c for c, key in cfg.dotted_keys().items() if c == "data_seed" or c.startswith(sections)}


def one_value(values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return each key's value. values: key -> values of all cells or runs. Raises ConfigError if a key has several."""
    for key, found in values.items():
        if len(several := list(dict.fromkeys(map(value_text, found)))) > 1:
            raise ConfigError(f"{key} has several values ({', '.join(several)}), but a search allows one: give one")
    return {key: found[0] for key, found in values.items()}


def _checked(settings: Settings) -> Settings:
    """Return the settings. Raises ConfigError if their range is impossible."""
    axis, low, high = settings.axis, settings.low, settings.high
    for key, value in (("search.low", low), ("search.high", high)):
        if not axis.least <= value <= MOST or (axis.whole and value != int(value)):
            raise ConfigError(
                f"{key} {value:g} is not a value of {axis.column}: use {'an integer' if axis.whole else 'a number'} "
                f"of at least {axis.least:g} and at most {MOST:g}"
            )
    if low >= high:
        raise ConfigError(f"search.low {low:g} is not below search.high {high:g}: lower low or raise high")
    if settings.ends[0] == settings.ends[1]:
        raise ConfigError(f"search.low {low!r} and search.high {high!r} are too close: span at least 0.01 decades")
    return settings


def read(study_dir: Path) -> Settings | None:
    """Return the settings of the study's search, or None if there is none. Raises ConfigError if the file is wrong."""
    path = study_dir / FILE
    try:
        found = json.loads(places.read(path))
        if found.pop("sha256", None) not in (None, _sha256(found)):  # no sha256: an older version wrote the file
            raise ValueError
        low, high, width = (float(found[key]) for key in ("low", "high", "width"))
        max_runs, seed, version = (int(found[key]) for key in ("max_runs", "seed", "version"))
        SearchConfig(found["of"], low, high, width, max_runs)  # raises if a value is illegal
        shared = found.get("alike")
        legal = shared is None or {*shared} == {*shared_keys()}
        if not legal or not all(isinstance(value, int | None) for value in (shared or {}).values()):
            raise TypeError
        made = _checked(Settings(find(found["of"]).column, low, high, width, max_runs, seed, version, shared))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): make it a readable file") from None
    except (ConfigError, ValueError, ArithmeticError, RecursionError, TypeError, AttributeError, KeyError):
        do = "restore it from a copy, or remove it and repeat the search"
        raise Damaged(f"{path} does not hold the settings of a search: {do}") from None
    if version > VERSION:
        raise ConfigError(f"{path} is of version {version}, but this normstudy reads {VERSION}: update normstudy")
    return made


def keep(study_dir: Path, settings: Settings) -> None:
    """Store the settings in the study's folder, which the caller has locked. Raises ConfigError like `check_same`."""
    check_same(study_dir, settings)
    with files.storing(study_dir):
        (study_dir / FILE).parent.mkdir(parents=True, exist_ok=True)
        content = settings._asdict() | {"sha256": _sha256(settings._asdict())}
        files.place(study_dir, FILE, json.dumps(content, indent=1).encode() + b"\n")


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_same(study_dir: Path, settings: Settings) -> None:
    """Raise ConfigError if the study's search has other settings. search.width and search.max_runs may differ."""
    before, rows = read(study_dir), (study_dir / "tables" / "runs").glob("*.parquet")
    old = {} if before is None or all(path.name == schema.SCHEMA_FILE for path in rows) else _binding(before)
    for key, value in _binding(settings).items():
        if old.get(key, value) != value:
            raise ConfigError(
                f"{key} {value_text(value, str)} differs from {value_text(old[key], str)} in the earlier search of "
                f"{study_dir}: use the same value, or another study"
            )


def _binding(settings: Settings) -> dict[str, Any]:
    """Return key -> value of the settings that determine the rounds: all but search.width and search.max_runs."""
    of, low, high, _, _, seed, version, alike = settings
    return {"search.of": of, "search.low": low, "search.high": high, "seed": seed, "version": version, **(alike or {})}

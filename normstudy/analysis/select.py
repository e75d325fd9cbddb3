"""Select runs by values of columns. The column's type decides how text is read: in a numeric column, 3e-3 is 0.003."""

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from normstudy import config as cfg
from normstudy.analysis.grid import Value, value_text
from normstudy.errors import ConfigError, nearest
from normstudy.study.schema import SCHEMAS, UNFILLED

KINDS = cfg.asked_types()

# Conditions on runs: a mapping (column -> value or list of values), or texts like those given to --where.
Where = Mapping[str, object] | Sequence[str]
ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
# A comma in --where precedes a new condition (such as peak_lr>=1e-3) or another value of the same condition.
VALUE = r"""(?:"([^"]*)"|'([^']*)'|([^\s,'"](?:[^,]*[^\s,])?))"""
PART = re.compile(rf"\s*(?:(\w+)\s*(!=|<=|>=|=|<|>)\s*)?{VALUE}\s*(?:,(?=.)|$)", re.DOTALL)


class Quoted(str):
    """Text in quotes or from a Python program. A quoted `null` means the text null if the column has it, else None."""


def conditions(where: Where) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (column, sign, values) of each condition: `n_layers=2,4` becomes `("n_layers", "=", ("2", "4"))`."""
    if isinstance(where, Mapping):
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in where.items()}
        many = {name: value if isinstance(value, list | tuple | range) else [value] for name, value in plain.items()}
        if empty := [name for name, values in many.items() if len(values) == 0]:
            raise ConfigError(f"`where` gives no value for {empty[0]}, so it selects no run: give a value")
        return [(name, "=", tuple(map(_text, values))) for name, values in many.items()]
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for word in [where] if isinstance(where, str) else where:
        at, before = 0, len(found)
        while at < len(word) or len(found) == before:
            part = PART.match(word, at)
            if part is None or not (part[1] or found[before:]):
                example = "--where 'placement=pre,post,peak_lr>=1e-3', and quote a value that contains a comma or quote"
                raise ConfigError(f"--where {word!r} is not COLUMN=VALUE: write, for example, {example}")
            column, sign, values = (part[1], part[2], ()) if part[1] else found.pop()
            if sign == "=" and any(one[:2] == (column, "=") for one in found):
                raise ConfigError(f"--where sets {column} twice: write {column}=VALUE,VALUE to select both values")
            quoted = next((Quoted(text) for text in part.groups()[2:4] if text is not None), None)
            found.append((column, sign, (*values, part[5] if quoted is None else quoted)))
            at = part.end()
    return found


def _text(value: object) -> str:
    """Convert a value from a Python program to the text that a user would type for it."""
    if isinstance(value, str):
        return Quoted(value)
    value = native("", value)
    return repr(value) if isinstance(value, float) else value_text(value)


def native(column: str, value: object) -> Value:
    """Convert a cell of the table `runs` to a plain Python value: NaN and NaT to None, a nullable int to int."""
    if pd.isna(value):  # type: ignore[call-overload]
        return None
    if pd.api.types.is_bool(value):
        return bool(value)
    if pd.api.types.is_number(value):
        number = float(value)  # type: ignore[arg-type]
        whole = KINDS.get(column) is int or pd.api.types.is_integer(value)  # pandas stores nullable ints as floats
        return int(number) if whole else number
    return str(value)


def values_of(runs: pd.DataFrame, column: str) -> list[Value]:
    """Return a column's distinct values, sorted: null first."""
    values = {native(column, v) for v in runs[column].unique()}
    return sorted(values, key=lambda v: (v is not None, v if isinstance(v, int | float) else 0, str(v)))


def values_text(values: Iterable[Value]) -> str:
    return ", ".join(map(value_text, values))


def check_column(column: str, columns: Iterable[str], flag: str) -> None:
    """If `column` is not available, raise a ConfigError that names the option `flag` and suggests a similar column."""
    columns = list(columns)
    if column not in columns:
        hint = nearest(column, columns) or f" Available: {', '.join(columns)}."
        raise ConfigError(f"{flag} {column!r} is not an available column.{hint}")


def parse_value(runs: pd.DataFrame, column: str, text: str, flag: str) -> Value:
    """Parse `text` by the column's type. If parsing fails, raise a ConfigError that names the option `flag`."""
    kind = KINDS.get(column)
    if text == value_text(None) and not (isinstance(text, Quoted) and (runs[column] == text).any()):
        return None
    if kind is bool or pd.api.types.is_bool_dtype(runs[column]):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{flag}: {column} must be true or false, not {text!r}")
        return text.lower() == "true"
    if kind in (int, float) or (kind is None and pd.api.types.is_numeric_dtype(runs[column])):
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{flag}: {column} must be a number, not {text!r}") from None
    return text


def has_value(runs: pd.DataFrame, column: str, value: Value) -> "pd.Series[bool]":
    """Return for each row whether the column equals `value`. The value None equals null."""
    return pd.Series([native(column, v) == value for v in runs[column]], index=runs.index, dtype=bool)


def _holds(cells: list[Value], sign: str, value: Value) -> list[bool]:
    """Compare each cell with `value`: by `sign` if `sign` is in ORDER, otherwise for equality."""
    pairs: list[tuple[Any, Any]] = [(cell, _beside(cell, value)) for cell in cells]
    if sign not in ORDER:
        return [cell == other for cell, other in pairs]
    # Compare numbers only with numbers. Otherwise the condition mix>0.1 would also select the text auto.
    has_numbers = any(not isinstance(cell, str | None) and other is not None for cell, other in pairs)
    unordered = (str, type(None)) if has_numbers else type(None)
    return [not isinstance(cell, unordered) and other is not None and ORDER[sign](cell, other) for cell, other in pairs]


def _beside(cell: Value, value: Value) -> Value:
    """Convert a text `value` to the type of `cell`, or None if impossible. A column of watched runs may mix types."""
    if not isinstance(value, str) or isinstance(cell, str | None):
        return value
    if isinstance(cell, bool):
        return {"true": True, "false": False}.get(value.lower())
    try:
        return float(value)
    except ValueError:
        return None


def select(runs: pd.DataFrame, where: Where | None) -> pd.DataFrame:
    """Select runs that meet each condition. Raises ConfigError for a wrong column or value, or if no run matches."""
    for column, sign, texts in conditions(where or ()):
        check_column(column, runs.columns, "--where")
        keep = pd.Series(False, runs.index)
        for text in texts:
            value = parse_value(runs, column, text, "--where")
            if sign in ORDER and (value is None or isinstance(value, bool) or len(texts) > 1):
                raise ConfigError(f"--where {column}{sign}{','.join(texts)} needs one number or text after {sign}")
            cells = [native(column, cell) for cell in runs[column]]
            found = pd.Series(_holds(cells, sign, value), runs.index, dtype=bool)
            if not found.any():
                there = values_text(values_of(runs, column))
                reason = f"; available values: {there}" if there else "; the study has no runs yet: start its sweep"
                raise ConfigError(f"--where {column}{sign}{text} selects no run{reason}")
            keep |= found
        runs = runs[~keep if sign == "!=" else keep]
        if runs.empty:
            raise ConfigError(f"--where {column}!={','.join(texts)} selects no run: all runs left have these values")
    return runs


SOURCES = {"placement": "placement_sha256", "norm": "norm_sha256", "resolved_norm": "norm_sha256"}


def tell_sources_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """Add the `own_columns`. If a block's or norm's code changed between runs, append a hash of the code to the name.

    Example: my_block:f@1a2b3c4d. Without the hash, runs before and after the change would be mixed.
    """
    named = {}
    for column, sha256 in SOURCES.items():
        if column not in runs:  # an older version wrote the table
            continue
        several = runs.groupby(column)[sha256].transform("nunique") > 1
        named[column] = runs[column].mask(several, runs[column] + "@" + runs[sha256].str[:8])
    return runs.assign(**named, **_own_values(runs))


def own_columns(runs: pd.DataFrame) -> list[str]:
    """Return the columns that `tell_sources_apart` makes: one for each key of the watched runs' own `config`."""
    return [name for name in _own_values(runs) if name in runs]


def _own_values(runs: pd.DataFrame) -> "dict[str, pd.Series[Any]]":
    if "config" not in runs or runs["config"].isna().all():
        return {}
    given = [json.loads(text) if isinstance(text, str) else {} for text in runs["config"]]
    keys = {key for one in given for key in one} - (KINDS.keys() - UNFILLED)  # all other keys are columns already
    found = {}
    for key in sorted(keys):
        name = re.sub(r"\W", "_", key)
        values = [json.dumps(v) if isinstance(v := one.get(key), dict | list) else v for one in given]
        name = f"config_{name}" if name in SCHEMAS["runs"].names else name
        found[name] = pd.Series(values, runs.index).infer_objects()
    return found

"""Choosing runs by the values of their columns, as `--where column=value` says it.

A value is compared by the type of its column: 3e-3 equals 0.003, `null` is an unset value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from normstudy import config as cfg
from normstudy.errors import ConfigError, nearest

NULL = "null"
KINDS = cfg.asked_types()

Value = str | int | float | bool | None


def native(column: str, value: object) -> Value:
    """A cell of the `runs` table as a plain Python value: NaN and NaT as None, a nullable int as int."""
    if pd.isna(value):  # type: ignore[call-overload]
        return None
    if isinstance(value, str):
        return value
    if pd.api.types.is_bool(value):
        return bool(value)
    if pd.api.types.is_number(value):
        number = float(value)  # type: ignore[arg-type]
        whole = KINDS.get(column) is int or pd.api.types.is_integer(value)  # a nullable int is a float in pandas
        return int(number) if whole else number
    return str(value)


def value_text(value: Value) -> str:
    """A value as people type it: 0.003, 100, true, null."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def values_of(runs: pd.DataFrame, column: str) -> list[Value]:
    """The distinct values of a column: null first, then numbers in their order or text in the alphabet's."""
    values = {native(column, v) for v in runs[column].unique()}
    return sorted(values, key=lambda v: (v is not None, v if isinstance(v, int | float) else 0, str(v)))


def values_text(values: Iterable[Value]) -> str:
    """The values, by commas."""
    return ", ".join(value_text(v) for v in values)


def check_column(column: str, columns: Iterable[str], flag: str) -> None:
    """Raise a ConfigError that names the nearest column unless `column` is one of `columns`."""
    columns = list(columns)
    if column not in columns:
        hint = nearest(column, columns) or f" There are {', '.join(columns)}."
        raise ConfigError(f"{flag} {column!r} is no column to choose by.{hint}")


def parse_value(runs: pd.DataFrame, column: str, text: str, flag: str) -> Value:
    """`text` as a value of a column, by the column's type.

    Raises ConfigError for a word where a number belongs; `flag` is the option that the message names.
    """
    if text == NULL:
        return None
    kind = KINDS.get(column)
    if kind is bool or pd.api.types.is_bool_dtype(runs[column]):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{flag}: {column} {text!r} is neither true nor false")
        return text.lower() == "true"
    if kind in (int, float) or (kind is None and pd.api.types.is_numeric_dtype(runs[column])):
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{flag}: {column} {text!r} is not a number") from None
    return text


def has_value(runs: pd.DataFrame, column: str, value: Value) -> pd.Series[bool]:
    """Row by row, whether a column has a value; None stands for null."""
    return pd.Series([native(column, v) == value for v in runs[column]], index=runs.index, dtype=bool)


def select(runs: pd.DataFrame, where: Mapping[str, str] | None) -> pd.DataFrame:
    """The runs that have all of the values; `where` is column -> value as text.

    Raises ConfigError for an unknown column, a value of the wrong type, and one that selects nothing.
    """
    for column, text in (where or {}).items():
        check_column(column, runs.columns, "--where")
        value = parse_value(runs, column, text, "--where")
        keep = has_value(runs, column, value)
        if not keep.any():
            there = values_text(values_of(runs, column)) or "nowhere: there is no run"
            raise ConfigError(f"--where {column}={text} selects no run: here {column} is {there}")
        runs = runs[keep]
    return runs


SOURCES = {"placement": "placement_sha256", "norm": "norm_sha256", "resolved_norm": "norm_sha256"}


def tell_sources_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` in which an own block of several sources is several values, such as my_block:f@1a2b3c4d.

    Its runs before and after a change are two treatments under one name.
    """
    named = {}
    for column, sha256 in SOURCES.items():
        if column not in runs or sha256 not in runs:
            continue
        several = runs.groupby(column)[sha256].transform("nunique") > 1
        named[column] = runs[column].mask(several, runs[column] + "@" + runs[sha256].str[:8])
    return runs.assign(**named)

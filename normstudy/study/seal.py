"""Explain how runs that a sealed study refuses differ from the study's runs, and suggest a name for a new study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import pandas as pd

from normstudy.config import Resolved, RunConfig
from normstudy.study import schema, tables

Columns = TypeVar("Columns", pd.DataFrame, dict[str, object])

# column -> a column that determines it; a difference in the first is not reported if the second differs too.
IMPLIED_BY = {"data_seed": "seed", "data_sha256": "data"}


def refusal(study_dir: Path, strangers: Mapping[str, RunConfig], texts: Mapping[str, str]) -> str:
    """Return the error line for runs that a sealed study does not have. texts: run_id -> sha256 of the run's text."""
    held = _as_resolved(tables.read(study_dir, "runs"))
    found: dict[str, list[object]] = {}  # column -> values of the strangers that differ from the study's
    for run_id, config in strangers.items():
        row = _as_resolved({**schema.config_columns(config), "data_sha256": texts[run_id]})
        for key in _differences(held, row):
            found.setdefault(key, [])
            if row[key] not in found[key]:
                found[key].append(row[key])
    parts, name = [], study_dir.name
    for key, values in found.items():
        if key == "data_sha256":
            parts.append("the text differs (another sha256: the file or the version of Python has changed)")
            name += "-text"
        else:
            theirs = sorted(held[key].dropna().unique().tolist())
            parts.append(f"{key} {_list(values)} (the study holds {_list(theirs) or 'null'})")
            name += f"-{key}{_plain(values[0])}" if len(values) == 1 else f"-{key}"
    what = "; ".join(parts) or "the study was trained by another version of the numerics"
    count = f"{len(strangers)} of the requested runs are" if len(strangers) > 1 else "the requested run is"
    safe = "".join(c if c.isalnum() or c in "_.=+-" else "_" for c in name)[:80]
    return f"{study_dir} is sealed and {count} not in it: {what}. Train in a new study: study={safe}"


def _as_resolved(row: Columns) -> Columns:
    """Replace requested values by resolved ones, so that `auto` equals the value to which it resolves."""
    out = row.copy()
    for field in dataclasses.fields(Resolved):
        out[field.name] = row[f"resolved_{field.name}"]
        del out[f"resolved_{field.name}"]
    return out


def _differences(held: pd.DataFrame, row: Mapping[str, object]) -> list[str]:
    """Return the columns in which a run differs from the study's most similar run."""
    keys = [k for k in row if k not in ("study", "data_path") and k in held]
    same = pd.DataFrame({k: held[k].isna() if row[k] is None else held[k] == row[k] for k in keys})
    nearest = same.iloc[int(same.sum(axis=1).to_numpy().argmax())]
    different = [k for k in keys if not nearest[k]]
    return [k for k in different if IMPLIED_BY.get(k) not in different]


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def _list(values: list[object]) -> str:
    shown = ", ".join(map(_plain, values[:6]))
    return f"{shown}, ..." if len(values) > 6 else shown

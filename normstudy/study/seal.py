"""Explain how requested runs differ from those of a sealed study, and suggest a name for a new study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from normstudy.config import RunConfig
from normstudy.study import schema, tables

# column -> the column that determines it. If a run differs in both, the error names only the determining column.
IMPLIED_BY = {"data_seed": "seed", "data_sha256": "data"}


def refusal(study_dir: Path, strangers: Mapping[str, RunConfig], texts: Mapping[str, str]) -> str:
    """Return the error line for runs that a sealed study does not have. texts: run_id -> sha256 of the run's text."""
    held = tables.read(study_dir, "runs")
    found: dict[str, dict[object, None]] = {}  # column -> values of requested runs that differ from the study
    for run_id, config in strangers.items():
        row = {**schema.config_columns(config), "data_sha256": texts[run_id]}
        for column in _differences(held, row):
            found.setdefault(column, {})[row[column]] = None
    parts, name = [], study_dir.name
    for column, values in found.items():
        key = column.removeprefix("resolved_")
        if key == "data_sha256":
            parts.append("the training text differs from the study's (another file, or another version of Python)")
            name += "-text"
        else:
            theirs = sorted(held[column].dropna().unique().tolist())
            parts.append(f"{key} {_list(values)} (the study has {_list(theirs) or 'null'})")
            name += f"-{key}{_list(values)}" if len(values) == 1 else f"-{key}"
    what = "; ".join(parts) or "the normstudy version that trained the study computes different bits"
    n = len(strangers)
    lacks = f"lacks {n} of the requested runs" if n > 1 else "lacks the requested run"
    safe = "".join(c if (c.isascii() and c.isalnum()) or c in "_.+-" else "_" for c in name)[:80]
    return f"{study_dir} is sealed and {lacks}: {what}. Train in a new study: study={safe}"


def _differences(held: pd.DataFrame, row: Mapping[str, object]) -> list[str]:
    """Return the columns in which a run differs from the study's most similar run.

    For a key with a resolved value, the resolved values are compared, so that `auto` equals what it resolves to.
    """
    keys = [k for k in row if k in held and k not in ("study", "data_path") and f"resolved_{k}" not in row]
    same = pd.DataFrame({k: held[k].isna() if row[k] is None else held[k] == row[k] for k in keys})
    nearest = same.iloc[int(same.sum(axis=1).to_numpy().argmax())]
    different = [k for k in keys if not nearest[k]]
    return [k for k in different if IMPLIED_BY.get(k) not in different]


def _list(values: Iterable[object]) -> str:
    shown = [f"{v:g}" if isinstance(v, float) else "null" if v is None else str(v) for v in values]
    return ", ".join(shown[:6] + ["..."] * (len(shown) > 6))

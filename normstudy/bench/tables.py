"""Write and read the benchmark's tables, such as results/bench/a.parquet. results/README.md defines the columns."""

import functools
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyarrow as pa

from normstudy.bench.rows import ROWS, Sample
from normstudy.errors import ConfigError
from normstudy.model.processor import cpu_info
from normstudy.processes import WORKER_ENVIRONMENT, environment_with
from normstudy.study import files, parquet
from normstudy.study.records import git_commit

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema([
    ("row", _NAME), ("case", _NAME), ("subject", _NAME), ("metric", _NAME), ("unit", _NAME), ("round", pa.int32()),
    ("value", pa.float64()), ("mode", _NAME), ("python", _NAME), ("torch", _NAME), ("cpu", _NAME),
    ("n_cores", pa.int32()), ("cpu_capability", _NAME), ("blas", _NAME), ("device", _NAME), ("git_commit", _NAME),
    ("started_at", pa.timestamp("us", tz="UTC")),
])  # fmt: skip
ASK = """
import json, sys, torch
from normstudy.workers import recording
found = sys.argv[1] == "cpu" or torch.cuda.is_available()
print(json.dumps(recording.machine(sys.argv[1]) if found else None))
"""


@functools.cache
def machine(device: str) -> Mapping[str, object]:
    """Return the columns that describe this machine. Raises ConfigError if torch does not find the device."""
    command, variables = [sys.executable, "-P", "-c", ASK, device], environment_with(WORKER_ENVIRONMENT)
    columns = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout)
    if columns is None:
        raise ConfigError("--device cuda: torch finds no GPU here, use --device cpu")
    cpu, n_cores = cpu_info("model name") or platform.machine(), len(os.sched_getaffinity(0))
    return {**columns, "cpu": cpu, "n_cores": n_cores, "git_commit": git_commit()}


def write(out: Path, row: str, samples: Sequence[Sample], shared: Mapping[str, object]) -> None:
    """Write a row's table into the folder `out`. Replace an older table. shared: columns equal for all samples."""
    good = {(s.case, s.subject, s.metric, s.round) for s in samples if s.row == row and math.isfinite(s.value)}
    if not 0 < len(good) == len(samples):
        raise ValueError(f"only {len(good)} of {len(samples)} samples of row {row} are finite and unique: fix the rest")
    content = pa.Table.from_pylist([{**asdict(sample), **shared} for sample in samples], schema=SCHEMA)
    files.place_output(out, f"{row}.parquet", parquet.encode_values(content))


def stored_rows(out: Path) -> list[str]:
    """Return the rows whose tables exist, in the order of ROWS."""
    return [row for row in ROWS if (out / f"{row}.parquet").exists()]


def read(out: Path, rows: Sequence[str]) -> pd.DataFrame:
    """Read the tables of some rows into one DataFrame. Raises ConfigError for a damaged or outdated table."""
    parts = [SCHEMA.empty_table()]
    for row in rows:
        file, again = out / f"{row}.parquet", f"run normstudy bench --rows {row} again"
        try:
            parts.append(parquet.read(file))
        except (OSError, pa.ArrowException):
            raise ConfigError(f"{file} cannot be read: {again}") from None
        if parts[-1].schema.names != SCHEMA.names:
            counts = f"{parts[-1].num_columns} columns instead of {len(SCHEMA)}"
            raise ConfigError(f"{file} was written by another version of normstudy ({counts}): {again}")
    frame: pd.DataFrame = parquet.join(parts).to_pandas()
    names = [field.name for field in SCHEMA if field.type == _NAME]
    frame[names] = frame[names].astype(object).where(frame[names].notna(), None)
    return frame

"""The tables of the benchmark: DIR/ROW.parquet, one a row, and the only code that writes or reads them.

A file is written whole and then moved to its place, when its row has been measured to the end: measuring a row again
replaces that file and no other. `results/README.md` says what each column means.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from normstudy.bench.children import environment
from normstudy.bench.rows import ROWS
from normstudy.bench.samples import Sample
from normstudy.errors import ConfigError
from normstudy.model.processor import cpu_info
from normstudy.study import files
from normstudy.study.records import git_commit

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("row", _NAME), ("case", _NAME), ("subject", _NAME), ("metric", _NAME), ("unit", _NAME), ("round", pa.int32()),
        ("value", pa.float64()), ("mode", _NAME), ("python", _NAME), ("torch", _NAME), ("cpu", _NAME),
        ("n_cores", pa.int32()), ("cpu_capability", _NAME), ("blas", _NAME), ("device", _NAME),
        ("git_commit", _NAME), ("started_at", pa.timestamp("us", tz="UTC")),
    ]
)  # fmt: skip
MODES = ("quick", "full")

ASK = """
import json, torch
from normstudy.model import processor
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps([torch.__version__, torch.backends.cpu.get_cpu_capability(), processor.libraries(), gpu]))
"""


@dataclass(frozen=True)
class Machine:
    """Where and by what a row was measured; device: `cpu`, or the name of the GPU. Never the name of the host."""

    python: str
    torch: str
    cpu: str
    n_cores: int
    cpu_capability: str
    blas: str
    device: str
    git_commit: str | None


def machine(device: str) -> Machine:
    """This machine. Raises ConfigError for the device `cuda` where torch finds none.

    torch is asked in a process of its own, so that the one that measures stays small.
    """
    torch_version, capability, blas, gpu = _ask()
    name = gpu if device == "cuda" else "cpu"
    if name is None:
        raise ConfigError("--device cuda: torch finds no GPU here, give --device cpu")
    return Machine(
        python=platform.python_version(),
        torch=torch_version,
        cpu=cpu_info("model name") or platform.machine(),
        n_cores=len(os.sched_getaffinity(0)),
        cpu_capability=capability,
        blas=blas,
        device=name,
        git_commit=git_commit(),
    )


@functools.cache
def _ask() -> tuple[str, str, str, str | None]:
    """torch's version, the vector instructions that it uses, NumPy's BLAS in a worker, and the GPU's name."""
    with environment(of_worker=True):
        done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    torch_version, capability, blas, gpu = json.loads(done.stdout)
    return torch_version, capability, blas, gpu


# ---- writing --------------------------------------------------------------------------------------------


def check_sample(sample: Sample, row: str, before: Sequence[Sample]) -> None:
    """Raise a ValueError for a sample that no table may hold: another row's, not finite, or measured already."""
    if sample.row != row:
        raise ValueError(f"row {row} measured a sample of row {sample.row!r}: {sample}")
    if not math.isfinite(sample.value):
        raise ValueError(f"row {row} measured a number that is not finite: {sample}")
    if any(_name(sample) == _name(other) for other in before):
        raise ValueError(f"row {row} measured a sample twice: {sample}")


def _name(sample: Sample) -> tuple[str, str, str, int]:
    return sample.case, sample.subject, sample.metric, sample.round


def path(out: Path, row: str) -> Path:
    """The file of a row's table."""
    return out / f"{row}.parquet"


def write(
    out: Path, row: str, samples: Sequence[Sample], made_by: Machine, mode: str, started_at: datetime.datetime
) -> None:
    """Write the samples of one row, in the order in which they were taken, in place of those that were there."""
    if not samples:
        raise ValueError(f"row {row} measured nothing")
    shared = {**asdict(made_by), "mode": mode, "started_at": started_at}
    records = [{**asdict(sample), **shared} for sample in samples]
    content = pa.Table.from_pylist(records, schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(
        content, sink, compression="zstd", use_dictionary=[n for n in SCHEMA.names if n != "value"],
        column_encoding={"value": "BYTE_STREAM_SPLIT"}, write_page_checksum=True,
    )  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.place(out, path(out, row).name, bytes(sink.getvalue()))
    except OSError as error:
        raise ConfigError(f"{path(out, row)} cannot be written: {error.strerror}. Give another --out") from None
    with contextlib.suppress(OSError):  # another command's files are in it
        (out / "state").rmdir()


# ---- reading --------------------------------------------------------------------------------------------


def stored_rows(out: Path) -> list[str]:
    """The rows whose table is there, in their order."""
    return [row for row in ROWS if path(out, row).exists()]


def read(out: Path, rows: Sequence[str]) -> pd.DataFrame:
    """The tables of some rows, one after the other, names as plain text. Raises ConfigError for one that is damaged."""
    parts = [_read_file(path(out, row)) for row in rows]
    frame: pd.DataFrame = pa.concat_tables([SCHEMA.empty_table(), *parts]).unify_dictionaries().to_pandas()
    names = [f.name for f in SCHEMA if f.type == _NAME]
    for column in names:
        known = frame[column].notna()
        frame[column] = frame[column].astype(object).where(known, None)
    return frame


def _read_file(file: Path) -> pa.Table:
    again = f"measure it again: normstudy bench --rows {file.stem}"
    try:
        content = pq.ParquetFile(file, page_checksum_verification=True).read()
    except (OSError, pa.ArrowInvalid):
        raise ConfigError(f"{file} cannot be read; {again}") from None
    if content.schema.names != SCHEMA.names:
        raise ConfigError(
            f"{file} was written by another version of normstudy ({content.num_columns} columns, now {len(SCHEMA)}); "
            f"{again}"
        )
    return content

"""Read and write the reproductions' tables, DIR/tables/NAME.parquet. No other code does.

A table's definition is a hash of everything that its values depend on, except the machine: the version of the
measurement, the sizes, models, depths and seeds. `results/README.md` describes each column.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pyarrow as pa

from normstudy import config as cfg
from normstudy.reproductions.entry import MEASUREMENT, Need, Sizes, model_config
from normstudy.study import files, parquet

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("quantity", _NAME), ("variant", _NAME), ("placement", _NAME), ("depth", pa.int32()), ("layer", pa.int32()),
        ("seed", pa.int32()), ("value", pa.float64()),
    ]
)  # fmt: skip
SORT = ["quantity", "variant", "depth", "layer", "seed"]
KEY = b"definition"


def definition(sizes: Sizes, needs: Sequence[Need]) -> str:
    """Return the sha256 of everything that a table's values depend on, except the machine."""
    shared = {k: v for k, v in dataclasses.asdict(sizes).items() if k in ("batch_size", "seq_len", "vocab_size")}
    needed = []
    for need in needs:
        models = [_model(dataclasses.asdict(model_config(need.variant, depth, sizes))) for depth in need.depths]
        needed.append([need.kind, need.variant.simplified, models, need.seeds])
    content = {"measurement": MEASUREMENT, "numerics": cfg.NUMERICS, **shared, "needs": needed}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _model(values: dict[str, object]) -> dict[str, object]:
    """Leave out fields added later that have the value implied before, so that old tables stay valid."""
    return {k: v for k, v in values.items() if k not in cfg.ABSENT or v != cfg.ABSENT[k]}


def path(out: Path, name: str) -> Path:
    """Return the path of a reproduction's table."""
    return out / "tables" / f"{name}.parquet"


def write(out: Path, name: str, rows: pd.DataFrame, key: str) -> None:
    """Write a table to a temporary file, then move the file into place. rows: SCHEMA's columns; key: the definition."""
    ordered = rows.sort_values(SORT, kind="stable", ignore_index=True)
    content = pa.table({f.name: pa.array(ordered[f.name], from_pandas=True).cast(f.type) for f in SCHEMA})
    made = {"python": platform.python_version(), "torch": version("torch"), "normstudy": version("normstudy")}
    content = content.replace_schema_metadata({KEY.decode(): key, **made})
    files.place_output(out, f"tables/{name}.parquet", parquet.encode_values(content))


def read(out: Path, name: str) -> pd.DataFrame:
    """Read a table, sorted, with names as plain text. layer is a float, NaN for a quantity that belongs to no layer."""
    frame: pd.DataFrame = parquet.read(path(out, name)).to_pandas()
    for column in ("quantity", "variant", "placement"):
        frame[column] = frame[column].astype(object).astype(str)
    return frame


def stored_definition(out: Path, name: str) -> str | None:
    """Return the stored table's definition, None if there is no readable table."""
    try:
        metadata = parquet.open_file(path(out, name)).schema_arrow.metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    key = metadata.get(KEY)
    return None if key is None else key.decode()

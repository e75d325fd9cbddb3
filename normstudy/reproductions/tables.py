"""Read and write the tables of the reproductions. results/reproductions/README.md describes their columns."""

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
from normstudy.errors import ConfigError
from normstudy.reproductions.entry import MEASUREMENT, Need, Sizes, model_config
from normstudy.study import files, parquet

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema([
    ("quantity", _NAME), ("variant", _NAME), ("placement", _NAME), ("depth", pa.int32()), ("layer", pa.int32()),
    ("seed", pa.int32()), ("value", pa.float64()),
])  # fmt: skip
SORT = ["quantity", "variant", "depth", "layer", "seed"]


def definition(sizes: Sizes, needs: Sequence[Need]) -> str:
    """Return the sha256 of everything that determines a table's values, apart from the machine."""
    shared = {name: getattr(sizes, name) for name in ("batch_size", "seq_len", "vocab_size")}
    needed = []
    for need in needs:
        models = [dataclasses.asdict(model_config(need.variant, depth, sizes)) for depth in need.depths]
        # Tables measured by older versions must stay valid. Leave out each setting that those versions
        # lacked if its value is the one in ABSENT, which gives the model of those versions.
        kept = [{k: v for k, v in m.items() if k not in cfg.ABSENT or v != cfg.ABSENT[k]} for m in models]
        needed.append([need.kind, need.variant.simplified, kept, need.seeds])
    content = {"measurement": MEASUREMENT, "numerics": cfg.NUMERICS, **shared, "needs": needed}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def path(out: Path, name: str) -> Path:
    return out / "tables" / f"{name}.parquet"


def write(out: Path, name: str, rows: pd.DataFrame, key: str) -> None:
    """Write a table atomically. rows: has the columns of SCHEMA. key: the table's `definition`."""
    ordered = rows.sort_values(SORT, kind="stable", ignore_index=True)
    content = pa.Table.from_pandas(ordered, SCHEMA, preserve_index=False)
    made = {"python": platform.python_version(), "torch": version("torch"), "normstudy": version("normstudy")}
    content = content.replace_schema_metadata({"definition": key, **made})
    files.place_output(out, f"tables/{name}.parquet", parquet.encode_values(content))


def read(out: Path, name: str) -> pd.DataFrame:
    """Read a table: text as str, null as NaN. Raises ConfigError if the table is damaged or has other columns."""
    try:
        content = parquet.read(path(out, name))
        if not content.schema.equals(SCHEMA):
            raise pa.ArrowInvalid(f"its columns are {', '.join(content.schema.names)}")
        frame: pd.DataFrame = content.to_pandas()
    except Exception as error:
        if not files.is_damage(error):
            raise
        told = f"{path(out, name)} cannot be read ({files.damage(error)})"
        raise ConfigError(f"{told}: remove the file, and run normstudy reproduce again") from None
    return frame.astype(dict.fromkeys(("quantity", "variant", "placement"), str))


def stored_definition(out: Path, name: str) -> str | None:
    """Return the definition of a stored table, or None if no table can be read."""
    try:
        metadata: dict[bytes, bytes] = parquet.open_file(path(out, name)).schema_arrow.metadata or {}
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return None
    return metadata.get(b"definition", b"").decode(errors="replace")

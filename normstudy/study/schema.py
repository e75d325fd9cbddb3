"""Define the schemas of a study's four tables, the names of their files, and the range of steps in each file."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from normstudy import config as cfg
from normstudy.config import RunConfig

SERIES = ("steps", "modules", "residual")
TABLES = ("runs", *SERIES)
Rows = Mapping[str, Mapping[str, Sequence[object]]]  # one window's rows: rows[table][column], without the column run_id
SCHEMA_FILE = "0-schema.parquet"
COMPACTED_FILE = "1-compacted.parquet"
SEALED = "SEALED"
WATCH = "watch"  # the column `source` of a run that normstudy.watch recorded (a watched run); null for other runs
WATCHED_WINDOW = 1000  # number of steps in a window of a watched run
UNFILLED = {"batch_size", "seq_len"}  # columns that are null for a watched run, whatever its config says
MODULES = (
    "embed", "pos", "embed_norm", "attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2", "norm1_out",
    "norm2_out", "norm1_inner", "norm2_inner", "qkv_norm", "scale", "own", "final_norm", "unembed",
)  # fmt: skip

_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
_TIME = pa.timestamp("us", tz="UTC")
NAME_TYPE = pa.dictionary(pa.int32(), pa.string())
FLOAT_TYPE = pa.float32()
_KEYS = {"run_id": NAME_TYPE, "step": pa.int32(), "layer": pa.int32(), "module": NAME_TYPE}
_RUNS = [
    ("run_id", pa.string()), ("status", pa.string()),
    *((column, _ARROW[kind]) for column, kind in cfg.asked_types().items()),
    ("resolved_init", pa.string()), ("resolved_d_ff", pa.int64()), ("resolved_final_norm", pa.bool_()),
    ("resolved_norm", pa.string()), ("resolved_qk_norm", pa.string()), ("resolved_embed_std", pa.float64()),
    ("placement_sha256", pa.string()), ("norm_sha256", pa.string()), ("resolved_vocab_size", pa.int64()),
    ("n_params", pa.int64()), ("data_sha256", pa.string()), ("bytes_per_token", pa.float64()),
    ("ln_vocab", pa.float64()), ("unigram_entropy", pa.float64()), ("bigram_entropy", pa.float64()),
    ("source_entropy", pa.float64()), ("late_val_loss", pa.float64()),
    ("final_val_loss", pa.float64()), ("final_train_loss", pa.float64()), ("nonfinite_step", pa.int64()),
    ("identity_version", pa.int64()), ("numerics", pa.int64()),
    ("wall_time_s", pa.float64()), ("started_at", _TIME), ("finished_at", _TIME), ("git_commit", pa.string()),
    ("python", pa.string()), ("torch", pa.string()), ("cpu_capability", pa.string()), ("blas", pa.string()),
    ("device", pa.string()), ("source", pa.string()), ("config", pa.string()),
]  # fmt: skip


def _series_schema(*columns: str) -> pa.Schema:
    return pa.schema([(name, _KEYS.get(name, FLOAT_TYPE)) for name in ("run_id", "step", *columns)])


_NORMS = ("grad_norm", "param_norm", "update_norm")
SCHEMAS: dict[str, pa.Schema] = {
    "runs": pa.schema(_RUNS),
    "steps": _series_schema("train_loss", "val_loss", "lr", *_NORMS, "clip_factor"),
    "modules": _series_schema("layer", "module", *_NORMS),
    "residual": _series_schema("layer", "rms", "grad_norm"),
}
RECORDED = {  # table -> the columns that training records; only watched runs have a clip_factor
    t: [f.name for f in SCHEMAS[t] if f.name not in ("run_id", "clip_factor")] for t in SERIES
}
KEYS = {t: pa.schema([f for f in s if f.name in ("run_id", "step")]) for t, s in SCHEMAS.items()}
SORT = {"runs": ["run_id"], **{t: [f.name for f in SCHEMAS[t] if f.type != FLOAT_TYPE] for t in SERIES}}


def plain_schema(table: str) -> pa.Schema:
    """Return a table's schema with text columns in place of dictionary columns."""
    return pa.schema([(f.name, pa.string() if f.type == NAME_TYPE else f.type) for f in SCHEMAS[table]])


def window_size(n_steps: int, source: object = None) -> int:
    """Return the number of steps in a window (the range of steps in one file) of a run with `n_steps` steps."""
    if source == WATCH:  # the length of a watched training loop is unknown until the loop ends
        return WATCHED_WINDOW
    return max(200, math.ceil(n_steps / 10))


def window_name(run_id: str, window: int) -> str:
    """Return the name of the file that holds one window of a run. window: the window's index, from 0."""
    return f"{run_id}-{window:03d}.parquet"


def config_columns(config: RunConfig) -> dict[str, object]:
    """Return the columns of `runs` known before training: config keys, resolved values, code hashes and versions."""
    resolved = {f"resolved_{name}": value for name, value in dataclasses.asdict(cfg.resolve(config.model)).items()}
    versions = {"identity_version": cfg.IDENTITY_VERSION, "numerics": cfg.NUMERICS}
    return cfg.asked(config) | resolved | cfg.own_sources(config.model) | versions


_RUN_ID = r"[^\s./][^\s/]*-[0-9a-f]{10}"
_OWN_ROW = re.compile(rf"{_RUN_ID}\.parquet")
_OWN_WINDOW = re.compile(rf"{_RUN_ID}-([0-9]{{3}}|[1-9][0-9]{{3,}})\.parquet")


def is_stored(table: str, file_name: str) -> bool:
    """Whether a file in a table's folder has a name that normstudy writes, unlike `._a.parquet` or `a (1).parquet`."""
    own = _OWN_ROW if table == "runs" else _OWN_WINDOW
    return file_name in (SCHEMA_FILE, COMPACTED_FILE) or own.fullmatch(file_name) is not None


def run_of(table: str, file_name: str) -> str:
    """Return the run_id in the name of a file that holds one run's rows."""
    stem = file_name.removesuffix(".parquet")
    return stem if table == "runs" else stem.rpartition("-")[0]

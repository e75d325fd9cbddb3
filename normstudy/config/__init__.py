"""A run's configuration, the checks of its values, and the identity that its run_id hashes."""

# ruff: noqa: I001  # imports several names per line
# fmt: off
from normstudy.config.checks import INT_MAX, one_of
from normstudy.config.execution import CLUSTER_NAMES, DEVICE_NAMES, ExecutionConfig
from normstudy.config.identity import (
    ABSENT, CONF_GROUPS, EVAL_CHUNK, IDENTITY_VERSION, NOT_IDENTITY, NUMERICS, PREFIXED, TEXT_COLUMNS,
    asked, asked_types, digest, identity_of, own_sources, run_id, short_float,
)
from normstudy.config.schema import (
    ACTIVATION_NAMES, BPE_VOCAB, DATA_NAMES, EMBED_INIT_NAMES, FIRST_BLOCK_NAMES, GATED, INIT_NAMES, NORM_NAMES,
    OPTIMIZER_NAMES, PLACEMENT_NAMES, POSITION_NAMES, QK_NORM_NAMES, SCHEDULE_NAMES, TOKENIZER_NAMES, VOCAB_MAX,
    DataConfig, EvalConfig, ModelConfig, OptimizerConfig, ProbeConfig, Resolved, RunConfig, ScheduleConfig,
    resolve, row_of,
)
from normstudy.errors import ConfigError

__all__ = [
    "ABSENT", "ACTIVATION_NAMES", "BPE_VOCAB", "CLUSTER_NAMES", "CONF_GROUPS", "DATA_NAMES", "DEVICE_NAMES",
    "EMBED_INIT_NAMES", "EVAL_CHUNK", "FIRST_BLOCK_NAMES", "GATED", "IDENTITY_VERSION", "INIT_NAMES", "INT_MAX",
    "NORM_NAMES", "NOT_IDENTITY", "NUMERICS", "OPTIMIZER_NAMES", "PLACEMENT_NAMES", "POSITION_NAMES", "PREFIXED",
    "QK_NORM_NAMES", "SCHEDULE_NAMES", "TEXT_COLUMNS", "TOKENIZER_NAMES", "VOCAB_MAX", "ConfigError", "DataConfig",
    "EvalConfig", "ExecutionConfig", "ModelConfig", "OptimizerConfig", "ProbeConfig", "Resolved", "RunConfig",
    "ScheduleConfig", "asked", "asked_types", "digest", "identity_of", "one_of", "own_sources", "resolve", "row_of",
    "run_id", "short_float",
]

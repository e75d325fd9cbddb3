"""Define a run's configuration, check its values, and compute its identity and its run_id."""

# mypy: implicit-reexport
# ruff: noqa: F401, I001
# fmt: off
from normstudy.config.checks import INT_MAX, finite, one_of
from normstudy.config.execution import CLUSTER_NAMES, DEVICE_NAMES, ExecutionConfig
from normstudy.config.identity import (
    ABSENT, CONF_GROUPS, EVAL_CHUNK, IDENTITY_VERSION, NOT_IDENTITY, NUMERICS, PREFIXED, TEXT_COLUMNS,
    asked, asked_types, digest, dotted_keys, identity_of, leaves, own_sources, run_id, short_float,
)
from normstudy.config.schema import (
    ACTIVATION_NAMES, BPE_VOCAB, DATA_NAMES, DECAY_NAMES, EMBED_INIT_NAMES, FIRST_BLOCK_NAMES, GATED, INIT_NAMES,
    NORM_NAMES, OPTIMIZER_NAMES, PLACEMENT_NAMES, POSITION_NAMES, QK_NORM_NAMES, SCHEDULE_NAMES, TOKENIZER_NAMES,
    VOCAB_MAX, DataConfig, EvalConfig, ModelConfig, OptimizerConfig, ProbeConfig, Resolved, RunConfig, ScheduleConfig,
    late_step, resolve, row_of,
)
from normstudy.errors import ConfigError

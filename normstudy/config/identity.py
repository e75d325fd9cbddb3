"""Compute a run's config columns in the table `runs`, its identity, and its run_id.

The identity consists of all config values, hashes and versions that decide a run's results. The run_id ends with a hash
of the identity.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Mapping
from types import MappingProxyType

from normstudy.config.schema import BPE_VOCAB, ModelConfig, RunConfig, resolve
from normstudy.config.sources import is_own, source_sha256

IDENTITY_VERSION = 1  # increase when the computation of run ids changes
NUMERICS = 4  # increase when a code change alters the bits of results (tests/test_golden.py detects such changes)
EVAL_CHUNK = 16  # validation windows per forward pass, few enough to limit the memory that a batch needs

# Fields added after version 0.1. A field that has the value listed here is left out of the identity, so that older
# run ids stay valid. Never change a listed value, even if the field's default changes.
ABSENT: dict[str, object] = {
    "qk_norm": "none", "force_init": False, "embed_init": "unit", "embed_std": None, "unembed_std": None,
    "embed_norm": False, "first_block": "same", "activation": "gelu", "positions": "learned", "biases": True,
    "tied": False, "placement_sha256": None, "norm_sha256": None,
    "tokenizer": "byte", "vocab_size": None, "norm_eps": 1e-5, "rope_base": 1e4, "decay": "all",
}  # fmt: skip
# Columns that the identity leaves out, because they do not change what a run computes.
NOT_IDENTITY = ("study", "data_path", "force_init")

# Columns that identify the text that a run reads. Losses on different texts cannot be compared.
TEXT_COLUMNS = ("data", "source_seed", "tokenizer", "vocab_size", "data_sha256")
GROUPS = ("model", "data", "optimizer", "schedule")  # config sections; the field schedule.peak_lr is the column peak_lr
PREFIXED = ("probe", "eval")  # config sections; the field probe.every is the column probe_every
CONF_GROUPS = (*GROUPS, "execution")  # folders in conf/; a command line may choose one file from each


def _column(section: str, leaf: str) -> str:
    if section in PREFIXED:
        return f"{section}_{leaf}"
    return {"name": section, "path": "data_path"}.get(leaf, leaf)


@functools.cache
def _leaves() -> tuple[tuple[str, str, str, type], ...]:
    """Return (column, section, field, type) for each field of a config section, in column order.

    The type leaves out None: it is int for a field declared as `int | None`.
    """
    sections = typing.get_type_hints(RunConfig)
    return tuple(
        (_column(section, leaf), section, leaf, (typing.get_args(hint) or (hint,))[0])
        for section in (*GROUPS, *PREFIXED)
        for leaf, hint in typing.get_type_hints(sections[section]).items()
    )


@functools.cache
def asked_types() -> Mapping[str, type]:
    """Return column -> type for each config column of the table `runs`, in order. The type of `int | None` is int."""
    out: dict[str, type] = {"study": str, "seed": int, "data_seed": int}
    return MappingProxyType(out | {column: kind for column, _, _, kind in _leaves()})


@functools.cache
def dotted_keys() -> Mapping[str, str]:
    """Return column -> key for each config column of the table `runs`, in order: peak_lr -> schedule.peak_lr."""
    top = {column: column for column in ("study", "seed", "data_seed")}
    return MappingProxyType(top | {column: f"{section}.{leaf}" for column, section, leaf, _ in _leaves()})


def asked(config: RunConfig) -> dict[str, object]:
    """Return column -> configured value, which may be `auto` or null, for each config column of the table `runs`."""
    out: dict[str, object] = {"study": config.study, "seed": config.seed, "data_seed": config.data_seed}
    return out | {column: getattr(getattr(config, section), leaf) for column, section, leaf, _ in _leaves()}


def own_sources(model: ModelConfig) -> dict[str, str | None]:
    """Return the source hashes of the placement and of the norm. The hash of a built-in placement or norm is None.

    The first call stores the hashes in `model`. A worker process that receives `model` therefore uses the hashes with
    which the sweep was planned.
    """
    kept: dict[str, str | None] | None = getattr(model, "_own_sources", None)
    if kept is None:
        kept = {
            "placement_sha256": source_sha256(model.placement) if is_own(model.placement) else None,
            "norm_sha256": source_sha256(model.norm) if is_own(model.norm) else None,
        }
        object.__setattr__(model, "_own_sources", kept)
    return kept


def identity(config: RunConfig, data_sha256: str) -> dict[str, object]:
    """Return the values whose hash ends the run_id: versions, all resolved config values, and the text's sha256."""
    values = asked(config) | dataclasses.asdict(resolve(config.model)) | own_sources(config.model)
    versions = {"identity_version": IDENTITY_VERSION, "numerics": NUMERICS, "data_sha256": data_sha256}
    return identity_of(values, versions)


def identity_of(values: Mapping[str, object], versions: Mapping[str, object]) -> dict[str, object]:
    """Compute an identity from columns of the table `runs`.

    values: the config columns and the columns of `own_sources`. A key that may be `auto` must have its final value.
    versions: identity_version, numerics and data_sha256.
    """
    out = {k: v for k, v in values.items() if k not in NOT_IDENTITY}
    if out["tokenizer"] == "bpe":
        out["vocab_size"] = out["vocab_size"] or BPE_VOCAB
    kinds = asked_types()
    for column, value in out.items():
        if kinds.get(column) is float and value is not None:
            out[column] = float(value)  # type: ignore[arg-type]  # so that 1 and 1.0 have the same hash
    return {**versions, **{k: v for k, v in out.items() if k not in ABSENT or v != ABSENT[k]}}


def digest(identity: Mapping[str, object]) -> str:
    """Return the ten hex digits at the end of a run_id."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


def run_id(config: RunConfig, data_sha256: str) -> str:
    """Return the run_id, a readable part and the identity's digest, as in post-L6-lr3e-3-wu100-s0-0123456789."""
    m, s = config.model, config.schedule
    digits = digest(identity(config, data_sha256))
    placement, rate = m.placement.rpartition(":")[2], short_float(s.peak_lr)
    return f"{placement}-L{m.n_layers}-lr{rate}-wu{s.warmup_steps}-s{config.seed}-{digits}"


def short_float(value: float) -> str:
    """Return the shortest scientific notation that parses to the same float, such as 3e-3 or 1.25e-4."""
    for digits in range(18):
        text = f"{value:.{digits}e}"
        if float(text) == value:
            mantissa, exponent = text.split("e")
            return f"{mantissa}e{int(exponent)}"
    raise AssertionError(value)

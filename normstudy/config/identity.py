"""Compute a run's config columns in the table `runs`, its identity (all that decides its results), and its run_id."""

import dataclasses
import functools
import hashlib
import json
import operator
import types
import typing
from collections.abc import Mapping

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
PREFIXED = ("probe", "eval")  # config sections; the field probe.every is the column probe_every
CONF_GROUPS = ("model", "data", "optimizer", "schedule", "execution")  # folders in conf/, of which one file is chosen


@functools.cache
def leaves() -> Mapping[str, type]:
    """Return dotted key -> type for each key of the configuration except sections. The type of `int | None` is int."""
    found: dict[str, type] = {}
    for top, kind in typing.get_type_hints(RunConfig).items():
        inner = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {"": kind}
        for leaf, hint in inner.items():
            value = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
            found[f"{top}.{leaf}".rstrip(".")] = value
    return types.MappingProxyType(found)


def _column(key: str) -> str:
    section, _, leaf = key.rpartition(".")
    if section in PREFIXED:
        return f"{section}_{leaf}"
    return {"name": section, "path": "data_path"}.get(leaf, leaf)


@functools.cache
def dotted_keys() -> Mapping[str, str]:
    """Return column -> key, as in peak_lr -> schedule.peak_lr, for each config column of the table `runs`, in order."""
    keys = [key for key in leaves() if key.partition(".")[0] not in ("results_dir", "execution", "search")]
    return types.MappingProxyType({_column(key): key for key in keys})


@functools.cache
def asked_types() -> Mapping[str, type]:
    """Return column -> type for each config column of the table `runs`, in order. The type of `int | None` is int."""
    return types.MappingProxyType({column: leaves()[key] for column, key in dotted_keys().items()})


def asked(config: RunConfig) -> dict[str, object]:
    """Return column -> configured value, which may be `auto` or null, for each config column of the table `runs`."""
    return {column: operator.attrgetter(key)(config) for column, key in dotted_keys().items()}


def own_sources(model: ModelConfig) -> dict[str, str | None]:
    """Return the source hashes of the placement and of the norm, which are None for built-in ones.

    The first call stores them in `model`: even if a file changes, worker processes use the hashes of the sweep's plan.
    """
    kept: dict[str, str | None] | None = getattr(model, "_own_sources", None)
    if kept is None:
        named = {"placement_sha256": model.placement, "norm_sha256": model.norm}
        kept = {column: source_sha256(name) if is_own(name) else None for column, name in named.items()}
        object.__setattr__(model, "_own_sources", kept)
    return kept


def identity(config: RunConfig, data_sha256: str) -> dict[str, object]:
    """Return what the digest in a run_id is computed from: versions, resolved config values, and the text's sha256."""
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
    for column, value in out.items():
        if asked_types().get(column) is float and value is not None:
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

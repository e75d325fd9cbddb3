"""A run's columns in the `runs` table, its identity, and the run_id that hashes the identity."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from types import MappingProxyType

from normstudy.config.schema import BPE_VOCAB, ModelConfig, RunConfig, resolve
from normstudy.config.sources import is_own, source_sha256

IDENTITY_VERSION = 1  # raised when the way a run_id is computed changes
NUMERICS = 4  # raised when a change makes the same config give other bits (tests/test_golden.py guards it)
EVAL_CHUNK = 16  # validation windows per forward pass: bounds the memory of a batch of runs

# Fields added after version 0.1. A field that equals its value here is left out of the identity, so that older
# run ids stay valid. The values are frozen: they never follow a later change of a default.
ABSENT: dict[str, object] = {
    "qk_norm": "none", "force_init": False, "embed_init": "unit", "embed_std": None, "unembed_std": None,
    "embed_norm": False, "first_block": "same", "activation": "gelu", "positions": "learned", "biases": True,
    "tied": False, "placement_sha256": None, "norm_sha256": None,
    "tokenizer": "byte", "vocab_size": None,
}  # fmt: skip
NOT_IDENTITY = (
    "study",
    "data_path",
    "force_init",
)  # where the run and its text lie, and a permission: none changes the run

# Runs that differ in one of these columns read different texts, so their losses cannot be compared.
TEXT_COLUMNS = ("data", "source_seed", "tokenizer", "vocab_size", "data_sha256")
GROUPS = ("model", "data", "optimizer", "schedule")  # sections whose columns are named after the field alone
PREFIXED = ("probe", "eval")  # sections whose columns begin with the section: probe_every, eval_every
CONF_GROUPS = (*GROUPS, "execution")  # folders of conf/ that a command line chooses from


# ---- columns ------------------------------------------------------------------------------------------


def _column(section: str, leaf: str) -> str:
    if section in PREFIXED:
        return f"{section}_{leaf}"
    return {"name": section, "path": "data_path"}.get(leaf, leaf)


@functools.cache
def _leaves() -> tuple[tuple[str, str, str], ...]:
    """(column, section, field) of every field inside a section, in the order of the columns."""
    top = typing.get_type_hints(RunConfig)
    return tuple(
        (_column(section, f.name), section, f.name)
        for section in (*GROUPS, *PREFIXED)
        for f in dataclasses.fields(top[section])
    )


@functools.cache
def asked_types() -> Mapping[str, type]:
    """Column -> int, float, str or bool, for every config column of the `runs` table, in order.

    execution and results_dir are no part of a run and have no column. A nullable field has the type of its other
    values.
    """
    top = typing.get_type_hints(RunConfig)
    hints = {section: typing.get_type_hints(top[section]) for section in (*GROUPS, *PREFIXED)}
    out: dict[str, type] = {"study": str, "seed": int, "data_seed": int}
    for column, section, leaf in _leaves():
        hint = hints[section][leaf]
        kinds = [t for t in (typing.get_args(hint) or (hint,)) if t is not type(None)]
        if column in out:
            raise AssertionError(f"two config fields share the column {column}")
        out[column] = kinds[0]
    return MappingProxyType(out)


def asked(config: RunConfig) -> dict[str, object]:
    """Column -> value as the user asked for it, `auto` and null included, for every config column of `runs`."""
    out: dict[str, object] = {"study": config.study, "seed": config.seed, "data_seed": config.data_seed}
    return out | {column: getattr(getattr(config, section), leaf) for column, section, leaf in _leaves()}


# ---- identity -----------------------------------------------------------------------------------------


def own_sources(model: ModelConfig) -> dict[str, str | None]:
    """sha256 of the source of the user's own placement and norm; None for shipped ones.

    The planner reads the files once and keeps the hashes in the config, which it sends to the training process.
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
    """Everything that the run_id hashes: the versions, every resolved value, the text's sha256."""
    values = asked(config) | dataclasses.asdict(resolve(config.model)) | own_sources(config.model)
    versions = {"identity_version": IDENTITY_VERSION, "numerics": NUMERICS, "data_sha256": data_sha256}
    return identity_of(values, versions)


def identity_of(values: Mapping[str, object], versions: Mapping[str, object]) -> dict[str, object]:
    """Compute an identity from columns of `runs`.

    values: the columns of `asked` and `own_sources`, with the fields of Resolved replacing the asked values.
    versions: identity_version, numerics, data_sha256.
    """
    out = {k: v for k, v in values.items() if k not in NOT_IDENTITY}
    if out["tokenizer"] == "bpe":
        out["vocab_size"] = out["vocab_size"] or BPE_VOCAB
    kinds = asked_types()
    for column, value in out.items():
        if kinds.get(column) is float and value is not None:
            out[column] = float(value)  # type: ignore[arg-type]  # 1 and 1.0 are the same rate
    return {**versions, **{k: v for k, v in out.items() if k not in ABSENT or v != ABSENT[k]}}


def digest(identity: Mapping[str, object]) -> str:
    """The ten hex digits that end a run_id."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


def run_id(config: RunConfig, data_sha256: str) -> str:
    """A readable part and the identity's digest: post-L6-lr3e-3-wu100-s0-0123456789."""
    m, s = config.model, config.schedule
    digits = digest(identity(config, data_sha256))
    rate = re.sub(r"e([+-])0*(\d)", lambda k: "e" + k[1].replace("+", "") + k[2], short_float(s.peak_lr))
    return f"{m.placement.rpartition(':')[2]}-L{m.n_layers}-lr{rate}-wu{s.warmup_steps}-s{config.seed}-{digits}"


def short_float(value: float) -> str:
    """The shortest scientific notation that parses to the same float: 3e-03, 1.25e-04."""
    for digits in range(18):
        text = f"{value:.{digits}e}"
        if float(text) == value:
            return text
    raise AssertionError(value)

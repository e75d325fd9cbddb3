"""What makes a run: its columns in the `runs` table, the fields that its identity hashes, and its run_id."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from types import MappingProxyType

from normstudy.config import sources
from normstudy.config.schema import BPE_VOCAB, ModelConfig, RunConfig, resolve
from normstudy.config.sources import is_own

EVAL_CHUNK = 16  # validation windows in one forward pass: bounds the memory of a batch of runs
IDENTITY_VERSION = 1  # raised when the way a run_id is computed changes
NUMERICS = 4  # raised when a change makes the same config give other bits (tests/test_golden.py guards it)

# Fields added after version 0.1: a field that equals its value here is left out of the identity, so that
# older run ids stay valid. A value here is frozen: it never follows a later change of the default.
ABSENT: dict[str, object] = {
    "qk_norm": "none", "force_init": False, "embed_init": "unit", "embed_std": None, "unembed_std": None,
    "embed_norm": False, "first_block": "same", "activation": "gelu", "positions": "learned", "biases": True,
    "tied": False, "placement_sha256": None, "norm_sha256": None,
    "tokenizer": "byte", "vocab_size": None,
}  # fmt: skip

# Columns that stand for another text, whose losses do not compare.
TEXT_COLUMNS = ("data", "source_seed", "tokenizer", "vocab_size", "data_sha256")
GROUPS = ("model", "data", "optimizer", "schedule")  # their leaves give columns by their own name
CONF_GROUPS = (*GROUPS, "execution")  # folders of conf/ that a command line chooses from
PREFIXED = ("probe", "eval")  # their leaves are prefixed: probe_every, eval_every


def _section_columns(section: str, cls: type) -> dict[str, str]:
    columns = {}
    for f in dataclasses.fields(cls):
        if section in PREFIXED:
            columns[f"{section}_{f.name}"] = f.name
        elif f.name == "name":
            columns[section] = f.name
        elif (section, f.name) == ("data", "path"):
            columns["data_path"] = f.name
        else:
            columns[f.name] = f.name
    return columns


@functools.cache
def _leaves() -> tuple[tuple[str, str, str], ...]:
    """(column, section, leaf) of every config column but those at the top, in order."""
    top = typing.get_type_hints(RunConfig)
    sections = (*GROUPS, *PREFIXED)
    return tuple((c, s, leaf) for s in sections for c, leaf in _section_columns(s, top[s]).items())


@functools.cache
def asked_types() -> Mapping[str, type]:
    """Column -> int, float, str or bool, for every config column of the `runs` table, in order.

    execution and results_dir are not among them: they are not part of a run. A field that may be null has
    the type of its other values.
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
    """Column -> value as asked, for every config column of the `runs` table."""
    out: dict[str, object] = {"study": config.study, "seed": config.seed, "data_seed": config.data_seed}
    for column, section, leaf in _leaves():
        out[column] = getattr(getattr(config, section), leaf)
    return out


def own_sources(model: ModelConfig) -> dict[str, str | None]:
    """sha256 of the source of a placement and of a norm that are the user's own, else None.

    Taken once, when the run is planned, and kept in the config, which goes to the process that trains the run.
    """
    kept: dict[str, str | None] | None = getattr(model, "_own_sources", None)
    if kept is None:
        kept = {
            "placement_sha256": sources.source_sha256(model.placement) if is_own(model.placement) else None,
            "norm_sha256": sources.source_sha256(model.norm) if is_own(model.norm) else None,
        }
        object.__setattr__(model, "_own_sources", kept)
    return kept


NOT_IDENTITY = ("study", "data_path", "force_init")  # they name where a run lies, and permit one: not what it is


def identity(config: RunConfig, data_sha256: str) -> dict[str, object]:
    """Everything the run_id hashes: the versions, every resolved value, the text."""
    values = asked(config) | dataclasses.asdict(resolve(config.model)) | own_sources(config.model)
    versions = {"identity_version": IDENTITY_VERSION, "numerics": NUMERICS, "data_sha256": data_sha256}
    return identity_of(values, versions)


def identity_of(values: Mapping[str, object], versions: Mapping[str, object]) -> dict[str, object]:
    """The same from columns of `runs`.

    values: the asked columns and the sources of own parts, and over them the resolved ones under the names of
    Resolved; versions: identity_version, numerics, data_sha256.
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
    """Readable part and ten hex digits of the identity's sha256: post-L6-lr3e-3-wu100-s0-0123456789."""
    m, s = config.model, config.schedule
    digits = digest(identity(config, data_sha256))
    rate = re.sub(r"e([+-])0*(\d)", lambda k: "e" + k[1].replace("+", "") + k[2], short_float(s.peak_lr))
    return f"{m.placement.rpartition(':')[2]}-L{m.n_layers}-lr{rate}-wu{s.warmup_steps}-s{config.seed}-{digits}"


def short_float(value: float) -> str:
    """The shortest scientific form that gives the same float back: 3e-03, 1.25e-04."""
    for digits in range(18):
        text = f"{value:.{digits}e}"
        if float(text) == value:
            return text
    raise AssertionError(value)

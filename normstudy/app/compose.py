"""Find the shipped YAML files, register the schema of their keys, and convert composed configurations to RunConfigs."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from normstudy.config import RunConfig
from normstudy.errors import ConfigError
from normstudy.study import paths

SCHEMA = OmegaConf.structured(RunConfig)
OmegaConf.set_struct(SCHEMA.execution.sbatch, False)  # accept every option of sbatch as a key
ConfigStore.instance().store(name="normstudy_schema", node=SCHEMA, provider="normstudy")


@functools.cache
def leaves() -> dict[str, type]:
    """Return the type of each dotted key that has a value. The type leaves out None: it is int for `int | None`."""
    found: dict[str, type] = {}
    for top, kind in typing.get_type_hints(RunConfig).items():
        inner = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {"": kind}
        for leaf, hint in inner.items():
            value = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
            found[f"{top}.{leaf}".rstrip(".")] = value
    return found


def conf_dir() -> Path:
    """Return the folder of the shipped YAML files: inside the package (if installed from a wheel) or beside it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"conf/config.yaml is neither in {package} nor beside it: install normstudy again")


def check_is_run(kind: type | None) -> None:
    """Raise a ConfigError if a composed configuration of this type lacks normstudy's schema."""
    if kind is not RunConfig:
        raise ConfigError("this config describes no run: begin its defaults list with normstudy_schema or config")


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Convert the composed configuration to a validated RunConfig."""
    check_is_run(OmegaConf.get_type(cfg))
    config: RunConfig = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    paths.check_study(config.results_dir, config.study)
    return config

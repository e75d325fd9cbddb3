"""Find the shipped YAML files, register the schema of their keys, and convert composed configurations to RunConfigs."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from normstudy.config import RunConfig
from normstudy.errors import ConfigError
from normstudy.study import paths

SCHEMA = OmegaConf.structured(RunConfig)
OmegaConf.set_struct(SCHEMA.execution.sbatch, False)  # accept every option of sbatch as a key
ConfigStore.instance().store(name="normstudy_schema", node=SCHEMA, provider="normstudy")


def conf_dir() -> Path:
    """Return the folder of the shipped YAML files: inside the package (if installed from a wheel) or beside it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"conf/config.yaml is neither in {package} nor beside it: install normstudy again")


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Convert the composed configuration to a validated RunConfig."""
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, RunConfig):
        raise ConfigError("this config describes no run: begin its defaults list with normstudy_schema or config")
    paths.check_study(config.results_dir, config.study)
    return config

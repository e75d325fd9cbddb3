"""Find the shipped YAML files, register the schema of their keys, and convert composed configurations to RunConfigs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from normstudy.config import RunConfig, places
from normstudy.errors import ConfigError
from normstudy.study import paths

MOST_NODES = 100_000  # values that a configuration file may have, counting those that its aliases repeat
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


@contextlib.contextmanager
def checked_files() -> Iterator[None]:
    """Refuse YAML files that Hydra would not finish reading, before it reads them."""
    load = ConfigRepository.load_config

    def checked(repository: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = repository._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            text = places.read(path := Path(source.path, source._normalize_file_name(config_path)))
            if b"&" in text and _size(yaml.compose(text, yaml.SafeLoader), {}) > MOST_NODES:
                raise ConfigError(f"{path} repeats itself by its aliases, to more than {MOST_NODES} values: shorten it")
        return load(repository, config_path)

    setattr(ConfigRepository, "load_config", checked)  # noqa: B010  # mypy forbids a plain assignment
    try:
        yield
    finally:
        setattr(ConfigRepository, "load_config", load)  # noqa: B010


def _size(node: object, sizes: dict[int, int]) -> int:
    """Count the YAML nodes in `node` and the nodes that its aliases stand for. A node in itself has too many."""
    if isinstance(node, tuple | list):
        return sum(_size(one, sizes) for one in node)
    if id(node) not in sizes:
        sizes[id(node)] = MOST_NODES  # until it is counted
        sizes[id(node)] = 1 + (_size(node.value, sizes) if isinstance(node, yaml.CollectionNode) else 0)
    return sizes[id(node)]


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Convert the composed configuration to a validated RunConfig."""
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, RunConfig):
        raise ConfigError("this config describes no run: begin its defaults list with normstudy_schema or config")
    paths.check_study(config.results_dir, config.study)
    return config

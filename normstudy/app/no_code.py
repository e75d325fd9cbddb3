"""No code comes from a configuration: whatever Hydra itself would import and call, named in a file, is refused.

A user's own code has one door, model.placement and model.norm. Launchers and sweepers are installed plugins, which
Hydra takes from its hydra_plugins package alone.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from normstudy.errors import ConfigError

PLUGIN = re.compile(r"(hydra_plugins|hydra\._internal\.core_plugins)\.[\w.]+")
LOGGING_CLASS = re.compile(r"(logging|logging\.handlers|colorlog)\.[A-Z]\w+")
LOGGING_CALLS = ("()", "class", "factory", "listener", "queue")  # keys by which logging.config imports what it calls
LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"  # of Hydra's own job_logging: by then it begins with /
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """Have each configuration looked at when it is composed: Hydra calls what it names before any code of ours."""
    compose = ConfigLoaderImpl.load_configuration

    @functools.wraps(compose)
    def looked_at(*args: object, **kwargs: object) -> DictConfig:
        config: DictConfig = compose(*args, **kwargs)  # type: ignore[arg-type]
        check(config)
        return config

    setattr(ConfigLoaderImpl, "load_configuration", looked_at)  # noqa: B010  # mypy has no word for it
    try:
        yield
    finally:
        setattr(ConfigLoaderImpl, "load_configuration", compose)  # noqa: B010


def check(config: DictConfig) -> None:
    """Raise a ConfigError where `hydra` in a composed configuration names code."""
    if callbacks := config.hydra.callbacks:
        raise ConfigError(f"hydra.callbacks.{next(iter(callbacks))} names code, and normstudy runs none: leave it out")
    for part in ("launcher", "sweeper"):
        target = str((config.hydra[part] or {}).get("_target_"))
        if not PLUGIN.fullmatch(target):
            raise ConfigError(f"hydra.{part}._target_ {target!r} is no plugin of Hydra: choose hydra/{part}=NAME")
    for part in ("hydra_logging", "job_logging"):
        named = OmegaConf.to_container(config.hydra[part], resolve=False) if config.hydra[part] else {}
        for key, value in _leaves(named):
            if part == "job_logging" and value == LOG_FILE and key not in LOGGING_CALLS:
                continue
            if not (LOGGING_CLASS.fullmatch(value) if key in LOGGING_CALLS else value in STREAMS):
                raise ConfigError(f"hydra.{part} names code, {value}: leave hydra/{part}=none")


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of what logging.config would import, anywhere below; interpolations as they are written."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(one, str(name))
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one, key)
    else:
        text = str(value)
        if key in LOGGING_CALLS or "ext://" in text or "${" in text:
            yield key, text

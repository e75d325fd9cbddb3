"""Refuse configurations that name code which Hydra would import and call.

Only model.placement and model.norm may name a user's code. Launchers and sweepers must be installed Hydra plugins.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from normstudy.errors import ConfigError

PLUGIN = re.compile(r"(hydra_plugins|hydra\._internal\.core_plugins)\.[\w.]+")
LOGGING_CLASS = re.compile(r"(logging|logging\.handlers|colorlog)\.[A-Z]\w+")
LOGGING_CALLS = ("()", "class", "factory", "listener", "queue")  # keys whose values logging.config imports and calls
LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"  # Hydra's own interpolation; it yields only a path
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


@contextlib.contextmanager
def forbidden() -> Iterator[None]:
    """Check each configuration that Hydra composes, before Hydra calls any code that the configuration names."""
    compose = ConfigLoaderImpl.load_configuration

    def checked(*args: object, **kwargs: object) -> DictConfig:
        config: DictConfig = compose(*args, **kwargs)  # type: ignore[arg-type]
        check(config)
        return config

    setattr(ConfigLoaderImpl, "load_configuration", checked)  # noqa: B010  # mypy forbids a plain assignment
    try:
        yield
    finally:
        setattr(ConfigLoaderImpl, "load_configuration", compose)  # noqa: B010


def check(config: DictConfig) -> None:
    """Raise a ConfigError if the `hydra` section of a composed configuration names code."""
    if callbacks := config.hydra.callbacks:
        raise ConfigError(f"hydra.callbacks.{next(iter(callbacks))} names code, which is not allowed: leave it out")
    for part in ("launcher", "sweeper"):
        target = str((config.hydra[part] or {}).get("_target_"))
        if not PLUGIN.fullmatch(target):
            raise ConfigError(f"hydra.{part}._target_ {target!r} is not a Hydra plugin: use hydra/{part}=NAME")
    for part in ("hydra_logging", "job_logging"):
        named = OmegaConf.to_container(config.hydra[part], resolve=False) if config.hydra[part] else {}
        for key, value in _leaves(named):
            if part == "job_logging" and value == LOG_FILE and key not in LOGGING_CALLS:
                continue
            if not (LOGGING_CLASS.fullmatch(value) if key in LOGGING_CALLS else value in STREAMS):
                raise ConfigError(f"hydra.{part} would load the code {value}: use hydra/{part}=none")


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Search a nested `value`, and yield (key, text) for each text that may make logging.config import code.

    A text with an unresolved interpolation is yielded too, because what it resolves to is not known yet.
    """
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

"""Turn a Hydra sweep's jobs, each a list of overrides, into RunConfigs.

Composing a configuration takes about 90 ms, so each distinct choice of config groups is composed only once. Jobs that
choose the same groups differ in plain values only. Setting plain values takes less than 1 ms per run.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from normstudy.app import compose
from normstudy.app.errors import one_line
from normstudy.config import RunConfig
from normstudy.errors import ConfigError


def plan(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[RunConfig]:
    """Return one validated RunConfig per job, in order. Raises a ConfigError that identifies the first illegal job."""
    words = list(dict.fromkeys(itertools.chain.from_iterable(jobs)))
    parsed = dict(zip(words, OverridesParser.create().parse_overrides(words), strict=True))
    shared = set(jobs[0]).intersection(*jobs[1:]) if jobs else set()
    is_group: dict[str, bool] = {}
    parts: dict[str, str] = {}  # override -> its _signature
    compositions: dict[tuple[str, ...], Composition] = {}
    configs = []
    for number, job in enumerate(jobs, start=1):
        overrides = [parsed[word] for word in job]
        try:
            for word in job:
                if word not in parts:
                    parts[word] = _signature(parsed[word], loader, is_group)
            signature = tuple(parts[word] for word in job)
            base = compositions.get(signature)
            if base is None:
                base = compositions[signature] = Composition(_compose(loader, master, job))
            for override, part in zip(overrides, signature, strict=True):
                # Jobs that choose the same groups share one composition, `base`. Each job therefore sets all of its
                # plain values, to replace the values of the previous job.
                if part == override.key_or_group:
                    base.set(override)
            configs.append(base.run_config())
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            own = " ".join(word for word in job if word not in shared)
            member = f" (run {number} of {len(jobs)}: {own})" if own else ""
            raise ConfigError(f"{one_line(error)}{member}") from error
    places = sorted({f"{config.results_dir}/{config.study}" for config in configs})
    if len(places) > 1:
        raise ConfigError(f"one sweep fills one study, but this sweep would fill {', '.join(places)}: choose one study")
    return configs


class Composition:
    """Hold a composed configuration, and set a job's values on it to make the job's RunConfig.

    If two consecutive jobs have the same values in a section, such as `model`, their RunConfigs share one object for
    that section.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.words: dict[str, str] = {}  # key -> the last override of this key
        self.last: RunConfig | None = None
        self.changed: set[str] = set()  # sections in which a value was set since the last RunConfig was built
        plain = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain, dict)
        # These keys are rebuilt for every run: top-level values, such as data_seed, and sections that contain an
        # interpolation. An interpolation may refer to any value, so its result may change with every run.
        self.rebuilt = {str(k) for k, v in plain.items() if not isinstance(v, dict) or _interpolates(v)}
        # To save a third of the planning time, ${seed} is not resolved. If data_seed is ${seed}, it is set to None.
        # RunConfig takes None to mean the run's seed.
        self.one_seed = plain.get("data_seed") == "${seed}"

    def set(self, override: Override) -> None:
        """Set a key of the composed configuration to the plain value of an override."""
        key, line = override.key_or_group, str(override.input_line)
        if self.words.get(key) == line:
            return
        try:
            OmegaConf.update(self.config, key, override.value(), merge=True)
        except OmegaConfBaseException as error:
            raise HydraException(f"Error merging override {line}") from error
        self.words[key] = line
        self.one_seed &= key != "data_seed"
        section = key.partition(".")[0]
        self.changed.add(section)
        if _interpolates(override.value()):
            self.rebuilt.add(section)

    def run_config(self) -> RunConfig:
        """Return the validated RunConfig of the current values."""
        if self.last is None:
            config = compose.to_run_config(self.config)
        else:
            config = copy.copy(self.last)
            for field in dataclasses.fields(config):
                if field.name == "data_seed" and self.one_seed:
                    config.data_seed = None
                elif field.name in self.rebuilt or field.name in self.changed:
                    value = self.config[field.name]
                    setattr(config, field.name, OmegaConf.to_object(value) if OmegaConf.is_config(value) else value)
            config.validate()
        self.last = config
        self.changed.clear()
        return config


def _interpolates(value: object) -> bool:
    return "${" in str(value)


def _signature(override: Override, loader: ConfigLoader, is_group: dict[str, bool]) -> str:
    """Return the part of an override that two jobs must have in common to share a composition.

    For a plain value this part is the key, because each job sets its own value on the shared composition. For a group,
    dictionary or list this part is the full override, because no later value can replace it: setting a second
    dictionary, for example, would merge both dictionaries.
    """
    key = override.key_or_group
    if key not in is_group:
        is_group[key] = bool(loader.get_group_options(key))
    if is_group[key] or isinstance(override.value(), dict | list):
        return str(override.input_line)
    return key


def _compose(loader: ConfigLoader, master: DictConfig, job: Sequence[str]) -> DictConfig:
    config = loader.load_sweep_config(master, list(job))
    with open_dict(config):
        del config["hydra"]
    return config

"""Turn a Hydra sweep's jobs, each a list of overrides, into RunConfigs.

Composing a configuration takes about 90 ms, so each distinct choice of config groups is composed only once. The other
jobs differ from a composed one only in plain values; setting these takes less than 1 ms per job.
"""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from normstudy.app import compose
from normstudy.app.errors import one_line
from normstudy.app.reading import as_written
from normstudy.config import RunConfig
from normstudy.errors import ConfigError


class Planner:
    """Turns lists of jobs into RunConfigs. Caches composed configs for later lists. master: the sweep's config."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.compositions: dict[tuple[str, ...], Composition] = {}
        words = [str(word) for word in OmegaConf.to_container(master.hydra.overrides.hydra) or ()]
        assert isinstance(loader, ConfigLoaderImpl)  # its get_group_options would copy all sources at every call
        _, files = loader._parse_overrides_and_create_caching_repo(master.hydra.job.config_name, words)
        self.is_group = functools.cache(lambda key: bool(files.get_group_options(key, None)))

    def plan(self, jobs: Sequence[Sequence[str]]) -> list[RunConfig]:
        """Return one validated RunConfig per job, in order. Raises a ConfigError that names the first illegal job."""
        words = list(dict.fromkeys(itertools.chain.from_iterable(jobs)))
        with as_written():
            parsed = dict(zip(words, OverridesParser.create().parse_overrides(words), strict=True))
        shared = set(jobs[0]).intersection(*jobs[1:]) if jobs else set()
        choices = {w for w, o in parsed.items() if self.is_group(o.key_or_group) and not isinstance(o.value(), dict)}
        parts = {word: _signature(override, word in choices) for word, override in parsed.items()}
        configs = []
        known, outer = HydraConfig.instance(), HydraConfig.instance().cfg
        try:
            for number, job in enumerate(jobs):
                values = [parsed[word] for word in job if word not in choices]
                signature = tuple(parts[word] for word in job)
                base = self.compositions.get(signature)
                if base is None:
                    config = self.loader.load_sweep_config(self.master, list(job))
                    with open_dict(config.hydra):
                        config.hydra.job.id, config.hydra.job.num = str(number), number
                    known.set_config(config)  # as Hydra's launcher does, for values such as ${hydra:job.num}
                    base = Composition(config, values)
                    if not base.asks_hydra:
                        self.compositions[signature] = base
                configs.append(base.run_config(values))
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            own = " ".join(word for word in job if word not in shared)
            member = f" (run {number + 1} of {len(jobs)}: {own})" if own else ""
            raise ConfigError(f"{one_line(error)}{member}") from error
        finally:
            known.cfg = outer
        return configs


class Composition:
    """A composed configuration, on which each job's values are set. Consecutive RunConfigs share unchanged sections."""

    def __init__(self, config: DictConfig, values: Sequence[Override]) -> None:
        self.config = copy.deepcopy(config)
        with open_dict(self.config):
            del self.config["hydra"]
        self.values = values  # the overrides that are set now, except those that choose groups
        self.last: RunConfig | None = None
        plain = OmegaConf.to_container(self.config, resolve=False)
        assert isinstance(plain, dict)
        # These keys are rebuilt for every run: top-level values, such as data_seed, and sections that contain an
        # interpolation. An interpolation may refer to any value, so its result may change with every run.
        self.rebuilt = {str(k) for k, v in plain.items() if not isinstance(v, dict) or "${" in str(v)}
        # If data_seed is ${seed}, set None, which RunConfig replaces by seed. This saves a third of the planning time.
        self.one_seed = plain.get("data_seed") == "${seed}"
        self.asks_hydra = "${hydra:" in str(plain)

    def run_config(self, values: Sequence[Override]) -> RunConfig:
        """Return the validated RunConfig of a job's values."""
        new = [one for one, last in zip(values, self.values, strict=True) if one is not last]
        sections = {one.key_or_group.partition(".")[0] for one in new}
        # If a section changed, set all its values again, in order: a later dictionary may replace an earlier value.
        again = [one for one in values if one.key_or_group.partition(".")[0] in sections]
        ConfigLoaderImpl._apply_overrides_to_config(again, self.config)
        self.values = values
        self.one_seed &= "data_seed" not in sections
        self.rebuilt |= {one.key_or_group.partition(".")[0] for one in new if "${" in str(one.value())}
        if self.last is None:
            config = compose.to_run_config(self.config)
        else:
            config = copy.copy(self.last)
            for field in dataclasses.fields(config):
                if field.name == "data_seed" and self.one_seed:
                    config.data_seed = None
                elif field.name in self.rebuilt | sections:
                    value = self.config[field.name]
                    setattr(config, field.name, OmegaConf.to_object(value) if OmegaConf.is_config(value) else value)
            config.validate()
        self.last = config
        return config


def _signature(override: Override, is_choice: bool) -> str:
    """Return an override's signature: jobs whose overrides have equal signatures share a composition.

    A plain value's signature is its key, because a job can set its own value on a shared composition. Any other
    override is its own signature: a composed group, dictionary or list cannot be replaced (a second dictionary would be
    merged with the first), and a value such as ${hydra:job.num} may differ in every job.
    """
    value = override.value()
    whole = is_choice or isinstance(value, dict | list) or "${hydra:" in str(value)
    return str(override.input_line) if whole else override.key_or_group

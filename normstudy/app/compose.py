"""Compose configurations with Hydra: find the shipped files, register the schema, refuse what is not allowed."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.conf import ConfigSourceInfo
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from normstudy.app.reading import YamlSource, replaced
from normstudy.config import RunConfig, places
from normstudy.config.checks import check_study_name
from normstudy.errors import ConfigError
from normstudy.study import paths

SCHEMA = OmegaConf.structured(RunConfig)
OmegaConf.set_struct(SCHEMA.execution.sbatch, False)  # accept every option of sbatch as a key
ConfigStore.instance().store(name="normstudy_schema", node=SCHEMA, provider="normstudy")

OUR_SWEEPER = "hydra_plugins.normstudy.NormstudySweeper"
SHIPPED = ("hydra", "main", "schema")  # Hydra's names for the sources of config files that are not the user's
# With these settings, Hydra writes no files for a single run. For a sweep, Hydra writes only into sweeps/.
FIXED = {"run.dir": ".", "output_subdir": None, "sweep.dir": "${results_dir}/${study}/sweeps", "sweep.subdir": "."}


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
        raise ConfigError("this config lacks the schema: begin its defaults list with normstudy_schema or config")


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Convert the composed configuration to a validated RunConfig."""
    check_is_run(OmegaConf.get_type(cfg))
    config: RunConfig = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    paths.check_study(config.results_dir, config.study)
    return config


@contextlib.contextmanager
def checked(shows: bool, searches: bool) -> Iterator[list[Path]]:
    """Check each configuration that Hydra composes. Yield a list that collects the studies' folders.

    Hydra's own sweeper writes a file into the study before the jobs are checked. If a check fails, the file is removed.
    shows: whether the command only prints the configuration. searches: whether the command is normstudy critical.
    """
    folders, new = list[Path](), list[Path]()
    load = ConfigLoaderImpl.load_configuration

    def load_and_check(
        loader: ConfigLoaderImpl, config_name: str, overrides: list[str], run_mode: RunMode, **options: bool
    ) -> DictConfig:
        config = load(loader, config_name, overrides, run_mode, **options)
        sources = [info for info in config.hydra.runtime.config_sources if info.provider not in SHIPPED]
        if sources:
            files = loader.compute_defaults_list(config_name, overrides, run_mode).defaults
            check_names([str(file.config_path) for file in files], sources)
        if not isinstance(verbose := config.hydra.verbose, bool | str | ListConfig):
            raise ConfigError(f"hydra.verbose {verbose} is not valid: use true, false or names of loggers")
        if not shows:
            read_only = OmegaConf.is_readonly(config.hydra)
            with replaced(HydraConfig.instance(), "cfg", None):
                HydraConfig.instance().set_config(config)  # for values such as ${hydra:runtime.choices.model}
                check_places(config)
                folders.append(folder := Path(places.expanded(config.results_dir, "results_dir"), config.study))
                made = folder / "sweeps" / "multirun.yaml"
                new.extend(path for path in (made, *made.parents) if not path.exists())
            OmegaConf.set_readonly(config.hydra, read_only)  # as before, because Hydra sets values in it later
        if searches and (sweeper := config.hydra.sweeper._target_) != OUR_SWEEPER:
            raise ConfigError(
                f"normstudy critical chooses its runs itself, so it cannot use {sweeper}: leave out hydra/sweeper"
            )
        return config

    # Skip get_mode: it would compose once more to learn whether to run or to sweep, but the command decides this.
    with (
        replaced(ConfigLoaderImpl, "load_configuration", load_and_check),
        replaced(Hydra, "get_mode", lambda *_, **__: None),
    ):
        try:
            yield folders
        except ConfigError:
            for path in new:
                with contextlib.suppress(OSError):  # it does not exist, or is a folder that contains other files
                    if path.is_dir():
                        path.rmdir()
                    else:
                        path.unlink()
            raise


def check_names(files: Iterable[str], sources: Iterable[ConfigSourceInfo]) -> None:
    """Raise a ConfigError if a user's file has a shipped file's name but other contents: Hydra would not read it."""
    shipped = YamlSource("main", str(conf_dir()))
    for name in filter(shipped.is_config, files):
        ours = OmegaConf.to_yaml(shipped.load_config(name).config)
        for info in sources:
            own = SourcesRegistry.instance().resolve(info.schema)(info.provider, f"{info.schema}://{info.path}")
            if own.is_config(name) and OmegaConf.to_yaml(own.load_config(name).config) != ours:
                file = f"{info.path}/{name}.yaml"
                raise ConfigError(f"{file} has the name of a shipped file, so Hydra would not read yours: rename it")


def check_places(config: DictConfig) -> None:
    """Raise a ConfigError if Hydra itself might write outside the sweeps/ folder of the study."""
    check_is_run(OmegaConf.get_type(config))
    check_study_name(config.study)
    paths.check_study(config.results_dir, config.study)
    hydra: dict[str, dict[str, object]] = OmegaConf.to_container(config.hydra, resolve=False)  # type: ignore[assignment]
    for key, fixed in FIXED.items():
        section, _, leaf = key.partition(".")
        value = hydra[section][leaf] if leaf else hydra[section]
        if value != fixed:
            raise ConfigError(f"hydra.{key} {value} is not allowed, as Hydra must write into the study: leave it out")
    for part in ("job_logging", "hydra_logging"):
        if "'filename':" in str(hydra[part]):
            raise ConfigError(f"hydra/{part} would write a file: use hydra/{part}=none or stdout")

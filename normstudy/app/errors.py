"""Describe in one line an error that Hydra, OmegaConf or YAML raises about the user's command line or config files."""

import dataclasses
import re
import types
import typing
from traceback import format_tb, walk_tb

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from normstudy.config import CONF_GROUPS, RunConfig, leaves
from normstudy.errors import ConfigError, nearest

# Other programs' names for our keys. Names spelled like our key, such as warmup, are omitted: `nearest` finds it.
OTHER_WORDS = {
    "lr": "schedule.peak_lr", "learning_rate": "schedule.peak_lr", "epochs": "schedule.n_steps",
    "depth": "model.n_layers", "width": "model.d_model", "hidden_size": "model.d_model", "batch": "data.batch_size",
    "device": "execution.device",
}  # fmt: skip
READERS = ("hydra", "omegaconf", "antlr4", "yaml", "logging")  # packages that read what the user wrote


def known_keys() -> list[str]:
    """List every dotted key that a command line may set, every config group, and `experiment`."""
    return ["experiment", *CONF_GROUPS, *leaves()]


def _nearest_key(key: str) -> str:
    """Return " Did you mean model.n_layers?" for a misspelled key or a key without its group, else an empty string."""
    names = {k.rsplit(".", 1)[-1]: k for k in known_keys() if not k.endswith(".name")} | OTHER_WORDS
    last = key.rsplit(".", 1)[-1]
    return f" Did you mean {names[last]}?" if last in names else nearest(key, known_keys(), names)


def _allowed(key: str) -> str:
    """Describe the values that a dotted key accepts, such as "an integer" or "a number or null"."""
    kind: object = RunConfig
    for part in key.split("."):
        kind = typing.get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else str  # as in sbatch
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
    return " or ".join(names.get(k, "a group of keys") for k in kinds)


def one_line(error: BaseException) -> str | None:
    """Describe in one line an error that the user can correct; return None for a bug in normstudy."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, ImportError) and _raised_in(error, "hydra_plugins") and "normstudy" in str(error):
        return (
            f"the installed hydra_plugins.normstudy comes from another version of normstudy ({error}): "
            "run pip install -e . again"
        )
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            return f"{error.override!r} is not a setting: write key=value"
        return f"""{error.override!r} cannot be read: quote a value with special characters, as in 'key="value"'"""
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark) is not None:
        return f"broken YAML in {mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, yaml.YAMLError):
        return f"broken YAML: {' '.join(str(error).split())}"
    if isinstance(error, RecursionError) and re.search("yaml|omegaconf|antlr", "".join(format_tb(error.__traceback__))):
        return "a value or a config file is nested too deeply: write fewer brackets or levels inside each other"
    if isinstance(error, HydraException):
        inner = error.__cause__ or error.__context__
        return _omegaconf(inner, str(error)) if isinstance(inner, OmegaConfBaseException) else first_line(error)
    if isinstance(error, OmegaConfBaseException):
        return _omegaconf(error, "")
    if isinstance(error, ValueError | AssertionError | ArithmeticError | RuntimeError) and _raised_in(error, *READERS):
        return first_line(error)
    if isinstance(error, AttributeError | TypeError) and _raised_in(error, *READERS):
        key = re.search(r"full_key: (\S+)", str(error))
        where = key[1] if key else "a value of hydra, or a value with a tag such as !!timestamp,"
        return f"{where} cannot be read ({first_line(error)}): correct it, or leave it out"
    return None


def _raised_in(error: BaseException, *packages: str) -> bool:
    """Return whether the code that raised an error belongs to one of `packages`."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").split(".")[0] in packages


def first_line(error: BaseException) -> str:
    """Return the first non-blank line of an error's text, or the name of the error's type if the text is blank."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def _missing(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group or error.options is None:
        if error.missing_cfg_file:
            return f"there is no config {error.missing_cfg_file!r}: correct --config-name or --config-dir"
        return first_line(error)
    if group.startswith("hydra/"):
        return f"{group}={name} is not installed: choose one of {', '.join(error.options)}"
    return f"{group} {name!r} is not one of {', '.join(error.options)}.{nearest(name, error.options)}"


def _omegaconf(error: OmegaConfBaseException, outer: str) -> str:
    """Describe a wrong key or value in one line. outer: Hydra's message, which may name the config file."""
    file = re.match(r"In '([^']+)'", outer)
    where = f"in {file[1]}.yaml: " if file else ""
    typed = re.match(r"Error merging override ([^=]+)=(.*)", outer)
    key = str(error.full_key or error.key or "")
    if typed and not key.startswith(f"{typed[1]}."):
        key, value = typed[1], typed[2]
    else:
        found = re.search(r"[Vv]alue:? '?(.*?)'?(?: of type|$)", str(error.msg))
        value = found[1] if found else ""
    reason = first_line(error)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        if key == "experiment" and file:
            return f"{where}the keys must be at the top level: begin the file with '# @package _global_'"
        return f"{where}unknown key {key}.{_nearest_key(key) or ' List the keys with normstudy run --cfg job.'}"
    ours = key.partition(".")[0] in RunConfig.__dataclass_fields__
    if ours and isinstance(error, ValidationError) and re.search("is not Optional|value 'None'", reason):
        return f"{where}{key} may not be null: write {_allowed(key)}, or leave out {key}"
    if key in known_keys() and isinstance(error, ValidationError):
        return f"{where}{key} {value!r} is not {_allowed(key)}{_as_integer(key, value)}"
    return f"{where}{key} {reason}" if key else f"{where}{reason}"


def _as_integer(key: str, value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return ""
    return f": write {int(number)}" if number.is_integer() and _allowed(key).startswith("an integer") else ""

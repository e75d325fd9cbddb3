"""A user's own placement or norm, named as package.module:name: where it is found, and what identifies it.

Needs no torch: a planner hashes the source without importing it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normstudy.errors import ConfigError

if TYPE_CHECKING:
    from normstudy.config import ModelConfig

PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_own(name: str) -> bool:
    """Whether a placement or norm is named as package.module:name."""
    return PATTERN.fullmatch(name) is not None


def source_path(spec: str) -> Path:
    """The file of an own block's module, looked for from the working directory first."""
    module = spec.partition(":")[0]
    _see_working_directory()
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise ConfigError(f"{spec}: there is no module {module} in {os.getcwd()} or among the installed packages")
    return Path(found.origin)


def source_sha256(spec: str) -> str:
    """sha256 of the source of an own block's module."""
    return hashlib.sha256(source_path(spec).read_bytes()).hexdigest()


def load(spec: str) -> Callable[..., object]:
    """The function or class that `spec` names."""
    source_path(spec)
    module, _, name = spec.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), name)
    return found


def arguments(function: Callable[..., object]) -> list[str]:
    """The argument names by which a block or norm declares what it gets."""
    return list(inspect.signature(getattr(function, "forward", function)).parameters)


def make_block(spec: str, model: ModelConfig, layer: int) -> Callable[..., Any]:
    """The block of a layer: the function itself, or a module of the class, made of the values its constructor names.

    Those are layer and the fields of ModelConfig.
    """
    found = load(spec)
    if not isinstance(found, type):
        return found
    values = {"layer": layer, **vars(model)}
    return remember(found, **{name: values[name] for name in arguments_of_class(found)})


def remember(cls: type, *args: object, **kwargs: object) -> Any:
    """An instance that knows how to be made again, with the values that its own constructor draws."""
    made = cls(*args, **kwargs)
    made.remake = functools.partial(cls, *args, **kwargs)
    return made


def arguments_of_class(cls: type) -> list[str]:
    """The argument names of a constructor."""
    return list(inspect.signature(cls).parameters)


def _see_working_directory() -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())

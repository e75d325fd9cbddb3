"""Import a user's own placement or norm from its file, and construct its modules."""

import dataclasses
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from normstudy.config import ModelConfig, resolve
from normstudy.config.sources import HERE, describe, is_users, shown, source_sha256, sources_of, split, with_packages
from normstudy.errors import ConfigError, nearest

MADE_BY = "_normstudy_made_by"


class _SourceOnly(SourceFileLoader):
    """Load modules from source only. If a source changes twice in a second, its bytecode file may be outdated."""

    def path_stats(self, path: str | os.PathLike[str]) -> typing.NoReturn:
        raise OSError


class _Finder(MetaPathFinder):
    """Find modules in users' folders: after the standard library's modules, but before installed modules."""

    def __init__(self) -> None:
        self.roots: list[Path] = []
        self.appended: Path | None = None  # the folder that `add` appended to sys.path

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in (*sys.stdlib_module_names, HERE.name):
            return None
        places = [str(root) for root in self.roots] if path is None else [p for p in path if self._has(p)]
        spec = PathFinder.find_spec(fullname, places) if places else None
        if spec is None:
            return None
        if spec.submodule_search_locations is not None and spec.origin is None:  # a folder without __init__.py
            folders = (os.path.join(place, fullname.rpartition(".")[2]) for place in places)
            spec.submodule_search_locations = [folder for folder in folders if os.path.isdir(folder)]
            installed = PathFinder.find_spec(fullname, [p for p in sys.path if p not in places])
            return None if path is None and installed is not None and installed.origin is not None else spec
        if type(spec.loader) is SourceFileLoader and spec.origin is not None and self._has(spec.origin):
            spec.loader = _SourceOnly(fullname, spec.origin)
            return spec
        return None

    def _has(self, path: str) -> bool:
        return any(root in Path(path).parents and is_users(Path(path), root) for root in self.roots)

    def add(self, root: Path) -> None:
        """Let imports search `root` before installed modules. Add `root` to sys.path, which child processes inherit."""
        if str(root) not in sys.path:
            if self.appended is not None:  # remove the earlier working directory
                sys.path.remove(str(self.appended))
                self.roots.remove(self.appended)
            sys.path.append(str(root))
            self.appended = root
        self.roots = [root, *(r for r in self.roots if r != root)]
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)


_finder = _Finder()
_loaded: dict[str, tuple[Path, str]] = {}  # module -> (its folder, the sha256 of its source at the import)


def load(spec: str, planned: str | None = None) -> Callable[..., object]:
    """Return the function or class that `spec` names. Import its module first if the module is new or has changed.

    planned: the source's sha256 when the sweep was planned. Raises a ConfigError if the sha256 now differs.
    """
    module, name = split(spec)
    root, files = sources_of(spec)
    sha256 = source_sha256(spec)
    changed = ConfigError(f"{spec}: its source has changed since the sweep was planned: rerun the same command")
    if planned not in (None, sha256):
        raise changed
    if _loaded.get(module) != (root, sha256):
        _import(spec, root, files)
        if source_sha256(spec) != sha256:
            raise changed
        _loaded[module] = root, sha256
    found = getattr(sys.modules[module], name, None)
    if found is None:
        theirs = vars(sys.modules[module]).items()
        names = [n for n, value in theirs if callable(value) and getattr(value, "__module__", None) == module]
        only = f", only {', '.join(names[:6])}" if names else ""
        raise ConfigError(f"{spec}: {shown(files[module])} has no {name}{only}.{nearest(name, names)}")
    if not callable(found):
        raise ConfigError(f"{spec}: {name} is of type {type(found).__name__}: write a function or an nn.Module class")
    return typing.cast(Callable[..., object], found)


def _import(spec: str, root: Path, files: dict[str, Path]) -> None:
    module, _ = split(spec)
    if is_users(files[module], root):
        _finder.add(root)
        for name in {part for file in files for part in with_packages(file)}:
            if _is_users_import(sys.modules.get(name)):
                del sys.modules[name]
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise any exception
        raise ConfigError(f"{spec}: {describe(error, [str(p) for p in files.values()])}") from error
    for name, path in files.items():
        theirs = getattr(sys.modules.get(name), "__file__", path)
        if theirs is None or not os.path.exists(theirs) or not os.path.samefile(theirs, path):
            raise ConfigError(f"{spec}: Python imports {theirs} instead of your {shown(path)}: rename your file")
    for name in sorted(set(sys.modules) - before - set(files)):
        if _is_users_import(sys.modules[name]) and getattr(sys.modules[name], "__file__", None):
            raise ConfigError(
                f"{spec}: the module imports {name} without an import statement, so changes in {name} would go "
                f"unnoticed: write import {name}"
            )


def _is_users_import(module: ModuleType | None) -> bool:
    """Return whether a module was loaded by `_SourceOnly`, or is a folder without __init__.py."""
    spec = getattr(module, "__spec__", None)
    return spec is not None and (isinstance(spec.loader, _SourceOnly) or spec.origin is None)


def asked_of(cls: type, layer: int, model: ModelConfig) -> dict[str, object]:
    """Return the arguments that a user's block class requests, name -> value: `layer` and resolved model settings."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    values = {"layer": layer, **fields, **dataclasses.asdict(resolve(model))}
    asked = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in values:
            asked[name] = values[name]
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(
                f"{cls.__module__}:{cls.__name__}: its constructor has an unknown argument {name}; available: "
                f"{', '.join(values)}.{nearest(name, values)}"
            )
    return asked


def construct(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Seed torch's generator, call `make` on the CPU, and store `make` in the module, where `made_by` finds it."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU's generator too
        module = make()
    setattr(module, MADE_BY, make)
    return module


def made_by(module: nn.Module) -> Callable[[], nn.Module] | None:
    """Return the function that constructed a user's own module. Return None for any other module."""
    return getattr(module, MADE_BY, None)


def move(model: nn.Module, device: str) -> None:
    """Move the buffers of the user's own modules to a device. The caller must move the parameters."""
    for module in model.modules():
        if made_by(module) is not None:
            module.to(device)

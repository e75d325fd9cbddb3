"""A user's own placement or norm, named as module:function: where it is found, and what identifies it.

It is found from the working directory. Its identity is the sha256 of its source: of the module's file, together with
every file of the user's that it imports, so that a changed helper is another run. The files are found by reading
`import` statements, not by importing. Nothing here needs torch: a planner of finished runs imports neither.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
import typing
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

from normstudy.errors import ConfigError, nearest

if typing.TYPE_CHECKING:
    from torch import nn

    from normstudy.config import ModelConfig

# What a block may ask for by the names of its arguments; placements.py says what each is.
STREAMS = ("x", "r")
SUBLAYERS = ("attn", "mlp")
NORMS = (
    "norm1", "norm2", "norm1_out", "norm2_out", "norm1_inner", "norm2_inner", "q_norm", "k_norm", "v_norm",
)  # fmt: skip
LEARNED = ("omega1", "omega2", "scale")
NUMBERS = ("alpha", "layer", "n_layers")
BLOCK_ARGUMENTS = (*STREAMS, *SUBLAYERS, *NORMS, *LEARNED, *NUMBERS)
NORM_ARGUMENTS = ("x", "gamma", "beta")  # of a norm that is a function

PATTERN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
INSTALLED = {"site-packages", "dist-packages"}
HERE = Path(__file__).parent


def is_own(name: str) -> bool:
    """Whether a placement or norm is meant as module:function: no name of ours has such a sign."""
    return any(sign in name for sign in ":./\\")


def split(spec: str) -> tuple[str, str]:
    """(module, name) of module:name; a ConfigError with the likely spelling for anything else."""
    module, _, name = spec.partition(":")
    if PATTERN.fullmatch(spec) and not module.endswith(".py"):
        return module, name
    words = [word for word in re.split(r"[:./\\]+", re.sub(r"\.py(?=$|:)", "", spec)) if word]
    meant = f"{words[0]}:my_block" if len(words) == 1 else ".".join(words[:-1]) + ":" + "".join(words[-1:])
    likely = meant if PATTERN.fullmatch(meant) else "my_package.my_module:my_block"
    raise ConfigError(f"{spec!r}: a block or norm of your own is written module:function, such as {likely}")


def parameters(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The arguments by which a function, or the forward of a module or its class, says what it gets."""
    called = getattr(function, "forward", function)
    found = list(inspect.signature(called).parameters.items())
    bound = getattr(called, "keywords", {})  # of a functools.partial
    return {name: p for name, p in (found[1:] if isinstance(function, type) else found) if name not in bound}


def arguments(function: Callable[..., object]) -> list[str]:
    """The names of those arguments."""
    return list(parameters(function))


# ---- where it is ----------------------------------------------------------------------------------------


def source_sha256(spec: str) -> str:
    """What identifies an own block: the sha256 of its file, or of all its files' list as sha256sum prints it."""
    root, files = _sources(spec)
    if len(files) == 1:
        return _read(spec, *files.values()).sha256
    names = {path.relative_to(root).as_posix(): path for path in files.values()}
    lines = [f"{_read(spec, names[name]).sha256}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_of(spec: str) -> list[str]:
    """The files whose sha256 identifies an own block."""
    return [str(path) for path in _sources(spec)[1].values()]


def _sources(spec: str) -> tuple[Path, dict[str, Path]]:
    """The folder in which an own block's module was found; the file of the module and of all it imports from there."""
    module, _ = split(spec)
    root = _root_of(spec, module)
    main = _file_of(root, module)
    assert main is not None
    if not _is_users(main, root):
        return root, {module: main}  # of an installed package: its version is another matter
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        for name in _with_packages(waiting.pop()):
            path = _file_of(root, name)
            if path is not None and name not in files and _is_users(path, root):
                files[name] = path
                waiting += _imported_by(name, path, _read(spec, path).imports)
    return root, files


def _root_of(spec: str, module: str) -> Path:
    top = module.partition(".")[0]
    places = [Path(os.getcwd()), *(Path(os.path.abspath(p)) for p in sys.path)]
    if top in sys.stdlib_module_names:
        raise ConfigError(f"{spec}: {top} is a module of Python itself: give your file another name")
    for place in places:
        if _file_of(place, module) is not None:
            return place
    raise ConfigError(f"{spec}: there is no module {module} in {places[0]}.{_nearest_module(places[0], module)}")


def _nearest_module(folder: Path, module: str) -> str:
    """A hint at the file that may be meant, or the empty string."""
    package, _, wanted = module.rpartition(".")
    folder = folder.joinpath(*package.split("."))
    if not folder.is_dir():
        return ""
    if (folder / wanted).is_dir():
        return f" {wanted} is a folder without a file of that name: name a module in it, as in {module}.my_module"
    names = [p.stem for p in folder.iterdir() if p.suffix == ".py" or p.is_dir()]
    hint = nearest(wanted, names)
    return hint.replace("mean ", f"mean {package}.") if package else hint


def _file_of(root: Path, module: str) -> Path | None:
    """The file of a module or package below a folder; None where there is none, or only a folder."""
    path = root.joinpath(*module.split("."))
    for candidate in (path / "__init__.py", path.parent / f"{path.name}.py"):
        if candidate.is_file():
            return candidate
    return None


def _is_users(path: Path, root: Path) -> bool:
    """Whether a file is the user's own: not installed (a virtual environment may lie below), not Python's, not ours."""
    library = Path(sysconfig.get_path("stdlib"))
    return not (INSTALLED & set(path.parts) or HERE in path.parents or library in (root, *root.parents))


def _with_packages(module: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c: importing one runs all of them."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


class _Source(typing.NamedTuple):
    sha256: str
    imports: tuple[tuple[int, str], ...]  # (dots in front, name)


def _read(spec: str, path: Path) -> _Source:
    try:
        state = path.stat()
        return _parse(str(path), state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise ConfigError(f"{spec}: {shown(path)} cannot be read ({error.strerror})") from None
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{spec}: {describe(error, [str(path)])}") from None


@functools.lru_cache(maxsize=1024)
def _parse(path: str, mtime_ns: int, size: int) -> _Source:
    raw = Path(path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import itself says them again
        tree = ast.parse(raw, path)
    imports: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = f"{node.module}." if node.module else ""
            imports += [(node.level, start + alias.name) for alias in node.names]  # a name may be a module
    return _Source(hashlib.sha256(raw).hexdigest(), tuple(imports))


def _imported_by(module: str, path: Path, imports: Iterable[tuple[int, str]]) -> list[str]:
    """The full names of what a module imports, without Python's own modules."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = []
    for dots, name in imports:
        start = package[: len(package) + 1 - dots] if dots else []
        names.append(".".join([*start, name]).removesuffix(".*"))
    return [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names]


# ---- importing it ---------------------------------------------------------------------------------------


class _SourceOnly(SourceFileLoader):
    """Reads and writes no bytecode: that of a file changed within a second would be stale, and is written nowhere."""

    def path_stats(self, path: str | os.PathLike[str]) -> typing.NoReturn:
        raise OSError


class _Finder(MetaPathFinder):
    """Finds users' own modules below their folders, before other modules of that name but never Python's."""

    def __init__(self) -> None:
        self.roots: list[Path] = []
        self.appended: Path | None = None  # to sys.path

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
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
        return any(root in Path(path).parents and _is_users(Path(path), root) for root in self.roots)

    def add(self, root: Path) -> None:
        """Look below a folder first, and let spawned processes know it, which get the parent's sys.path."""
        if str(root) not in sys.path:
            if self.appended is not None:  # a working directory that was left
                sys.path.remove(str(self.appended))
                self.roots.remove(self.appended)
            sys.path.append(str(root))
            self.appended = root
        self.roots = [root, *(r for r in self.roots if r != root)]
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)


_finder = _Finder()
_loaded: dict[str, tuple[Path, str]] = {}  # module -> where it was found and its sha256 when it was imported


def load(spec: str, planned: str | None = None) -> Callable[..., object]:
    """The function or class that `spec` names.

    planned: the sha256 that it must have: a ConfigError where the source has changed since.
    """
    module, name = split(spec)
    root, files = _sources(spec)
    sha256 = source_sha256(spec)
    if planned not in (None, sha256):
        raise ConfigError(_changed(spec))
    if _loaded.get(module) != (root, sha256):
        _import(spec, root, files)
        if source_sha256(spec) != sha256:
            raise ConfigError(_changed(spec))
        _loaded[module] = root, sha256
    found = getattr(sys.modules[module], name, None)
    if found is None:
        theirs = vars(sys.modules[module]).items()
        names = [n for n, value in theirs if callable(value) and getattr(value, "__module__", None) == module]
        only = f", only {', '.join(names[:6])}" if names else ""
        raise ConfigError(f"{spec}: {shown(files[module])} has no {name}{only}.{nearest(name, names)}")
    if not callable(found):
        raise ConfigError(f"{spec}: {name} is {_a(type(found).__name__)}: give a function or a class of nn.Module")
    return typing.cast(Callable[..., object], found)


def _changed(spec: str) -> str:
    return f"{spec}: its source changed after the sweep was planned: the same command plans it anew"


def _import(spec: str, root: Path, files: dict[str, Path]) -> None:
    module, _ = split(spec)
    if _is_users(files[module], root):
        _finder.add(root)
        for name in {part for file in files for part in _with_packages(file)}:
            if _is_users_import(sys.modules.get(name)):
                del sys.modules[name]
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything, or exit
        raise ConfigError(f"{spec}: {describe(error, [str(p) for p in files.values()])}") from error
    for name, path in files.items():
        theirs = getattr(sys.modules.get(name), "__file__", path)
        if theirs is None or not os.path.exists(theirs) or not os.path.samefile(theirs, path):
            raise ConfigError(f"{spec}: {name} is another module here, {theirs}: give {shown(path)} another name")
    for name in sorted(set(sys.modules) - before - set(files)):
        if _is_users_import(sys.modules[name]) and getattr(sys.modules[name], "__file__", None):
            raise ConfigError(
                f"{spec}: it imports {name} without an import statement, so that a change there would go unseen: "
                f"write import {name}"
            )


def _is_users_import(module: ModuleType | None) -> bool:
    """Whether a module is a user's that was imported here, or a plain folder of such."""
    spec = getattr(module, "__spec__", None)
    return spec is not None and (isinstance(spec.loader, _SourceOnly) or spec.origin is None)


def describe(error: BaseException, files: Iterable[str]) -> str:
    """File, line, kind and text of an error that was raised in, or because of, one of these files."""
    text = error.msg if isinstance(error, SyntaxError) else next(iter(str(error).splitlines()), "").strip()
    place = place_of(error, files) or shown(Path(min(files)))
    return f"{place}: {type(error).__name__}{': ' if text else ''}{text}"


def place_of(error: BaseException, files: Iterable[str]) -> str | None:
    """file:line of the innermost line of an error's traceback that lies in one of these files; None for none."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{shown(Path(error.filename))}:{error.lineno}"
    theirs = [line for line in traceback.extract_tb(error.__traceback__) if line.filename in files]
    return f"{shown(Path(theirs[-1].filename))}:{theirs[-1].lineno}" if theirs else None


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return os.path.relpath(path) if Path(os.getcwd()) in path.parents else str(path)


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiouAEIOU" else f"a {word}"


# ---- modules --------------------------------------------------------------------------------------------


def asked_of(cls: type, layer: int, model: ModelConfig) -> dict[str, object]:
    """The arguments of a block's constructor by their names: layer and the fields of ModelConfig, as resolved."""
    from normstudy.config import resolve

    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    values = {"layer": layer, **fields, **dataclasses.asdict(resolve(model))}
    asked = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in values:
            asked[name] = values[name]
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(
                f"{cls.__module__}:{cls.__name__}: its constructor asks for {name}, and may ask for "
                f"{', '.join(values)}.{nearest(name, values)}"
            )
    return asked


def construct(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module that `make` gives, on the CPU whatever the model is built on, its draws under a seed.

    torch's generator is left as it was. The module remembers `make`, for the draws of other runs.
    """
    import torch

    before = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU's as well
    try:
        with torch.device("cpu"):
            module = make()
    finally:
        torch.random.set_rng_state(before)
    setattr(module, MADE_BY, make)
    return module


MADE_BY = "_normstudy_made_by"


def made_by(module: nn.Module) -> Callable[[], nn.Module] | None:
    """What makes a user's own module again; None for any other module."""
    make: Callable[[], nn.Module] | None = getattr(module, MADE_BY, None)
    return make


def move(model: nn.Module, device: str) -> None:
    """Move what a user's own modules hold to a device: their buffers, which no run trains."""
    for module in model.modules():
        if made_by(module) is not None:
            module.to(device)

"""A user's own placement or norm, named as module:function: where it is found, and what identifies it.

It is found from the working directory. Its identity is the sha256 of its source: of the module's file, together with
every file of the user's that it imports, so that a changed helper is another run. The files are found by reading
`import` statements, not by importing. Nothing here needs torch: a planner of finished runs imports neither.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
import typing
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from normstudy.errors import ConfigError, nearest

if typing.TYPE_CHECKING:
    pass

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
HERE = Path(__file__).parent.parent  # the package's own folder


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
    root, files = sources_of(spec)
    if len(files) == 1:
        return _read(spec, *files.values()).sha256
    names = {path.relative_to(root).as_posix(): path for path in files.values()}
    lines = [f"{_read(spec, names[name]).sha256}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_of(spec: str) -> list[str]:
    """The files whose sha256 identifies an own block."""
    return [str(path) for path in sources_of(spec)[1].values()]


def sources_of(spec: str) -> tuple[Path, dict[str, Path]]:
    """The folder in which an own block's module was found; the file of the module and of all it imports from there."""
    module, _ = split(spec)
    root = _root_of(spec, module)
    main = _file_of(root, module)
    assert main is not None
    if not is_users(main, root):
        return root, {module: main}  # of an installed package: its version is another matter
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        for name in with_packages(waiting.pop()):
            path = _file_of(root, name)
            if path is not None and name not in files and is_users(path, root):
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


def is_users(path: Path, root: Path) -> bool:
    """Whether a file is the user's own: not installed (a virtual environment may lie below), not Python's, not ours."""
    library = Path(sysconfig.get_path("stdlib"))
    return not (INSTALLED & set(path.parts) or HERE in path.parents or library in (root, *root.parents))


def with_packages(module: str) -> list[str]:
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


# ---- modules --------------------------------------------------------------------------------------------

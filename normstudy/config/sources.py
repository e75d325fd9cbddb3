"""Find the source files of a user's own placement or norm, written module:function, and hash them.

The hash covers the module's file and all of the user's files that it imports, directly or indirectly, so changing any
of these makes a different run. The files are found by parsing `import` statements. Nothing is imported, not even torch.
"""

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

from normstudy.config import places
from normstudy.errors import ONE_THREAD, ConfigError, nearest

# The names of the arguments that a block may take. placements.py describes each of them.
STREAMS = ("x", "r")
SUBLAYERS = ("attn", "mlp")
NORMS = ("norm1", "norm2", "norm1_out", "norm2_out", "norm1_inner", "norm2_inner", "q_norm", "k_norm", "v_norm")
NUMBERS = ("alpha", "layer", "n_layers")
BLOCK_ARGUMENTS = (*STREAMS, *SUBLAYERS, *NORMS, "omega1", "omega2", "scale", *NUMBERS)
NORM_ARGUMENTS = ("x", "gamma", "beta", "eps")  # names of the arguments that a norm function may take

PATTERN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
INSTALLED = {"site-packages", "dist-packages"}
HERE = Path(__file__).parent.parent  # the folder of the package normstudy


def is_own(name: str) -> bool:
    """Return whether a name means the user's own code: it contains one of `:./\\`, which no built-in name contains."""
    return any(sign in name for sign in ":./\\")


def split(spec: str) -> tuple[str, str]:
    """Split module:name. Raises a ConfigError that suggests a spelling if `spec` is malformed."""
    module, _, name = spec.partition(":")
    if module == "__main__":
        raise ConfigError(
            f"{spec!r} is defined in a script or notebook, but training processes import only modules: put {name} into "
            f"a module, such as my_module.py, and write my_module:{name}"
        )
    if PATTERN.fullmatch(spec) and not module.endswith(".py"):
        return module, name
    words = [word for word in re.split(r"[:./\\]+", re.sub(r"\.py(?=$|:)", "", spec)) if word]
    meant = f"{words[0]}:my_block" if len(words) == 1 else ".".join(words[:-1]) + ":" + "".join(words[-1:])
    likely = meant if PATTERN.fullmatch(meant) else "my_package.my_module:my_block"
    raise ConfigError(f"{spec!r} does not name a block or norm of your own: write module:function, such as {likely}")


def parameters(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return a function's parameters, name -> parameter. For a torch module (class), return those of its `forward`."""
    called = getattr(function, "forward", function)
    found = list(inspect.signature(called).parameters.items())
    bound = getattr(called, "keywords", {})  # arguments already set if `called` is a functools.partial
    return {name: p for name, p in (found[1:] if isinstance(function, type) else found) if name not in bound}


def source_sha256(spec: str) -> str:
    """Return the sha256 of the source file of `spec`. For several files, hash what sha256sum prints for them."""
    root, files = sources_of(spec)
    if len(files) == 1:
        return _read(spec, *files.values()).sha256
    names = {path.relative_to(root).as_posix(): path for path in files.values()}
    lines = [f"{_read(spec, names[name]).sha256}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_of(spec: str) -> list[str]:
    """Return the paths of the files that `source_sha256` hashes."""
    return [str(path) for path in sources_of(spec)[1].values()]


def sources_of(spec: str) -> tuple[Path, dict[str, Path]]:
    """Return the folder from which the module in `spec` is imported, and the source files to hash, module -> file.

    A user's module is hashed with the user's files that it imports from the folder, an installed module alone.
    """
    module, _ = split(spec)
    root, main = _found(spec, module)
    if not is_users(main, root):
        return root, {module: main}
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        for name in with_packages(waiting.pop()):
            path = _file_of(root, name)
            if path is not None and name not in files and is_users(path, root):
                files[name] = path
                waiting += _imported_by(name, path, _read(spec, path).imports)
    return root, files


def _found(spec: str, module: str) -> tuple[Path, Path]:
    """Return the folder from which a module is imported, and the module's file."""
    top = module.partition(".")[0]
    places = [Path(os.getcwd()), *(Path(os.path.abspath(p)) for p in sys.path)]
    if top in sys.stdlib_module_names:
        raise ConfigError(f"{spec}: {top} is a module of Python itself: use another name for your file")
    for place in places:
        if (file := _file_of(place, module)) is not None:
            return place, file
    hint = _nearest_module(places[0], module)
    raise ConfigError(f"{spec}: there is no module {module} in {places[0]}: run normstudy in your file's folder.{hint}")


def _nearest_module(folder: Path, module: str) -> str:
    """Return a hint at the module in `folder` that the user may have meant, or the empty string."""
    package, _, wanted = module.rpartition(".")
    folder = folder.joinpath(*package.split("."))
    if not folder.is_dir():
        return ""
    if (folder / wanted).is_dir():
        return f" {wanted} is a folder: name a module inside it, as in {module}.my_module"
    hint = nearest(wanted, [p.stem for p in folder.iterdir() if p.suffix == ".py" or p.is_dir()])
    return hint.replace("mean ", f"mean {package}.") if package else hint


def _file_of(root: Path, module: str) -> Path | None:
    """Return the file of a module or package below `root`. Return None if neither module.py nor __init__.py exists."""
    path = root.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.parent / f"{path.name}.py") if file.is_file()), None)


def is_users(path: Path, root: Path) -> bool:
    """Return whether a file is the user's own: not part of Python, normstudy or an installed package."""
    library = Path(sysconfig.get_path("stdlib"))
    # Check every folder of the path, because a virtual environment may lie inside the user's folder.
    return not (INSTALLED & set(path.parts) or HERE in path.parents or library in (root, *root.parents))


def with_packages(module: str) -> list[str]:
    """Turn a.b.c into a, a.b and a.b.c, because importing a module also imports the packages that contain it."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


class _Source(typing.NamedTuple):
    sha256: str
    imports: tuple[tuple[int, str], ...]  # (number of leading dots, name)


def _read(spec: str, path: Path) -> _Source:
    try:
        state = path.stat()
        return _parse(str(path), state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise ConfigError(f"{spec}: {shown(path)} cannot be read ({error.strerror}): make it readable") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: deeply nested code
        raise ConfigError(f"{spec}: {describe(error, [str(path)])}") from None


@functools.lru_cache(maxsize=1024)
def _parse(path: str, mtime_ns: int, size: int) -> _Source:
    raw = places.read(Path(path))
    with ONE_THREAD, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import of the module shows the same warnings later
        tree = ast.parse(raw, path)
    imports: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = f"{node.module}." if node.module else ""
            # Keep a.b for `from a import b`, because b may be a module.
            imports += [(node.level, start + alias.name) for alias in node.names]
    return _Source(hashlib.sha256(raw).hexdigest(), tuple(imports))


def _imported_by(module: str, path: Path, imports: Iterable[tuple[int, str]]) -> list[str]:
    """Return the full names of everything that a module imports, except from the standard library."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = []
    for dots, name in imports:
        start = package[: len(package) + 1 - dots] if dots else []
        names.append(".".join([*start, name]).removesuffix(".*"))
    return [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names]


def describe(error: BaseException, files: Iterable[str]) -> str:
    """Describe in one line an error that one of `files` caused: file, line number, exception type and message."""
    text = error.msg if isinstance(error, SyntaxError) else next(iter(str(error).splitlines()), "").strip()
    place = place_of(error, files) or shown(Path(min(files)))
    return f"{place}: {type(error).__name__}{': ' if text else ''}{text}"


def place_of(error: BaseException, files: Iterable[str]) -> str | None:
    """Return file:line of a syntax error or of the innermost traceback entry in one of `files`; None without either."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{shown(Path(error.filename))}:{error.lineno}"
    theirs = [line for line in traceback.extract_tb(error.__traceback__) if line.filename in files]
    return f"{shown(Path(theirs[-1].filename))}:{theirs[-1].lineno}" if theirs else None


def shown(path: Path) -> str:
    """Return a path as the user would type it: relative if it lies in the working directory."""
    return os.path.relpath(path) if Path(os.getcwd()) in path.parents else str(path)

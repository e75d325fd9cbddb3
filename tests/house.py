"""Print the size of the package: rooms, floors, circles, largest module and function, lines. `python tests/house.py`.

A room is a file or folder directly under normstudy/ (py.typed apart). The floor of a room is the longest chain of
imports below it. Exit code 1 where a limit is exceeded.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "normstudy"
MAX_ROOMS, MAX_FLOORS, MAX_MODULE, MAX_FUNCTION = 26, 12, 350, 60
MAX_LINES = 22_698
ORACLE, MAX_ORACLE = "normstudy.reference", 480  # read beside the papers, in one piece

Graph = dict[str, set[str]]


def modules() -> dict[str, ast.Module]:
    """Dotted name -> syntax tree, of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imports(trees: Mapping[str, ast.Module]) -> Graph:
    """Module -> modules of the package that it imports, anywhere but under `if TYPE_CHECKING:`."""
    graph: Graph = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in _run_nodes(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    graph[name].add(full if full in trees else node.module)
            elif isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names)
        graph[name] = (graph[name] & set(trees)) - {name}
    return graph


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from _run_nodes(node)


def rooms(graph: Graph) -> Graph:
    """The graph of imports between rooms; the package's own __init__ is the room `__init__`."""

    def room(module: str) -> str:
        return module.split(".")[1] if "." in module else "__init__"

    out: Graph = {room(module): set() for module in graph}
    for module, imported in graph.items():
        out[room(module)] |= {room(other) for other in imported if other != "normstudy"} - {room(module)}
    return out


def circle(graph: Graph) -> list[str]:
    """One circle of imports, as a list of names that ends where it begins; empty where there is none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def floors(graph: Graph) -> int:
    """Rooms on the longest chain of imports."""
    heights: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        heights[name] = 1 + max((heights[other] for other in graph[name]), default=0)
    return max(heights.values())


def main() -> int:
    trees = modules()
    graph = imports(trees)
    sizes = {name: len(_path(name).read_text().splitlines()) for name in trees}
    functions = {
        f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    circles = circle(graph) or circle(rooms(graph))
    largest = max((name for name in sizes if name != ORACLE), key=sizes.__getitem__)
    longest = max(functions, key=functions.__getitem__)
    rows = [
        ("rooms", len(rooms(graph)), MAX_ROOMS, ""),
        ("circles", bool(circles), 0, " -> ".join(circles)),
        ("floors", floors(rooms(graph)) if not circles else 0, MAX_FLOORS, ""),
        ("largest module", sizes[largest], MAX_MODULE, largest),
        ("the oracle", sizes[ORACLE], MAX_ORACLE, ORACLE),
        ("longest function", functions[longest], MAX_FUNCTION, longest),
        ("lines", sum(sizes.values()), MAX_LINES, ""),
    ]
    for what, value, limit, where in rows:
        print(f"{what:17}{value:7,}  at most {limit:6,}  {where}")
    return int(any(value > limit for _, value, limit, _ in rows))


def _path(name: str) -> Path:
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


if __name__ == "__main__":
    sys.exit(main())

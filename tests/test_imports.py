"""Imports point one way: a room uses the rooms below it, no file is part of a circle, nothing is
imported inside a function to hide one, and no function takes the name of the module it is in."""

from __future__ import annotations

import ast
import functools
import importlib
import sys
import types
from pathlib import Path

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]

# Each line may import from the lines above it, and a room from itself; rooms of one line do not
# know each other.
FLOORS = (
    ("fnn.spelling", "fnn.markup"),
    ("fnn.arrays", "fnn.block"),
    ("fnn.refusals",),
    ("fnn.pytrees", "fnn.compiling", "fnn.arguments", "fnn.optimizer"),
    ("fnn.contract", "fnn.again"),
    ("fnn.executor",),
    ("fnn.backprop",),
    ("fnn.blocks", "fnn.introspect"),
    ("fnn.training", "fnn.models", "fnn.check", "fnn.whiteboard", "fnn.curvature"),
    ("fnn",),
    ("experiments.common",),
    ("experiments",),
)
OUR_OWN = ("fnn", "experiments", "tests")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(path): path
    for folder in ("fnn", "experiments")
    for path in ROOT.glob(f"{folder}/**/*.py")
}


@functools.cache
def imports(module: str) -> list[tuple[str, bool]]:
    """Our own modules that a module imports, and whether it does so inside a function.

    Imports for type checkers alone count too.
    """
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inner]
        hidden = id(node) in inside
        found += [(name, hidden) for name in names if name.split(".")[0] in OUR_OWN]
    return found


def floor_of(module: str) -> tuple[int, str]:
    """The number of a module's floor, and its room there."""
    rooms = [(room, i) for i, floor in enumerate(FLOORS) for room in floor]
    room, floor = max(
        ((room, i) for room, i in rooms if module == room or module.startswith(room + ".")),
        key=lambda found: len(found[0]),
    )
    assert room != "fnn" or module == "fnn", f"{module} is in no room: add it to FLOORS"
    return floor, room


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    floor, room = floor_of(module)
    for name, _ in imports(module):
        assert name in MODULES, f"{module} imports {name}, which is not in the package"
        other_floor, other = floor_of(name)
        assert other == room or other_floor < floor, f"{module} imports {name}, of a room above"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.split(".")[0] == "fnn"))
def test_no_import_is_hidden_in_a_function(module: str) -> None:
    assert [name for name, hidden in imports(module) if hidden] == []


def test_there_is_no_circle() -> None:
    graph = {module: {name for name, _ in imports(module)} - {module} for module in MODULES}
    # A package's own list of names is above its files, so it is no part of the way through them.
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == "done":
            return
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        for name in sorted(graph[module]):
            visit(name, (*path, module))
        state[module] = "done"

    for module in sorted(MODULES):
        visit(module, ())


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.split(".")[0] == "fnn"))
def test_no_module_is_hidden_by_a_name(module: str) -> None:
    """``import fnn.a.b`` and ``fnn.a.b`` are the same thing."""
    if module.endswith("__main__"):
        return
    importlib.import_module(module)
    found: object = sys.modules[module.split(".")[0]]
    for part in module.split(".")[1:]:
        found = getattr(found, part)
    assert isinstance(found, types.ModuleType) and found is sys.modules[module]

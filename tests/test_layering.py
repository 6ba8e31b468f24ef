"""Imports in dtq point down: a module imports from its own room and from the rooms below it, and from no circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dtq"
ROOMS = [  # lowest first
    "errors", "files", "sync", "task", "policy", "stores", "workers", "webhooks", "queue", "monitor", "api", "testing",
    "dtq", "lab", "cli",
]  # fmt: skip

# Rooms and files that import an optional dependency, or what takes long to load, when it is first needed.
LOADS_ON_DEMAND = {
    "dtq/__init__.py",
    "dtq/lab",
    "dtq/cli",
    "dtq/monitor",
    "dtq/policy/cron_times.py",
    "dtq/queue/handle.py",
    "dtq/stores/open.py",
    "dtq/stores/redis/store.py",
    "dtq/webhooks/handler.py",
    "dtq/workers/groups.py",
    "dtq/workers/handler_registry.py",
}
IMPORTS = ast.Import | ast.ImportFrom


def module_of(path: str) -> str:
    """The dotted name of a file: dtq/task/model.py is dtq.task.model."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room_of(module: str) -> str:
    """The room that a module is in; `dtq` is the room of the public names."""
    return module.split(".")[1] if "." in module else module


def imported(node: IMPORTS, modules: set[str]) -> set[str]:
    """The modules of dtq that one import statement names; `from dtq.task import model` names dtq.task.model."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name.split(".")[0] == "dtq"}
    if not node.module or node.module.split(".")[0] != "dtq":
        return set()
    below = (f"{node.module}.{alias.name}" for alias in node.names)
    return {name if name in modules else node.module for name in below}


def violations(path: str, source: str, modules: set[str]) -> list[str]:
    """What the file at `path` imports against the rules, one line for each import."""
    own = room_of(module_of(path))
    if own not in ROOMS:
        return [f"{path}: {own!r} is not a room; the rooms are listed in {Path(__file__).name}"]
    tree = ast.parse(source)
    statements = [node for node in ast.walk(tree) if isinstance(node, IMPORTS)]
    found = [
        f"{path}:{node.lineno}: {own} may not import {name}"
        for node in statements
        for name in sorted(imported(node, modules))
        if ROOMS.index(room_of(name)) > ROOMS.index(own)
    ]
    if not path.startswith(tuple(LOADS_ON_DEMAND)):
        inner = set(statements) - set(at_top(tree))
        found += [f"{path}:{node.lineno}: an import hides in a function" for node in inner]
    return found


def at_top(tree: ast.Module) -> list[IMPORTS]:
    """The imports outside functions."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {inner for function in functions for inner in ast.walk(function)}
    return [node for node in ast.walk(tree) if isinstance(node, IMPORTS) and node not in inside]


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    root = PACKAGE.parent
    return {path.relative_to(root).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def test_imports_point_down_only(files):
    """dtq/__init__.py may gather what it offers from any room."""
    modules = {module_of(path) for path in files}
    assert [
        line for path in files if path != "dtq/__init__.py" for line in violations(path, files[path], modules)
    ] == []


def test_no_modules_import_each_other_in_a_circle(files):
    modules = {module_of(path) for path in files}
    graph = {
        module_of(path): {name for node in at_top(ast.parse(source)) for name in imported(node, modules)}
        for path, source in files.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_a_picture_of_the_imports_has_sixteen_rooms_at_most():
    assert {
        path.stem for path in PACKAGE.iterdir() if path.suffix != ".typed" and not path.name.startswith("__")
    } <= set(ROOMS)
    assert len(ROOMS) <= 16


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("dtq/queue/loop.py", "import os\nfrom dtq.task.model import Task\nfrom dtq.workers import wire", []),
        ("dtq/stores/sqlite/store.py", "from dtq.stores.protocol import Store", []),
        ("dtq/lab/figures.py", "def f():\n    import pandas\n    from dtq import TaskQueue", []),
        (
            "dtq/task/model.py",
            "from dtq.queue.loop import Loop",
            ["dtq/task/model.py:1: task may not import dtq.queue.loop"],
        ),
        ("dtq/stores/open.py", "import dtq.queue.loop", ["dtq/stores/open.py:1: stores may not import dtq.queue.loop"]),
        ("dtq/api/app.py", "from dtq import TaskQueue", ["dtq/api/app.py:1: api may not import dtq"]),
        ("dtq/queue/loop.py", "def f():\n    import json", ["dtq/queue/loop.py:2: an import hides in a function"]),
        ("dtq/shiny.py", "", ["dtq/shiny.py: 'shiny' is not a room; the rooms are listed in test_layering.py"]),
    ],
)
def test_the_check_finds_what_it_must(path, source, expected):
    assert violations(path, source, {"dtq.queue.loop", "dtq.workers.wire", "dtq.task.model"}) == expected

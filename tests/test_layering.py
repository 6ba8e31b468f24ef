"""Imports in dtq point down only: a module may import from the layers before its own, and its own package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dtq"

LAYERS = [  # lowest first; stores/ and lab/ are one entry each, "dtq" is what dtq/__init__.py offers
    {"errors", "files", "condition"},
    {"codec", "forks", "names", "timing", "sketch", "usage"},
    {"task"},
    {"events", "graph", "cron", "limits", "webhooks", "unique"},
    {"wire", "stores", "parents", "guard"},
    {"delivery", "options", "guarded"},
    {"courier"},
    {"registry", "context", "conformance", "offspring"},
    {"loader"},
    {"runner"},
    {"reports", "lane", "pace", "channel"},  # from here: processes
    {"worker", "member", "local"},
    {"threads", "zygote", "placing", "verdict"},
    {"spawner", "executors"},
    {"crew"},
    {"pool", "handle", "deadletters", "schedules", "ticker", "meter"},
    {"flow", "poller", "cleaner"},
    {"manager", "staff"},
    {"attempts"},
    {"loop"},
    {"queue", "prometheus", "readings"},
    {"monitor"},
    {"api", "chaos", "bench", "doctor"},
    {"bench_monitor"},
    {"dtq"},
    {"lab"},
    {"demo"},
    {"cli"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
LOADS_ON_DEMAND = {
    "stores/__init__.py",
    "stores/redis.py",
    "lab",
    "cli",
    "demo.py",
    "monitor",
    "staff.py",
    "handle.py",
    "registry.py",
    "timing.py",
    "courier.py",
}

IMPORTS = ast.Import | ast.ImportFrom


def imported(node: IMPORTS) -> set[str]:
    """The entries of LAYERS that one statement imports from; none for a statement about other packages."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif node.module == "dtq":
        names = [f"dtq.{alias.name}" if alias.name in LEVEL else "dtq" for alias in node.names]
    else:
        names = [node.module or "dtq"]
    return {name.split(".")[1] if "." in name else name for name in names if name.split(".")[0] == "dtq"}


def violations(path: str, source: str) -> list[str]:
    """What the file at `path`, relative to the package, imports against the rules."""
    own = path.split("/")[0].removesuffix(".py")
    if own not in LEVEL:
        return [f"{path}: give {own!r} a layer in {Path(__file__).name}"]
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = [
        f"{path}:{node.lineno}: {own} may not import {name}"
        for node in ast.walk(tree)
        if isinstance(node, IMPORTS)
        for name in imported(node)
        if name != own and LEVEL.get(name, len(LAYERS)) >= LEVEL[own]
    ]
    if {path, own}.isdisjoint(LOADS_ON_DEMAND):
        found += [
            f"{path}:{node.lineno}: an import hides in {function.name}"
            for function in functions
            for node in ast.walk(function)
            if isinstance(node, IMPORTS)
        ]
    return found


def test_imports_point_down_only():
    """dtq/__init__.py is free to gather what it offers from any layer."""
    files = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    assert [line for path in files if path != "__init__.py" for line in violations(path, files[path])] == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("pool.py", "import os\nfrom dtq.task import Task\nfrom dtq import wire", []),
        ("stores/sqlite.py", "from dtq.stores import Store", []),
        ("lab/__init__.py", "def f():\n    import pandas\n    from dtq import TaskQueue", []),
        ("task.py", "from dtq.pool import WorkerPool", ["task.py:1: task may not import pool"]),
        ("pool.py", "import dtq.manager", ["pool.py:1: pool may not import manager"]),
        ("api.py", "from dtq import TaskQueue", ["api.py:1: api may not import dtq"]),
        ("pool.py", "def f():\n    import json", ["pool.py:2: an import hides in f"]),
        ("shiny.py", "", ["shiny.py: give 'shiny' a layer in test_layering.py"]),
    ],
)
def test_the_check_finds_what_it_must(path, source, expected):
    assert violations(path, source) == expected

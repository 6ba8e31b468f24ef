"""`import dtq` loads nothing that the program does not use, and yet every public name is there."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import dtq

SOURCE = ast.parse(Path(dtq.__file__).read_text())


def modules_after(statement: str) -> set[str]:
    """Return the modules of dtq that a new interpreter has loaded after this statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([name for name in sys.modules if name.startswith('dtq')]))"
    return set(json.loads(subprocess.check_output([sys.executable, "-c", code], timeout=60)))


def test_importing_dtq_loads_no_other_module_of_it():
    assert modules_after("import dtq") == {"dtq"}


def test_a_name_loads_the_module_that_defines_it():
    assert modules_after("from dtq import Retry") == {"dtq", "dtq.errors"}


def test_a_worker_process_loads_neither_queue_nor_stores_nor_schedules():
    loaded = modules_after("from dtq.workers.process.zygote import main")
    assert {name.split(".")[1] for name in loaded if "." in name} == {"errors", "task", "workers"}


@pytest.mark.parametrize("name", dtq.__all__)
def test_every_public_name_is_the_object_of_the_module_that_defines_it(name):
    value = getattr(dtq, name)
    assert value is getattr(import_module(dtq._MODULE_OF[name]), name)
    assert value.__module__ == dtq._MODULE_OF[name]
    assert pickle.loads(pickle.dumps(value)) is value


def test_type_checkers_see_the_same_names_from_the_same_modules():
    imports = [
        node
        for branch in SOURCE.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
    ]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == dtq._MODULE_OF
    assert sorted(seen) == sorted(dtq.__all__)


def test_a_star_import_brings_every_public_name():
    namespace: dict[str, object] = {}
    exec("from dtq import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(dtq.__all__)


def test_dir_lists_public_names_that_are_not_loaded_yet():
    code = "import dtq; print('TaskQueue' in vars(dtq), set(dtq.__all__) <= set(dir(dtq)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) == "False True\n"


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'dtq' has no attribute 'TaskQueu'"):
        _ = dtq.TaskQueu  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'TaskQueu'"):
        exec("from dtq import TaskQueu")

"""ARCHITECTURE.md and CONTRIBUTING.md name files that exist and the rooms that the layering test enforces; files and
functions of dtq are short enough to read."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from test_layering import ROOMS

ROOT = Path(__file__).parent.parent
PAGES = ["ARCHITECTURE.md", "CONTRIBUTING.md"]
NAMED = re.compile(r"(?<![\w./-])(?:\.?\w[\w-]*/)*(?:[\w-]+\.(?:py|md|ipynb)|(?<=/)|(?<=/)[\w-]+)(?![\w/(*])")
PLACEHOLDERS = ("tests/ROOM", "tests/FILE.py")


def paths(page: str) -> set[str]:
    """Return the paths that a page names in code: anything with a slash, and file names."""
    code = " ".join(_code(page))
    return {name for name in NAMED.findall(code) if name not in PLACEHOLDERS}


def _code(page: str) -> list[str]:
    fences = re.findall(r"^```text\n(.*?)^```", page, re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    return [*fences, *re.findall(r"`([^`\n]+)`", prose)]


@pytest.mark.parametrize("name", PAGES)
def test_every_path_that_the_page_names_exists(name):
    found = paths((ROOT / name).read_text())
    assert len(found) > 5
    missing = [path for path in sorted(found) if not ((ROOT / path).exists() or (ROOT / "dtq" / path).exists())]
    assert missing == []


def test_the_rooms_are_those_of_the_layering_test():
    rows = re.findall(r"^\| `([\w.]+)(?:\.py|/)` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.M)
    assert [row.removesuffix(".py").replace("__init__", "dtq") for row in rows] == ROOMS


def test_a_path_that_does_not_exist_is_found():
    assert paths("See `queue/gone.py`, and `tests/none/`.\n```text\n  add   queue/lost.py  (x)\n```\n") == {
        "queue/gone.py", "tests/none/", "queue/lost.py"
    }  # fmt: skip


# --- sizes

MAX_FILE = 330  # lines; a file this long can still be read in one sitting
MAX_BODY = 45  # lines of a function below its signature and docstring
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
SOURCES = sorted((ROOT / "dtq").rglob("*.py"))


def body_lines(function: FUNCTION) -> int:
    """Return how many lines the statements of a function take, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def long_functions(source: str) -> list[str]:
    """Return the name and length of each function whose body is longer than MAX_BODY lines."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTION)]
    return [f"{node.name}: {body_lines(node)} lines" for node in functions if body_lines(node) > MAX_BODY]


def test_no_file_is_too_long_to_read_in_one_sitting():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines >= MAX_FILE} == {}


def test_no_function_is_too_long_to_take_in():
    found = {path.relative_to(ROOT).as_posix(): long_functions(path.read_text()) for path in SOURCES}
    assert {path: functions for path, functions in found.items() if functions} == {}


@pytest.mark.parametrize(("lines", "expected"), [(45, []), (46, ["long: 46 lines"])])
def test_a_function_that_is_too_long_is_found_and_its_docstring_does_not_count(lines, expected):
    assert long_functions('def long(\n    a,\n):\n    """Say\n    much."""\n' + "    a += 1\n" * lines) == expected

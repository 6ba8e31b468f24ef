"""ARCHITECTURE.md and CONTRIBUTING.md name files that exist, and the rooms that the layering test enforces."""

from __future__ import annotations

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

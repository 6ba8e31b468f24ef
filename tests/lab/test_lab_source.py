"""The lab shows the code that runs, from the package and from cells, and counts its lines honestly."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dtq.lab.source import code_html, compare, excerpt, lines_of_code, source
from dtq.stores.memory.store import MemoryStore
from dtq.stores.protocol import Stats
from dtq.stores.sqlite import schema
from dtq.task.model import Status
from dtq.task.transitions import succeed
from dtq.testing.conformance import kit


class Mine:
    """Shorter."""

    def close(self):
        pass  # nothing to give back

    def claim(self, worker):
        return "<mine>"


class Theirs:
    def __init__(self):
        self.tasks = []

    def claim(self, worker):
        return self.tasks


@pytest.fixture
def shown(monkeypatch):
    pages = []
    monkeypatch.setattr(sys.modules["dtq.lab.source"], "display", pages.append)  # dtq.lab.source is the function
    return pages


@pytest.mark.parametrize(
    ("thing", "place", "opening"),
    [
        (succeed, "dtq/task/transitions.py", "def succeed("),
        (Status, "dtq/task/model.py", "class Status(StrEnum):"),
        (MemoryStore.claim, "dtq/stores/memory/index.py", "def claim("),
        (MemoryStore().claim, "dtq/stores/memory/index.py", "def claim("),
        (Stats.total, "dtq/stores/protocol.py", "@property\ndef total(self)"),
        (kit, "dtq/testing/conformance/kit.py", '"""The parts of every check'),
        ("dtq.stores.sqlite.schema:INSERT", "dtq/stores/sqlite/schema.py", 'INSERT = """INSERT INTO task'),
        ("dtq.task.model:DAY", "dtq/task/model.py", "DAY = 86400.0"),
    ],
)
def test_the_source_is_that_of_the_package_with_its_place(thing, place, opening):
    found = excerpt(thing)
    assert found.place == place
    assert found.text.startswith(opening)
    lines = Path(found.file).read_text().splitlines()[found.first - 1 : found.last]
    assert [line.strip() for line in found.text.splitlines()] == [line.strip() for line in lines]


def test_of_two_classes_of_one_name_the_one_that_is_asked_for_is_shown():
    def first():
        class Twin:
            def name(self):
                return "first"

        return Twin

    def second():
        class Twin:
            def name(self):
                return "second"

        return Twin

    assert [excerpt(twin).text.splitlines()[-1].strip() for twin in (first(), second())] == [
        'return "first"',
        'return "second"',
    ]


def test_a_whole_constant_is_shown():
    namespace = {}
    exec(excerpt("dtq.stores.sqlite.schema:INSERT").text, namespace)
    assert namespace["INSERT"] == schema.INSERT


@pytest.mark.parametrize("thing", [len, dict, 3, [].append, "dtq.task.model:missing", "dtq.task.model"])
def test_what_has_no_source_is_refused_with_what_to_pass(thing):
    with pytest.raises(TypeError, match=r"package\.module:NAME"):
        source(thing)


def test_it_is_shown_highlighted_with_line_numbers_and_as_text(shown):
    source(Mine.claim)
    (page,) = shown
    first = Mine.claim.__code__.co_firstlineno
    assert page.text.splitlines() == [
        f"test_lab_source.py, lines {first} to {first + 1}",
        f"{first:4}  def claim(self, worker):",
        f'{first + 1:4}      return "<mine>"',
    ]
    assert repr(page) == page.text
    assert f'<span class="linenos">{first}</span>' in page.html
    assert '<span class="nf">claim</span>' in page.html
    assert "&lt;mine&gt;" in page.html
    assert "<mine>" not in page.html


def test_its_colours_are_those_of_the_theme_where_there_is_one():
    assert "color:var(--jp-mirror-editor-keyword-color,#" in code_html("return 1")
    assert not re.search(r"background:(?!none)|[^-]color:(?!var)", code_html("return 1"))


def test_lines_of_code_leave_out_blanks_comments_and_docstrings():
    text = '''
"""What it is."""

LONG = """
text that is code
"""


def double(n):
    """Doubles.

    It does.
    """
    # twice
    return (
        2 * n  # so
    )
'''
    assert lines_of_code(text) == 3 + 1 + 3
    assert lines_of_code(excerpt(Mine).text) == 5
    assert lines_of_code(excerpt(MemoryStore.claim).text) > 2


def test_two_classes_stand_side_by_side_method_by_method(shown):
    compare(Mine, Theirs)
    (page,) = shown
    head, *rows = page.html.split("<tr>")[1:]
    heads = re.findall("<th [^>]*>(.*?)</th>", head)
    assert heads == ["Mine: 5 lines of code (test_lab_source.py)", "Theirs: 5 lines of code (test_lab_source.py)"]
    texts = [re.sub("<[^>]*>", "", row.replace("<td ", "|<")) for row in rows]
    assert [[re.findall(r"(?:class|def) \w+", cell) for cell in text.split("|")[1:]] for text in texts] == [
        [["class Mine"], ["class Theirs"]],
        [["def close"], []],
        [["def claim"], ["def claim"]],
        [[], ["def __init__"]],
    ]
    assert "Theirs: 5 lines of code (test_lab_source.py)\nclass Theirs:\n    def __init__" in page.text


def test_two_functions_are_compared_whole(shown):
    compare(Mine.claim, Theirs.claim)
    (page,) = shown
    assert page.html.count("<td ") == 2
    assert page.text.startswith("Mine.claim: 2 lines of code")


CELLS = [
    "from dtq.lab.source import compare, excerpt, source",
    "%matplotlib inline\ndef mine(n):\n    return n + 1",
    "class Store:\n    x = 1\n    def add(self, n):\n        return n",
    "class Bare:\n    x = 1",
    "old = Store\nclass Store:\n    def add(self, n):\n        return 2 * n",
    "source(mine)",
    "[excerpt(x).text for x in (Store, old, Bare, Store.add)]",
    "{excerpt(x).place for x in (Store, old, Bare, mine)}",
    "compare(Store, old)",
]


@pytest.mark.usefixtures("notebook_loop")
def test_what_was_written_in_cells_is_found_too():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    data = [cell.outputs[0].data for cell in notebook.cells[5:]]
    assert data[0]["text/plain"].splitlines()[1:] == ["   2  def mine(n):", "   3      return n + 1"]
    assert '<span class="nf">mine</span>' in data[0]["text/html"]
    assert eval(data[1]["text/plain"]) == [
        "class Store:\n    def add(self, n):\n        return 2 * n",
        "class Store:\n    x = 1\n    def add(self, n):\n        return n",
        "class Bare:\n    x = 1",
        "def add(self, n):\n    return 2 * n",
    ]
    assert eval(data[2]["text/plain"]) == {"a cell of this notebook"}
    assert data[3]["text/plain"].startswith("Store: 3 lines of code (a cell of this notebook)\nclass Store:")

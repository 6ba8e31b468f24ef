"""hole, whole, keep, mine, report: the reader's own part of a chapter, in use where it is right, and kept."""

from __future__ import annotations

import linecache
import sys
import types

import pytest

from dtq import lab
from dtq.lab import grown
from dtq.lab.exercise import exercise
from dtq.testing.conformance import expect


def check_double(double):
    expect(double(None, 3), 6, "double(3)")


@lab.checked_by(check_double)
def double(self, n):
    return n + n


CELLS = [
    "from dtq.lab.source import Page\nLIMIT = [1, {'a': None}]\n\n\ndef helper(n):\n    return n * len(LIMIT)\n",
    "class MyThing(Page):\n    'Doubles.'\n\n    size = 3\n\n    def __init__(self):\n"
    "        super().__init__('', '')\n",
    "class MyThing(MyThing):\n    def double(self, n):\n        return helper(n)\n\n    double = hole(ours, double)\n",
    "class MyThing(MyThing):\n    @property\n    def six(self):\n        return self.double(self.size)\n",
]


@pytest.fixture
def shown(monkeypatch, tmp_path):
    pages = []
    for name in ("hole", "kept", "grown", "exercise"):  # functions of the lab have the names of their modules
        monkeypatch.setattr(sys.modules[f"dtq.lab.{name}"], "display", pages.append)
    monkeypatch.setenv("DTQ_MINE", str(tmp_path / "mine"))
    return pages


@pytest.fixture
def notebook(monkeypatch, shown):
    """Return a function that runs cells as __main__ and returns its names."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    scope = vars(main)
    scope |= {"hole": lab.hole, "ours": double}

    def run(*cells):
        for number, cell in enumerate(cells):
            file = f"<cell {number} of {id(scope)}>"
            linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
            exec(compile(cell, file, "exec"), scope)
        return scope

    return run


def stub(self, n):
    """Twice the number."""


def wrong(self, n):
    return n


def right(self, n):
    return 2 * n


def test_a_stub_is_replaced_by_ours_and_that_is_said(shown):
    ours = lab.hole(double, stub)
    assert (ours(None, 3), grown.is_ours(ours)) == (6, True)
    assert ours.__module__ == "__main__"  # goes to workers by value
    assert shown[0].text == "Not yet. `double` is ours for now: write yours."


def test_a_wrong_answer_is_replaced_by_ours_and_the_input_that_failed_is_named(shown):
    assert grown.is_ours(lab.hole(double, wrong))
    assert shown[0].text == "Wrong. double(3):\n  expected  6\n  got       3\n`double` is ours for now."


def test_a_right_answer_is_in_use(shown):
    assert lab.hole(double, right) is right
    assert shown[0].text == "Right. Your `double` is in use."


def test_a_class_that_grew_over_cells_is_shown_as_one(notebook, shown):
    lab.whole(notebook(*CELLS)["MyThing"])
    assert shown[-1].text.startswith("class MyThing(Page):\n    'Doubles.'\n    size = 3\n\n    def __init__")
    assert shown[-1].text.count("class ") == 1
    assert "@property\n    def six" in shown[-1].text
    assert "hole" not in shown[-1].text
    assert "<details><summary>MyThing as a whole" in shown[-1].html


def test_a_cell_that_runs_twice_leaves_the_class_as_it_is(notebook):
    once = grown.class_text(notebook(*CELLS)["MyThing"])
    twice = grown.class_text(notebook(*(cell for cell in CELLS for _ in range(2)))["MyThing"])
    assert once == twice


def test_a_class_is_kept_with_all_that_it_uses_and_comes_back(notebook, shown):
    lab.keep(notebook(*CELLS)["MyThing"])
    assert shown[-1].text == "MyThing is kept as mine/thing.py."
    again = lab.mine("thing", default=object)
    assert shown[-1].text == "This is your MyThing."
    assert again().six == 6
    assert again.__module__ == "mine_thing"


def test_what_is_ours_in_part_is_not_kept_and_what_was_kept_stays(notebook, shown):
    lab.keep(notebook(*CELLS)["MyThing"])
    lab.keep(notebook(CELLS[2].replace("return helper(n)", "..."))["MyThing"])
    assert shown[-1].text == "Not kept: double of MyThing is ours for now."
    assert lab.mine("thing", default=object)().six == 6


def test_what_was_not_kept_or_cannot_be_loaded_gives_the_default(shown, tmp_path):
    assert lab.mine("thing", default=dict) is dict
    assert shown[-1].text == "You have kept no thing yet, so this is dict."
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thing.py").write_text("1 / 0")
    assert lab.mine("thing", default=dict) is dict
    assert "cannot be loaded (ZeroDivisionError" in shown[-1].text


def test_a_value_that_cannot_be_written_down_is_refused(notebook):
    cells = [CELLS[0].replace("[1, {'a': None}]", "range(2)"), *CELLS[1:]]
    with pytest.raises(ValueError, match="LIMIT is range"):
        lab.keep(notebook(*cells)["MyThing"])


def test_the_report_has_what_was_tried_with_hints_and_marks(shown):
    made = exercise(
        "9.9", "Double it.", effort="1 line", hints=["a", "b", "c"], why="so", check=lambda f: check_double(f),
        solution="def double(self, n):\n    return 2 * n",
    )  # fmt: skip
    made.check(stub)
    assert lab.report().empty
    made.hint()
    made.check(wrong)
    made.check(right)
    made.check(wrong)
    lab.hole(double, wrong)
    rows = lab.report().drop(columns="minutes").values.tolist()
    assert rows == [["9.9", "right", 3, 1, 0.8], ["double", "wrong", 1, 0, 0.0]]


def test_an_unreadable_record_of_progress_counts_as_none(shown, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "progress.json").write_text("{")
    assert lab.report().empty

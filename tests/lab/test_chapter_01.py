"""Chapter 01: its exercises can be solved, its stubs are recognised as stubs, and it has the size of a chapter."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

from dtq.lab.source import lines_of_code

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NOTEBOOK = nbformat.read(NOTEBOOKS / "01-task.ipynb", 4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PROSE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]
SHORT = 15  # lines of code in a cell; the class as a whole has more


@pytest.fixture
def ch01(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    return importlib.import_module("exercises.ch01")


@pytest.fixture
def exercises(ch01):
    return [ch01.cancel, ch01.full_jitter, ch01.upgrade]


def stub_cell(name):
    """The source of the function alone: the cell also shows and checks it."""
    found = [
        ast.get_source_segment(source, node)
        for source in CODE
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert len(found) == 1, f"{name} is defined {len(found)} times"
    return found[0]


@pytest.fixture
def names(ch01, exercises, tmp_path):
    """What the first code cell imports, and the stubs as the notebook has them."""
    imports = [ast.unparse(node) for node in ast.parse(CODE[0]).body if isinstance(node, ast.Import | ast.ImportFrom)]
    file = tmp_path / "stubs.py"
    file.write_text("\n\n".join([*imports, *(stub_cell(exercise.name) for exercise in exercises)]) + "\n")
    scope = {"__name__": "stubs"}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    return scope


def test_each_stub_is_told_to_be_one_each_solution_passes_and_each_wrong_answer_is_caught(exercises, names):
    for exercise in exercises:
        exercise.prove(names)


def test_each_exercise_has_its_card_its_stub_and_is_shown_before_it_is_checked(exercises):
    for exercise in exercises:
        name = f"ch01.{exercise.name}"
        assert name in CODE  # the card: a cell with nothing else
        (cell,) = (source for source in CODE if f"{name}.check" in source)
        assert cell.index(f"def {exercise.name}") < cell.index(f"{name}.show") < cell.index(f"{name}.check")


def test_no_solution_stands_in_the_notebook(exercises):
    text = "\n".join(CODE)
    for exercise in exercises:
        for line in exercise.solution.splitlines()[1:]:
            assert line not in text


def test_the_chapter_has_the_size_of_a_chapter():
    words = sum(
        len(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL).split())
        for cell in PROSE
        if "instructor" not in cell.metadata.get("tags", ())
    )
    assert 50 <= len(NOTEBOOK.cells) <= 80
    assert 1500 <= words <= 2000
    lines = sum(map(lines_of_code, CODE))
    around = sum(len(re.findall(r"(?m)^\s*(?:import|from|assert) ", source)) for source in CODE)
    assert 150 <= lines - around <= 270


def test_only_the_class_as_a_whole_is_longer_than_a_cell_should_be():
    long = [source for source in CODE if lines_of_code(source) > SHORT]
    assert len(long) == 1
    assert "lab.compare(MyTask, Task)" in long[0]


def test_instructors_are_told_what_to_expect_at_the_start_and_at_each_experiment():
    told = [cell for cell in PROSE if "instructor" in cell.metadata.get("tags", ())]
    assert len(told) >= 4
    assert NOTEBOOK.cells.index(told[0]) < 5

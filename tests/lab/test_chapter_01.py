"""Chapter 01: its exercises can be solved, its stubs are recognised as stubs, and it has the size of a chapter."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import nbformat
import pytest

from dtq.lab.source import lines_of_code
from dtq.lab.verdict import judge

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NOTEBOOK = nbformat.read(NOTEBOOKS / "01-task.ipynb", 4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PROSE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]


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
    """What the cells import, and the stubs as the notebook has them."""
    nodes = [node for cell in CODE for node in ast.parse(cell).body]
    imports = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
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


# --- parts that the reader writes -------------------------------------------------------------------------------------


WRONG = [  # a part, what a wrong version has in place of what is right
    ("check_number", " and not isinstance(value, bool)", ""),
    ("check_number", "not low <= value <= high", "value < low or value > high"),
    ("check_number", "low <= value <= high", "low < value <= high"),
    ("check_number", "low <= value <= high", "low <= value < high"),
    ("check_number", "(int, float)", "int"),
    ("check_number", "not is_number or ", ""),
    ("check_number", "{high:,}", "{high}"),
    ("backoff", "attempt - 1, 64", "attempt, 64"),
    ("backoff", "min(attempt - 1, 64)", "(attempt - 1)"),
    ("backoff", "min(attempt - 1, 64)", "min(attempt - 1, 4)"),
    ("backoff", ", task.retry_cap)", ", 7.0)"),
    ("backoff", "(1 - task.retry_jitter * chance())", "(1 - task.retry_jitter)"),
    ("backoff", '{"linear": attempt, ', "{"),
    ("backoff", "task.retry_backoff, 1", "task.retry_backoff, attempt"),
    ("backoff", "lambda: 0.0", "lambda: 0.5"),
]


def judged(ch01, name, right="", wrong=""):
    """The verdict on a reader's version of a part: ours, with a change."""
    _, _, source = inspect.getsource(getattr(ch01, name)).partition("\n")  # without @checked_by
    assert right in source
    scope = dict(vars(ch01))
    exec(source.replace(right, wrong), scope)
    return judge(name, scope[name], getattr(ch01, name).check_of_hole, 20.0, "right")


@pytest.mark.parametrize("name", ["check_number", "backoff"])
def test_a_part_that_the_reader_writes_is_in_use_where_it_is_right(ch01, name):
    assert judged(ch01, name).status == "right"


@pytest.mark.parametrize(("name", "right", "wrong"), WRONG)
def test_a_part_that_is_wrong_is_not_in_use_and_what_failed_is_named(ch01, name, right, wrong):
    verdict = judged(ch01, name, right, wrong)
    assert verdict.status == "wrong"
    assert re.search(r"refusal of|check_number\(|backoff (of|after)|It raised (Overflow|Type)Error", verdict.text)


def test_the_committed_parts_are_stubs_and_one_is_written_within_the_first_twenty_cells():
    holes = {re.search(r"lab\.hole\(ch01\.(\w+)", cell)[1]: cell for cell in CODE if "lab.hole" in cell}
    assert [*holes] == ["check_number", "backoff"]
    for name, cell in holes.items():
        (stub,) = (node for node in ast.parse(cell).body if getattr(node, "name", "") == name)
        assert [type(part) for part in stub.body] == [ast.Expr]
    assert [cell.source for cell in NOTEBOOK.cells].index(holes["check_number"]) < 20


# --- right answers that are not ours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", ["worker=None", "version=task.version + 1"])
def test_a_cancel_may_also_clear_the_worker_or_count_the_version(ch01, names, changes):
    scope = dict(names)
    exec(ch01.CANCEL.replace("status=Status.CANCELLED", f"status=Status.CANCELLED, {changes}"), scope)
    assert ch01.cancel.judge(scope["cancel"]).status == "right"


# --- instructors ------------------------------------------------------------------------------------------------------


def test_instructors_are_told_what_to_expect():
    told = (NOTEBOOKS / "instructor" / "01.md").read_text()
    assert all(word in told for word in ("Timing", "Misconceptions to expect", "Answer key"))

"""Chapter 02: its exercises can be solved, its store is sound and serves, what it leaves out of the conformance suite
is what it says it leaves out, and it has the size of a chapter."""

from __future__ import annotations

import ast
import importlib
import inspect
import linecache
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from dtq import TaskQueue
from dtq.lab.source import lines_of_code
from dtq.lab.verdict import judge
from dtq.testing import conformance

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NOTEBOOK = nbformat.read(NOTEBOOKS / "02-storage.ipynb", 4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PROSE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]
CARDS = {"save": "SAVE", "claim": "CLAIM", "reap": "REAP", "read": "READ"}


@pytest.fixture
def ch02(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    return importlib.import_module("exercises.ch02")


@pytest.fixture
def exercises(ch02):
    return [getattr(ch02, card) for card in CARDS.values()]


# --- exercises --------------------------------------------------------------------------------------------------------


def cell_of(exercise):
    (cell,) = (source for source in CODE if f"ch02.{CARDS[exercise.name]}.check" in source)
    return cell


@pytest.fixture
def names(ch02, exercises):
    """What the exercises' cells import, and the stubs as the notebook has them, where their sources can be looked
    up."""
    scope = {"__name__": "__main__", "json": importlib.import_module("json")}
    for exercise in exercises:
        cell, file = cell_of(exercise), f"<stub of {exercise.name}>"
        wanted = [
            node
            for node in ast.parse(cell).body
            if isinstance(node, ast.ImportFrom) or getattr(node, "name", "") == exercise.name
        ]
        text = "\n\n".join(ast.get_source_segment(cell, node) for node in wanted) + "\n"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), scope)
    return scope


def test_each_stub_is_told_to_be_one_each_solution_passes_and_each_wrong_answer_is_caught(exercises, names):
    for exercise in exercises:
        exercise.prove(names)


def test_a_claim_may_also_lock_before_it_looks(ch02):
    def claim(db, worker):
        db.execute("BEGIN IMMEDIATE")
        row = db.execute("SELECT id FROM task WHERE status = 'pending' ORDER BY priority DESC, id LIMIT 1").fetchone()
        if row:
            db.execute("UPDATE task SET status = 'processing', worker = ? WHERE id = ?", [worker, *row])
        db.execute("COMMIT")
        return row and row[0]

    assert ch02.CLAIM.judge(claim).status == "right"


def test_each_exercise_has_its_card_its_stub_and_is_shown_before_it_is_checked(exercises):
    for exercise in exercises:
        name, cell = f"ch02.{CARDS[exercise.name]}", cell_of(exercise)
        assert name in CODE  # the card: a cell with nothing else
        stub = re.search(rf"def {exercise.name}\b", cell)
        assert stub.start() < cell.index(f"{name}.show") < cell.index(f"{name}.check")


def test_no_solution_stands_in_the_notebook(exercises):
    text = "\n".join(CODE)
    for exercise in exercises:
        assert exercise.solution not in text


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def my_store(ch02, tmp_path):
    """The store as the chapter's cells define it, with ours in its holes."""
    scope = {"__name__": "__main__", "here": SimpleNamespace(fresh=lambda: tmp_path)}
    for cell in CODE:
        imports = [node for node in ast.parse(cell).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec("\n".join(map(ast.unparse, imports)), scope)
        if re.search("^(class MyStore|CLAIMABLE)", cell, re.M):
            exec(cell, scope)
    return scope["MyStore"]


def test_the_lessons_store_keeps_every_promise_but_those_that_are_for_later(ch02, my_store, tmp_path):
    later = {check.name for check in conformance.group("dependencies", "lanes")} | ch02.LATER
    found = conformance.run(ch02.subjects(my_store, tmp_path))
    assert {result.name for result in found} >= ch02.LATER
    broken = {result.name: result.detail for result in found if result.status == "failed"}
    assert not broken.keys() - later, "mend the store, or name the check in ch02.LATER"
    kept = {result.name for result in found if result.status == "passed"}
    assert kept & ch02.LATER == set(), "need not be left for later"


def test_no_story_of_the_lessons_store_ends_badly_and_one_that_nobody_reaps_is_stuck(ch02, my_store):
    assert ch02.stories(my_store, crashes=1).broken is None
    never_reaped = type("NeverReaped", (my_store,), {"reap": lambda *args: []})
    assert "stuck" in ch02.stories(never_reaped, crashes=1).broken


def test_the_lessons_store_serves_a_thousand_tasks_to_a_live_queue(my_store, tmp_path):
    store = my_store(tmp_path / "live.db")
    with TaskQueue(store, handlers={"double": lambda payload, context: 2 * payload}, pool_size=2) as queue:
        handles = queue.add_many([{"type": "double", "payload": n} for n in range(1000)])
        queue.join(timeout=60)
        assert [handle.result() for handle in handles] == [2 * n for n in range(1000)]
        assert {handle.task.attempts for handle in handles} == {1}
    store.close()


# --- size -------------------------------------------------------------------------------------------------------------


def test_the_chapter_has_the_size_of_a_chapter():
    words = sum(
        len(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL).split())
        for cell in PROSE
        if "instructor" not in cell.metadata.get("tags", ())
    )
    assert 50 <= len(NOTEBOOK.cells) <= 80
    assert 1500 <= words <= 2000
    around = sum(len(re.findall(r"(?m)^\s*(?:import|from|assert) ", source)) for source in CODE)
    assert 150 <= sum(map(lines_of_code, CODE)) - around <= 275


# --- parts that the reader writes -------------------------------------------------------------------------------------


WRONG = [  # a part, what a wrong version has in place of what is right, and what it is told
    ("beside", 'f"{path}.new", "w"', 'path, "w"', "FileNotFoundError"),
    (
        "beside",
        '        file.write(text)\n    yield "written beside"',
        '        file.write(text[:3])\n    yield "a"',
        "got",
    ),
    ("beside", '    yield "written beside"\n    os.replace(f"{path}.new", path)', "", "the file at the end"),
    ("update", "self.same(task)", "self.get([task.id])", "expected"),
    ("update", "for field in STATE", 'for field in ("status", "result")', "expected"),
    ("update", "accepted.add(task.id)", "accepted = {task.id}", "expected"),
    ("update", "self.enter(successor)", "pass", "expected"),
    ("update", "    self.wakeup.wake()\n", "", "bell"),
    ("update", "    with self.step():\n", "    self.wakeup.wake()\n    with self.step():\n", "bell"),
    ("update", "    with self.step():\n", "    if True:\n", "expected"),
    ("reap", "<= :now", "< :now", "expected"),
    ("reap", "status = 'processing' AND ", "", "expected"),
    ("reap", " LIMIT :n", "", "expected"),
    ("reap", "worker=worker, ", "", "expected"),
    ("reap", "now + lease", "lease", "expected"),
    ("reap", "self.put(task,", "self.put(task, version=task.version,", "expected"),
    ("reap", "self.put(task,", "self.put(task, attempts=task.attempts + 1,", "expected"),
    ("reap", "    with self.step():\n", "    if True:\n", "BEGIN"),
]


def written(ch02, name, right="", wrong=""):
    """A reader's version of a part: ours, with a change."""
    _, _, source = inspect.getsource(getattr(ch02, name)).partition("\n")  # without @checked_by
    assert right in source
    text, file = source.replace(right, wrong), f"<a reader's {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope = dict(vars(ch02))
    exec(compile(text, file, "exec"), scope)
    return scope[name]


def judged(ch02, name, candidate):
    return judge(name, candidate, getattr(ch02, name).check_of_hole, 20.0, "right")


@pytest.mark.parametrize("name", ["beside", "update", "reap"])
def test_a_part_that_the_reader_writes_is_in_use_where_it_is_right(ch02, name):
    assert judged(ch02, name, written(ch02, name)).status == "right"


@pytest.mark.parametrize(("name", "right", "wrong", "told"), WRONG)
def test_a_part_that_is_wrong_is_not_in_use_and_what_failed_is_named(ch02, name, right, wrong, told):
    verdict = judged(ch02, name, written(ch02, name, right, wrong))
    assert verdict.status == "wrong"
    assert told in verdict.text


def test_the_committed_parts_are_stubs_and_one_is_written_within_the_first_twenty_cells():
    holes = {re.search(r"lab\.hole\(ch02\.(\w+)", cell)[1]: cell for cell in CODE if "lab.hole" in cell}
    assert [*holes] == ["beside", "update", "reap"]
    for name, cell in holes.items():
        (stub,) = (node for node in ast.walk(ast.parse(cell)) if getattr(node, "name", "") == name)
        assert [type(part) for part in stub.body] == [ast.Expr]
        assert ast.get_docstring(stub)
    assert [cell.source for cell in NOTEBOOK.cells].index(holes["beside"]) < 20


def test_a_claim_that_is_used_through_a_cursor_meets_the_rival_too(ch02):
    def claim(db, worker):
        cursor = db.cursor()
        cursor.execute(
            "UPDATE task SET status = 'processing', worker = ? WHERE id = (SELECT id FROM task "
            "WHERE status = 'pending' ORDER BY priority DESC, id LIMIT 1) RETURNING id",
            [worker],
        )
        return (cursor.fetchone() or [None])[0]

    assert ch02.CLAIM.judge(claim).status == "right"


# --- instructors ------------------------------------------------------------------------------------------------------


def test_instructors_are_told_what_to_expect():
    told = (NOTEBOOKS / "instructor" / "02.md").read_text()
    assert all(word in told for word in ("Timing", "Expect", "When the demo fails", "Answer key"))

"""Chapter 03: its exercises can be solved, its pool is sound, its checks notice one that is not, and it has the size of
a chapter."""

from __future__ import annotations

import ast
import importlib
import inspect
import linecache
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

from dtq import WorkerPool
from dtq.lab.source import lines_of_code
from dtq.lab.verdict import judge

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NOTEBOOK = nbformat.read(NOTEBOOKS / "03-worker-pool.ipynb", 4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PROSE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]
WHOLE = "class MyPool(ch03.Front)"
SHORT = 15  # lines of code in a cell; the pool as a whole has more


@pytest.fixture
def ch03(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    return importlib.import_module("exercises.ch03")


@pytest.fixture
def exercises(ch03):
    return [ch03.read_frame, ch03.pool_size, ch03.Supervisor]


# --- exercises --------------------------------------------------------------------------------------------------------


def cell_of(exercise):
    (cell,) = (source for source in CODE if f"ch03.{exercise.name}.check" in source)
    return cell


@pytest.fixture
def names(ch03, exercises):
    """The stubs as the notebook has them, where their sources can be looked up."""
    scope = {"__name__": "__main__", "ch03": ch03}
    for exercise in exercises:
        (node,) = (node for node in ast.parse(cell_of(exercise)).body if getattr(node, "name", "") == exercise.name)
        text, file = ast.get_source_segment(cell_of(exercise), node), f"<stub of {exercise.name}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), scope)
    return scope


def test_each_stub_is_told_to_be_one_each_solution_passes_and_each_wrong_answer_is_caught(exercises, names):
    for exercise in exercises:
        exercise.prove(names)


def test_each_exercise_has_its_card_its_stub_and_is_shown_before_it_is_checked(exercises):
    for exercise in exercises:
        name, cell = f"ch03.{exercise.name}", cell_of(exercise)
        assert name in CODE  # the card: a cell with nothing else
        stub = re.search(rf"(def|class) {exercise.name}\b", cell)
        assert stub.start() < cell.index(f"{name}.show") < cell.index(f"{name}.check")


def test_no_solution_stands_in_the_notebook(exercises):
    text = "\n".join(CODE)
    for exercise in exercises:
        assert exercise.solution not in text


# --- the pool ---------------------------------------------------------------------------------------------------------

POOL_CELLS = (
    "import itertools",
    "def framed(",
    "def perform(",
    "BOOT =",
    "class Worker:",
    "class Worker(",
    WHOLE,
    "class MyPool(MyPool)",
)


def pool_cells():
    for beginning in POOL_CELLS:
        (cell,) = (source for source in CODE if source.startswith(beginning))
        yield cell.replace("here = lab.start(chapter=3)", "")


@pytest.fixture
def my_pool(ch03):
    """The pool as the chapter's cells define it, as in a notebook: in `__main__`, whose functions travel by value."""
    scope = {"__name__": "__main__"}
    for cell, beginning in zip(pool_cells(), POOL_CELLS, strict=True):
        exec(compile(cell, f"<{beginning}>", "exec"), scope)
    return scope["MyPool"]


def test_the_chapters_pool_keeps_every_promise(ch03, my_pool):
    found = ch03.promises(my_pool)
    assert found.kept, found
    assert len(found) == len(ch03.CHECKS)


KERNEL = """
with ch03.Desk(MyPool, within=30) as desk:
    endless = desk.task("hang")
    desk.pool.dispatch([endless])
    desk.started(endless)
    print("worker", *desk.pids(), flush=True)
    signal.pause()
"""


def test_a_worker_that_computes_for_ever_goes_with_its_kernel():
    script = "\n".join([*pool_cells(), KERNEL])
    with subprocess.Popen([sys.executable, "-c", script], cwd=NOTEBOOKS, stdout=subprocess.PIPE, text=True) as kernel:
        worker = psutil.Process(int(next(line for line in kernel.stdout if line.startswith("worker ")).split()[1]))
        kernel.kill()
    left = psutil.wait_procs([worker], timeout=10)[1]
    for process in left:
        process.kill()
    assert not left


@pytest.mark.long
def test_the_packages_pool_keeps_every_promise_of_the_chapter(ch03):
    found = ch03.promises(WorkerPool)
    assert found.kept, found


LEFT = []  # workers that a pool has left behind


def broken_pools(my_pool):
    """Pools that break a promise, each with the check that has to notice it."""

    class Sleepy(my_pool):
        def deadline(self):
            return None

    class Silent(my_pool):
        def bury(self, worker):
            worker.task = None
            super().bury(worker)

    class Vague(my_pool):
        def finish(self, worker, result, error):
            super().finish(worker, result, error and type(error)(error.type, error.message))

    class Mortal(my_pool):
        started = False

        def balance(self):
            if not self.started:
                super().balance()
            self.started = True

    class Repeating(my_pool):
        def finish(self, worker, result, error):
            super().finish(worker, result, error)
            self.reports.append(self.reports[-1])

    class Losing(my_pool):
        def dispatch(self, tasks):
            super().dispatch(tasks[: len(self.idle())])

    class Solitary(my_pool):
        def idle(self):
            return [] if self.outstanding() else super().idle()[:1]

    class Panicking(my_pool):
        def hear(self, worker):
            super().hear(worker)
            if worker not in self.crew:
                for other in self.crew:
                    self.kill(other, None)

    class Merciful(my_pool):
        def stop(self, task):
            pass

    class Rigid(my_pool):
        def resize(self, size):
            pass

    class Deaf(my_pool):
        def wake(self):
            pass

    class Untidy(my_pool):
        def close(self, kill=False):
            LEFT.extend(self.crew)
            self.crew = []
            super().close()

    class Fragile(my_pool):
        def finish(self, worker, result, error):
            super().finish(worker, result, error)
            if error:
                self.kill(worker, None)

    return {
        "timeout": Sleepy, "frozen": Sleepy, "death": Vague, "replaced": Mortal, "results": Repeating,
        "surplus": Losing, "parallel": Solitary, "neighbour": Panicking, "stop": Merciful, "resize": Rigid,
        "wake": Deaf, "close": Untidy, "errors": Fragile,
    }.items() | {("death", Silent)}  # fmt: skip


def test_a_pool_that_breaks_a_promise_is_noticed_by_the_check_of_that_promise(ch03, my_pool):
    pools = broken_pools(my_pool)
    assert {getattr(ch03, f"check_{name}") for name, _ in pools} == set(ch03.CHECKS)
    for name, pool in pools:
        (found,) = ch03.promises(pool, [getattr(ch03, f"check_{name}")], within=1.0)
        assert not found.kept, f"check_{name} passes {pool.__name__}"
        assert "expected" in found.why, (pool.__name__, found)
    for worker in LEFT:
        worker.process.kill()
        worker.process.wait()
        worker.sock.close()
    LEFT.clear()


# --- size -------------------------------------------------------------------------------------------------------------


def test_the_chapter_has_the_size_of_a_chapter():
    words = sum(
        len(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL).split())
        for cell in PROSE
        if "instructor" not in cell.metadata.get("tags", ())
    )
    assert 50 <= len(NOTEBOOK.cells) <= 80
    assert 1500 <= words <= 2000
    (whole,) = (source for source in CODE if source.startswith(WHOLE))
    assert 40 <= lines_of_code(whole) <= 80
    around = sum(len(re.findall(r"(?m)^\s*(?:import|from|assert) ", source)) for source in CODE)
    assert 150 <= sum(map(lines_of_code, CODE)) - lines_of_code(whole) - around <= 275


def test_only_the_imports_and_the_pool_as_a_whole_are_longer_than_a_cell_should_be():
    long = [source.split("\n")[0] for source in CODE if lines_of_code(source) > SHORT]
    assert long == ["import itertools", "class MyPool(ch03.Front):"]


def test_instructors_are_told_what_to_expect():
    told = (NOTEBOOKS / "instructor" / "03.md").read_text()
    assert all(word in told for word in ("Expect three beliefs", "Collect guesses", "Answer key"))


# --- parts that the reader writes -------------------------------------------------------------------------------------


WRONG = [  # a part, what a wrong version has in place of what is right
    ("split", "4 + int", "int"),
    ("split", '"big"', '"little"'),
    ("split", ">= (end", "> (end"),
    ("split", "buffer[4:end]", "buffer[:end]"),
    ("split", "        del buffer[:end]\n", "        break\n"),
    ("split", "while len", "if len"),
    ("deadline", "default=inf", "default=0.0"),
    ("deadline", "min(", "max("),
    ("deadline", "max(0.0, due - time.monotonic())", "due - time.monotonic()"),
    ("deadline", "due - time.monotonic()", "due"),
    ("deadline", "0.0 if self.reports else ", ""),
    ("deadline", "None if left == inf else left", "left"),
]


def judged(ch03, name, right="", wrong=""):
    """The verdict on a reader's version of a part: ours, with a change."""
    _, _, source = inspect.getsource(getattr(ch03, name)).partition("\n")  # without @checked_by
    assert right in source
    scope = dict(vars(ch03))
    exec(source.replace(right, wrong), scope)
    return judge(name, scope[name], getattr(ch03, name).check_of_hole, 20.0, "right")


@pytest.mark.parametrize("name", ["split", "deadline"])
def test_a_part_that_the_reader_writes_is_in_use_where_it_is_right(ch03, name):
    assert judged(ch03, name).status == "right"


@pytest.mark.parametrize(("name", "right", "wrong"), WRONG)
def test_a_part_that_is_wrong_is_not_in_use(ch03, name, right, wrong):
    assert judged(ch03, name, right, wrong).status == "wrong"


def test_the_committed_parts_are_stubs_and_one_is_written_within_the_first_twenty_cells():
    holes = {re.search(r"lab\.hole\(ch03\.(\w+)", cell)[1]: cell for cell in CODE if "lab.hole" in cell}
    assert [*holes] == ["split", "deadline"]
    for name, cell in holes.items():
        (stub,) = (node for node in ast.walk(ast.parse(cell)) if getattr(node, "name", "") == name)
        assert [type(part) for part in stub.body] == [ast.Expr]
    assert [cell.source for cell in NOTEBOOK.cells].index(holes["split"]) < 20

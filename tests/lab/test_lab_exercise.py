"""Exercises: what learners write is judged, told in a few lines, and cannot break the notebook."""

from __future__ import annotations

import re
import sys
import threading

import nbformat
import pytest
from nbclient import NotebookClient

from dtq.lab.exercise import EXERCISES, exercise
from dtq.lab.trial import difference, in_time
from dtq.lab.verdict import is_stub
from dtq.testing.conformance import expect

module = sys.modules["dtq.lab.exercise"]  # `dtq.lab.exercise` is the function

SOLUTION = """
def largest(numbers, n):
    return sorted(numbers, reverse=True)[:n]
"""
LIST = [3, 1, 2]


def check_largest(largest):
    expect(largest([3, 1, 2], 2), [3, 2], "the two largest of [3, 1, 2]")
    expect(largest([], 2), [], "the two largest of none")


@pytest.fixture
def make():
    def make(**options):
        given = {
            "effort": "about 2 lines, 2 minutes",
            "hints": ["Which comes first?", "See `sorted`.", "`sorted(..., reverse=True)`"],
            "solution": SOLUTION,
            "check": check_largest,
            "why": "what is sorted `downwards` begins with the largest.",
            "samples": ["largest([3, 1, 2], 2)", "largest(LIST, 0)"],
            "seconds": 0.3,
        }
        return exercise("9.1", "Write `largest`: the <n> largest numbers.", **(given | options))

    yield make
    EXERCISES.clear()


@pytest.fixture
def shown(monkeypatch):
    pages = []
    monkeypatch.setattr(module, "display", pages.append)
    return pages


def right(numbers, n):
    return sorted(numbers, reverse=True)[:n]


def smallest(numbers, n):
    return sorted(numbers)[:n]


def raises(numbers, n):
    return numbers[n] / (len(numbers) - 3)


def gives_nothing(numbers, n):
    return None


def hangs(numbers, n):
    while True:
        pass


def exits(numbers, n):
    sys.exit(3)


def interrupts(numbers, n):
    raise KeyboardInterrupt


def recurses(numbers, n):
    return recurses(numbers, n)


def mutates(numbers, n):
    numbers.sort(reverse=True)
    del numbers[n:]
    return numbers


class Cryptic(Exception):
    def __str__(self):
        raise ValueError("no words")


def cryptic(numbers, n):
    raise Cryptic


# --- stubs ---


def dots(numbers, n): ...


def documented(numbers, n):
    """The n largest."""


def passes(numbers, n):
    pass


def unwritten(numbers, n):
    raise NotImplementedError("largest")


class EmptyClass:
    """A store."""


class OpenMethods:
    size = 1

    def add(self, task):
        return task

    def claim(self, n): ...


class PassMethods:
    def add(self, task):
        pass


class Whole:
    def add(self, task):
        return task

    def flush(self):
        """Nothing to do."""

    def close(self):
        pass


def test_a_stub_is_told_from_what_was_written():
    assert all(map(is_stub, [dots, documented, passes, unwritten, EmptyClass, OpenMethods, PassMethods]))
    assert not any(map(is_stub, [right, exits, Whole, len, None, lambda: 1, 3]))


@pytest.mark.parametrize("stub", [dots, documented, passes, unwritten])
def test_an_untouched_stub_is_not_yet_right_and_raises_nothing(make, shown, stub):
    verdict = make().check(stub)
    assert verdict.status == "not yet"
    assert shown[0].text == "Not yet. `largest` is still to be written: fill it in, run its cell, check again."
    assert "<code>largest</code>" in shown[0].html


def test_a_part_that_is_not_written_is_no_wrong_answer(make, shown):
    def half(numbers, n):
        if n:
            raise NotImplementedError("n > 0")

    verdict = make().check(half)
    assert verdict.status == "not yet"
    assert verdict.text == "A part of `largest` is still to be written: it raised NotImplementedError: n > 0."


def test_a_right_answer_is_told_why_it_works(make, shown):
    verdict = make().check(right)
    assert verdict.status == "right"
    assert shown[0].text == "Right. Why it works: what is sorted `downwards` begins with the largest."


@pytest.mark.parametrize(
    ("candidate", "text"),
    [
        (smallest, "the two largest of [3, 1, 2]:\n  expected  [3, 2]\n  got       [1, 2]"),
        (raises, "It raised ZeroDivisionError: division by zero\n  at `return numbers[n] / (len(numbers) - 3)`"),
        (exits, "It raised SystemExit: 3\n  at `sys.exit(3)`"),
        (interrupts, "It raised KeyboardInterrupt\n  at `raise KeyboardInterrupt`"),
        (cryptic, "It raised Cryptic: <exception str() failed>\n  at `raise Cryptic`"),
        (hangs, "It took longer than 0.3 s."),
        (len, "It raised TypeError: len() takes exactly one argument (2 given)"),
        (None, "It raised TypeError: 'NoneType' object is not callable"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong_in_a_few_lines(make, shown, candidate, text):
    verdict = make().check(candidate)
    assert (verdict.status, verdict.text) == ("wrong", text)
    assert shown[0].text == f"Wrong. {text}"
    assert "#CC4400" in shown[0].html
    assert "Traceback" not in shown[0].html


def test_where_the_check_stumbles_over_an_answer_no_line_of_it_is_blamed_on_the_candidate(make, shown):
    verdict = make(check=lambda largest: largest([3], 1)[0]).check(gives_nothing)
    assert verdict.text == "It raised TypeError: 'NoneType' object is not subscriptable"


def test_endless_recursion_is_told_in_a_few_lines(make, shown):
    assert re.fullmatch(r"It raised RecursionError: .*\n  at `return recurses\(.*\)`", make().check(recurses).text)


def test_code_that_hangs_is_stopped_so_that_it_does_not_slow_down_the_rest(make, shown):
    make().check(hangs)
    assert [thread for thread in threading.enumerate() if thread.name == "trial"] == []


def test_code_that_does_not_listen_is_left_to_itself(make, shown):
    over = threading.Event()
    assert make().check(lambda numbers, n: over.wait(60)).text == "It took longer than 0.3 s."
    over.set()


def test_a_trial_gives_what_came_or_what_was_raised():
    assert in_time(5, lambda: 3) == (3, None)
    value, error = in_time(5, lambda: [][1])
    assert (value, type(error)) == (None, IndexError)


def test_a_timeout_of_the_code_itself_is_not_taken_for_ours(make, shown):
    def times_out(numbers, n):
        raise TimeoutError("no answer")

    assert make().check(times_out).text.startswith("It raised TimeoutError: no answer")


def test_show_gives_input_and_output_right_or_wrong(make, shown):
    made = make()
    made.show(smallest)
    made.show(raises)
    made.show(exits)
    assert [page.text.splitlines() for page in shown] == [
        ["largest([3, 1, 2], 2)  ->  [1, 2]", "largest(LIST, 0)  ->  []"],
        [f"largest({args})  ->  raised ZeroDivisionError: division by zero" for args in ("[3, 1, 2], 2", "LIST, 0")],
        [f"largest({args})  ->  raised SystemExit: 3" for args in ("[3, 1, 2], 2", "LIST, 0")],
    ]
    assert "-&gt;" in shown[0].html


def test_a_candidate_that_changes_what_it_gets_changes_nothing_of_the_notebook(make, shown):
    made = make()
    made.show(mutates)
    made.check(mutates)
    assert shown[0].text.splitlines()[1] == "largest(LIST, 0)  ->  []"
    assert LIST == [3, 1, 2]


def test_the_card_folds_hints_and_solution_and_escapes_what_it_shows(make):
    card = make()._repr_html_()
    assert re.findall("<summary>(.*?)</summary>", card) == ["Hint 1", "Hint 2", "Hint 3", "Solution"]
    assert "Write <code>largest</code>: the &lt;n&gt; largest numbers." in card
    assert "<details open" not in card
    assert '<span class="nf">largest</span>' in card
    assert repr(make()) == "Exercise 9.1 (about 2 lines, 2 minutes)\nWrite `largest`: the <n> largest numbers."


def test_hints_come_one_by_one(make, shown):
    made = make()
    for _ in range(4):
        made.hint()
    assert [page.text for page in shown] == [
        "Hint 1 of 3: Which comes first?",
        "Hint 2 of 3: See `sorted`.",
        "Hint 3 of 3: `sorted(..., reverse=True)`",
        "That was the last hint: unfold the solution.",
    ]


def test_an_exercise_without_three_hints_or_a_definition_is_refused(make):
    with pytest.raises(ValueError, match=r"9\.1 has 1 hints; it needs three"):
        make(hints=["think"])
    with pytest.raises(ValueError, match="neither a function nor a class"):
        make(solution="largest = sorted")


def test_the_solution_may_be_the_function_itself(make):
    made = make(solution=right)
    assert made.name == "right"
    assert made.solution == "def right(numbers, n):\n    return sorted(numbers, reverse=True)[:n]"


# --- proofs ---

WRONG = [
    ("the smallest", "def largest(numbers, n):\n    return sorted(numbers)[:n]"),
    ("for ever", "def largest(numbers, n):\n    while True: pass"),
    ("an object", smallest),
]
NAMES = {"largest": dots, "LIST": LIST}


def test_an_exercise_is_proven_by_its_stub_its_solution_and_its_wrong_answers(make):
    names = NAMES.copy()
    make(wrong=WRONG).prove(names)
    assert list(EXERCISES) == ["9.1"]
    assert names == NAMES


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        ({}, {}, "the notebook defines no largest"),
        ({}, {"largest": right}, "the stub came out as 'right', expected 'not yet'"),
        ({"check": lambda largest: None}, NAMES, "its check passes the stub"),
        ({"solution": WRONG[0][1]}, NAMES, "the solution came out as 'wrong', expected 'right': the two largest"),
        ({"solution": SOLUTION.replace("return", "pass #")}, NAMES, "the solution came out as 'not yet'"),
        ({"wrong": [("fine", SOLUTION)]}, NAMES, "the wrong answer 'fine' came out as 'right', expected 'wrong'"),
        ({"wrong": [("typo", SOLUTION.replace("sorted", "srted"))]}, NAMES, "'typo': It raised NameError"),
        ({"samples": ["largest(LIST)"]}, NAMES, "samples .*raised TypeError"),
    ],
)
def test_a_proof_fails_where_the_exercise_is_not_sound(make, options, names, message):
    with pytest.raises(AssertionError, match=message):
        make(**options).prove(names)


def test_solutions_see_the_names_of_the_notebook(make):
    make(solution="def largest(numbers, n):\n    return helper(numbers)[:n]").prove(
        NAMES | {"helper": lambda numbers: sorted(numbers, reverse=True)}
    )


CLASS = """
class TaskFiles:
    def __init__(self):
        self.books = []

    def put(self, book):
        self.books.append(book)

    def close(self):
        pass
"""


class TaskFiles:
    """Keeps books."""

    def put(self, book): ...


def test_classes_are_exercises_too(make):
    def check(TaskFiles):
        shelf = TaskFiles()
        shelf.put("a")
        expect(shelf.books, ["a"], "books")

    forgets = CLASS.replace("self.books.append(book)", "self.books = []")
    made = make(solution=CLASS, check=check, samples=["TaskFiles().put('a')"], wrong=[("forgets", forgets)])
    assert made.name == "TaskFiles"
    made.prove({"TaskFiles": TaskFiles})


def test_long_values_are_cut_to_where_they_differ():
    one, other = (f"[{', '.join(map(str, range(100)))}, {end}]" for end in ("'x'", "'y'"))
    text = difference(f"all: expected {one}, got {other}")
    assert text == "all:\n  expected  ... 'x']\n  got       ... 'y']"
    assert difference("lost") == "lost"


CELLS = [
    "from dtq.lab.exercise import EXERCISES, exercise",
    f"def check(double):\n    assert double(2) == 4\n"
    f"ex = exercise('1.1', 'Write `double`.', effort='1 line', hints=['a', 'b', 'c'], check=check, why='so.',\n"
    f"    samples=['double(3)'], solution='def double(n):\\n    return 2 * n',\n"
    f"    wrong=[('adds', 'def double(n):\\n    return n + {1}')])\nex",
    "def double(n):\n    ...",
    "ex.show(double)",
    "ex.check(double)",
    "ex.check(lambda n: n)",
    "for e in EXERCISES.values():\n    e.prove(globals())",
]


@pytest.mark.long
@pytest.mark.usefixtures("notebook_loop")
def test_in_a_notebook_an_exercise_is_shown_once_and_can_be_proven_there():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = [[output.data["text/plain"] for output in cell.outputs] for cell in notebook.cells]
    assert outputs[1:] == [
        ["Exercise 1.1 (1 line)\nWrite `double`."],
        [],
        ["double(3)  ->  None"],
        ["Not yet. `double` is still to be written: fill it in, run its cell, check again."],
        ["Wrong. This does not hold: `assert double(2) == 4`"],
        [],
    ]
    assert "<summary>Hint 1</summary>" in notebook.cells[1].outputs[0].data["text/html"]

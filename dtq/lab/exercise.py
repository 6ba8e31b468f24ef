"""Exercises: a learner writes a function or a class in a cell, sees what it does, and has it checked.

show ----> input -> output, as often as you like
check ---> "not yet" (a stub) | "wrong": expected and actual value | "right": why it works
hint ----> three hints, each closer to the answer; the solution is folded away

If the learner's code hangs, exits or recurses forever, the cell still ends without an error, so Run All stays green.
`prove` is for the tests: the stub fails, the solution passes, and the check catches each planted wrong answer.
"""

from __future__ import annotations

import ast
import copy
import html
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from IPython.display import display

from dtq.lab import kept
from dtq.lab.source import Page, code_html, excerpt
from dtq.lab.trial import clipped, in_time, in_words
from dtq.lab.verdict import FUNCTION, Verdict, attempt, folded, judge, prose

Scope = dict[str, Any]  # the names of a notebook


class Exercise:
    """An exercise; `exercise` makes one. A cell shows it as a card with the task, and folded hints and solution."""

    def __init__(
        self, number: str, task: str, effort: str, hints: Sequence[str], solution: Any, check: Callable[[Any], object],
        why: str, samples: Sequence[str], wrong: Sequence[tuple[str, Any]], seconds: float,
    ) -> None:  # fmt: skip
        if len(hints) != 3:
            raise ValueError(f"exercise {number} has {len(hints)} hints; it needs three, each closer to the answer")
        self.number = number
        self.name = _name_of(solution)
        self._task, self._effort, self._why = task, effort, why
        self._hints, self._next_hint = list(hints), 0
        self._solution, self._wrong = solution, list(wrong)
        self._check, self._samples, self._seconds = check, list(samples), seconds

    def _repr_html_(self) -> str:
        hints = "".join(folded(f"Hint {n}", prose(hint)) for n, hint in enumerate(self._hints, 1))
        head = f"<p><strong>Exercise {html.escape(self.number)}</strong> ({html.escape(self._effort)})</p>"
        return f"{head}{prose(self._task)}{hints}{folded('Solution', code_html(self.solution))}"

    def __repr__(self) -> str:
        return f"Exercise {self.number} ({self._effort})\n{self._task}"

    @property
    def solution(self) -> str:
        """The source of the solution."""
        text = self._solution if isinstance(self._solution, str) else excerpt(self._solution).text
        return textwrap.dedent(text).strip()

    def show(self, candidate: Any) -> None:
        """Show the output of the candidate for each sample, right or wrong."""
        names = _names_around(candidate)
        lines = [f"{sample}  ->  {self._answer(sample, candidate, names)}" for sample in self._samples]
        display(Page(f"<pre>{html.escape(chr(10).join(lines))}</pre>", "\n".join(lines)))

    def check(self, candidate: Any) -> Verdict:
        """Check the candidate, show the verdict and return it. Never raises."""
        verdict = self.judge(candidate)
        kept.note_try(self.number, verdict.status)
        display(verdict.page())
        return verdict

    def hint(self) -> None:
        """Show the next hint."""
        n, self._next_hint = self._next_hint, self._next_hint + 1
        if n < 3:
            kept.note_hint(self.number)
        text = f"Hint {n + 1} of 3: {self._hints[n]}" if n < 3 else "That was the last hint: unfold the solution."
        display(Page(prose(text), text))

    def judge(self, candidate: Any) -> Verdict:
        """Return the verdict that `check` shows."""
        return judge(self.name, candidate, self._check, self._seconds, f"Why it works: {self._why}")

    def prove(self, names: Scope) -> None:
        """Prove the exercise, for tests, with the names of the notebook. Raise AssertionError if the stub in the
        notebook is not recognised or passes, if the solution does not pass, or if the check misses a wrong answer."""
        assert self.name in names, f"exercise {self.number}: the notebook defines no {self.name}"
        self._must(self.judge(names[self.name]), "not yet", "the stub")
        assert self._try(names[self.name]).status != "right", f"exercise {self.number}: its check passes the stub"
        solution = self._build(self._solution, "solution", names)
        self._must(self.judge(solution), "right", "the solution")
        answers = [self._answer(sample, solution, names) for sample in self._samples]
        assert not any(answer.startswith("raised ") for answer in answers), f"exercise {self.number}: samples {answers}"
        for label, given in self._wrong:
            verdict = self.judge(self._build(given, label, names))
            self._must(verdict, "wrong", f"the wrong answer {label!r}")
            assert not isinstance(verdict.error, NameError), f"exercise {self.number}, {label!r}: {verdict.text}"

    def _build(self, given: Any, label: str, names: Scope) -> Any:
        """Return what the source text defines when it runs with the notebook's names. Return anything but text as it
        is."""
        if not isinstance(given, str):
            return given
        text, file, scope = textwrap.dedent(given).strip() + "\n", f"<exercise {self.number}: {label}>", dict(names)
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), scope)
        return scope[self.name]

    def _must(self, verdict: Verdict, status: str, whose: str) -> None:
        assert verdict.status == status, (
            f"exercise {self.number}: {whose} came out as {verdict.status!r}, expected {status!r}: {verdict.text}"
        )

    def _try(self, candidate: Any) -> Verdict:
        """The verdict of the check alone, on a stub too."""
        return attempt(self.name, candidate, self._check, self._seconds, f"Why it works: {self._why}")

    def _answer(self, sample: str, candidate: Any, names: Scope) -> str:
        """Return the value of the expression, with the candidate under its expected name, as text."""
        scope = _spared(names, sample) | {self.name: candidate}
        answer, error = in_time(self._seconds, lambda: repr(eval(sample, scope)))
        return f"raised {in_words(error)}" if answer is None else clipped(answer)


EXERCISES: dict[str, Exercise] = {}  # those of the notebook, by number: for e in EXERCISES.values(): e.prove(globals())


def exercise(
    number: str,
    task: str,
    *,
    effort: str,
    hints: Sequence[str],
    solution: Any,
    check: Callable[[Any], object],
    why: str,
    samples: Sequence[str] = (),
    wrong: Sequence[tuple[str, Any]] = (),
    seconds: float = 5.0,
) -> Exercise:
    """Make an exercise and register it in EXERCISES. Put it on the last line of a cell to show it.

    Args:
        number: The chapter and the number in it, as in "2.1".
        task: What to write. Here, in `hints` and in `why`, `backticks` mark code.
        effort: The expected number of lines and minutes.
        hints: Three hints, each closer to the answer.
        solution: Source text that ends with the function or class asked for, or that function or class itself.
        check: Gets the candidate and raises AssertionError if it is wrong, preferably by `expect` of the conformance
            kit. It runs on its own thread.
        why: Why the solution works.
        samples: Expressions that call the candidate by its name; `show` shows their values.
        wrong: Plausible wrong answers, each with a label. The check must catch them (see `prove`).
        seconds: How long a check may take.

    Returns:
        The exercise.
    """
    made = Exercise(number, task, effort, hints, solution, check, why, samples, wrong, seconds)
    EXERCISES[number] = made
    return made


# --- names ---


def _name_of(solution: Any) -> str:
    """Return the name of the last function or class that the solution defines."""
    if not isinstance(solution, str):
        return str(solution.__name__)
    body = ast.parse(textwrap.dedent(solution)).body
    names = [node.name for node in body if isinstance(node, ast.ClassDef | FUNCTION)]
    if not names:
        raise ValueError(f"the solution defines neither a function nor a class: {solution!r}")
    return names[-1]


def _names_around(candidate: Any) -> Scope:
    """Return the global names that the candidate's code can use."""
    function = inspect.unwrap(candidate) if callable(candidate) else candidate
    module = sys.modules.get(getattr(candidate, "__module__", None) or "__main__")
    return getattr(function, "__globals__", None) or vars(module or sys.modules["__main__"])


def _spared(names: Scope, sample: str) -> Scope:
    """Return the names, with copies of those that the sample uses: a candidate may change its arguments."""
    used = compile(sample, "<sample>", "eval").co_names
    return names | {name: copy.deepcopy(names[name]) for name in used if isinstance(names.get(name), list | dict | set)}

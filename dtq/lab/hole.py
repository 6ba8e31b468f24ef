"""hole: a function that the reader writes in place, in the middle of a chapter.

class MyStore(MyStore):
    def reap(self, worker, n, lease, now):
        "Take over what has run out of its lease."          <-- a stub, to be filled in

    reap = lab.hole(ch02.reap, reap)       the reader's if the check accepts it; until then ours, with a notice

Run All stays green whatever the reader writes, and the chapter continues with a method that works.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast

from IPython.display import display

from dtq.lab import kept
from dtq.lab.verdict import Verdict, judge

F = TypeVar("F", bound=Callable[..., Any])
SECONDS = 10.0  # the time that a check may take


def checked_by(check: Callable[[Any], object]) -> Callable[[F], F]:
    """Attach to a function the check that a reader's version must pass. The check raises if the version is wrong."""

    def attach(function: F) -> F:
        function.check_of_hole = check  # type: ignore[attr-defined]
        return function

    return attach


def hole(given: F, function: F) -> F:
    """Return the reader's `function` if the check of the `given` one accepts it; else the given one.

    Show which of the two it is, and what is wrong with the reader's.
    """
    name = given.__name__
    check = given.check_of_hole  # type: ignore[attr-defined]
    verdict = judge(name, function, check, SECONDS, f"Your `{name}` is in use.")
    kept.note_try(name, verdict.status)
    if verdict.status == "right":
        display(verdict.page())
        return function
    text = f"`{name}` is ours for now: write yours." if verdict.status == "not yet" else f"{verdict.text}"
    more = "" if verdict.status == "not yet" else f"\n`{name}` is ours for now."
    display(Verdict(verdict.status, text + more).page())
    return _as_of_the_notebook(given)


def _as_of_the_notebook(given: F) -> F:
    """Return a copy that goes to workers by value, as functions of a cell do: they cannot import the exercises."""
    of: Any = given
    copy: Any = FunctionType(of.__code__, of.__globals__, of.__name__, of.__defaults__, of.__closure__)
    copy.__module__, copy.__doc__, copy.__kwdefaults__ = "__main__", of.__doc__, of.__kwdefaults__
    copy.check_of_hole = None  # by which it is known as ours
    return cast(F, copy)

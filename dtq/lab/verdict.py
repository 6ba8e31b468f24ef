"""A verdict on what a reader wrote, and how it is shown.

judge: a stub is "not yet"; what the check accepts is "right"; all else is "wrong", with the input that failed
"""

from __future__ import annotations

import ast
import html
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from dtq.lab.source import Page, excerpt
from dtq.lab.trial import explain, in_time, in_words

# legible on white and on black
COLORS = {"not yet": "#767676", "wrong": "#CC4400", "right": "#00806A"}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Verdict:
    """The result of a check. `check` has shown it already, so a cell that ends with it does not show it again."""

    status: Literal["not yet", "wrong", "right"]
    text: str
    error: BaseException | None = field(default=None, repr=False)

    def page(self) -> Page:
        """Return the verdict as an output of a cell."""
        return Page(_verdict_html(self), f"{self.status.capitalize()}. {self.text}")

    def _ipython_display_(self) -> None:
        pass


def judge(name: str, candidate: Any, check: Callable[[Any], object], seconds: float, right: str) -> Verdict:
    """Return the verdict of `check` on a candidate that should be called `name`; never raise.

    `check` runs on its own thread for at most `seconds`. `right` is the text of the verdict if it passes.
    """
    if is_stub(candidate):
        return Verdict("not yet", f"`{name}` is still to be written: fill it in, run its cell, check again.")
    return attempt(name, candidate, check, seconds, right)


def attempt(name: str, candidate: Any, check: Callable[[Any], object], seconds: float, right: str) -> Verdict:
    """Return the verdict of the check alone, for a stub too."""
    _, error = in_time(seconds, lambda: check(candidate))
    if error is None:
        return Verdict("right", right)
    if isinstance(error, NotImplementedError):
        return Verdict("not yet", f"A part of `{name}` is still to be written: it raised {in_words(error)}.")
    return Verdict("wrong", explain(error, candidate), error)


# --- reading the candidate ---


def is_stub(candidate: Any) -> bool:
    """Return whether the candidate is still to be written: a function that has only a docstring, `...`, `pass` or
    NotImplementedError; a class that has only such functions, or one with `...` or NotImplementedError (an empty one
    may be intended)."""
    try:
        (node, *_) = ast.parse(excerpt(candidate).text).body
    except (TypeError, OSError, SyntaxError, ValueError):
        return False  # without source there is no way to tell: let the check decide
    if isinstance(node, ast.ClassDef):
        return all(map(_is_open, node.body)) or any(map(_is_left_open, node.body))
    return isinstance(node, FUNCTION) and _is_open(node)


def _is_left_open(node: ast.stmt) -> bool:
    return isinstance(node, FUNCTION) and _is_open(node) and ast.unparse(node.body[-1]).startswith(("...", "raise"))


def _is_open(node: ast.stmt) -> bool:
    if isinstance(node, FUNCTION):
        return all(map(_is_open, node.body))
    if isinstance(node, ast.Raise):
        return "NotImplementedError" in ast.unparse(node)
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


# --- the page ---


def _verdict_html(verdict: Verdict) -> str:
    color = COLORS[verdict.status]
    head = f'<strong style="color:{color}">{verdict.status.capitalize()}.</strong>'
    text, _, detail = verdict.text.partition("\n")
    detail = f'<pre style="color:{color}">{html.escape(detail)}</pre>' if detail else ""
    style = f"border-left:4px solid {color};padding-left:.8em"
    return f'<div role="status" style="{style}">{head} {code_in(text)}{detail}</div>'


def folded(summary: str, inner: str) -> str:
    """Return HTML that shows `inner` when the summary is pressed."""
    return f"<details><summary>{html.escape(summary)}</summary>{inner}</details>"


def prose(text: str) -> str:
    """Return paragraphs, with `backticks` as code."""
    return "".join(f"<p>{code_in(paragraph)}</p>" for paragraph in textwrap.dedent(text).strip().split("\n\n"))


def code_in(text: str) -> str:
    """Return the escaped text, with `backticks` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))

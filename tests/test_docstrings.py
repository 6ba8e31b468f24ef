"""Everything that `dtq.__all__` reaches has a complete docstring.

class       has a docstring, which names the parameters of its constructor; a field may have a comment instead
property    has a docstring
function    has a docstring, which names each parameter; it has "Return" (or "Yield") where something is returned,
            and "Raise" where the function itself raises
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import msgspec
import pytest

import dtq

NO_VALUE = {"None", "NoReturn", inspect.Parameter.empty}


def problems_of(name: str, value: Any) -> Iterator[str]:
    """Yield what the docstrings of an exported object lack: "QueueManager.add: payload, Return"."""
    if not inspect.isclass(value):
        lacking = {name: lacks_of_function(value)}
    else:
        lacking = {name: lacks_of_class(value)}
        for member, found in members_of(name, value):
            lacking[member] = lacks_of_function(found) if isinstance(found, FunctionType) else lacks_of(found)
    yield from (f"{which}: {', '.join(lacks)}" for which, lacks in lacking.items() if lacks)


def members_of(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public functions and properties that dtq defines for a class, under the class that has them."""
    for member in sorted(dir(cls)):
        owner = next((base for base in cls.__mro__ if member in vars(base)), None)
        if owner is None or member.startswith("_") or not owner.__module__.startswith(("dtq.", __name__)):
            continue
        found = vars(owner)[member]
        found = getattr(found, "__func__", found)  # of a classmethod or a staticmethod
        if isinstance(found, FunctionType | property):
            yield f"{name if owner is cls else owner.__name__}.{member}", found


def lacks_of(documented: Any) -> list[str]:
    return [] if (documented.__doc__ or "").strip() else ["docstring"]


def lacks_of_class(cls: type) -> list[str]:
    text = vars(cls).get("__doc__") or ""
    if not text.strip():
        return ["docstring"]
    if issubclass(cls, msgspec.Struct):
        return [field for field in cls.__struct_fields__ if not is_named(field, text) and not has_comment(cls, field)]
    init = vars(cls).get("__init__")
    if not isinstance(init, FunctionType) or getattr(cls, "_is_protocol", False):
        return []
    text += init.__doc__ or ""
    return [name for name in parameters_of(init) if not is_named(name, text)]


def lacks_of_function(function: Callable[..., Any]) -> list[str]:
    text = function.__doc__ or ""
    if not text.strip():
        return ["docstring"]
    lacks = [name for name in parameters_of(function) if not is_named(name, text)]
    if returns(function) and not re.search(r"\b(Return|Yield)s?\b", text):
        lacks.append("Return")
    if raises(function) and not re.search(r"\bRaises?\b", text):
        lacks.append("Raise")
    return lacks


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def is_named(name: str, text: str) -> bool:
    return re.search(rf"\b{name}\b", text) is not None


def has_comment(cls: type, field: str) -> bool:
    """Return whether the line that declares a field ends with a comment."""
    return re.search(rf"^ +{field}: .*  # ", inspect.getsource(cls), re.MULTILINE) is not None


def returns(function: Callable[..., Any]) -> bool:
    return inspect.signature(function).return_annotation not in NO_VALUE


def raises(function: Callable[..., Any]) -> bool:
    """Return whether the function has a raise statement that names an exception."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


def test_everything_public_has_a_docstring_that_names_its_parameters_results_and_errors():
    assert [line for name in dtq.__all__ for line in problems_of(name, getattr(dtq, name))] == []


def documented(a: int) -> int:
    """Return twice `a`. Raise ValueError below 0."""
    if a < 0:
        raise ValueError
    return 2 * a


def vague(a: int) -> int:
    """Doubles."""
    if a < 0:
        raise ValueError
    return 2 * a


class Bare:
    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def area(self) -> int:
        return self.size**2


class Point(msgspec.Struct):
    """A place, `x` metres east."""

    x: float
    y: float  # metres north
    z: float


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (documented, []),
        (vague, ["it: a, Return, Raise"]),
        (Bare, ["it: docstring", "it.area: docstring"]),
        (Point, ["it: z"]),
    ],
)
def test_the_check_finds_what_it_must(value, expected):
    assert list(problems_of("it", value)) == expected

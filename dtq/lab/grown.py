"""A class that was written in several cells, as one class.

class MyStore(Table): step        class MyStore(MyStore): add        class MyStore(MyStore): claim
             +------------------------------+-------------------------------+
                                            v
whole(MyStore)           one class with step, add, claim in their present form, folded
module_text(MyStore)     the same class with all that it uses, to be imported elsewhere
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from IPython.display import display

from dtq.lab.source import Page, code_html, excerpt, innermost
from dtq.lab.verdict import folded

Names = dict[str, Any]


def whole(cls: type) -> None:
    """Show the class with all its methods, including those of earlier cells, folded."""
    text = class_text(cls)
    title = f"{cls.__name__} as a whole, {len(text.splitlines())} lines"
    display(Page(folded(title, code_html(text)), text))


def is_ours(value: Any) -> bool:
    """Return whether `hole` has replaced the reader's method by ours."""
    return hasattr(value, "check_of_hole")


def members(cls: type) -> Names:
    """Return the functions of the class by name, in their present form, in the order of their first definition."""
    found: Names = {}
    for stage in reversed(_stages(cls)):
        found |= {name: value for name, value in vars(stage).items() if inspect.isfunction(innermost(value))}
    return {name: value for name, value in found.items() if _has_source(value)}


def class_text(cls: type) -> str:
    """Return the source of one class that is equivalent to all its stages together."""
    stages = _stages(cls)
    bases = ", ".join(base.__name__ for base in stages[-1].__bases__ if base is not object)
    statements = [text for stage in reversed(stages) for text in _statements(stage, members(cls))]
    methods = [excerpt(method).text for method in members(cls).values()]
    body = "\n\n".join(["\n".join(statements), *methods] if statements else methods)
    return f"class {cls.__name__}{f'({bases})' if bases else ''}:\n{textwrap.indent(body, '    ')}"


def _stages(cls: type) -> list[type]:
    """Return the stages of the class: the classes of the same name and module in its MRO, the latest first."""
    return [each for each in cls.__mro__ if (each.__name__, each.__module__) == (cls.__name__, cls.__module__)]


def _statements(stage: type, methods: Names) -> Iterator[str]:
    """Yield the statements in the body of a class that are not methods: docstring, fields, constants."""
    text = excerpt(stage).text
    (node, *_) = ast.parse(text).body
    for part in node.body if isinstance(node, ast.ClassDef) else []:
        is_method = isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
        if not is_method and not _assigns(part, methods):
            yield ast.get_source_segment(text, part) or ""


def _assigns(part: ast.stmt, methods: Names) -> bool:
    """Return whether the statement assigns a method, as `reap = lab.hole(...)` does."""
    targets = part.targets if isinstance(part, ast.Assign) else []
    return any(isinstance(target, ast.Name) and target.id in methods for target in targets)


def _has_source(value: Any) -> bool:
    try:
        excerpt(value)
    except (TypeError, OSError):
        return False
    return True


# --- the module ------------------------------------------------------------------------------------------------------


def module_text(cls: type) -> str:
    """Return the text of a module that defines the class, and `kept`, which is the class.

    Raises:
        ValueError: It uses a value that is neither importable nor plain data.
    """
    imports: dict[str, str] = {}
    definitions: dict[str, str] = {}
    text = class_text(cls)
    for base in _stages(cls)[-1].__bases__:
        _define(base.__name__, base, imports, definitions)
    for method in members(cls).values():
        _define_names(excerpt(method).text, innermost(method).__globals__, imports, definitions)
    _define_names(text, vars(sys.modules[cls.__module__]), imports, definitions, skip={cls.__name__})
    head = f'"""{cls.__name__}, kept by lab.keep."""'
    return "\n\n".join(
        [head, "\n".join(sorted(imports.values())), *definitions.values(), text, f"kept = {cls.__name__}\n"]
    )


def _define_names(
    text: str,
    scope: Names,
    imports: dict[str, str],
    definitions: dict[str, str],
    skip: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    """Add the names of the scope that the text uses."""
    tree = ast.parse(textwrap.dedent(text))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    for name in sorted(used & scope.keys() - skip):
        _define(name, scope[name], imports, definitions)


def _define(name: str, value: Any, imports: dict[str, str], definitions: dict[str, str]) -> None:
    if name in imports or name in definitions:
        return
    module, own = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if isinstance(value, ModuleType):
        imports[name] = f"import {value.__name__} as {name}"
    elif module and module != "__main__" and getattr(sys.modules.get(module), own, None) is value:
        imports[name] = f"from {module} import {own} as {name}"
    elif inspect.isfunction(value) or inspect.isclass(value):
        text = excerpt(value).text if inspect.isfunction(value) else class_text(value)
        definitions[name] = ""  # it may refer to itself
        _define_names(text, vars(sys.modules["__main__"]), imports, definitions)
        definitions[name] = definitions.pop(name) or text  # after the names that it uses
    else:
        definitions[name] = f"{name} = {_literal(name, value)}"


def _literal(name: str, value: Any) -> str:
    try:
        if ast.literal_eval(repr(value)) == value:
            return repr(value)
    except (ValueError, SyntaxError):
        pass
    raise ValueError(f"{name} is {value!r}, which cannot be kept: make it in the class, or in a function")

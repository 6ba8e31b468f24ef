"""Source: show the package's real code in a notebook. It is read from the running module, so it is never an old copy.

source(SQLiteStore.claim)                    a function, method, property, class or module, also one from a cell
source("dtq.stores.sqlite.schema:INSERT")    a constant, by module and name
compare(MyStore, MemoryStore)                two of them side by side, methods of the same name in one row; one below
                                             the other on a narrow page
"""

from __future__ import annotations

import ast
import html
import inspect
import io
import linecache
import reprlib
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from importlib import import_module
from itertools import pairwise
from pathlib import PurePath
from typing import Any, NamedTuple

from IPython.display import display
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

# JupyterLab colours .highlight as its theme does; elsewhere these colours are legible on white and on black
COLORS = {
    "k": ("keyword", "#8959a8"),
    "s": ("string", "#3f7f3f"),
    "c": ("comment", "#747474"),
    "m": ("number", "#b35c00"),
    "nf": ("def", "#3b74b8"),
    "nc": ("def", "#3b74b8"),
    "nd": ("def", "#3b74b8"),
}
STYLE = (
    "<style>.dtq-code,.dtq-code pre{background:none!important}"
    ".dtq-code pre{max-height:40em;overflow:auto;line-height:1.35}"
    ".dtq-code pre{white-space:pre-wrap!important;word-break:normal!important;overflow-wrap:anywhere}"
    ".dtq-code pre{font-size:var(--jp-code-font-size,13px)!important}"
    ".dtq-code .linenos{opacity:.55;padding-right:1em;user-select:none}"
    + "".join(
        f'.dtq-code [class^="{kind}"]{{color:var(--jp-mirror-editor-{name}-color,{color})}}'
        for kind, (name, color) in COLORS.items()
    )
    + "</style>"
)
TWO_COLUMNS = (
    "<style>.dtq-two{width:100%;table-layout:fixed}"
    "@media(max-width:1500px){.dtq-two th{display:none}"
    ".dtq-two td{display:block;width:auto!important;max-width:none!important}"
    ".dtq-two td:empty{display:none}.dtq-two td::before{content:attr(data-of);font-weight:bold}}</style>"
)
QUIET = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
WRAPPERS = {
    property: "fget",
    cached_property: "func",
    partial: "func",
    staticmethod: "__func__",
    classmethod: "__func__",
}  # kinds of wrapper -> the attribute that has the wrapped function
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


class Page:
    """An output of a cell: HTML in a notebook, text in a terminal."""

    def __init__(self, html: str, text: str) -> None:
        self.html = html
        self.text = text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Excerpt(NamedTuple):
    """Some lines of a file. `place` is the path of the file within its package, `first` the number of the first
    line."""

    file: str
    place: str
    first: int
    text: str

    @property
    def last(self) -> int:
        return self.first + len(self.text.splitlines()) - 1

    @property
    def caption(self) -> str:
        return f"{self.place}, lines {self.first} to {self.last}"


def source(thing: Any) -> None:
    """Show the code of a function, method, property, class or module, or of a constant named "package.module:NAME".

    Raises:
        TypeError: It is not written in Python.
        OSError: Its file no longer exists.
    """
    found = excerpt(thing)
    numbered = [f"{number:4}  {line}" for number, line in enumerate(found.text.splitlines(), found.first)]
    caption = f"<div><code>{html.escape(found.caption)}</code></div>"
    display(Page(caption + code_html(found.text, found.first), "\n".join([found.caption, *numbered])))


def compare(mine: Any, theirs: Any) -> None:
    """Show two sources side by side, and how many lines of code each has, without blank lines, comments and docstrings.
    Methods of the same name in two classes are in one row."""
    both = excerpt(mine), excerpt(theirs)
    heads = [
        f"{_name(thing)}: {lines_of_code(found.text)} lines of code ({found.place})"
        for thing, found in zip((mine, theirs), both, strict=True)
    ]
    text = "\n\n".join(f"{head}\n{found.text}" for head, found in zip(heads, both, strict=True))
    display(Page(_side_by_side(heads, [_pieces(found) for found in both]), text))


def _name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", None) or getattr(thing, "__name__", thing)).rpartition("<locals>.")[2]


def code_html(text: str, first: int | None = None) -> str:
    """Return the code as HTML, in the colours of the page around it, with line numbers from `first` on if it is
    given."""
    numbers = {"linenos": "inline", "linenostart": first} if first else {}
    formatter = HtmlFormatter(cssclass="highlight dtq-code", **numbers)
    return STYLE + str(highlight(text, PythonLexer(stripnl=False), formatter))


# --- finding code ---


def excerpt(thing: Any) -> Excerpt:
    """Return the lines that define it. Raise TypeError if it is not written in Python, and OSError if its file no
    longer exists."""
    if isinstance(thing, str):
        return _constant(thing)
    thing = innermost(thing)
    try:
        file, first, lines = _lines(thing)
    except TypeError:
        raise TypeError(
            f"{reprlib.repr(thing)} has no Python source: it is built in, or a value. Pass a function, class, method "
            'or module that is written in Python, or the name of a constant as "package.module:NAME"'
        ) from None
    return Excerpt(file, _place(file, thing), first, textwrap.dedent("".join(lines)).rstrip())


def innermost(thing: Any) -> Any:
    """Return the function inside a property, a partial or a decorated function."""
    for kind, attribute in WRAPPERS.items():
        if isinstance(thing, kind):
            return innermost(getattr(thing, attribute))
    return inspect.unwrap(thing) if callable(thing) else thing


def _lines(thing: Any) -> tuple[str, int, list[str]]:
    if inspect.isclass(thing) and (found := _class_by_methods(thing)):
        return found
    try:
        lines, first = inspect.getsourcelines(thing)
    except (TypeError, OSError):
        if inspect.isclass(thing) and (found := _class_in_a_cell(thing)):
            return found
        raise
    return inspect.getsourcefile(thing) or inspect.getfile(thing), max(first, 1), lines


def _class_by_methods(cls: type) -> tuple[str, int, list[str]] | None:
    """Find a class through its methods. A class from a cell has no file, but its methods have, and their
    line numbers tell several classes of the same name apart."""
    for function in map(innermost, vars(cls).values()):
        if inspect.isfunction(function) and function.__qualname__.startswith(f"{cls.__qualname__}."):
            file, line = function.__code__.co_filename, function.__code__.co_firstlineno
            for start, end in _classes(cls.__name__, linecache.getlines(file)):
                if start <= line <= end:
                    return file, start, linecache.getlines(file)[start - 1 : end]
    return None


def _class_in_a_cell(cls: type) -> tuple[str, int, list[str]] | None:
    """Return the latest definition of this name in a cell. Cells are the cached files without a modification time."""
    cells = [entry for entry in linecache.cache.values() if len(entry) == 4 and entry[1] is None]
    for _, _, lines, file in reversed(cells):
        for start, end in _classes(cls.__name__, lines):
            return file, start, lines[start - 1 : end]
    return None


def _classes(name: str, lines: list[str]) -> Iterator[tuple[int, int]]:
    """Return the first and last lines of the classes of this name, the innermost and latest first."""
    classes = [node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.ClassDef)]
    return ((_start(node), node.end_lineno or 0) for node in reversed(classes) if node.name == name)


def _start(node: ast.ClassDef | FUNCTION) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _constant(name: str) -> Excerpt:
    """Return the statement that assigns a constant of a module."""
    module_name, _, constant = name.partition(":")
    module = import_module(module_name)
    text = inspect.getsource(module)
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == constant for target in targets):
            lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
            return Excerpt(str(module.__file__), _place(str(module.__file__), module), node.lineno, "\n".join(lines))
    raise TypeError(f"{name!r} names no constant: write package.module:NAME; pass functions and classes themselves")


def _place(file: str, thing: Any) -> str:
    """Return the path within the package, as in dtq/stores/sqlite/store.py, wherever it is installed."""
    if file.startswith("<") or "ipykernel" in file:
        return "a cell of this notebook"
    module = str(getattr(thing, "__module__", None) or thing.__name__)
    depth = module.count(".") + 1 + (PurePath(file).name == "__init__.py")
    return "/".join(PurePath(file).parts[-depth:])


# --- counting and pairing ---


def lines_of_code(text: str) -> int:
    """Return the number of lines with code, without blank lines, comments and docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for token in tokens if token.type not in QUIET for line in range(token.start[0], token.end[0] + 1)}
    return len(code - set(_docstring_lines(ast.parse(text))))


def _docstring_lines(tree: ast.AST) -> Iterable[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | FUNCTION) and ast.get_docstring(node) is not None:
            yield from range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)


def _pieces(found: Excerpt) -> dict[str, Excerpt]:
    """Split a class: "" maps to the lines before its first method, and the name of each method to its lines."""
    (node, *_) = ast.parse(found.text).body
    starts = {"": 1}
    for part in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(part, FUNCTION):
            starts.setdefault(part.name, _start(part))
    lines = found.text.splitlines()
    spans = zip(starts, pairwise([*starts.values(), len(lines) + 1]), strict=True)
    return {
        name: found._replace(first=found.first + start - 1, text="\n".join(lines[start - 1 : end - 1]).rstrip())
        for name, (start, end) in spans
    }


def _side_by_side(heads: list[str], sides: list[dict[str, Excerpt]]) -> str:
    cell = 'style="text-align:left;vertical-align:top;width:50%;max-width:0"'
    head = "".join(f'<th scope="col" {cell}>{html.escape(head)}</th>' for head in heads)
    rows = [
        "".join(
            f'<td {cell} data-of="{html.escape(head)}">{_code(side[name]) if name in side else ""}</td>'
            for head, side in zip(heads, sides, strict=True)
        )
        for name in dict.fromkeys(name for side in sides for name in side)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'{STYLE}{TWO_COLUMNS}<table class="dtq-two"><tr>{head}</tr>{body}</table>'


def _code(piece: Excerpt) -> str:
    return code_html(piece.text, piece.first).removeprefix(STYLE)

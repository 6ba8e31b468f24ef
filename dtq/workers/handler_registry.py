"""Registry: which handler runs which type of task, and how a worker loads it.

    "package.module:function"  --> Source name    the worker imports it
    "path/to/handler.py"       --> Source path    the worker runs the file and takes its `execute`
    a function                 --> Source value   pickled: by reference where it can be imported, else as code

A queue carries names, not code. Only functions of a notebook or a script are sent to the pool as code, because workers
cannot import them. They are sent again when they have changed (`refresh`).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dtq.errors import HandlerError, UnknownType
from dtq.task import names
from dtq.workers.wire import Source

Function = Callable[..., Any]
Handler = Function | str | Path
Error = type[BaseException] | str  # an exception, or its name
Errors = Error | Iterable[Error]
Names = tuple[str, ...]

MAX_CONCURRENCY = 10_000
_FORMS = 'a function (payload, context), "package.module:function", or the path of a .py file with a function `execute`'
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class _Entry(NamedTuple):
    source: Source
    function: Function | None  # the handler itself, if it was registered as a function


class Registry:
    """The handlers of one queue. With `pickles=False`, for pools inside this process, functions are not pickled."""

    def __init__(self, pickles: bool = True) -> None:
        self._pickles = pickles
        self._entries: dict[str, _Entry] = {}

    def register(
        self, type: str, handler: Handler, concurrency: int = 1, *, retry_on: Errors = (), give_up_on: Errors = ()
    ) -> None:
        """Use this handler for new calls of the type. Timeouts and crashes are retried whatever `retry_on` names.

        Args:
            type: the type of the tasks that it runs.
            handler: a function (payload, context), "package.module:function", or the path of a .py file with a function
                `execute`. A file must exist now; a module is imported by the first worker that needs it.
            concurrency: how many calls of an `async def` handler each worker runs at once.
            retry_on: if not empty, only these exceptions lead to another attempt. Classes or names ("OSError",
                "httpx.HTTPError").
            give_up_on: exceptions that end the task without another attempt.

        Raises:
            InvalidTask: the type is not a valid name.
            HandlerError: the handler cannot be used; the message says why and what to do.
        """
        names.check_free("type", type)
        self.enter(type, handler, concurrency, retry_on=retry_on, give_up_on=give_up_on)

    def enter(
        self, type: str, handler: Handler, concurrency: int = 1, *, retry_on: Errors = (), give_up_on: Errors = ()
    ) -> None:
        """Register a handler without checking the type, for handlers of dtq itself."""
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= MAX_CONCURRENCY:
            raise HandlerError(
                f"concurrency of {type!r} is {concurrency!r}; allowed: a whole number from 1 to {MAX_CONCURRENCY:,}"
            )
        if concurrency > 1 and inspect.isfunction(handler) and not inspect.iscoroutinefunction(handler):
            raise HandlerError(
                f"concurrency of {type!r} is {concurrency}, but {_describe(handler)} is not async: while it runs, its "
                "worker runs nothing else. Write it as async def, or give the queue more workers"
            )
        rules = (_names("retry_on", type, retry_on), _names("give_up_on", type, give_up_on))
        self._entries[type] = self._entry(type, handler, concurrency, rules)

    def source(self, type: str) -> Source:
        """Return where workers load the handler from. Raise UnknownType if there is none."""
        return self._find(type).source

    def function(self, type: str) -> Function | None:
        """Return the handler if it was registered as a function, else None. Raise UnknownType if there is none."""
        return self._find(type).function

    def __contains__(self, type: str) -> bool:
        return type in self._entries

    def types(self) -> frozenset[str]:
        return frozenset(self._entries)

    def refresh(self) -> list[str]:
        """Pickle the functions of a notebook or a script again, and return the types whose source has changed.

        The name may be bound to a new function, or something that the function uses may have changed.

        Raises:
            HandlerError: a function can no longer be pickled. All others are refreshed.
        """
        changed, problems = [], []
        for type, entry in list(self._entries.items()):
            try:
                if self._renew(type, entry):
                    changed.append(type)
            except HandlerError as error:
                problems.append(error)
        if problems:
            raise problems[0]
        return changed

    def _find(self, type: str) -> _Entry:
        if type not in self._entries:
            known = ", ".join(sorted(self._entries)) or "none"
            raise UnknownType(f"there is no handler of {type!r}; there are: {known}")
        return self._entries[type]

    def _renew(self, type: str, entry: _Entry) -> bool:
        if entry.function is None or not _is_of_main(entry.function):
            return False
        function = _rebound(entry.function)
        source = entry.source
        renewed = self._entry(type, function, source.concurrency, (source.retry_on, source.give_up_on))
        self._entries[type] = renewed
        return renewed != entry

    def _entry(self, type: str, handler: Handler, concurrency: int, rules: tuple[Names, Names]) -> _Entry:
        if isinstance(handler, (str, Path)):
            kind, where = _locate(type, handler)
            return _Entry(Source(kind, where, b"", concurrency, *rules), None)
        _check_function(type, handler)
        code = _pickle(handler) if self._pickles else b""
        return _Entry(Source("value", _describe(handler), code, concurrency, *rules), handler)


def _names(option: str, handled: str, errors: Errors) -> Names:
    """Return the names of the exceptions: a queue carries names, not code."""
    listed = list(errors) if isinstance(errors, Iterable) and not isinstance(errors, (str, type)) else [errors]
    return tuple(_name(option, handled, error) for error in listed)


def _name(option: str, handled: str, error: object) -> str:
    if isinstance(error, type) and issubclass(error, BaseException):
        return f"{error.__module__}.{error.__name__}"
    if isinstance(error, str) and all(part.isidentifier() for part in error.split(".")):
        return error
    raise HandlerError(
        f"{option} of {handled!r} has {error!r}; allowed: exceptions or their names, as in (OSError, 'httpx.HTTPError')"
    )


# --- valid handlers ---------------------------------------------------------------------------------------------------


def _locate(type: str, handler: str | Path) -> tuple[str, str]:
    if isinstance(handler, Path) or handler.endswith(".py"):
        path = Path(handler).expanduser().absolute()
        if not path.is_file():
            raise HandlerError(f"the handler of {type!r} is {str(handler)!r}, but there is no file {path}")
        return "path", str(path)
    if not _NAME.fullmatch(handler):
        raise HandlerError(f"the handler of {type!r} is {handler!r}; allowed: {_FORMS}")
    return "name", handler


def _check_function(type: str, handler: Any) -> None:
    if not callable(handler):
        raise HandlerError(f"the handler of {type!r} is {handler!r}; allowed: {_FORMS}")
    try:
        signature = inspect.signature(handler)
    except ValueError:
        return  # written in C, without a signature: the first call will show
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise HandlerError(
            f"the handler of {type!r}, {_describe(handler)}{signature}, must take two positional arguments: "
            f"write it as (payload, context). Python says: {error}"
        ) from None


def _describe(function: Any) -> str:
    """Return the function as module:name."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or '?'}:{name}"


# --- functions --------------------------------------------------------------------------------------------------------


def _pickle(function: Function) -> bytes:
    try:
        return _dumps(function)
    except Exception as error:  # pickling runs code of every object that it meets
        used = ", ".join(_unpicklable(function)) or str(error)
        raise HandlerError(
            f"{_describe(function)} cannot be sent to a worker, because this cannot be pickled: {used}. Create it "
            "inside the function, or put the handler into a module that creates it in its setup()"
        ) from error


def _dumps(value: Any) -> bytes:
    import cloudpickle  # only needed for handlers of a script or a notebook

    return cloudpickle.dumps(value)  # type: ignore[no-any-return]


def _unpicklable(function: Function) -> list[str]:
    """Return the globals and closure variables of the function that cannot be pickled, as `name (its type)`."""
    try:
        used = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return []  # not a plain function
    values = {**used.globals, **used.nonlocals}
    return [f"{name} ({type(value).__name__})" for name, value in values.items() if not _can_be_pickled(value)]


def _can_be_pickled(value: Any) -> bool:
    try:
        _dumps(value)
    except Exception:
        return False
    return True


def _is_of_main(function: Function) -> bool:
    return getattr(function, "__module__", None) == "__main__"


def _rebound(function: Function) -> Function:
    """Return the function that the name means in `__main__` now, or else the function itself.

    A wrapper of a decorator around the same function does not replace it: it was registered without it on purpose.
    """
    candidate = vars(sys.modules["__main__"]).get(getattr(function, "__name__", ""))
    if not inspect.isfunction(candidate) or not _is_of_main(candidate):
        return function
    return function if inspect.unwrap(candidate, stop=lambda f: f is function) is function else candidate

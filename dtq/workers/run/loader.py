"""Load a handler from its Source: import or unpickle it, and run its module's `setup()`.

    define(type, source) -> load(type): name  -> import_module ---+
                                        path  -> run the file -----+--> setup(), once --> Loaded
                                        value -> unpickle ---------+

A handler is loaded by its first call: a worker that never runs a type never imports its dependencies.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from threading import RLock
from time import monotonic
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import cloudpickle

from dtq.errors import HandlerError
from dtq.workers.wire import Source

Function = Callable[..., Any]
Found = tuple[Function, ModuleType | None]  # a handler, and the module with its setup() and teardown()

RETRY_LOAD_AFTER = 0.2  # seconds; earlier calls fail with the same error, without another import
_module_numbers = count()


class Loaded(NamedTuple):
    """A handler that is ready to be called. `concurrency` limits how many of its calls run at once on an event loop."""

    function: Function
    is_async: bool
    concurrency: int


class Handlers:
    """The handlers of one worker process, or of one pool of threads. Safe to use from any thread."""

    def __init__(self, around_load: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        """`around_load()` is entered while a handler is loaded and its module is set up."""
        self._around_load = around_load
        self._sources: dict[str, tuple[Source, Function | None]] = {}
        self._loaded: dict[str, Loaded] = {}
        self._failed: dict[str, tuple[float, HandlerError]] = {}
        self._modules: list[ModuleType] = []  # whose setup() has been run
        self._lock = RLock()

    def define(self, type: str, source: Source, function: Function | None = None) -> None:
        """Use this handler for new calls of the type, and forget the loaded one. `function` is the handler itself, if
        it was created in this process."""
        with self._lock:
            self._sources[type] = source, function
            self._loaded.pop(type, None)
            self._failed.pop(type, None)

    def is_loaded(self, type: str) -> bool:
        return type in self._loaded

    def load(self, type: str) -> Loaded:
        """Return the handler; load it if necessary. Raise HandlerError, with its cause, if that fails."""
        return self._loaded.get(type) or self._load(type)

    def gives_up_on(self, type: str, error: BaseException) -> bool:
        """Return whether this error ends the task without another attempt.

        A handler with `retry_on` gives up on all other exceptions. If `give_up_on` names the exception too, it wins.
        """
        if type not in self._sources or isinstance(error, HandlerError):
            return False
        source = self._sources[type][0]
        if not (source.retry_on or source.give_up_on):
            return False
        names = _names_of(error)
        return not names.isdisjoint(source.give_up_on) or bool(source.retry_on and names.isdisjoint(source.retry_on))

    def teardown(self) -> list[str]:
        """Run `teardown()` of every module that was set up, latest first. Return a message for each that failed."""
        with self._lock:
            modules, self._modules = self._modules, []
            self._loaded.clear()
        return [problem for module in reversed(modules) if (problem := _tear_down(module))]

    def _load(self, type: str) -> Loaded:
        with self._lock:
            if type not in self._loaded:
                with self._around_load():
                    self._loaded[type] = self._try_to_load(type)
            return self._loaded[type]

    def _try_to_load(self, type: str) -> Loaded:
        failed_at, failure = self._failed.get(type, (0.0, None))
        if failure is not None and monotonic() - failed_at < RETRY_LOAD_AFTER:
            raise failure.with_traceback(None)
        source, function = self._find(type)
        try:
            handler, module = (function, _home(function)) if function else _LOADERS[source.kind](source)
            self._set_up(module)
            return Loaded(handler, _is_async(handler), source.concurrency)
        except BaseException as error:  # a module may also call sys.exit
            where = f"the handler of {type!r} ({source.where}) cannot be loaded"
            failure = HandlerError(f"{where}: {error.__class__.__name__}: {error}")
            self._failed[type] = monotonic(), failure
            raise failure from error

    def _find(self, type: str) -> tuple[Source, Function | None]:
        if type not in self._sources:
            known = ", ".join(sorted(self._sources)) or "none"
            raise HandlerError(f"there is no handler of {type!r} here; there are: {known}")
        return self._sources[type]

    def _set_up(self, module: ModuleType | None) -> None:
        if module is None or module in self._modules:
            return
        setup = getattr(module, "setup", None)
        if callable(setup):
            setup()
        self._modules.append(module)


def _names_of(error: BaseException) -> set[str]:
    """Return the names that match the error: those of its class and base classes, each with and without module."""
    classes = type(error).__mro__
    return {c.__name__ for c in classes} | {f"{c.__module__}.{c.__name__}" for c in classes}


def _tear_down(module: ModuleType) -> str:
    try:
        teardown = getattr(module, "teardown", None)
        if callable(teardown):
            teardown()
    except BaseException as error:
        return f"teardown() of {module.__name__} raised {type(error).__name__}: {error}"
    return ""


def _is_async(function: Function) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


# --- where a handler comes from ---------------------------------------------------------------------------------------


def _by_name(source: Source) -> Found:
    name, _, attributes = source.where.partition(":")
    module = importlib.import_module(name)
    function: Any = module
    for attribute in attributes.split("."):
        function = getattr(function, attribute)
    if not callable(function):
        raise HandlerError(f"{source.where} is {function!r}; a handler is a function (payload, context)")
    return function, module


def _by_path(source: Source) -> Found:
    module = _run_file(source.where)
    function = getattr(module, "execute", None)
    if not callable(function):
        raise HandlerError(f"{source.where} has no function `execute`: define `def execute(payload, context):` in it")
    return function, module


def _by_value(source: Source) -> Found:
    function = cloudpickle.loads(source.code)
    return function, _home(function)


_LOADERS: dict[str, Callable[[Source], Found]] = {"name": _by_name, "path": _by_path, "value": _by_value}


def _home(function: Function) -> ModuleType | None:
    """Return the function's module, or None if it was defined in a notebook, a script, or another function."""
    name = getattr(function, "__module__", None)
    module = sys.modules.get(name) if name and name != "__main__" else None
    return module if getattr(module, getattr(function, "__name__", ""), None) is function else None


class _FreshLoader(SourceFileLoader):
    """Compiles the file each time: Python's cache misses an edit within the same second that keeps the size."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _run_file(path: str) -> ModuleType:
    """Run the file as a module, under a name that hides no other module. Its directory does not become importable."""
    name = f"dtq_handler_{next(_module_numbers)}_{Path(path).stem}"
    loader = _FreshLoader(name, path)
    spec = spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

"""From a handler's source to a function that can be called: the import, the unpickling, and the module's `setup()`.

    define(type, source) -> load(type): name  -> import_module ---+
                                        path  -> run the file -----+--> setup(), once --> Loaded
                                        value -> unpickle ---------+

A handler is loaded when its first call comes: a worker that never runs a type never imports what that needs.
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
Found = tuple[Function, ModuleType | None]  # a handler, and the module whose setup() and teardown() go with it

TRY_AGAIN_AFTER = 0.2  # seconds; calls that come sooner fail like the one before, without another import
_module_numbers = count()


class Loaded(NamedTuple):
    """A handler that is ready to be called. `concurrency`: how many calls of it one event loop has in hand at most."""

    function: Function
    is_async: bool
    concurrency: int


class Handlers:
    """The handlers of one worker process, or of one pool of threads. Safe to use from many threads."""

    def __init__(self, around_load: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        """`around_load()` is entered while a handler is loaded and its module set up."""
        self._around_load = around_load
        self._sources: dict[str, tuple[Source, Function | None]] = {}
        self._loaded: dict[str, Loaded] = {}
        self._failed: dict[str, tuple[float, HandlerError]] = {}
        self._modules: list[ModuleType] = []  # whose setup() has been run
        self._lock = RLock()

    def define(self, type: str, source: Source, function: Function | None = None) -> None:
        """This is the handler of the type from now on, whatever was loaded before. `function` is the handler itself,
        where it was made in this process."""
        with self._lock:
            self._sources[type] = source, function
            self._loaded.pop(type, None)
            self._failed.pop(type, None)

    def is_loaded(self, type: str) -> bool:
        return type in self._loaded

    def load(self, type: str) -> Loaded:
        """The handler, loaded by the first call that asks for it. Raises HandlerError; its cause is what went wrong."""
        return self._loaded.get(type) or self._load(type)

    def gives_up_on(self, type: str, error: BaseException) -> bool:
        """Whether the handler of this type is not to be tried again after this error. Who names exceptions to retry on
        gives up on all others; where both name it, giving up goes first."""
        if type not in self._sources or isinstance(error, HandlerError):
            return False
        source = self._sources[type][0]
        if not (source.retry_on or source.give_up_on):
            return False
        names = _names_of(error)
        return not names.isdisjoint(source.give_up_on) or bool(source.retry_on and names.isdisjoint(source.retry_on))

    def teardown(self) -> list[str]:
        """Runs `teardown()` of every module that was set up, latest first; returns what went wrong there."""
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
        if failure is not None and monotonic() - failed_at < TRY_AGAIN_AFTER:
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
    """What `retry_on` and `give_up_on` may call it: its class and the classes above, each with and without module."""
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
    """The module that the function is a part of; None for one made in a notebook, a script, or another function."""
    name = getattr(function, "__module__", None)
    module = sys.modules.get(name) if name and name != "__main__" else None
    return module if getattr(module, getattr(function, "__name__", ""), None) is function else None


class _FreshLoader(SourceFileLoader):
    """Compiles the file each time: Python's cache overlooks an edit within the same second that keeps the size."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _run_file(path: str) -> ModuleType:
    """The file as a module of its own, under a name that hides no other; its directory is not made importable."""
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

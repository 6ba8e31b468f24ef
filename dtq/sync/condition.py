"""Condition: threading.Condition for threads that may be interrupted (Ctrl-C, a notebook's Stop).

    with condition:                 threading.Condition: `__enter__` is written in Python. An interrupt behind the
        condition.wait()            lock's own call, and before the body, leaves it locked for ever: the thread that
                                    wants to notify hangs, and with it the node.

Here the lock itself is the context manager, which CPython enters and leaves in one step.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_RLock: Any = type(threading.RLock())


class Condition(_RLock, threading.Condition):  # type: ignore[misc]
    """All methods of threading.Condition, on a lock of its own; `with` is that of the lock."""

    def __init__(self) -> None:
        self._waiters: deque[Any] = deque()


class SafeFuture(Future[T]):
    """A Future whose waiters may be interrupted: its result can be set all the same."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = Condition()

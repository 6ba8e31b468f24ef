"""Condition: threading.Condition for threads that may be interrupted (Ctrl-C, a notebook's Stop).

    with condition:                 `__enter__` of threading.Condition is written in Python. An interrupt that comes
        condition.wait()            between the locking and the body leaves the condition locked forever: the thread
                                    that wants to notify hangs, and the node with it.

Here the lock itself is the context manager; CPython enters and leaves it in one step.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_RLock: Any = type(threading.RLock())


class Condition(_RLock, threading.Condition):  # type: ignore[misc]
    """A threading.Condition that is its own lock, so that `with` enters and leaves the lock directly."""

    def __init__(self) -> None:
        self._waiters: deque[Any] = deque()


class SafeFuture(Future[T]):
    """A Future whose result can still be set after a waiting thread was interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = Condition()

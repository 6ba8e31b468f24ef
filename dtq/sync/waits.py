"""Waits that any thread can end, and that survive an interrupt (Ctrl-C, a notebook's Stop).

    Wakeup        a socket that becomes readable, for a loop that waits in a selector
    Condition     threading.Condition whose `with` cannot be interrupted between the locking and the body
    SafeFuture    a Future that stays usable after a waiting thread was interrupted

`__enter__` of threading.Condition is written in Python. An interrupt within it would leave the condition locked: the
thread that wants to notify would hang, and the node with it. Here the lock itself is the context manager, which CPython
enters and leaves in one step.
"""

from __future__ import annotations

import contextlib
import select
import socket
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


class Wakeup:
    """A socket pair that becomes readable on `wake`. Several calls of `wake` count as one, and all but the first cost
    only a look at a flag.

    Call `clear` or `wait` before reading the state that `wake` announces: then a `wake` that finds the flag set is not
    lost.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._is_set = False
        self._lock = threading.RLock()  # a signal handler may call `wake` in a thread that holds it

    def wake(self) -> None:
        """End the current or the next `wait`. Any thread may call this. After `close`, do nothing."""
        if not self._is_set:
            with self._lock, contextlib.suppress(OSError):
                self._writer.send(b"!")
                self._is_set = True  # after the byte: an exception may be raised in this thread between the two

    def clear(self) -> None:
        """Make the socket unreadable until the next `wake`."""
        with self._lock, contextlib.suppress(OSError):
            self._is_set = False
            self._reader.recv(4096)

    def fileno(self) -> int:
        """Return the descriptor that is readable after `wake`."""
        return self._reader.fileno()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a `wake`, and clear it. Return True if one came."""
        is_readable = wait_for(self._reader, timeout)
        if is_readable:
            self.clear()
        return is_readable

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def wait_for(sock: socket.socket, timeout: float) -> bool:
    """Wait up to `timeout` seconds until the socket is readable. Return False if it is not."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(timeout * 1000))

"""PoolWakeup: ends a pool's `wait` from any thread."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Lock


class PoolWakeup:
    """A socket pair with at most one byte in it. To wake a pool that was woken already costs only a look at a flag.

    Call `clear` before reading the state that `wake` announces: then a `wake` that finds the flag set is not lost.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._is_set = False
        self._lock = Lock()

    def wake(self) -> None:
        """Make `fileno` readable. After `close`, do nothing."""
        if not self._is_set:
            with self._lock, suppress(OSError):
                self._writer.send(b"!")
                self._is_set = True  # after the byte: an exception may be raised in this thread between the two

    def clear(self) -> None:
        with self._lock, suppress(OSError):
            self._is_set = False
            self._reader.recv(64)

    def fileno(self) -> int:
        return self._reader.fileno()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

"""Connections: those that the calls of one store use, taken out of the pool of the redis-py client.

Each connection is used by one thread at a time. A redis-py client checks its pool and the socket before each request,
which takes longer than the server needs for a small script, and waits for the reply before it sends the next request.
Here a connection is checked only after it failed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis import ConnectionPool, RedisError


class Connections:
    """Open connections that are free, and those of `pool` where none is."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._free: deque[Any] = deque()
        self._pid = os.getpid()
        self._closed = False

    def use(self, talk: Callable[[Any], None]) -> None:
        """Call `talk` with a connection.

        Where it raises or is interrupted, close that connection, as a reply may still be on its way. Close the free
        ones too: what broke one has usually broken all.
        """
        connection = self._take()
        try:
            talk(connection)
        except BaseException:
            self._close_one(connection)
            self._close_free()
            raise
        self._free.append(connection)
        if self._closed:
            self._close_free()

    def _take(self) -> Any:
        self._forget_those_of_parent()
        with suppress(IndexError):
            return self._free.pop()
        return self._pool.get_connection()

    def _forget_those_of_parent(self) -> None:
        """Forget, after a fork, the free connections: the parent uses them."""
        if self._pid != os.getpid():
            self._pid, self._free = os.getpid(), deque()

    def _close_free(self) -> None:
        with suppress(IndexError):
            while True:
                self._close_one(self._free.pop())

    def _close_one(self, connection: Any) -> None:
        with suppress(RedisError, OSError):
            connection.disconnect()
        self._pool.release(connection)

    def close(self) -> None:
        """Close the free connections now, and those in use when they come back."""
        self._closed = True
        self._forget_those_of_parent()
        self._close_free()


def send(connection: Any, *command: str | bytes | int) -> None:
    """Send a command as one piece, so that small ones fit into one packet."""
    connection.send_packed_command([b"".join(connection.pack_command(*command))], check_health=False)

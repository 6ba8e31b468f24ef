"""Lines: the connections to a Redis or Valkey server that the calls of one store use, past the client's own pool.

A call takes a line and gives it back, so that each is used by one thread at a time. A client of redis-py looks at its
pool and at the socket whenever it sends something, which takes longer than the server needs for a small script; and it
waits for one reply before it sends the next request. Here a line is looked at only when it fails.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis import ConnectionPool, RedisError


class Connections:
    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._free: deque[Any] = deque()
        self._pid = os.getpid()
        self._closed = False

    def use(self, talk: Callable[[Any], None]) -> None:
        """Talk on a connection. Where that raises, or is interrupted, it is closed, as a reply may still be on its way;
        so are those that nobody uses, since what befell this one has mostly befallen them."""
        connection = self._take()
        try:
            talk(connection)
        except BaseException:
            self._hang_up(connection)
            self._hang_up_free_ones()
            raise
        self._free.append(connection)
        if self._closed:
            self._hang_up_free_ones()

    def _take(self) -> Any:
        self._leave_to_parent()
        with suppress(IndexError):
            return self._free.pop()
        return self._pool.get_connection()

    def _leave_to_parent(self) -> None:
        """After a fork: the free connections are the parent's."""
        if self._pid != os.getpid():
            self._pid, self._free = os.getpid(), deque()

    def _hang_up_free_ones(self) -> None:
        with suppress(IndexError):
            while True:
                self._hang_up(self._free.pop())

    def _hang_up(self, connection: Any) -> None:
        with suppress(RedisError, OSError):
            connection.disconnect()
        self._pool.release(connection)

    def close(self) -> None:
        self._closed = True
        self._leave_to_parent()
        self._hang_up_free_ones()


def send(connection: Any, *command: str | bytes | int) -> None:
    """In one packet, as far as one can hold it."""
    connection.send_packed_command([b"".join(connection.pack_command(*command))], check_health=False)

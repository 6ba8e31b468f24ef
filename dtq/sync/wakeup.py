"""Wakeup: end a thread's wait from any other thread, through a socket that a selector can watch."""

from __future__ import annotations

import contextlib
import select
import socket
from threading import RLock


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
        self._lock = RLock()  # a signal handler may call `wake` in a thread that holds it

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

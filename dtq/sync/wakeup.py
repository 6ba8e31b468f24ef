"""Wakeup: end a thread's wait from any other thread, through a socket that a selector can watch."""

from __future__ import annotations

import contextlib
import select
import socket


class Wakeup:
    """A socket that becomes readable on `wake`. Several calls of `wake` before the next `wait` count as one."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def wake(self) -> None:
        """End the current or the next `wait`. Any thread may call this."""
        with contextlib.suppress(BlockingIOError):  # full: the other end is readable already
            self._out.send(b"!")

    def fileno(self) -> int:
        return self._in.fileno()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a `wake`. Return True if one came."""
        return wait_and_drain(self._in, timeout)

    def close(self) -> None:
        self._out.close()
        self._in.close()


def wait_and_drain(sock: socket.socket, timeout: float) -> bool:
    """Wait up to `timeout` seconds until the non-blocking socket is readable, and read all that it holds.

    Return False if nothing came.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(timeout * 1000):
        return False
    with contextlib.suppress(BlockingIOError):
        while sock.recv(4096):
            pass
    return True

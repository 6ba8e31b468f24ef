"""Bell: a socket that says that something changed, for a thread that waits on it with others in one selector."""

from __future__ import annotations

import contextlib
import select
import socket


class Wakeup:
    """Rings are counted as one until somebody has heard them. `ring` may be called from any thread."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it rings already
            self._out.send(b"!")

    def fileno(self) -> int:
        return self._in.fileno()

    def wait(self, timeout: float) -> bool:
        return hear(self._in, timeout)

    def close(self) -> None:
        self._out.close()
        self._in.close()


def hear(sock: socket.socket, timeout: float) -> bool:
    """Waits until the non-blocking socket has something to read, and takes all of it away; False where nothing came."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(timeout * 1000):
        return False
    with contextlib.suppress(BlockingIOError):
        while sock.recv(4096):
            pass
    return True

"""A channel: one end of a socket that never blocks, with a buffer each way, for frames as wire.py makes them.

    send ---> [what the socket did not take] ---> socket ---> [what is not yet a whole frame] ---> receive

What the other end does, or does not do, costs its owner nothing but memory: a worker that is stuck in a call reads
nothing, and a stopped one may leave half a frame.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector

from dtq.workers import wire

CHUNK = 1 << 18  # bytes asked for in one read
READS = 16  # at most, before others have their turn


class Channel:
    """`on_event(mask)` is what the selector finds with its socket; it calls `flush` and `receive`."""

    def __init__(self, selector: BaseSelector, on_event: Callable[[int], None]) -> None:
        self.is_open = True
        self._sock, self.other_end = socket.socketpair()
        self._sock.setblocking(False)
        self._selector, self._on_event = selector, on_event
        self._inbox, self._outbox = bytearray(), bytearray()
        selector.register(self._sock, EVENT_READ, on_event)

    def send(self, message: wire.ToWorker) -> None:
        """Sends what can be sent now, and keeps the rest for `flush`. Into the void, when the other end is gone."""
        if not self.is_open:
            return
        waits = bool(self._outbox)
        self._outbox += wire.frame(message)
        if not waits:
            self._write()
            if self._outbox:
                self._selector.modify(self._sock, EVENT_READ | EVENT_WRITE, self._on_event)

    def flush(self) -> None:
        """To be called on EVENT_WRITE."""
        if self.is_open:
            self._write()
            if not self._outbox:
                self._selector.modify(self._sock, EVENT_READ, self._on_event)

    def receive(self) -> Iterator[bytes]:
        """The bodies of the whole frames that have come. Closes the channel at the end of the stream."""
        for _ in range(READS):
            data = self._read()
            if data is None:
                break
            self._inbox += data
            if len(data) < CHUNK:
                break
        return wire.split(self._inbox)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._selector.unregister(self._sock)
            self._sock.close()
            self.other_end.close()
            self._outbox.clear()

    def _write(self) -> None:
        try:
            del self._outbox[: self._sock.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()  # the other end is gone; `receive` will see it

    def _read(self) -> bytes | None:
        """None: nothing there."""
        if not self.is_open:
            return None
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # reset by the other end
            data = b""
        if not data:
            self.close()
        return data

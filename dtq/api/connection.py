"""Connection: one client, held to what uvicorn does not bound: time, the size of headers, and how many there are.

connect --RECEIVE seconds--> whole request --handler--> answer --SEND seconds to take it--> next request, or KEEP_ALIVE

A client that sends slowly, or nothing, is let go when its time is over, and at once when its place is needed: when all
places are taken, whoever has been quiet for longest makes room. A request that is worked on is never thrown out.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from dtq.api.problems import MEDIA_TYPE, HTTPProblem, body

RECEIVE = 15.0  # seconds from a request's first byte (or the connection's beginning) to its last
SEND = 30.0  # seconds in which a client that takes nothing must take something
MAX_HEAD = 32 << 10  # bytes of request line and headers
MAX_CONNECTIONS = 512  # of one process; each costs a file descriptor, of which there are often 1,024


class Connection(HttpToolsProtocol):
    """What uvicorn makes for each connection, as `http=` of its Config."""

    max_connections = MAX_CONNECTIONS
    receive_seconds = RECEIVE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._receiving = True  # a request that has not arrived in full
        self._head = 0  # bytes of its head so far; -1 when it is complete
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(self.receive_seconds, self._too_slow)
        self._stuck: asyncio.TimerHandle | None = None
        self.since = self.loop.time()  # when it was last heard of
        if len(self.connections) > self.max_connections:
            self._make_room()

    def _make_room(self) -> None:
        quiet = [other for other in self.connections if not other.is_at_work()]  # type: ignore[union-attr]
        oldest = min(quiet, key=lambda other: other.since)  # type: ignore[union-attr]
        if oldest is self:
            self.refuse(HTTPProblem(503, "all connections are in use; try again"))
        else:
            oldest.transport.abort()
        self.connections.discard(oldest)

    def is_at_work(self) -> bool:
        """Whether a whole request is being answered."""
        return not self._receiving and self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        self.since = self.loop.time()
        if self._head >= 0:
            self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD:
            self.refuse(HTTPProblem(431, f"the request line and the headers are more than {MAX_HEAD:,} bytes"))
        elif self._receiving and self._deadline is None:
            self._deadline = self.loop.call_later(self.receive_seconds, self._too_slow)

    def on_message_begin(self) -> None:
        self._receiving, self._head = True, max(self._head, 0)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()
        self.cycle.transport = CoalescingTransport(self.transport, self.loop)  # type: ignore[assignment]
        if getattr(self.server_state, "leaving", False):
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._receiving, self._head = False, 0
        self._stop_clock()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self.resume_writing()
        super().connection_lost(exc)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.scope is None:  # not one byte
            self.transport.abort()
        else:
            self.refuse(HTTPProblem(408, f"the request did not arrive within {self.receive_seconds:g} seconds"))

    # --- answers that need no application

    def refuse(self, refusal: HTTPProblem) -> None:
        """Says why, where nothing was said yet, and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            content = body(refusal)
            head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[refusal.status] + head.encode() + content)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self.refuse(HTTPProblem(400, "this is not an HTTP request"))

    # --- clients that do not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(SEND, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None


class CoalescingTransport:
    """What an answer is written to: its head goes out with the first of its body, in one packet and one call.

    Where no body follows at once (a stream that has nothing to tell yet), the head goes out alone.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self._is_first = True

    def write(self, data: bytes) -> None:
        if self._is_first:
            self._is_first = False
            self._head = data
            self._loop.call_soon(self._flush)
        elif self._head is not None:
            self._transport.write(self._head + data)
            self._head = None
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._head is not None:
            self._transport.write(self._head)
            self._head = None

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        self._transport.close()


def settings() -> dict[str, Any]:
    """What uvicorn is told beside the application. (`backlog` is how many connections asyncio accepts in one go, and
    how often it says in one go that there is no descriptor left for any: once.)"""
    return {
        "http": Connection, "ws": "none", "lifespan": "on", "loop": "asyncio", "access_log": False,
        "log_config": None, "log_level": "error", "server_header": False, "proxy_headers": False,
        "timeout_keep_alive": int(RECEIVE), "backlog": 1,
    }  # fmt: skip

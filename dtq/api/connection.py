"""Connection: one client, with the bounds that uvicorn does not set: on time, on bytes, on the number of connections.

connect --RECEIVE_TIMEOUT--> whole request --handler--> response, taken within SEND_TIMEOUT --> next request
                                                                                            (RECEIVE_TIMEOUT)

A client that sends slowly, or nothing, is disconnected after its timeout. When all connections are in use, the one that
has been idle for longest is closed to make room. A request that is being answered is never cut off.

Bytes are counted whether or not the application reads them: those that are no body (request line, headers, the framing
of chunks, trailers) since the last piece of body, and all of a request. uvicorn would append trailers to the headers,
where they could name another Host or a token; here they are dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from dtq.api.config import MIB
from dtq.api.problems import MEDIA_TYPE, HTTPProblem, content_of

RECEIVE_TIMEOUT = 15.0  # seconds from the first byte of a request (or the start of the connection) to the last
SEND_TIMEOUT = 30.0  # seconds in which a client must read some of a response that is stuck
MAX_HEADER_BYTES = 32 << 10  # of request line and headers, and of what is no body later
MAX_FRAMING = 8  # the most bytes of a request, in multiples of the largest body: chunks of one byte take 6 times theirs
MAX_CONNECTIONS = 512  # of one process; each costs a file descriptor, and 1,024 is a usual limit


class Connection(HttpToolsProtocol):
    """The protocol that uvicorn makes for each connection (`http=` in its Config)."""

    max_connections = MAX_CONNECTIONS
    receive_seconds = RECEIVE_TIMEOUT

    def __init__(self, *arguments: Any, max_body: int = MIB, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._max_bytes = MAX_HEADER_BYTES + MAX_FRAMING * max_body
        self._bytes = 0  # of this request so far
        self._overhead = 0  # of them, since the last piece of body
        self._receiving = True  # a request that has not arrived whole
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._receive_timer = self._start_receive_timer()
        self.last_active = self.loop.time()
        if len(self.connections) > self.max_connections:
            self._close_idle()

    def _close_idle(self) -> None:
        """Close the connection that has been idle for longest, which may be this one."""
        idle = [other for other in self.connections if not other.is_busy()]  # type: ignore[union-attr]
        oldest = min(idle, key=lambda other: other.last_active)  # type: ignore[union-attr]
        if oldest is self:
            self.reject(HTTPProblem(503, "all connections of this server are in use; try again later"))
        else:
            oldest.transport.abort()
        self.connections.discard(oldest)

    def is_busy(self) -> bool:
        """Return whether a request that has arrived whole is being answered."""
        return not self._receiving and self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        self.last_active = self.loop.time()
        self._bytes += len(data)
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > MAX_HEADER_BYTES:
            self.reject(HTTPProblem(431, f"headers or trailers have more than {MAX_HEADER_BYTES:,} bytes"))
        elif self._bytes > self._max_bytes:
            self.reject(HTTPProblem(413, f"the request has more than {self._max_bytes:,} bytes"))
        elif self._receiving and self._receive_timer is None:
            self._receive_timer = self._start_receive_timer()

    def on_message_begin(self) -> None:
        self._receiving = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._overhead = 0
        super().on_headers_complete()
        self.headers = deque(maxlen=0)  # type: ignore[assignment]  # uvicorn appends trailers to it
        self.cycle.transport = CoalescingTransport(self.transport, self.loop)  # type: ignore[assignment]
        if getattr(self.server_state, "leaving", False):
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._receiving = False
        self._bytes = self._overhead = 0
        self._stop_receive_timer()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receive_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def _start_receive_timer(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.receive_seconds, self._receive_timed_out)

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _receive_timed_out(self) -> None:
        self._receive_timer = None
        if self.scope is None:  # not one byte has come
            self.transport.abort()
        else:
            self.reject(HTTPProblem(408, f"the request did not arrive within {self.receive_seconds:g} seconds"))

    # --- responses without the application

    def reject(self, problem: HTTPProblem) -> None:
        """Send the problem, unless a response has begun, and close the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            content = content_of(problem)
            head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[problem.status_code] + head.encode() + content)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self.reject(HTTPProblem(400, "this is not an HTTP request"))

    # --- clients that do not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(SEND_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None


class CoalescingTransport:
    """Sends the head of a response together with the first part of its body: one packet and one system call.

    If no body follows at once, as in a stream that has nothing to send yet, the head goes out alone.
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


def uvicorn_options(max_body: int) -> dict[str, Any]:
    """Return the options of uvicorn.Config besides the application, for bodies of up to `max_body` bytes.

    `backlog` is how many connections asyncio accepts in one go. It is 1 because asyncio logs as many errors in one go
    when no descriptor is left.
    """
    return {
        "http": partial(Connection, max_body=max_body), "ws": "none", "lifespan": "on", "loop": "asyncio",
        "access_log": False, "log_config": None, "log_level": "error", "server_header": False, "proxy_headers": False,
        "timeout_keep_alive": int(RECEIVE_TIMEOUT), "backlog": 1,
    }  # fmt: skip

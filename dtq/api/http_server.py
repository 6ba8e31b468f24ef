"""Server: uvicorn with a shutdown that drops no request, and the thread that it runs on.

stop --> stop listening; accept the connections that the kernel has already established
     --> answer requests that wait, end the streams, give idle clients a moment for a request that is on its way
     --> finish every response --> close
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import uvicorn

from dtq.api.config import MIB
from dtq.api.connection import Connection, uvicorn_options
from dtq.api.state import AppState
from dtq.errors import DTQError

DRAIN_SECONDS = 0.3  # in which requests that are on their way may still arrive when the server stops
SHUTDOWN_GRACE = 30  # seconds to finish the requests that are being answered
START_TIMEOUT = 30.0  # seconds
LISTEN_BACKLOG = 1024  # connections that the kernel keeps until they are accepted


class Server(uvicorn.Server):
    """Serves one application on one listening socket, which it then owns.

    Args:
        make_app: makes the application; it is passed the function that the application calls with its AppState.
        listener: the listening socket.
        max_body: the largest body of a request, in bytes.
    """

    def __init__(
        self, make_app: Callable[[Callable[[AppState], None]], object], listener: socket.socket, max_body: int = MIB
    ) -> None:
        config = uvicorn.Config(
            make_app(self._set_state),  # type: ignore[arg-type]
            timeout_graceful_shutdown=SHUTDOWN_GRACE,
            **uvicorn_options(max_body),
        )
        super().__init__(config)
        # Before the socket is duplicated: asyncio would otherwise make it blocking for a moment, for all processes that
        # share it, and one of them could then be caught in `accept`.
        listener.setblocking(False)
        self._listener = listener
        self._state: AppState | None = None

    def _set_state(self, state: AppState) -> None:
        self._state = state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([self._listener.dup()])
        self._listener.listen(LISTEN_BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._accept_established()
        self.server_state.leaving = True  # type: ignore[attr-defined]
        if self._state is not None:
            self._state.stop()
        for connection in list(self.server_state.connections):
            if connection.is_busy():  # type: ignore[union-attr]
                connection.shutdown()
        until = time.monotonic() + DRAIN_SECONDS
        while self.server_state.connections and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await super().shutdown()

    async def _accept_established(self) -> None:
        """Accept the connections that wait in the kernel: for their clients they are established."""
        loop = asyncio.get_running_loop()
        with self._listener, suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setblocking(False)
                await loop.connect_accepted_socket(self._connection, client)

    def in_child(self) -> None:
        """After a fork: give up the inherited sockets, so that the parent alone decides when they are closed."""
        accepting = [sock.fileno() for server in getattr(self, "servers", ()) for sock in server.sockets]
        clients = [connection.transport.get_extra_info("socket") for connection in self.server_state.connections]
        release_descriptors([*accepting, *(client.fileno() for client in clients if client is not None)])
        self._listener.close()

    def _connection(self) -> Connection:
        make: Any = self.config.http_protocol_class
        connection: Connection = make(self.config, self.server_state, self.lifespan.state)
        return connection


class ServerThread:
    """Runs a Server on its own thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dtq-api", daemon=True)

    def start(self) -> None:
        """Return when the server answers. Raises DTQError if it does not start."""
        self._thread.start()
        give_up_at = time.monotonic() + START_TIMEOUT
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > give_up_at:
                raise DTQError(f"the API server did not start: {self._error or 'see the log'}") from self._error
            time.sleep(0.002)

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve())
        except (Exception, SystemExit) as error:
            self._error = error

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def in_child(self) -> None:
        self._server.in_child()


def release_descriptors(descriptors: Iterable[int]) -> None:
    """Give up inherited descriptors in a forked child: make each of them refer to the null device.

    Closing them is not safe. Their Python objects belong to threads that ended with the fork; they may be locked, and
    could later close the same number again when it belongs to another file.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        if descriptor >= 0:
            os.dup2(null, descriptor, inheritable=False)
    os.close(null)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on this address; port 0 is any free port. Raises DTQError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio turns Nagle's algorithm off only if the protocol is named; it would cost 40 ms for each response.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise DTQError(
            f"{host}:{port} is not an address to listen on: {error}; use an address of this machine, as 127.0.0.1"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise DTQError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0 for any free port"
        ) from error
    return listener

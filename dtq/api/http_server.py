"""Server: uvicorn with an end that drops nothing, and the thread that it runs on.

stop --> no new connections, but those that the kernel has let in are served
     --> who waits is answered, who streams is told, idle clients have a moment for a request that is on its way
     --> every answer that is owed is given --> closed
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import uvicorn

from dtq.api.connection import Connection, settings
from dtq.api.state import AppState
from dtq.errors import DTQError

LINGER = 0.3  # seconds for requests that are on their way when the server stops
GRACE = 30  # seconds for those that are being answered
PATIENCE = 30.0  # seconds for a server to start
QUEUE = 1024  # connections that the kernel keeps until they are accepted


class Server(uvicorn.Server):
    """Serves one application on one listening socket, which it takes over. `desk` is set as soon as there is one."""

    def __init__(self, make_app: Callable[[Callable[[AppState], None]], object], listener: socket.socket) -> None:
        config = uvicorn.Config(make_app(self._meet), timeout_graceful_shutdown=GRACE, **settings())  # type: ignore[arg-type]
        super().__init__(config)
        # Before it is duplicated, which else would make it blocking for a moment: for all processes that share it, of
        # which one could be caught in `accept` then.
        listener.setblocking(False)
        self._listener = listener
        self._desk: AppState | None = None

    def _meet(self, desk: AppState) -> None:
        self._desk = desk

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([self._listener.dup()])
        self._listener.listen(QUEUE)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._let_in_who_waits()
        self.server_state.leaving = True  # type: ignore[attr-defined]
        if self._desk is not None:
            self._desk.leave()
        for connection in list(self.server_state.connections):
            if connection.is_at_work():  # type: ignore[union-attr]
                connection.shutdown()
        until = time.monotonic() + LINGER
        while self.server_state.connections and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await super().shutdown()

    async def _let_in_who_waits(self) -> None:
        """The kernel has connections that we have not accepted yet: their clients believe to be connected."""
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
        let_go([*accepting, *(client.fileno() for client in clients if client is not None)])
        self._listener.close()

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)


class Runner:
    """A Server on a thread of its own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dtq-api", daemon=True)

    def start(self) -> None:
        """Returns when it answers. Raises DTQError where it could not start."""
        self._thread.start()
        give_up_at = time.monotonic() + PATIENCE
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


def let_go(descriptors: Iterable[int]) -> None:
    """Give up inherited descriptors in a forked child, by making each refer to the null device.

    They are not closed: their Python objects belong to threads that ended with the fork, may be locked, and would later
    close a number that something else has by then.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        if descriptor >= 0:
            os.dup2(null, descriptor, inheritable=False)
    os.close(null)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises DTQError where that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named, asyncio turns Nagle's algorithm off, which costs 40 ms an answer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise DTQError(f"{host}:{port} is no address to listen on: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(QUEUE)
    except OSError as error:
        listener.close()
        raise DTQError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0 for any that is free"
        ) from error
    return listener


def names_of(hosts: Sequence[str], host: str) -> set[str]:
    return {*hosts, host} - {"", "0.0.0.0", "::"}

"""The REST API: programs in any language add and watch tasks over HTTP, and the page at `/` shows the queue live.

    client --HTTP--> Connection ----> HostMiddleware --> Starlette --> handler --> AppState --> QueueManager --> store
                     connection.py    auth.py            app.py       routes/     state.py

    in this process: ServerThread (http_server.py)       clustered: Cluster (cluster.py), processes that share the port

The API needs a manager but no workers, so API processes and nodes can be scaled separately.
"""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Self

try:
    import httptools  # noqa: F401
    import prometheus_client  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'the API needs {error.name}, which is not installed: pip install "dtq[api]"', name=error.name
    ) from None

from dtq.api.app import create_app
from dtq.api.auth import Tokens, check_exposure, hub_hosts, is_loopback
from dtq.api.cluster import Cluster
from dtq.api.config import MIB, ServerConfig
from dtq.api.http_server import SHUTDOWN_GRACE, Server, ServerThread, listen
from dtq.api.rates import Rates
from dtq.errors import DTQError
from dtq.queue.manager import QueueManager
from dtq.sync.forks import Forkable
from dtq.task.model import check_number

__all__ = ["APIServer"]
MAX_PROCESSES = 64


class APIServer(Forkable):
    """Serves a queue over HTTP: on a thread, or `clustered`, by several processes that share the port.

    Args:
        queue: a TaskQueue or QueueManager, which the server never closes, or a store's URL. Clustered: a URL other than
            `memory:`, or a manager that was made with one.
        host: the address to listen on.
        port: the port; 0: any free port, see `port` and `url` after the start.
        clustered: whether to serve by processes.
        num_workers: how many processes, 1 to 64.
        token: one token, which may do everything, or a dictionary of tokens and scopes: "read", "submit" (also adds
            tasks) or "admin". Required if other machines can reach `host`.
        rate_limit: requests per second for each token; None: any number.
        allowed_hosts: further names by which clients reach the server, for example that of a reverse proxy: with their
            port where it is not the usual one of http or https. They require a token too.
        cors_origins: origins of other web pages that may use this server, for example "https://shop.example.org".
        max_body: bytes of a request's body.
        without_token: whether `allowed_hosts` needs no token, because the proxy authenticates its clients.

    Raises:
        DTQError: an option is not allowed, or the server would be open to other machines without a token.
    """

    def __init__(
        self,
        queue: QueueManager | str | os.PathLike[str] = "queue.db",
        host: str = "127.0.0.1",
        port: int = 3000,
        clustered: bool = False,
        num_workers: int = 4,
        token: str | Mapping[str, str] | None = None,
        *,
        rate_limit: float | None = None,
        allowed_hosts: Collection[str] = (),
        cors_origins: Collection[str] = (),
        max_body: int = MIB,
        without_token: bool = False,
    ) -> None:
        check_exposure(host, allowed_hosts, Tokens(token), without_token)
        _check(port, num_workers, rate_limit, max_body)
        self.host, self.port = host, port
        self._queue = queue
        self._processes = num_workers if clustered else 1
        self._config = ServerConfig(
            store=_url_of(queue) if clustered else "",
            tokens={token: "admin"} if isinstance(token, str) else dict(token or {}),
            host="" if _is_wildcard(host) else host,
            hosts=(*allowed_hosts, *hub_hosts()),
            origins=tuple(cors_origins),
            hub=os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "").rstrip("/") if is_loopback(host) else "",
            rate_limit=rate_limit,
            max_body=max_body,
            **_limits_of(queue),
        )
        self._cluster: Cluster | None = None
        self._runner: ServerThread | None = None
        self._manager: QueueManager | None = None
        self._rates: Rates | None = None
        self._listener: socket.socket | None = None
        self.follow_forks()

    @property
    def url(self) -> str:
        """The address of the page, for a browser on this machine. The routes are below it."""
        host = "127.0.0.1" if _is_wildcard(self.host) else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def start(self) -> Self:
        """Return when the server answers; `port` is then its port. Raises DTQError if it cannot start."""
        if self._rates is not None:
            raise DTQError("this API server is already running: stop it first")
        self._listener = listener = listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._rates = Rates(self._config.rate_limit, len(self._config.tokens))
        try:
            if self._config.store:
                self._cluster = Cluster(self._config, self._processes, listener, self._rates)
                self._cluster.start()
            else:
                self._manager = self._queue if isinstance(self._queue, QueueManager) else QueueManager(self._queue)
                make_app = partial(create_app, self._manager, self._config, self._rates)
                self._runner = ServerThread(Server(make_app, listener, self._config.max_body))
                self._runner.start()
        except BaseException:
            self._release()
            raise
        atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """Finish the requests that have arrived, and end. The port is then free. A repeated call does nothing."""
        atexit.unregister(self.stop)
        if self._cluster is not None:
            if self._listener is not None:
                self._listener.close()
            self._cluster.stop(SHUTDOWN_GRACE + 5)
        if self._runner is not None:
            self._runner.stop()
        self._release()

    def _release(self) -> None:
        if self._manager is not None and self._manager is not self._queue:
            self._manager.close()
        self._forget()

    def _forget(self) -> None:
        for part in (self._listener, self._rates):
            if part is not None:
                part.close()
        self._cluster = self._runner = self._manager = self._rates = self._listener = None

    # --- forks: the server belongs to the process that started it

    def before_fork(self) -> None:
        """Let the cluster release what a child must not inherit."""
        if self._cluster is not None:
            self._cluster.before_fork()

    def after_fork(self) -> None:
        """Let the cluster continue in the parent."""
        if self._cluster is not None:
            self._cluster.after_fork()

    def in_child(self) -> None:
        """Close the inherited descriptors. The child's copy of the server counts as stopped."""
        atexit.unregister(self.stop)
        for part in (self._cluster, self._runner):
            if part is not None:
                part.in_child()
        self._forget()

    def pids(self) -> list[int]:
        """Return the ids of the processes that serve."""
        return self._cluster.pids() if self._cluster is not None else [os.getpid()]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<APIServer {self.url} {'runs' if self._rates is not None else 'is stopped'}>"


def _is_wildcard(host: str) -> bool:
    return host in ("", "0.0.0.0", "::")


def _check(port: object, num_workers: object, rate_limit: object, max_body: object) -> None:
    check_number("port", port, 0, 65535, whole=True)
    check_number("num_workers", num_workers, 1, MAX_PROCESSES, whole=True)
    check_number("max_body", max_body, 1, 1 << 30, whole=True)
    if rate_limit is not None:
        check_number("rate_limit", rate_limit, 0.001, 1e6)


def _url_of(queue: QueueManager | str | os.PathLike[str]) -> str:
    """Return the URL by which each process of a cluster opens the store. Raises DTQError if there is none."""
    url = queue.url if isinstance(queue, QueueManager) else os.fspath(queue)
    if url is None:
        raise DTQError("a clustered API needs the URL of the store, which each of its processes opens: pass the URL")
    if url == "memory:":
        raise DTQError(
            "memory: is a store within one process; for a clustered API use one that others can open, as queue.db"
        )
    return url


def _limits_of(queue: object) -> dict[str, Any]:
    if not isinstance(queue, QueueManager):
        return {}
    return {"backlog_limit": queue.backlog_limit, "max_payload": queue.max_payload}

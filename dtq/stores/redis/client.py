"""RedisClient: runs scripts on a Redis or Valkey server, retries them, and measures the server's clock.

    call --> EVALSHA --> server          retried on a new connection for some seconds, then StoreError,
             ^------ retry <--'          which names the server without its password

Of several calls (PipelinedCalls), the next request is sent while the server still runs the one before.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib.resources import files
from typing import Any, Generic, NamedTuple, Self, TypeVar

from redis import Redis, RedisCluster, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from dtq.errors import StoreError
from dtq.stores.address import redacted
from dtq.stores.redis.connections import Connections, send
from dtq.stores.shared.overlap import run_offered_work
from dtq.task.codec import pack

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds between attempts to reach the server
REPLICATION_TIMEOUT = 1.0  # seconds to wait for replicas
REPLICATED_SCRIPTS = ("add", "update")  # what they write must not be lost; a claim that is lost is made again
SOCKET_TIMEOUT = 2.0  # seconds, at most, that one attempt waits for a connection or a reply
INCLUDES = {  # what a script includes, besides lib.lua and order.lua
    "add": ["plant"], "update": ["plant"], "claim": ["pick", "due"], "next_due": ["due"], "delete": ["remove"],
    "purge": ["remove"], "limit": ["pick"],
}  # fmt: skip
FLAGS = {
    "delete": " flags=allow-oom",
    "purge": " flags=allow-oom",
}  # they free memory: must run when it is full
TRANSIENT_ERRORS = (  # worth a retry: the server restarts, or a replica takes over
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.RedisClusterException,
)
TASKS_PER_SCRIPT = 128
PIPELINE_DEPTH = 2  # requests without a reply: one that the server runs, and the next
T = TypeVar("T")
R = TypeVar("R")
Client = Any  # redis.Redis or redis.RedisCluster, which share their methods but no class


@cache
def script(name: str) -> str:
    """Return the whole source of a script."""
    folder = files("dtq.stores.redis") / "lua"
    parts = [(folder / f"{part}.lua").read_text() for part in ["lib", "order", *INCLUDES.get(name, []), name]]
    return "\n".join([f"#!lua{FLAGS.get(name, '')}", *parts])


def identity(value: Any) -> Any:
    """Return the value unchanged."""
    return value


class Call(NamedTuple):
    """One call of a script. `args` returns its argument, `keep` takes its reply."""

    script: str
    args: Callable[[], Any]
    keep: Callable[[Any], None]


class PipelinedCalls(Generic[T, R]):
    """Several calls of one script. A retry continues with the calls that have no reply yet.

    Args:
        name: of the script.
        requests: what each call asks for.
        args: returns the script's argument for a request; MessagePack must carry it.
        read: returns what a reply says.
    """

    def __init__(
        self, name: str, requests: Iterable[T], args: Callable[[T], Any] = identity, read: Callable[[Any], R] = identity
    ) -> None:
        self.read = read
        self.replies: list[R] = []
        self.left: list[Call] = [Call(name, partial(args, request), self._keep) for request in requests]

    def _keep(self, reply: Any) -> None:
        self.replies.append(self.read(reply))

    def after(self, others: PipelinedCalls[Any, Any]) -> Self:
        """Make the calls of `others` first, which get their replies. Return these calls."""
        self.left = [*others.left, *self.left]
        return self

    def accept(self, reply: Any) -> None:
        """Take the reply to the first call that is left."""
        self.left[0].keep(reply)
        del self.left[0]


def in_parts(items: Sequence[T], whole: bool = False) -> list[Sequence[T]]:
    """Return the items in parts of TASKS_PER_SCRIPT, or as one part if they must be stored as a whole."""
    size = max(len(items), 1) if whole else TASKS_PER_SCRIPT
    return [items[i : i + size] for i in range(0, len(items), size)]


class RedisClient:
    """A connection to the server of one namespace.

    Args:
        url: where the server is; not used where `client` is given.
        client: a redis-py client, which the caller closes.
        namespace: the queue; all keys begin with "dtq:{namespace}:".
        timeout: seconds for which a call tries to reach the server.
        cluster: whether the URL is that of a node of a Redis Cluster.
        replicas: how many replicas must have what `add` and `update` wrote before they return.
    """

    def __init__(
        self, url: str, client: Client | None, namespace: str, timeout: float, cluster: bool, replicas: int = 0
    ) -> None:
        self.place = redacted(url) if client is None else _place_of(client)
        self.prefix = f"dtq:{{{namespace}}}:"
        self.timeout = timeout
        self.replicas = replicas
        self.ahead = 0.0  # seconds by which the server's clock is ahead of this machine's
        self._owns_client = client is None
        self._loaded: set[str] = set()  # scripts that the server has in its cache, if it was not restarted since
        self.redis = client if client is not None else self.retry(lambda: _connect(url, timeout, cluster), timeout)
        self.is_cluster = isinstance(self.redis, RedisCluster)
        self._connections = None if self.is_cluster else Connections(self.redis.connection_pool)
        self.measure_clock()  # raises where the server cannot be reached

    def call(self, name: str, args: Any = None, timeout: float | None = None) -> Any:
        """Return the reply of a script. Raise StoreError where none comes within `timeout` seconds (of the client, if
        None)."""
        return self.call_all(PipelinedCalls(name, [args]), timeout)[0]

    def call_all(self, calls: PipelinedCalls[T, R], timeout: float | None = None) -> list[R]:
        """Make all calls. Return what their replies say, in order. Raises as `call` does."""
        talk = partial(self._talk, calls)
        work = partial(self._connections.use, talk) if self._connections else partial(self._talk_to_cluster, calls)
        self.retry(work, self.timeout if timeout is None else timeout)
        return calls.replies

    def _talk(self, calls: PipelinedCalls[Any, Any], connection: Any) -> None:
        """Pack and send the next request while the server runs the one before, then read a reply."""
        unanswered = 0
        while calls.left:
            for call in calls.left[unanswered:PIPELINE_DEPTH]:
                self._send(connection, call.script, pack(call.args()))
                unanswered += 1
            run_offered_work()
            calls.accept(self._receive(connection, calls.left[0].script))
            unanswered -= 1

    def _send(self, connection: Any, name: str, packed: bytes) -> None:
        command = ("EVALSHA", _digest(name)) if name in self._loaded else ("EVAL", script(name))
        send(connection, *command, 1, self.prefix, packed)
        if self._needs_replicas(name):
            send(connection, "WAIT", self.replicas, int(REPLICATION_TIMEOUT * 1000))

    def _receive(self, connection: Any, name: str) -> Any:
        reply = connection.read_response()
        self._loaded.add(name)
        if self._needs_replicas(name) and (reached := connection.read_response()) < self.replicas:
            raise StoreError(
                f"{self.place} has it, and {reached} of {self.replicas} replicas within {REPLICATION_TIMEOUT:g} s: "
                "it may be lost if another server takes over; repeating the call does no harm"
            )
        return reply

    def _needs_replicas(self, name: str) -> bool:
        return self.replicas > 0 and name in REPLICATED_SCRIPTS

    def _talk_to_cluster(self, calls: PipelinedCalls[Any, Any]) -> None:
        """Make the calls one by one: the client of a cluster finds the node that has the slot for each."""
        while calls.left:
            name = calls.left[0].script
            packed = pack(calls.left[0].args())
            if name in self._loaded:
                reply = self.redis.evalsha(_digest(name), 1, self.prefix, packed)
            else:
                reply = self.redis.eval(script(name), 1, self.prefix, packed)
            self._loaded.add(name)
            calls.accept(reply)

    def measure_clock(self) -> None:
        """Ask the server for its time. Raises StoreError where it cannot be reached."""
        sent_at = time.time()
        self.set_clock(self.call("clock"), sent_at)

    def set_clock(self, server_time: bytes | str, sent_at: float) -> None:
        """Set `ahead` from a reply that has the server's time, to a request sent at `sent_at` (local UTC seconds). The
        server is assumed to have read its clock half-way between request and reply (Cristian 1989)."""
        self.ahead = float(server_time) - (sent_at + time.time()) / 2

    def retry(self, work: Any, timeout: float) -> Any:
        """Return what `work()` returns. Retry transient errors for `timeout` seconds; raise StoreError for others."""
        give_up_at, pause = time.monotonic() + timeout, FIRST_PAUSE
        while True:
            try:
                return work()
            except exceptions.NoScriptError:  # the server was restarted, or another one took over
                self._loaded.clear()
            except TRANSIENT_ERRORS as error:
                if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
                    raise StoreError(f"{self.place} refuses access: {error}") from None
                if time.monotonic() + pause > give_up_at:
                    raise StoreError(
                        f"{self.place} cannot be reached ({_first_line(error)}), tried for {timeout:g} s: "
                        "the request may not have been stored"
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            except (exceptions.RedisError, OSError, ValueError) as error:
                raise StoreError(f"{self.place}: {_first_line(error)}") from None

    def facts(self) -> dict[str, Any]:
        """Return INFO of the server that has the namespace, `config` ({} where CONFIG is forbidden), and `ahead`."""
        self.measure_clock()
        node = {"target_nodes": self.redis.get_node_from_key(self.prefix)} if self.is_cluster else {}
        info = self.retry(lambda: self.redis.info(**node), self.timeout)
        try:
            config = {name: self.redis.config_get(name, **node)[name] for name in ("appendfsync", "save")}
        except (exceptions.ResponseError, KeyError):
            config = {}
        return {**info, "config": config, "ahead": self.ahead}

    def close(self) -> None:
        """Close the connections; also the client, unless the caller passed it in."""
        if self._connections:
            self._connections.close()
        if self._owns_client:
            self.redis.close()
            if self.is_cluster:
                _close_all(self.redis)


def _connect(url: str, timeout: float, cluster: bool) -> Client:
    seconds = min(timeout, SOCKET_TIMEOUT)
    options: dict[str, Any] = {
        "socket_timeout": seconds, "socket_connect_timeout": seconds, "socket_keepalive": True,
        "health_check_interval": 10,
    }  # fmt: skip
    if cluster:
        return RedisCluster.from_url(url, **options)
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)


def _close_all(client: RedisCluster) -> None:
    """Close the connections that redis-py leaves open when it closes a cluster: those that discovered the nodes."""
    nodes = client.nodes_manager
    for node in (*nodes.startup_nodes.values(), *nodes.nodes_cache.values()):
        if node.redis_connection is not None:
            node.redis_connection.connection_pool.disconnect()


def _place_of(client: Client) -> str:
    """Return how errors name the server of a client. Raise StoreError for a client that decodes replies."""
    pool = getattr(client, "connection_pool", None)
    known = getattr(pool, "connection_kwargs", {})
    if known.get("decode_responses"):
        raise StoreError("the client has decode_responses=True; allowed: one that returns bytes")
    if service := getattr(pool, "service_name", None):
        return f"the master that Sentinel has for {service!r}"
    host, port = known.get("host"), known.get("port")
    return f"redis://{host}:{port}" if host else type(client).__name__


@cache
def _digest(name: str) -> str:
    return hashlib.sha1(script(name).encode(), usedforsecurity=False).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

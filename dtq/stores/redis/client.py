"""Link: the way to a Redis or Valkey server. It makes clients, runs scripts, tries again, and knows the server's clock.

call --> EVALSHA --> server          a connection that has broken is made anew, for up to `patience` seconds;
         ^------ again <--'          then StoreError, which names the server without its password

Of several calls of one script (an PipelinedCalls), the next is on its way while the server is busy with one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib.resources import files
from typing import Any, Generic, TypeVar

from redis import Redis, RedisCluster, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from dtq.errors import StoreError
from dtq.stores.address import redacted
from dtq.stores.redis.lines import Connections, send
from dtq.stores.shared.overlap import take_up
from dtq.task.codec import pack

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds between attempts to reach the server
REPLICATED_WITHIN = 1.0  # seconds that replicas are waited for
LASTING = ("add", "update")  # what must not be lost; a claim that is lost is made again
SOCKET_TIMEOUT = 2.0  # seconds, at most, that one attempt waits for a connection or a reply
PARTS = {  # what a script is made of, beside lib.lua, order.lua and itself
    "add": ["plant"], "update": ["plant"], "claim": ["pick", "due"], "next_due": ["due"], "delete": ["remove"],
    "purge": ["remove"], "limit": ["pick"],
}  # fmt: skip
FLAGS = {"delete": " flags=allow-oom", "purge": " flags=allow-oom"}  # what makes room must run when there is none
AWAY = (  # what may pass by itself: the server is restarting, or another one is taking its place
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.RedisClusterException,
)
ON_THEIR_WAY = 2  # requests: one that the server is busy with, and the next
T = TypeVar("T")
R = TypeVar("R")
Client = Any  # redis.Redis or redis.RedisCluster, which share their methods but no class


@cache
def script(name: str) -> str:
    """The whole source of this operation."""
    folder = files("dtq.stores.redis") / "lua"
    parts = [(folder / f"{part}.lua").read_text() for part in ["lib", "order", *PARTS.get(name, []), name]]
    return "\n".join([f"#!lua{FLAGS.get(name, '')}", *parts])


def as_it_is(value: Any) -> Any:
    return value


class PipelinedCalls(Generic[T, R]):
    """Several calls of one script: `args` makes its arguments of each of `left`, and `read` reads the reply. An errand
    that is interrupted goes on with what has no reply yet."""

    def __init__(
        self, name: str, asked: Iterable[T], args: Callable[[T], Any] = as_it_is, read: Callable[[Any], R] = as_it_is
    ) -> None:
        self.name = name
        self.left = list(asked)
        self.args = args
        self.read = read
        self.replies: list[R] = []

    def hear(self, reply: Any) -> None:
        """The reply to the first of those that are left."""
        self.replies.append(self.read(reply))
        del self.left[0]


class RedisClient:
    """`url` or `client` says where; `cluster` that it is one. `timeout`: seconds until a call gives up. `replicas`: how
    many must have what is added and what has ended before it is acknowledged."""

    def __init__(
        self, url: str, client: Client | None, namespace: str, timeout: float, cluster: bool, replicas: int = 0
    ) -> None:
        self.place = redacted(url) if client is None else _place_of(client)
        self.prefix = f"dtq:{{{namespace}}}:"
        self.timeout = timeout
        self.replicas = replicas
        self.ahead = 0.0  # seconds by which the server's clock is ahead of this machine's
        self._owns_client = client is None
        self._known: set[str] = set()  # scripts that the server has, as far as we know
        self.client = client if client is not None else self.patiently(lambda: _connect(url, timeout, cluster), timeout)
        self.is_cluster = isinstance(self.client, RedisCluster)
        self._lines = None if self.is_cluster else Connections(self.client.connection_pool)
        self.measure_clock()  # which says, too, whether it can be reached

    def call(self, name: str, args: Any = None, patience: float | None = None) -> Any:
        """The reply of a script. Raises StoreError where none comes within `patience` seconds (`timeout`, if None)."""
        return self.calls(PipelinedCalls(name, [args]), patience)[0]

    def calls(self, errand: PipelinedCalls[T, R], patience: float | None = None) -> list[R]:
        """What the replies of an errand say, in order. Raises as `call` does."""
        talk = partial(self._talk, errand)
        work = partial(self._lines.use, talk) if self._lines else partial(self._talk_to_cluster, errand)
        self.patiently(work, self.timeout if patience is None else patience)
        return errand.replies

    def _talk(self, errand: PipelinedCalls[Any, Any], line: Any) -> None:
        """While the server is busy with one, the next is made and sent, and the reply before it is read."""
        on_their_way = 0
        while errand.left:
            for one in errand.left[on_their_way:ON_THEIR_WAY]:
                self._send(line, errand.name, pack(errand.args(one)))
                on_their_way += 1
            take_up()
            errand.hear(self._receive(line, errand.name))
            on_their_way -= 1

    def _send(self, line: Any, name: str, packed: bytes) -> None:
        command = ("EVALSHA", _digest(name)) if name in self._known else ("EVAL", script(name))
        send(line, *command, 1, self.prefix, packed)
        if self._must_last(name):
            send(line, "WAIT", self.replicas, int(REPLICATED_WITHIN * 1000))

    def _receive(self, line: Any, name: str) -> Any:
        reply = line.read_response()
        self._known.add(name)
        if self._must_last(name) and (reached := line.read_response()) < self.replicas:
            raise StoreError(
                f"{self.place} has it, and {reached} of {self.replicas} replicas within {REPLICATED_WITHIN:g} s: "
                "it may be lost if another server takes over; asking again does no harm"
            )
        return reply

    def _must_last(self, name: str) -> bool:
        return self.replicas > 0 and name in LASTING

    def _talk_to_cluster(self, errand: PipelinedCalls[Any, Any]) -> None:
        """One by one: the client knows which node has the slot, and learns when it moves."""
        name = errand.name
        while errand.left:
            packed = pack(errand.args(errand.left[0]))
            if name in self._known:
                reply = self.client.evalsha(_digest(name), 1, self.prefix, packed)
            else:
                reply = self.client.eval(script(name), 1, self.prefix, packed)
            self._known.add(name)
            errand.hear(reply)

    def measure_clock(self) -> None:
        asked = time.time()
        self.set_clock(self.call("clock"), asked)

    def set_clock(self, reply: bytes | str, asked: float) -> None:
        """The server's time, in a reply to what was asked at this time of ours: half-way between, as it were."""
        self.ahead = float(reply) - (asked + time.time()) / 2

    def patiently(self, work: Any, patience: float) -> Any:
        give_up_at, pause = time.monotonic() + patience, FIRST_PAUSE
        while True:
            try:
                return work()
            except exceptions.NoScriptError:  # the server was started anew, or another one has taken its place
                self._known.clear()
            except AWAY as error:
                if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
                    raise StoreError(f"{self.place} refuses us: {error}") from None
                if time.monotonic() + pause > give_up_at:
                    raise StoreError(
                        f"{self.place} cannot be reached ({_first_line(error)}), tried for {patience:g} s: "
                        "what was asked may not have been stored"
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            except (exceptions.RedisError, OSError, ValueError) as error:
                raise StoreError(f"{self.place}: {_first_line(error)}") from None

    def facts(self) -> dict[str, Any]:
        """What the server that has the namespace tells of itself: INFO, `config` ({} where CONFIG is forbidden), and
        `ahead`."""
        self.measure_clock()
        node = {"target_nodes": self.client.get_node_from_key(self.prefix)} if self.is_cluster else {}
        info = self.patiently(lambda: self.client.info(**node), self.timeout)
        try:
            config = {name: self.client.config_get(name, **node)[name] for name in ("appendfsync", "save")}
        except (exceptions.ResponseError, KeyError):
            config = {}
        return {**info, "config": config, "ahead": self.ahead}

    def close(self) -> None:
        if self._lines:
            self._lines.close()
        if self._owns_client:
            self.client.close()
            if self.is_cluster:
                _close_all(self.client)


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
    """The client of a cluster forgets, when it closes, the connections by which it learnt of the nodes."""
    nodes = client.nodes_manager
    for node in (*nodes.startup_nodes.values(), *nodes.nodes_cache.values()):
        if node.redis_connection is not None:
            node.redis_connection.connection_pool.disconnect()


def _place_of(client: Client) -> str:
    """How errors name a client that was given."""
    pool = getattr(client, "connection_pool", None)
    known = getattr(pool, "connection_kwargs", {})
    if known.get("decode_responses"):
        raise StoreError("the client has decode_responses=True; allowed: one that gives bytes")
    if service := getattr(pool, "service_name", None):
        return f"the master that Sentinel has for {service!r}"
    host, port = known.get("host"), known.get("port")
    return f"redis://{host}:{port}" if host else type(client).__name__


@cache
def _digest(name: str) -> str:
    return hashlib.sha1(script(name).encode(), usedforsecurity=False).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

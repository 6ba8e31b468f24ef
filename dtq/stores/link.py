"""Link: the way to a Redis or Valkey server. It makes clients, runs scripts, tries again, and knows the server's clock.

call --> EVALSHA --> server          a connection that has broken is made anew, for up to `patience` seconds;
         ^------ again <--'          then StoreError, which names the server without its password
"""

from __future__ import annotations

import hashlib
import time
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from redis import Redis, RedisCluster, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from dtq.codec import pack
from dtq.errors import StoreError
from dtq.stores.address import redacted

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds between attempts to reach the server
REPLICATED_WITHIN = 1.0  # seconds that replicas are waited for
LASTING = ("add", "update")  # what must not be lost; a claim that is lost is made again
SOCKET_TIMEOUT = 2.0  # seconds, at most, that one attempt waits for a connection or a reply
PARTS = {  # what a script is made of, beside lib.lua and itself
    "add": ["plant"], "update": ["plant"], "claim": ["pick"], "delete": ["remove"], "purge": ["remove"],
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
Client = Any  # redis.Redis or redis.RedisCluster, which share their methods but no class


@cache
def script(name: str) -> str:
    """The whole source of this operation."""
    folder = files("dtq.stores") / "lua"
    parts = [(folder / f"{part}.lua").read_text() for part in ["lib", *PARTS.get(name, []), name]]
    return "\n".join([f"#!lua{FLAGS.get(name, '')}", *parts])


class Link:
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
        self._digests: dict[str, str] = {}
        self.client = client if client is not None else self.patiently(lambda: _connect(url, timeout, cluster), timeout)
        self.call("clock")  # which says, too, whether it can be reached

    def call(self, name: str, args: Any = None, patience: float | None = None) -> Any:
        """The reply of a script. Raises StoreError where none comes within `patience` seconds (`timeout`, if None)."""
        packed = pack(args)
        asked = time.time()
        reply = self.patiently(lambda: self._run(name, packed), self.timeout if patience is None else patience)
        if name == "clock":
            self.set_clock(reply, asked)
        return reply

    def set_clock(self, reply: bytes | str, asked: float) -> None:
        """The server's time, in a reply to what was asked at this time of ours: half-way between, as it were."""
        self.ahead = float(reply) - (asked + time.time()) / 2

    def _run(self, name: str, packed: bytes) -> Any:
        call = self._evaluate_and_wait if self.replicas and name in LASTING else self._evaluate
        digest = self._digests.get(name)
        if digest is not None:
            try:
                return call("evalsha", digest, packed)
            except exceptions.NoScriptError:
                pass
        reply = call("eval", script(name), packed)
        self._digests[name] = _digest(name)
        return reply

    def _evaluate(self, command: Literal["eval", "evalsha"], what: str, packed: bytes) -> Any:
        return getattr(self.client, command)(what, 1, self.prefix, packed)

    def _evaluate_and_wait(self, command: Literal["eval", "evalsha"], what: str, packed: bytes) -> Any:
        """On one connection, as WAIT is about what came before it on its own."""
        with self.client.pipeline(transaction=False) as pipe:
            getattr(pipe, command)(what, 1, self.prefix, packed)
            pipe.wait(self.replicas, int(REPLICATED_WITHIN * 1000))
            reply, reached = pipe.execute()
        if reached < self.replicas:
            raise StoreError(
                f"{self.place} has it, and {reached} of {self.replicas} replicas within {REPLICATED_WITHIN:g} s: "
                "it may be lost if another server takes over; asking again does no harm"
            )
        return reply

    def patiently(self, work: Any, patience: float) -> Any:
        give_up_at, pause = time.monotonic() + patience, FIRST_PAUSE
        while True:
            try:
                return work()
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
        self.call("clock")
        is_cluster = isinstance(self.client, RedisCluster)
        node = {"target_nodes": self.client.get_node_from_key(self.prefix)} if is_cluster else {}
        info = self.patiently(lambda: self.client.info(**node), self.timeout)
        try:
            config = {name: self.client.config_get(name, **node)[name] for name in ("appendfsync", "save")}
        except (exceptions.ResponseError, KeyError):
            config = {}
        return {**info, "config": config, "ahead": self.ahead}

    def close(self) -> None:
        if self._owns_client:
            self.client.close()
            if isinstance(self.client, RedisCluster):
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

"""Where a Redis store may be: behind a password, TLS or Sentinel, or with replicas; and that it keeps others out."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
import redis
import servers
import trustme
from redis.sentinel import Sentinel

from dtq import TaskQueue, open_store
from dtq.cli.checks import check_server
from dtq.errors import StoreError
from dtq.stores.redis.store import RedisStore
from dtq.task.model import Task

WAIT = 60.0


def wait_until(condition, seconds=WAIT):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "it did not come to be"
        time.sleep(0.02)


# --- TLS


class Secured:
    """A server that requires TLS and a password."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.ca, other = trustme.CA(), trustme.CA()
        own, client = self.ca.issue_cert("127.0.0.1"), self.ca.issue_cert("node")
        self.file = {name: str(directory / name) for name in ("ca", "other", "own", "key", "client", "client-key")}
        self.ca.cert_pem.write_to_path(self.file["ca"])
        other.cert_pem.write_to_path(self.file["other"])
        own.cert_chain_pems[0].write_to_path(self.file["own"])
        own.private_key_pem.write_to_path(self.file["key"])
        client.cert_chain_pems[0].write_to_path(self.file["client"])
        client.private_key_pem.write_to_path(self.file["client-key"])
        self.port = servers.free_port()
        tls = {"port": self.port, "cert-file": self.file["own"], "key-file": self.file["key"]}
        tls |= {"ca-cert-file": self.file["ca"], "auth-clients": "optional"}
        options = [word for name, value in tls.items() for word in (f"--tls-{name}", str(value))]
        try:
            self.server = servers.Server(kind, *options)
        except AssertionError as error:
            servers.running.pop().remove()
            pytest.skip(f"this {kind} was built without TLS: {str(error).strip().splitlines()[-1]}")
        self.set("requirepass", "secret")

    def set(self, name: str, value: str) -> None:
        with redis.Redis(port=self.server.port, password="secret" if name != "requirepass" else None) as client:
            client.config_set(name, value)

    def url(self, ca: str = "ca", more: str = "") -> str:
        return f"rediss://:secret@127.0.0.1:{self.port}/0?ssl_ca_certs={self.file[ca]}&timeout=0.5{more}"


@pytest.fixture(params=servers.KINDS)
def secured(request, tmp_path):
    server = Secured(request.param, tmp_path)
    yield server
    server.server.remove()


def test_a_queue_works_over_tls_with_a_password(secured):
    with TaskQueue(secured.url(), {"double": lambda payload, context: 2 * payload}, 1, executor="thread") as queue:
        assert queue.add("double", 21).result(WAIT) == 42
        other = open_store(secured.url())
        assert queue.store.wait(0) in (True, False)
        other.add([Task(type="double", id="far", payload=4)])  # of which only its message tells
        wait_until(lambda: queue.get("far").result == 8)
        assert {finding.subject for finding in check_server(other.facts())} >= {"version", "persistence"}
        other.close()


def test_a_server_with_an_unknown_certificate_is_refused(secured):
    with pytest.raises(StoreError, match=r"(?i)rediss://\*\*\*@.*certificate verify failed") as caught:
        open_store(secured.url("other"))
    assert "secret" not in str(caught.value)


def test_a_server_that_wants_to_know_us_gets_our_certificate(secured):
    secured.set("tls-auth-clients", "yes")
    with pytest.raises(StoreError, match="cannot be reached"):
        open_store(secured.url())
    files = f"&ssl_certfile={secured.file['client']}&ssl_keyfile={secured.file['client-key']}"
    store = open_store(secured.url(more=files))
    assert store.add([Task(type="job", id="a")]) == ["a"]
    store.close()


# --- replicas, and Sentinel


@pytest.fixture(params=servers.KINDS)
def pair(request):
    """A master and its replica, which has caught up."""
    master = servers.Server(request.param, "--repl-diskless-sync-delay", "0")
    replica = servers.Server(request.param, "--replicaof", f"127.0.0.1 {master.port}")
    with redis.Redis(port=replica.port) as client:
        wait_until(lambda: client.info("replication")["master_link_status"] == "up")
    yield master, replica
    for server in (master, replica):
        server.process.send_signal(signal.SIGCONT)
        server.remove()


def test_with_replicas_nothing_is_acknowledged_that_they_have_not(pair):
    master, replica = pair
    store = open_store(f"{master.url}?replicas=1")
    assert store.add([Task(type="job", id="a")]) == ["a"]
    replica.process.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreError, match="0 of 1 replicas"):
        store.add([Task(type="job", id="b")])
    replica.process.send_signal(signal.SIGCONT)
    wait_until(lambda: store.add([Task(type="job", id="b")]) == ["b"])
    assert store.stats().total == 2
    master.kill()
    with redis.Redis(port=replica.port) as client:
        client.replicaof("no", "one")
    left = open_store(replica.url)
    assert [task.id for task in left.find()] == ["a", "b"]
    left.close()
    store.abandon()


def test_behind_sentinel_a_queue_goes_on_when_another_server_takes_over(pair):
    master, replica = pair
    watcher = servers.Server(
        "redis" if shutil.which("redis-server") else "valkey",
        sentinel=f"sentinel monitor main 127.0.0.1 {master.port} 1\nsentinel down-after-milliseconds main 500\n"
        "sentinel failover-timeout main 3000\n",
    )
    sentinel = Sentinel([("127.0.0.1", watcher.port)], socket_timeout=1)
    wait_until(lambda: sentinel.sentinels[0].sentinel_slaves("main"))
    client = sentinel.master_for("main", socket_timeout=1)
    store = RedisStore(client=client, namespace="watched", replicas=1)
    with TaskQueue(store, {"double": lambda payload, context: 2 * payload}, 1, executor="thread") as queue:
        assert queue.add("double", 21).result(WAIT) == 42
        waiting = queue.add("double", 1, delay=2)
        master.kill()
        wait_until(lambda: sentinel.sentinels[0].sentinel_master("main")["port"] == replica.port)
        store.client.replicas = 0  # there is none any more
        assert waiting.result(WAIT) == 2
        assert queue.add("double", 4).result(WAIT) == 8
        assert queue.health < 30
    store.close()
    for one in (client, *sentinel.sentinels):
        one.connection_pool.disconnect()
    watcher.remove()

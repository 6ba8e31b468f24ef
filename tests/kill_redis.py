"""What a Redis store promises under kills: `python tests/kill_redis.py` runs the long version, pytest a short one.

Four TaskQueue processes work on one server that writes each command to its disk (AOF always). Workers and whole nodes
are killed, nodes are frozen for longer than their lease, and the server is killed and started again. The oracle is a
log that the handlers append to, outside the store.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import servers

from dtq import QueueManager
from dtq.errors import StoreError
from dtq.stores.open import open_store
from dtq.task.model import MAX_INTERRUPTIONS, TERMINAL, Status

HERE = Path(__file__).parent
LEASE = 2.0
MOST_HELD = 1000  # tasks that four nodes have claimed at a time, and some
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")


class Node:
    """A process with a TaskQueue of two workers."""

    def __init__(self, url: str, *prefix: str, **environment: str) -> None:
        command = [*prefix, sys.executable, str(HERE / "kill_node.py"), url, str(LEASE)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )

    def wait_until_ready(self) -> None:
        assert self.process.stdout.readline().startswith("READY")

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def kill_worker(self, chance: random.Random) -> None:
        if family := self.family():
            with contextlib.suppress(ProcessLookupError):  # it has just died
                os.kill(chance.choice(family).pid, signal.SIGKILL)

    def freeze(self, seconds: float) -> None:
        """The orchestrator stands still; its workers go on with what they have."""
        self.process.send_signal(signal.SIGSTOP)
        threading.Timer(seconds, self.process.send_signal, [signal.SIGCONT]).start()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def stop(self) -> None:
        self.process.stdin.close()
        self.end()

    def end(self) -> None:
        self.process.wait(60)
        self.process.stdout.close()
        self.process.stdin.close()


def runs(log: Path) -> collections.Counter[str]:
    """How often each task has run, by the log of the handlers."""
    return collections.Counter(line.split()[0] for line in log.read_text().splitlines())


def everything(manager: QueueManager) -> list:
    tasks, after = [], ""
    while page := manager.find(after=after, limit=1000):
        tasks += page
        after = page[-1].id
    return tasks


def unfinished(manager: QueueManager) -> int:
    while True:
        with contextlib.suppress(StoreError):
            return manager.stats().unfinished


def judge(tasks: list, log: Path, endings: Path, wanted: int, faults: int) -> dict[str, int]:
    """Raises AssertionError where a task is lost, has not run, or has run more often than its faults allow,
    and where an outcome was accepted beside the one that stands."""
    ran = runs(log)
    versions = {task.id: str(task.version) for task in tasks}
    accepted = [line.split() for line in endings.read_text().splitlines()]
    assert [(id, version) for id, version in accepted if versions[id] != version] == [], "stale outcomes were accepted"
    assert len(accepted) == len({id for id, _ in accepted}), "outcomes were accepted twice"
    assert sorted(task.payload["n"] for task in tasks) == list(range(wanted)), "tasks were lost, or doubled"
    assert {task.status for task in tasks} <= TERMINAL
    for task in tasks:
        parked = task.status == Status.FAILED and task.interruptions == MAX_INTERRUPTIONS
        assert task.status == Status.COMPLETED or parked, task
        most = 1 + len(task.history) + task.interruptions
        assert (0 if parked else 1) <= ran[task.id] <= most, f"{ran[task.id]} runs, allowed {most}: {task}"
    repeats = sum(n - 1 for n in ran.values() if n > 1)
    parked = sum(task.status == Status.FAILED for task in tasks)
    return {"tasks": len(tasks), "endings told": len(accepted), "runs": ran.total(), "repeats": repeats,
            "faults": faults, "parked": parked}  # fmt: skip


class Course:
    """Four nodes at work on one server, and what is done to them."""

    def __init__(self, directory: str, chance: random.Random) -> None:
        self.chance = chance
        self.log, self.endings = Path(directory, "log"), Path(directory, "endings")
        self.log.touch()
        self.endings.touch()
        self.server = servers.Server("valkey", *ALWAYS)
        self.store = open_store(f"{self.server.url}?namespace=kills&timeout=30")
        self.manager = QueueManager(self.store)
        self.added = 0
        self.nodes = [self.node() for _ in range(4)]
        for node in self.nodes:
            node.wait_until_ready()

    def node(self) -> Node:
        return Node(f"{self.server.url}?namespace=kills&timeout=30", DTQ_TEST_ENDINGS=str(self.endings))

    def add(self, tasks: int) -> None:
        payload = {"log": str(self.log), "seconds": 0.002}
        numbers = range(self.added, self.added + tasks)
        self.manager.add_many(
            {"type": "note", "payload": payload | {"n": n}, "max_attempts": 1000, "retry_delay": 0} for n in numbers
        )
        self.added += tasks

    def suffer(self, fault: str) -> None:
        """Inject a fault while there is work: without work, a fault shows nothing."""
        if unfinished(self.manager) < MOST_HELD:
            self.add(MOST_HELD)
        number = self.chance.randrange(4)
        if fault == "restart":
            self.server.kill()
            time.sleep(self.chance.uniform(0, 0.5))
            self.server.start()
        elif fault == "freeze":
            self.nodes[number].freeze(LEASE * 1.5)
        elif self.chance.random() < 0.75:
            self.nodes[number].kill_worker(self.chance)
        else:
            self.nodes[number].kill()
            self.nodes[number] = self.node()

    def end(self) -> None:
        give_up_at = time.monotonic() + 600
        while unfinished(self.manager):
            assert time.monotonic() < give_up_at, self.manager.stats()
            time.sleep(0.1)
        for node in self.nodes:
            node.stop()

    def close(self) -> None:
        self.manager.close()
        self.store.close()
        self.server.remove()


def torment(tasks: int, kills: int, freezes: int, restarts: int, seconds: float, seed: int) -> dict[str, int]:
    """Run at least `tasks` tasks, with the faults spread over `seconds` seconds."""
    chance = random.Random(seed)
    faults = ["kill"] * kills + ["freeze"] * freezes + ["restart"] * restarts
    chance.shuffle(faults)
    with tempfile.TemporaryDirectory() as directory:
        course = Course(directory, chance)
        course.add(tasks)
        for fault in faults:
            time.sleep(chance.uniform(0, 2 * seconds / len(faults)))
            course.suffer(fault)
        course.end()
        verdict = judge(everything(course.manager), course.log, course.endings, course.added, len(faults))
        course.close()
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("tasks", 50_000), ("kills", 100), ("freezes", 20), ("restarts", 10), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--seconds", type=float, default=60.0, help="over which the faults are spread")
    try:
        print(torment(**vars(parser.parse_args())))
    finally:
        servers.end_all()


if __name__ == "__main__":
    main()

"""A random graph while workers and nodes are killed. The handlers write a log outside the queue, which the test checks.

`pytest -m hourly tests/queue/test_flow_kills.py` looks at twenty graphs for each store.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil
import pytest

from dtq import QueueManager, step
from dtq.task.graph import named
from dtq.task.model import MAX_INTERRUPTIONS

HERE = Path(__file__).parents[1]
WAIT = 120.0
TASKS = 1000
SQLITE, FILE = "{}/queue.db", "file:{}/queue"
GRAPHS = [
    *(pytest.param(0, url, marks=pytest.mark.long) for url in (SQLITE, FILE)),
    *(pytest.param(seed, url, marks=pytest.mark.hourly) for seed in range(1, 20) for url in (SQLITE, FILE)),
]


class Node:
    """A node in its own process, with two workers."""

    def __init__(self, url: str, endings: Path) -> None:
        command = [sys.executable, str(HERE / "flow_node.py"), url, str(endings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().startswith("READY")

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def kill_a_worker(self, chance: random.Random) -> None:
        workers = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError, IndexError):  # it has just died
            os.kill(chance.choice(workers).pid, signal.SIGKILL)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(WAIT)
        self.process.stdout.close()


def random_graph(chance: random.Random, log: Path) -> dict:
    """Return 1,000 steps: each follows up to three of the fifty before it, and one in ten has no parent."""
    steps = {}
    for n in range(TASKS):
        before = range(max(0, n - 50), n)
        parents = chance.sample(before, min(len(before), chance.choice([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])))
        payload = {"log": str(log), "seconds": chance.uniform(0, 0.01), "n": n}
        options = {"max_attempts": 1000, "retry_delay": 0, "on_parent_failure": "run"}
        steps[f"{n:04}"] = step("begin_and_end", payload, after=[f"{p:04}" for p in parents], **options)
    return steps


def events(log: Path) -> dict[str, list[tuple[int, str]]]:
    """Return task -> its beginnings and ends, with their positions in the log, in order."""
    lines_of = defaultdict(list)
    for position, line in enumerate(log.read_text().splitlines()):
        task_id, what = line.split()
        lines_of[task_id].append((position, what))
    return lines_of


@pytest.mark.parametrize(("seed", "url"), GRAPHS)
def test_a_random_graph_under_kills_keeps_its_order_and_every_node_ends_once(url, seed, tmp_path):
    chance, log, endings = random.Random(seed), tmp_path / "log", tmp_path / "endings"
    url = url.format(tmp_path)
    with QueueManager(url) as manager:
        flow = manager.flow(named(random_graph(chance, log)))
        nodes = [Node(url, endings) for _ in range(2)]
        kills = 0
        give_up_at = time.monotonic() + WAIT
        while manager.stats().unfinished:
            assert time.monotonic() < give_up_at, manager.stats().counts
            number = chance.randrange(2)
            if kills < 40 and kills % 4:
                nodes[number].kill_a_worker(chance)
            elif kills < 40:
                nodes[number].kill()
                nodes[number] = Node(url, endings)
            kills += 1
            threading.Event().wait(chance.uniform(0, 0.1))
        for node in nodes:
            node.end()
        tasks = {task.id: task for task in flow.tasks()}
    assert kills >= 20, "the graph was through before the kills"
    assert len(tasks) == TASKS
    assert all(task.is_terminal for task in tasks.values())
    assert set(Counter(endings.read_text().splitlines()).values()) == {1}  # a killed node may not have written it
    _assert_order(tasks, events(log))


def _assert_order(tasks, lines_of):
    """No attempt of a child begins before an attempt of each of its parents has ended; nothing begins after its end
    except where a node died before it could say so."""
    for task in tasks.values():
        assert task.status == "completed" or task.interruptions == MAX_INTERRUPTIONS
        begins = [position for position, what in lines_of[task.id] if what == "begins"]
        ends = [position for position, what in lines_of[task.id] if what == "ends"]
        assert begins
        assert len(begins) <= 1 + len(task.history) + task.interruptions
        assert len(ends) >= (task.status == "completed")
        if task.status == "completed":
            assert task.result == task.payload["n"]
        for parent in task.after:
            assert min(a.started_at for a in (*task.history, task)) >= tasks[parent].finished_at - 0.001
            if tasks[parent].status == "completed":
                assert min(p for p, what in lines_of[parent] if what == "ends") < begins[0]

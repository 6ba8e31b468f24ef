"""Real kills of workers, whole nodes and hung handlers. Handlers log each run outside the queue, for comparison."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from dtq import QueueManager, TaskQueue
from dtq.task.model import MAX_INTERRUPTIONS, TERMINAL

HERE = Path(__file__).parents[1]
WAIT = 60.0


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "queue.db")


def wait_until(condition, seconds=WAIT):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the condition was still false at the end of the wait"
        time.sleep(0.005)
    return found


def all_tasks(manager):
    tasks, after = [], ""
    while page := manager.find(after=after, limit=1000):
        tasks += page
        after = page[-1].id
    return tasks


def runs(log):
    """Return how often each task has run, according to the log of the handlers."""
    return collections.Counter(line.split()[0] for line in log.read_text().splitlines())


@pytest.fixture(autouse=True)
def _nodes_end_with_their_test():
    """End the nodes of a failed test too: later tests count processes and descriptors."""
    yield
    while Node.started:
        Node.started.pop().kill()


class Node:
    """A process with a TaskQueue of two workers."""

    started: ClassVar[list[Node]] = []

    def __init__(self, database: str) -> None:
        command = [sys.executable, str(HERE / "kill_node.py"), database]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.started.append(self)
        words = self.process.stdout.readline().split()
        assert words[0] == "READY"
        self.workers = [int(pid) for pid in words[1:]]

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def stop(self) -> None:
        self.process.stdin.close()
        self.end()

    def end(self) -> None:
        self.process.wait(WAIT)
        self.process.stdout.close()
        self.process.stdin.close()


def test_ten_thousand_tasks_run_once_each(path, tmp_path):
    log = tmp_path / "log"
    with TaskQueue(path, {"note": "queue_handlers:note"}, pool_size=2) as queue:
        handles = queue.add_many({"type": "note", "payload": {"log": str(log)}} for _ in range(10_000))
        queue.join(WAIT)
        assert queue.stats().counts["completed"] == 10_000
        assert {task.attempts for task in all_tasks(queue)} == {1}
    assert runs(log) == dict.fromkeys((handle.id for handle in handles), 1)


def test_two_hundred_kills_of_workers_fail_only_running_tasks(path, tmp_path):
    log, chance, kills, tasks = tmp_path / "log", random.Random(1), 200, 600
    with TaskQueue(path, {"note": "queue_handlers:note"}, pool_size=2) as queue:
        options = {"max_attempts": 1000, "retry_delay": 0}
        queue.add_many(
            {"type": "note", "payload": {"log": str(log), "seconds": 0.03, "n": n}, **options} for n in range(tasks)
        )
        killed: set[int] = set()
        while len(killed) < kills:
            pids = {worker.pid for worker in queue.workers() if worker.task_id and worker.pid} - killed
            with contextlib.suppress(IndexError, ProcessLookupError):  # no worker is busy, or it is dead already
                os.kill(pid := chance.choice(sorted(pids)), signal.SIGKILL)
                killed.add(pid)
            threading.Event().wait(chance.uniform(0, 0.04))
            assert queue.stats().unfinished, "the tasks ended before the kills"
        queue.join(WAIT)
        found = all_tasks(queue)
    assert sorted(task.result for task in found) == list(range(tasks))
    deaths = [attempt for task in found for attempt in task.history]
    assert {(a.error.type, a.error.signal) for a in deaths} == {("WorkerDied", 9)}
    assert kills / 2 < len(deaths) <= kills
    ran = runs(log)
    assert all(task.attempts - len(task.history) <= ran[task.id] <= task.attempts for task in found)


@pytest.mark.long
def test_twenty_kills_of_a_node_lose_no_task_and_fail_none_that_never_ran(path, tmp_path):
    log, chance, tasks = tmp_path / "log", random.Random(2), 600
    with QueueManager(path) as manager:
        payload = {"log": str(log), "seconds": 0.02}
        manager.add_many({"type": "note", "payload": payload, "max_attempts": 1 + n % 2} for n in range(tasks))
        for _ in range(20):
            node = Node(path)
            threading.Event().wait(chance.uniform(0.05, 0.35))
            node.kill()
        node = Node(path)
        wait_until(lambda: not manager.stats().unfinished)
        node.stop()
        found = all_tasks(manager)
    ran = runs(log)
    assert len(found) == tasks
    assert {task.status for task in found} <= TERMINAL
    for task in found:
        assert ran[task.id] >= 1
        assert ran[task.id] <= 1 + task.interruptions
        assert task.status == "completed" or task.interruptions == MAX_INTERRUPTIONS


@pytest.mark.parametrize("url", ["{}/queue.db", pytest.param("file:{}/queue", marks=pytest.mark.long)])
def test_fifty_kills_of_workers_and_nodes_lose_no_task_of_four_nodes(url, tmp_path):
    url, log, chance, tasks = url.format(tmp_path), tmp_path / "log", random.Random(3), 5000
    with QueueManager(url) as manager:
        options = {"max_attempts": 1000, "retry_delay": 0}
        payload = {"log": str(log), "seconds": 0.002}
        manager.add_many({"type": "note", "payload": payload | {"n": n}, **options} for n in range(tasks))
        nodes = [Node(url) for _ in range(4)]
        for kill in range(50):
            number = chance.randrange(4)
            if kill % 4:
                process = psutil.Process(nodes[number].process.pid)
                family = wait_until(partial(process.children, recursive=True))  # none after its zygote's death
                with contextlib.suppress(ProcessLookupError):  # it has just died
                    os.kill(chance.choice(family).pid, signal.SIGKILL)
            else:
                nodes[number].kill()
                nodes[number] = Node(url)
            threading.Event().wait(chance.uniform(0, 0.02))
        wait_until(lambda: not manager.stats().unfinished)
        for node in nodes:
            node.stop()
        found = all_tasks(manager)
    ran = runs(log)
    assert sorted(task.payload["n"] for task in found) == list(range(tasks))
    for task in found:
        assert task.status == "completed" or task.interruptions == MAX_INTERRUPTIONS
        assert 1 <= ran[task.id] <= 1 + len(task.history) + task.interruptions


def test_a_node_takes_over_the_tasks_of_a_dead_node_within_two_seconds(path, tmp_path):
    log = tmp_path / "log"
    with QueueManager(path) as manager:
        first = Node(path)
        manager.add_many({"type": "sleep_if_asked", "payload": 100, "timeout": 200} for _ in range(2))
        wait_until(lambda: manager.stats().running == 2)
        other = Node(path)
        tasks = manager.find(status="processing")
        first.kill()
        killed_at = time.time()
        wait_until(lambda: all(t.version == o.version + 3 for t, o in zip(manager.find(), tasks, strict=True)))
        assert time.time() - killed_at < 2  # taken over, released, and claimed
        assert [(t.status, t.attempts, t.interruptions) for t in manager.find()] == [("processing", 1, 1)] * 2
        other.kill()
        assert not log.exists()


@pytest.mark.parametrize("type", ["sleep_if_asked", "hold_the_interpreter"])
def test_no_worker_outlives_a_node_that_was_killed(path, type):
    with QueueManager(path) as manager:
        node = Node(path)
        manager.add_many({"type": type, "payload": 100, "timeout": 200} for _ in range(2))
        wait_until(lambda: manager.stats().running == 2)
        family = psutil.Process(node.process.pid).children(recursive=True)
        assert {process.pid for process in family} > set(node.workers)
        node.kill()
        wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 1)


HANGING = ["spin", "swallow", "hold_the_interpreter", "ignore_signals", "freeze_in_the_middle_of_the_result", "wait"]


@pytest.mark.parametrize("name", HANGING)
def test_a_task_ends_within_a_second_of_its_timeout_whatever_it_does(path, name):
    handlers = {"nothing": "queue_handlers:nothing", name: f"queue_handlers:{name}"}
    with TaskQueue(path, handlers, pool_size=2) as queue:
        queue.add("nothing").result(WAIT)
        began = time.monotonic()
        handle = queue.add(name, 100, timeout=0.5, max_attempts=1)
        task = queue.wait_for(handle.id, WAIT)
        assert (task.status, task.error.type) == ("failed", "Timeout")
        assert 0.5 <= time.monotonic() - began < 1.5
        wait_until(lambda: [worker.state for worker in queue.workers()] == ["idle", "idle"], 1)
        assert queue.add("nothing").result(1) is None


def test_a_sleeper_hidden_in_a_fast_type_does_not_hold_up_its_neighbours(path):
    with TaskQueue(path, {"sleep": "queue_handlers:sleep_if_asked"}, pool_size=2) as queue:
        queue.add_many({"type": "sleep", "payload": 0} for _ in range(2000))
        queue.join(WAIT)
        queue.pause()
        sleeper = queue.add("sleep", 3)
        others = queue.add_many({"type": "sleep", "payload": 0} for _ in range(400))
        began = time.monotonic()
        queue.resume()
        for handle in others:
            handle.result(WAIT)
        assert time.monotonic() - began < 1.5
        assert sleeper.status == "processing"
        assert {handle.task.attempts for handle in others} == {1}
        sleeper.cancel()


@pytest.mark.parametrize("what", ["zygote", "worker"])
def test_a_killed_worker_or_zygote_is_replaced_within_a_second(path, what):
    with TaskQueue(path, {"nothing": "queue_handlers:nothing"}, pool_size=2) as queue:
        queue.add("nothing").result(WAIT)
        wait_until(lambda: [worker.state for worker in queue.workers()] == ["idle", "idle"])
        before = [worker.pid for worker in queue.workers()]
        victim, lost = (before[0], before[:1]) if what == "worker" else (psutil.Process(before[0]).ppid(), before)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not {worker.pid for worker in queue.workers()}.intersection(lost), 1)
        wait_until(lambda: [worker.state for worker in queue.workers()] == ["idle", "idle"], 1)
        assert queue.add("nothing").result(1) is None


def test_an_idle_queue_sleeps_and_writes_nothing(path):
    with TaskQueue(path, {"nothing": "queue_handlers:nothing"}, pool_size=2) as queue:
        queue.add("nothing").result(WAIT)
        me = psutil.Process()
        wal = Path(path + "-wal")
        threading.Event().wait(2.5)  # the last heartbeat with changes has been sent
        written, busy = wal.stat().st_mtime_ns, sum(me.cpu_times()[:2])
        threading.Event().wait(3)
        assert wal.stat().st_mtime_ns == written
        assert sum(me.cpu_times()[:2]) - busy < 0.03


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux, which counts shared memory")
def test_a_further_idle_worker_takes_at_most_six_megabytes(path):
    with TaskQueue(path, {"nothing": "queue_handlers:nothing"}, pool_size=2) as queue:
        queue.add_many({"type": "nothing"} for _ in range(100))
        queue.join(WAIT)
        small = _family_bytes()
        queue.resize(10)
        wait_until(lambda: [worker.state for worker in queue.workers()] == ["idle"] * 10)
        assert (_family_bytes() - small) / 8 <= 6 << 20


def _family_bytes() -> int:
    """Return the memory of all children together, with shared pages counted once (PSS)."""
    rollups = (Path(f"/proc/{p.pid}/smaps_rollup").read_text() for p in psutil.Process().children(recursive=True))
    return sum(int(line.split()[1]) * 1024 for text in rollups for line in text.splitlines() if line.startswith("Pss:"))

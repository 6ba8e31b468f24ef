"""The monitor of true queues, against a script that knows what it asked for."""

from __future__ import annotations

import subprocess
import sys
import time
from math import floor
from pathlib import Path

import pytest
from monitor_node import obey
from prometheus_client.parser import text_string_to_metric_families

from dtq import Monitor, QueueManager, TaskQueue
from dtq.sketch import ERROR

WAIT = 120.0
HERE = Path(__file__).parent
SCRAPE = """
import sys
from dtq import open_store
from dtq.prometheus import exposition

store = open_store(sys.argv[1])
print(exposition(store.stats()))
store.close()
"""


def in_steps(queue, steps, every, burst):
    """Adds a burst of tasks at each step, at fixed times."""
    began = time.monotonic()
    for step in range(steps):
        time.sleep(max(0.0, began + step * every - time.monotonic()))
        queue.add_many(burst)


def exact(values, q):
    return sorted(values)[floor(q * (len(values) - 1))]


def test_the_figures_are_those_of_a_script_that_knows(tmp_path):
    """Two workers, 12 s: 10 tasks each 0.8 s, of which 2 fail once and 1 for good, and take 20 to 110 ms."""
    burst = [{"type": "obey", "payload": {"seconds": 0.02 + 0.01 * n}, "retry_delay": 0.1} for n in range(7)]
    burst += [{"type": "obey", "payload": {"seconds": 0.08, "fails": 1}, "retry_delay": 0.1} for _ in range(2)]
    burst += [{"type": "obey", "payload": {"seconds": 0.11, "fails": 9}, "max_attempts": 1}]
    with TaskQueue(tmp_path / "queue.db", {"obey": obey}, 2) as queue:
        queue.add("obey", {"seconds": 0}).result(WAIT)
        with Monitor(queue, None, 0.037) as monitor:
            began = time.monotonic()
            in_steps(queue, 15, 0.8, burst)
            queue.join(WAIT)
            took = time.monotonic() - began
        found = monitor.get_metrics()
        tasks = queue.find(limit=1000)[1:]
    summary = found["summary"]

    counts = {name: summary[name] for name in ("completed", "failed", "retried", "timed_out", "cancelled")}
    assert counts == {"completed": 135, "failed": 15, "retried": 30, "timed_out": 0, "cancelled": 0}
    assert summary["failure_rate"] == pytest.approx(15 / 150)
    assert summary["retry_rate"] == pytest.approx(30 / 180)
    assert sum(point["completed"] for point in found["history"]) == 135

    attempts = [attempt for task in tasks for attempt in task.history]
    seconds = [task.finished_at - task.started_at for task in tasks if task.status == "completed"]
    seconds += [attempt.finished_at - attempt.started_at for attempt in attempts]
    assert len(seconds) == 180
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert summary[f"{name}_execution_time"] == pytest.approx(exact(seconds, q), rel=ERROR + 1e-4)
    assert summary["avg_execution_time"] == pytest.approx(sum(seconds) / len(seconds), rel=0.001)

    busy = sum(task.result for task in tasks if task.result) + 30 * 0.08 + 15 * 0.11  # by the handlers' own watches
    assert summary["worker_utilization"] == pytest.approx(busy / (2 * took), abs=0.02)


def test_littles_law_holds_on_the_monitors_own_figures(tmp_path):
    """How many there are, on average, is how many come a second times how long each stays."""
    burst = [{"type": "obey", "payload": {"seconds": 0.1}} for _ in range(6)]
    with TaskQueue(tmp_path / "queue.db", {"obey": obey}, 2) as queue:
        queue.add("obey", {"seconds": 0}).result(WAIT)
        with Monitor(queue, None, 0.029) as monitor:
            in_steps(queue, 15, 0.7, burst)
            queue.join(WAIT)
        summary, points = monitor.get_metrics()["summary"], monitor.history
    if max(point.seconds for point in points) > 0.2:
        pytest.skip("the machine was too busy to look often enough for an average over time")
    there = sum((point.queue_size + point.processing) * point.seconds for point in points)
    there /= sum(point.seconds for point in points)
    stay = summary["avg_waiting_time"] + summary["avg_execution_time"]
    assert there == pytest.approx(summary["avg_throughput"]["per_second"] * stay, rel=0.05)


@pytest.fixture
def nodes(tmp_path):
    """Two nodes, processes of their own, on one store; gives its path."""
    command = [sys.executable, HERE / "monitor_node.py", tmp_path / "queue.db"]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for node in running:
        assert node.stdout.readline() == "ready\n"
    yield tmp_path / "queue.db"
    for node in running:
        node.communicate()


def completed(text):
    """The samples of completed attempts, by node."""
    return {
        sample.labels["node"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "dtq_attempts_total" and sample.labels["outcome"] == "completed"
    }


def test_whoever_scrapes_while_two_nodes_run_sees_the_sum_of_both(nodes):
    with QueueManager(nodes) as manager, Monitor(manager, None, 0.2) as monitor:
        manager.add_many({"type": "obey", "payload": {"seconds": 0.01}} for _ in range(400))
        command = [sys.executable, "-c", SCRAPE, str(nodes)]
        early = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        for scrape in early:
            assert sum(completed(scrape.communicate()[0]).values()) <= 400
        assert _until(lambda: manager.stats().counts["completed"] == 400)
        assert _until(lambda: monitor.get_metrics()["summary"]["completed"] >= 400)
        late = [subprocess.check_output(command, text=True) for _ in range(4)]
        metrics = monitor.get_metrics()
    assert all(completed(text) == completed(late[0]) for text in late)
    assert len(completed(late[0])) == 2
    assert sum(completed(late[0]).values()) == metrics["summary"]["completed"] == 400
    assert [node["workers"] for node in metrics["now"]["per_node"]] == [2, 2]


def test_an_idle_node_has_nothing_to_write(tmp_path):
    """Nor has it when it is watched."""
    with TaskQueue(tmp_path / "queue.db", {"obey": obey}, 2) as queue, Monitor(queue, None, 0.2):
        queue.add("obey", {"seconds": 0}).result(WAIT)
        time.sleep(2.5)  # until its last news are out
        log = tmp_path / "queue.db-wal"
        before = (log.stat().st_mtime_ns, log.stat().st_size)
        time.sleep(3)
        assert (log.stat().st_mtime_ns, log.stat().st_size) == before


def _until(question):
    end = time.monotonic() + WAIT
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(0.05)
    return answer

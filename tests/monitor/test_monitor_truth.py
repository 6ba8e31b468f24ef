"""The monitor of true queues, against a script that knows what it asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from math import floor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from monitor_node import obey
from prometheus_client.parser import text_string_to_metric_families

from dtq import APIServer, Monitor, QueueManager, TaskQueue
from dtq.workers.metrics.histogram import ERROR

WAIT = 120.0
HERE = Path(__file__).parents[1]
QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def in_steps(queue, steps, every, burst):
    """Adds a burst of tasks at each step, at fixed times."""
    began = time.monotonic()
    for step in range(steps):
        time.sleep(max(0.0, began + step * every - time.monotonic()))
        queue.add_many(burst)


def exact(values, q):
    return sorted(values)[floor(q * (len(values) - 1))]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Return what a monitor saw of two workers. Every 0.15 s they get 10 tasks of 20 to 110 ms, of which 2 fail once
    and 1 fails permanently: too many for 1.5 s, then they catch up, then they are idle."""
    burst = [{"type": "obey", "payload": {"seconds": 0.02 + 0.01 * n}} for n in range(7)]
    burst += [{"type": "obey", "payload": {"seconds": 0.08, "fails": 1}, "retry_delay": 0} for _ in range(2)]
    burst += [{"type": "obey", "payload": {"seconds": 0.11, "fails": 1}, "max_attempts": 1}]
    with TaskQueue(tmp_path_factory.mktemp("truth") / "queue.db", {"obey": obey}, 2) as queue:
        queue.add("obey", {"seconds": 0}).result(WAIT)
        with Monitor(queue, None, 0.037) as monitor:
            began = time.monotonic()
            in_steps(queue, 10, 0.15, burst)
            queue.join(WAIT)
            time.sleep(1.5)
            took = time.monotonic() - began
        return SimpleNamespace(took=took, tasks=queue.find(limit=1000)[1:], **monitor.get_metrics())


def test_counts_and_rates_are_exactly_those_that_were_asked_for(seen):
    counts = {name: seen.summary[name] for name in ("completed", "failed", "retried", "timed_out", "cancelled")}
    assert counts == {"completed": 90, "failed": 10, "retried": 20, "timed_out": 0, "cancelled": 0}
    assert seen.summary["failure_rate"] == 10 / 100
    assert seen.summary["retry_rate"] == 20 / 120
    for name, n in counts.items():
        assert sum(point[name] for point in seen.history) == n


def ran(task):
    """When each attempt of the task started and ended."""
    spells = [(attempt.started_at, attempt.finished_at) for attempt in task.history]
    return [*spells, (task.started_at, task.finished_at)] if task.status == "completed" else spells


def test_quantiles_are_within_the_bound(seen):
    spells = [ran(task) for task in seen.tasks]
    took = [end - start for spell in spells for start, end in spell]
    waited = [spell[0][0] - task.created_at for task, spell in zip(seen.tasks, spells, strict=True)]
    waited += [again[0] - ended[1] for spell in spells for ended, again in pairwise(spell)]
    assert len(took) == len(waited) == 120
    for name, values in (("execution_time", took), ("waiting_time", waited)):
        for p, q in QUANTILES:
            assert seen.summary[f"{p}_{name}"] == pytest.approx(exact(values, q), rel=ERROR + 1e-4)
        assert seen.summary[f"avg_{name}"] == pytest.approx(sum(values) / len(values), rel=0.001)


def test_utilization_is_within_two_points_of_what_the_handlers_measured(seen):
    watches = [task.result for task in seen.tasks if task.status == "completed"]
    watches += [float(attempt.error.message) for task in seen.tasks for attempt in task.history]
    assert seen.summary["worker_utilization"] == pytest.approx(sum(watches) / (2 * seen.took), abs=0.02)


def test_littles_law_holds_on_the_monitors_own_figures(seen):
    """How many there are, on average, is how many come a second times how long each stays. A task that is retried at
    once comes again."""
    points, summary = seen.history, seen.summary
    there = sum((point["queue_size"] + point["processing"]) * point["seconds"] for point in points) / summary["seconds"]
    come = summary["avg_throughput"]["per_second"] + summary["retried"] / summary["seconds"]
    stay = summary["avg_waiting_time"] + summary["avg_execution_time"]
    assert there == pytest.approx(come * stay, rel=0.05)


# --- several nodes


@pytest.fixture
def nodes(tmp_path):
    """Start two nodes, as processes, on one store. Return its path."""
    command = [sys.executable, HERE / "monitor_node.py", tmp_path / "queue.db"]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for node in running:
        assert node.stdout.readline() == "ready\n"
    yield tmp_path / "queue.db"
    for node in running:
        node.communicate()


@pytest.fixture
def api(nodes):
    """Four processes that serve one port."""
    with APIServer(nodes, port=0, clustered=True, num_workers=4) as api:
        yield api


def scrape(api, pid):
    """The samples that this process of the API gives, the only one that can answer while the others are frozen."""
    others = set(api.pids()) - {pid}
    for other in others:
        os.kill(other, signal.SIGSTOP)
    try:
        text = httpx.get(f"{api.url}metrics", timeout=WAIT).raise_for_status().text
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def total(samples, name, by, **labels):
    """The samples of this name and these labels, added up by another label."""
    found = Counter()
    for sample in samples:
        if sample.name == name and labels.items() <= sample.labels.items():
            found[sample.labels[by]] += sample.value
    return found


@pytest.mark.long
def test_whichever_process_of_the_api_is_scraped_while_two_nodes_run_the_sums_are_right(nodes, api):
    asked = [{"type": "obey", "payload": {"seconds": 0.03}} for _ in range(200)]
    asked += [{"type": "obey", "payload": {"seconds": 0.03, "fails": 1}, "retry_delay": 0} for _ in range(40)]
    asked += [{"type": "obey", "payload": {"seconds": 0.03, "fails": 1}, "max_attempts": 1} for _ in range(20)]
    done = {"completed": 240, "retried": 40, "failed": 20}
    with QueueManager(nodes) as manager, Monitor(manager, None, 0.2) as monitor:
        manager.add_many(asked)
        before, between = Counter(), 0
        while manager.stats().unfinished:
            for pid in api.pids():
                samples = scrape(api, pid)
                attempts = total(samples, "dtq_attempts_total", "outcome")
                in_store = total(samples, "dtq_queue_tasks", "status", queue="default")
                assert all(attempts[end] <= in_store[end] for end in ("completed", "failed"))
                assert attempts >= before, "a counter never decreases, whichever process serves it"
                before, between = attempts, between + (0 < attempts.total() < 300)
        assert _until(lambda: monitor.get_metrics()["summary"]["completed"] == 240)
        last = [scrape(api, pid) for pid in api.pids()]
        summary, now = monitor.get_metrics()["summary"], monitor.get_metrics()["now"]
    assert len(last) == 4
    assert between >= 4, "they were asked while it went on"
    for samples in last:
        assert total(samples, "dtq_attempts_total", "outcome") == done
        assert total(samples, "dtq_queue_tasks", "status", queue="default") == Counter(completed=240, failed=20)
        for name in ("execution", "waiting"):
            times = total(samples, f"dtq_task_{name}_seconds_count", "node")
            assert (len(times), times.total()) == (2, 300)
            assert times == total(samples, f"dtq_task_{name}_seconds_bucket", "node", le="+Inf")
        assert total(samples, "dtq_node_busy_seconds_total", "node").total() >= 300 * 0.03
        assert set(total(samples, "dtq_node_workers", "node").values()) == {2}
    assert {end: summary[end] for end in done} == done
    assert [node["workers"] for node in now["per_node"]] == [2, 2]


def test_an_idle_node_has_nothing_to_write(tmp_path):
    """Nor has it when it is watched: once its last news are out, two beats and more pass in silence."""
    log = tmp_path / "queue.db-wal"
    with TaskQueue(tmp_path / "queue.db", {"obey": obey}, 2) as queue, Monitor(queue, None, 0.2):
        queue.add("obey", {"seconds": 0}).result(WAIT)
        assert _until(lambda: time.time() - log.stat().st_mtime > 2.2)


def _until(question):
    end = time.monotonic() + WAIT
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(0.05)
    return answer

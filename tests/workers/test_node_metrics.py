"""NodeMetrics: counts, times and busy seconds, from invented reports and a clock that the test sets."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from dtq import TaskQueue
from dtq.task.model import ErrorInfo, Task
from dtq.task.transitions import fail, succeed
from dtq.workers.backend import Finished, Started, WorkerChanged, WorkerInfo
from dtq.workers.metrics import usage
from dtq.workers.metrics.histogram import Histogram
from dtq.workers.metrics.node import MAX_LANES, MAX_TYPES, OTHER, NodeMetrics
from dtq.workers.metrics.usage import Usage, Use

NOW = 1000.0


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(clock):
    return NodeMetrics(clock)


def claimed(id="x", type="a", queue="default", **options):
    task = Task(type=type, id=id, queue=queue, created_at=NOW, run_at=NOW, **options)
    return replace(task, version=2, status="processing", attempts=1, started_at=NOW)


def worker(id="w-1"):
    return WorkerInfo(id, 0, "idle", 0, 0, 0.0, None)


def ran(metrics, task, seconds, at=NOW, name="w-1"):
    metrics.record([Started(task, name, at), Finished(task, name, at, seconds, None, None, "", False)])


def test_ended_tasks_are_counted_by_queue_type_and_outcome(metrics):
    metrics.count([succeed(claimed("x"), 1, NOW), succeed(claimed("y"), 1, NOW)])
    metrics.count([fail(claimed("z", max_attempts=1, queue="q"), ErrorInfo("Timeout"), NOW, lambda: 0.0)])
    metrics.count([fail(claimed("z"), ErrorInfo("ValueError"), NOW, lambda: 0.0)])
    assert metrics.reading([])["ended"] == {
        "default": {"a": {"completed": 2, "retried": 1}},
        "q": {"a": {"failed": 1, "timed_out": 1}},
    }


def test_execution_and_waiting_times_are_kept_by_type(metrics):
    ran(metrics, claimed("x"), 2.0, at=NOW + 8)
    reading = metrics.reading([])
    assert Histogram.from_json(reading["execution"]["a"]).sum == 2.0
    assert Histogram.from_json(reading["waiting"]["a"]).sum == 8.0


def test_a_worker_that_runs_is_busy_before_its_call_ends(metrics, clock):
    metrics.record([Started(claimed(), "w-1", NOW)])
    clock.now = 3.0
    reading = metrics.reading([worker()])
    assert (reading["busy"], reading["workers"], reading["uptime"]) == (3.0, {"w-1": 3.0}, 3.0)
    metrics.record([Finished(claimed(), "w-1", NOW, 3.5, None, None, "", False)])
    assert metrics.reading([worker()])["busy"] == 3.5


def test_calls_that_overlap_keep_a_worker_busy_once(metrics, clock):
    metrics.record([Started(claimed("x"), "w-1", NOW), Started(claimed("y"), "w-1", NOW + 1)])
    clock.now = 4.0
    metrics.record([Finished(claimed("x"), "w-1", NOW, 3.0, None, None, "", False)])
    metrics.record([Finished(claimed("y"), "w-1", NOW + 1, 3.0, None, None, "", False)])
    assert metrics.reading([worker()])["busy"] == 4.0


def test_busy_seconds_never_shrink_when_the_wall_clock_is_set_back_between_calls_that_overlap(metrics, clock):
    metrics.record([Started(claimed("x"), "w-1", NOW), Started(claimed("y"), "w-1", NOW)])
    clock.now = 4.0
    before = metrics.reading([worker()])["busy"]
    for id in "xy":
        metrics.record([Finished(claimed(id), "w-1", NOW - 3600, 1.0, None, None, "", False)])
    assert metrics.reading([worker()])["busy"] >= before == 4.0


def test_the_work_of_a_worker_that_is_gone_stays_counted(metrics):
    ran(metrics, claimed(), 2.0)
    metrics.record([WorkerChanged("w-1", "exited", 7)])
    ran(metrics, claimed("y"), 1.0, name="w-2")
    reading = metrics.reading([worker("w-2")])
    assert (reading["busy"], reading["workers"]) == (3.0, {"w-2": 1.0})


def test_the_waiting_time_of_a_retry_begins_when_it_is_due(metrics):
    task = replace(claimed(), run_at=NOW + 100)
    ran(metrics, task, 1.0, at=NOW + 103)
    assert Histogram.from_json(metrics.reading([])["waiting"]["a"]).sum == 3.0


def test_processor_time_of_workers_that_are_gone_stays_counted(monkeypatch):
    spent = {1: 5.0, 2: 7.0}
    monkeypatch.setattr(usage, "HAS_PROC", True)
    monkeypatch.setattr(usage, "use_of", lambda pid: Use(100, spent.get(pid, 0.0)))
    monkeypatch.setattr(usage.time, "process_time", lambda: 1.0)
    seen = Usage()
    assert seen.read([1, 2]) == Use(300, 13.0)
    assert seen.read([2]) == Use(200, 13.0)
    spent[2] = 8.0
    assert seen.read([2]) == Use(200, 14.0)


def test_while_nothing_happens_the_reading_stays_the_same_object(metrics, clock):
    ran(metrics, claimed(), 2.0)
    first = metrics.reading([worker()])
    clock.now = 100.0
    assert metrics.reading([worker()]) is first
    metrics.record([])
    assert metrics.reading([worker()]) is first


def test_the_size_of_a_reading_is_bounded_for_any_number_of_types(metrics):
    for n in range(1000):
        for seconds in (1e-9, 0.01, 1e9):
            ran(metrics, claimed(type=f"t{n}"), seconds)
        metrics.count([succeed(claimed(type=f"t{n}", queue=f"q{n}"), 1, NOW)])
    reading = metrics.reading([worker()])
    assert len(reading["execution"]) == len(reading["waiting"]) == MAX_TYPES + 1
    assert sum(map(len, reading["ended"].values())) == MAX_LANES + 1
    assert reading["ended"][OTHER][OTHER]["completed"] == 1000 - MAX_LANES
    assert len(json.dumps(reading)) < 150_000


def test_a_node_publishes_what_it_did_with_its_heartbeat():
    with TaskQueue("memory:", {"a": "queue_handlers:sleep_if_asked"}, 1, executor="process") as queue:
        queue.add_many({"type": "a", "payload": 0} for _ in range(20))
        queue.add("a", 1.2).result(30)  # longer than the time between two heartbeats
        (node,) = queue.stats().nodes
        assert node.metrics["ended"]["default"]["a"]["completed"] >= 20
        own = queue.snapshot().metrics
    assert own["ended"] == {"default": {"a": {"completed": 21}}}
    assert own["busy"] == pytest.approx(1.2, abs=0.5)
    assert own["memory"] > 1e6
    assert own["cpu"] > 0

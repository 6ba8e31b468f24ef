"""The meter of a node: counts, times and busy seconds, from made-up reports and a clock of the test's own."""

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


class Ticks:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def ticks():
    return Ticks()


@pytest.fixture
def meter(ticks):
    return NodeMetrics(ticks)


def claimed(id="x", type="a", queue="default", **options):
    task = Task(type=type, id=id, queue=queue, created_at=NOW, run_at=NOW, **options)
    return replace(task, version=2, status="processing", attempts=1, started_at=NOW)


def worker(id="w-1"):
    return WorkerInfo(id, 0, "idle", 0, 0, 0.0, None)


def ran(meter, task, seconds, at=NOW, name="w-1"):
    meter.record([Started(task, name, at), Finished(task, name, at, seconds, None, None, "", False)])


def test_endings_are_counted_by_queue_type_and_outcome(meter):
    meter.count([succeed(claimed("x"), 1, NOW), succeed(claimed("y"), 1, NOW)])
    meter.count([fail(claimed("z", max_attempts=1, queue="q"), ErrorInfo("Timeout"), NOW, lambda: 0.0)])
    meter.count([fail(claimed("z"), ErrorInfo("ValueError"), NOW, lambda: 0.0)])
    assert meter.reading([])["ended"] == {
        "default": {"a": {"completed": 2, "retried": 1}},
        "q": {"a": {"failed": 1, "timed_out": 1}},
    }


def test_execution_and_waiting_times_are_kept_by_type(meter):
    ran(meter, claimed("x"), 2.0, at=NOW + 8)
    reading = meter.reading([])
    assert Histogram.from_json(reading["execution"]["a"]).sum == 2.0
    assert Histogram.from_json(reading["waiting"]["a"]).sum == 8.0


def test_a_worker_that_runs_is_busy_before_its_call_ends(meter, ticks):
    meter.record([Started(claimed(), "w-1", NOW)])
    ticks.now = 3.0
    reading = meter.reading([worker()])
    assert (reading["busy"], reading["workers"], reading["uptime"]) == (3.0, {"w-1": 3.0}, 3.0)
    meter.record([Finished(claimed(), "w-1", NOW, 3.5, None, None, "", False)])
    assert meter.reading([worker()])["busy"] == 3.5


def test_calls_that_overlap_keep_a_worker_busy_once(meter, ticks):
    meter.record([Started(claimed("x"), "w-1", NOW), Started(claimed("y"), "w-1", NOW + 1)])
    ticks.now = 4.0
    meter.record([Finished(claimed("x"), "w-1", NOW, 3.0, None, None, "", False)])
    meter.record([Finished(claimed("y"), "w-1", NOW + 1, 3.0, None, None, "", False)])
    assert meter.reading([worker()])["busy"] == 4.0


def test_busy_seconds_never_shrink_when_the_wall_clock_is_set_back_between_calls_that_overlap(meter, ticks):
    meter.record([Started(claimed("x"), "w-1", NOW), Started(claimed("y"), "w-1", NOW)])
    ticks.now = 4.0
    before = meter.reading([worker()])["busy"]
    for id in "xy":
        meter.record([Finished(claimed(id), "w-1", NOW - 3600, 1.0, None, None, "", False)])
    assert meter.reading([worker()])["busy"] >= before == 4.0


def test_what_a_worker_did_that_is_gone_stays_counted(meter):
    ran(meter, claimed(), 2.0)
    meter.record([WorkerChanged("w-1", "exited", 7)])
    ran(meter, claimed("y"), 1.0, name="w-2")
    reading = meter.reading([worker("w-2")])
    assert (reading["busy"], reading["workers"]) == (3.0, {"w-2": 1.0})


def test_the_waiting_time_of_another_attempt_begins_when_it_is_due(meter):
    task = replace(claimed(), run_at=NOW + 100)
    ran(meter, task, 1.0, at=NOW + 103)
    assert Histogram.from_json(meter.reading([])["waiting"]["a"]).sum == 3.0


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


def test_while_nothing_happens_the_reading_stays_the_same_object(meter, ticks):
    ran(meter, claimed(), 2.0)
    first = meter.reading([worker()])
    ticks.now = 100.0
    assert meter.reading([worker()]) is first
    meter.record([])
    assert meter.reading([worker()]) is first


def test_a_reading_is_bounded_whatever_the_tasks_are_called(meter):
    for n in range(1000):
        for seconds in (1e-9, 0.01, 1e9):
            ran(meter, claimed(type=f"t{n}"), seconds)
        meter.count([succeed(claimed(type=f"t{n}", queue=f"q{n}"), 1, NOW)])
    reading = meter.reading([worker()])
    assert len(reading["execution"]) == len(reading["waiting"]) == MAX_TYPES + 1
    assert sum(map(len, reading["ended"].values())) == MAX_LANES + 1
    assert reading["ended"][OTHER][OTHER]["completed"] == 1000 - MAX_LANES
    assert len(json.dumps(reading)) < 150_000


def test_a_node_publishes_what_it_did_with_its_heartbeat():
    with TaskQueue("memory:", {"a": "queue_handlers:sleep_if_asked"}, 1, executor="process") as queue:
        queue.add_many({"type": "a", "payload": 0} for _ in range(20))
        queue.add("a", 1.2).result(30)  # longer than from one beat to the next
        (node,) = queue.stats().nodes
        assert node.metrics["ended"]["default"]["a"]["completed"] >= 20
        own = queue.snapshot().metrics
    assert own["ended"] == {"default": {"a": {"completed": 21}}}
    assert own["busy"] == pytest.approx(1.2, abs=0.5)
    assert own["memory"] > 1e6
    assert own["cpu"] > 0

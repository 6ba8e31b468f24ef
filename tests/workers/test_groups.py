"""Pools by priority: a worker that is reserved for urgent tasks runs no others, so that it is free for them."""

from __future__ import annotations

import time

import matplotlib.pyplot as plt
import pytest

from dtq import Pool, TaskQueue
from dtq.lab.pools import by_priority

WAIT = 30.0
POOLS = {"urgent": Pool(1, min_priority=5), "rest": Pool(1)}
HANDLERS = {name: f"flow_handlers:{name}" for name in ("sleep", "value", "wait_for_file")}


@pytest.fixture(params=["process", "thread"])
def queue(request, tmp_path):
    """A queue whose reserved worker has run four tasks while the other worker was busy."""
    with TaskQueue(tmp_path / "q.db", HANDLERS, pools=POOLS, executor=request.param) as queue:
        gate = queue.add("wait_for_file", str(tmp_path / "gate"))
        while queue.stats().running < 1:
            time.sleep(0.005)
        for handle in queue.add_many({"type": "value", "priority": 9} for _ in range(4)):
            handle.result(WAIT)
        (tmp_path / "gate").touch()
        gate.result(WAIT)
        queue.delete(gate.id)
        yield queue


def pool_of(task):
    return task.worker.rpartition("/")[2].rstrip("0123456789-")


def test_urgent_tasks_do_not_wait_for_long_tasks(queue, tmp_path):
    end = tmp_path / "end"
    longs = queue.add_many({"type": "wait_for_file", "payload": str(end), "timeout": 900} for _ in range(3))
    while queue.stats().running < 1:
        time.sleep(0.005)
    for n in range(10):
        assert queue.add("value", n, priority=5).result(WAIT) == n
    assert "completed" not in {handle.status for handle in longs}
    end.touch()
    for handle in longs:
        handle.result(WAIT)


def test_a_reserved_worker_runs_no_task_of_lower_priority(queue):
    handles = queue.add_many({"type": "sleep", "payload": 0.002, "priority": n % 10} for n in range(200))
    queue.join(WAIT)
    ran = [handle.task for handle in handles]
    assert {pool_of(task) for task in ran if task.priority < 5} == {"rest"}
    assert "urgent" in {pool_of(task) for task in ran if task.priority >= 5}


def test_the_figure_shows_which_worker_ran_which_task(queue, monkeypatch):
    shown = []
    monkeypatch.setattr("dtq.lab.pools.show_figure", lambda figure, alt, data, stamp: shown.append((alt, data)))
    tasks = [handle.task for handle in queue.add_many({"type": "value", "priority": n % 10} for n in range(50))]
    queue.join(WAIT)
    (axes,) = by_priority({"a run": queue.find(limit=1000)}, urgent=5)
    ((alt, data),) = shown
    assert "a run: 54 tasks on 2 workers" in alt
    assert dict(zip(data["kind"], data["count"], strict=True)) == {"other": 25, "urgent": 29}
    assert sum(len(bars) for bars in axes.containers) == len(tasks) + 4
    plt.close("all")
    with pytest.raises(ValueError, match="nothing to draw"):
        by_priority({"none": []}, urgent=5)

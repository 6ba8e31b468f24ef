"""The live dashboard: its figures are the queue's, the kernel stays free, and it ends with its queue."""

from __future__ import annotations

import importlib
import re
import threading
import time

import pytest

from dtq import QueueManager, TaskQueue, lab
from dtq.errors import StoreError
from dtq.lab.dashboard import Dashboard, Reading, view
from dtq.task.model import ErrorInfo, Status, Task
from dtq.workers.backend import WorkerInfo

WAIT = 20.0
module = importlib.import_module("dtq.lab.dashboard")  # lab.dashboard is the function


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(module, "EVERY", 0.02)


@pytest.fixture
def queue():
    handlers = {"work": "queue_handlers:sleep_if_asked", "fail": "queue_handlers:fail"}
    with TaskQueue("memory:", handlers, 2) as queue:
        yield queue


def eventually(condition):
    give_up_at = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def living():
    return [thread.name for thread in threading.enumerate() if thread.name == "dtq-dashboard"]


def counts(**some):
    return dict.fromkeys(map(str, Status), 0) | some


def test_it_moves_while_tasks_run_and_tells_what_the_queue_tells(queue):
    values = []
    with lab.dashboard(queue) as board:
        board.widget.observe(lambda change: values.append(change["new"]), "value")
        queue.add_many({"type": "work", "payload": 0.02} for _ in range(20))
        queue.add("fail", max_attempts=1)
        queue.join(WAIT)
        eventually(lambda: "20 tasks)" in board.widget.value and "latest failures" in board.widget.value)
    assert "99 of 100 within" in values[-1]
    assert re.search(r"completed</td><td>20</td>.*failed</td><td>1</td>", values[-1])
    assert re.search(r"latest failures.*fail</td><td>\w+", values[-1])
    assert all(worker.id in values[-1] for worker in queue.workers())
    frame = board.frame()
    assert frame["seconds"].is_monotonic_increasing
    assert frame["ended"].iloc[-1] == 21
    assert (frame["rate"] >= 0).all()
    assert frame["rate"].max() > 0


def test_it_stops_when_told_and_leaves_no_thread_and_no_listener(queue):
    board = lab.dashboard(queue)
    assert living()
    board.stop()
    board.stop()
    assert not living()
    last = board.widget.value
    queue.add("work", 0).result(WAIT)
    assert board.widget.value == last
    assert not queue.events.has_listeners("task:completed")


def test_it_ends_with_its_queue():
    with TaskQueue("memory:", {"work": "queue_handlers:nothing"}, 1) as queue:
        lab.dashboard(queue)
    eventually(lambda: not living())
    manager = QueueManager("memory:")
    lab.dashboard(manager)
    manager.store.stats = broken
    eventually(lambda: not living())
    manager.close()


def broken():
    raise StoreError("closed")


def test_a_manager_without_workers_has_a_dashboard_too(tmp_path):
    with QueueManager(tmp_path / "q.db") as manager:
        manager.add("work")
        board = Dashboard(manager)
        assert re.search(r"pending</td><td>1</td>", board.widget.value)
        assert "worker</th>" not in board.widget.value
        assert "no task has completed yet" in board.widget.value


def test_what_tasks_are_called_and_say_is_shown_as_text_never_as_markup():
    task = Task(type="x", id="a" * 32, error=ErrorInfo("Oops", "<script>alert(1)</script>"))
    worker = WorkerInfo("<b>w1", 1, "idle", 0, 0, 0.0, None)
    page = view([Reading(0, counts(), 0)], [], [worker], [task])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;w1" in page


def test_every_curve_says_in_words_what_it_shows():
    page = view([Reading(n, counts(pending=n), float(n)) for n in range(5)], [0.002] * 100, [], [])
    words = re.findall('role="img" aria-label="([^"]+)"', page)
    assert [text.partition(",")[0] for text in words] == ["waiting", "throughput"]
    assert words[0].endswith("now 4, at most 4 tasks")
    assert "2 ms" in page


def test_readers_without_a_kernel_see_words(queue, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "display", lambda data, **options: shown.append(data))
    lab.dashboard(queue).stop()
    (data,) = shown
    assert data["text/plain"] == "Dashboard"
    assert "when you run the notebook" in data["text/html"]

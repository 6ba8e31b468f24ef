"""The monitor with a manual clock, scripted nodes and broken disks."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import suppress

import pytest
from full_disks import disk, fill  # noqa: F401
from monitor_lab import NOW, Clock, ScriptedNode
from sizes import long_and_hourly

from dtq import DTQError, Monitor, QueueManager, StoreError, TaskQueue
from dtq.monitor import logs
from dtq.monitor.alerts import AlertState
from dtq.monitor.files import RotatingFile
from dtq.monitor.monitor import Threshold
from dtq.stores.memory.store import MemoryStore
from dtq.task.model import Task

WAIT = 60.0


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def manager():
    store = MemoryStore()
    with QueueManager(store) as manager:
        yield manager
    store.close()


@pytest.fixture
def watch(manager, clock):
    """Starts monitors that look when the test says so; each counts from its first look."""
    made = []

    def start(log_dir=None, **options):
        monitor = Monitor(
            manager, log_dir, 86400, clock=lambda: clock.wall, ticks=lambda: clock.tick, **options
        ).start()  # fmt: skip
        made.append(monitor)
        return monitor

    yield start
    for monitor in made:
        monitor.stop()


@pytest.fixture
def node(manager, clock):
    return ScriptedNode(manager.store, clock)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- figures


def test_an_interval_counts_what_came_in_it_and_the_summary_all(watch, node, clock):
    node.run(n=5)  # before the monitor
    monitor = watch()
    clock.forward(10)
    node.run(0.5, n=8)
    node.run(0.5, n=2, status="failed")
    point = monitor.sample()
    assert (point.completed, point.failed, point.throughput, point.failure_rate) == (8, 2, 1.0, 0.2)
    assert (point.worker_utilization, point.avg_execution_time) == (0.5, 0.5)
    clock.forward(10)
    point = monitor.sample()
    assert (point.completed, point.throughput, point.avg_execution_time, point.failure_rate) == (0, 0, None, 0)
    summary = monitor.get_metrics()["summary"]
    assert summary["avg_throughput"] == {"per_second": 0.5, "per_minute": 30.0}
    assert (summary["completed"], summary["failed"], summary["worker_utilization"]) == (8, 2, 0.25)


def test_what_a_node_did_stays_counted_when_it_has_left_and_another_begins_at_zero(watch, manager, node, clock):
    monitor = watch()
    clock.forward(10)
    node.run(n=3)
    monitor.sample()
    node.beat(lease=0)
    clock.forward(10)
    again = ScriptedNode(manager.store, clock, "n2")
    again.run(n=4)
    assert monitor.sample().completed == 4
    clock.forward(10)
    assert monitor.sample().completed == 0
    assert monitor.get_metrics()["summary"]["completed"] == 7


def test_several_nodes_are_added_up_and_shown_one_by_one(watch, manager, node, clock):
    other = ScriptedNode(manager.store, clock, "n2", workers=3)
    monitor = watch()
    clock.forward(10)
    node.run(5.0)
    other.run(1.0, n=9)
    assert monitor.sample().worker_utilization == pytest.approx(14 / 40)
    shown = {found["id"]: found for found in monitor.get_metrics()["now"]["per_node"]}
    assert shown["n1"]["worker_utilization"] == 0.5
    assert shown["n2"]["worker_utilization"] == pytest.approx(0.3)
    assert shown["n2"]["utilization_by_worker"] == {"w1": pytest.approx(0.9), "w2": 0.0, "w3": 0.0}


def test_a_busy_node_is_measured_by_the_time_between_its_own_publications(watch, node, clock):
    monitor = watch()
    node.begin()
    clock.forward(9)
    node.beat(busy=1)
    clock.forward(1)  # nothing is known of this second yet
    assert monitor.sample().worker_utilization == 1.0


def test_a_node_that_was_idle_and_silent_is_not_measured_over_that_time_again(watch, node, clock):
    monitor = watch()
    for _ in range(9):
        clock.forward(10)
        monitor.sample()
    clock.forward(5)
    node.begin()
    clock.forward(5)
    node.beat(busy=1)
    assert monitor.sample().worker_utilization == 0.5


def test_a_task_that_is_cancelled_here_is_counted():
    with TaskQueue("memory:", {"nothing": lambda payload, context: None}, 1, executor="thread") as queue:
        with Monitor(queue, None, 3600) as monitor:
            queue.add("nothing", delay=3600).cancel()
        assert monitor.get_metrics()["summary"]["cancelled"] == 1


def test_two_monitors_with_different_intervals_have_the_same_summary(watch, node, clock):
    often, seldom = watch(), watch()
    for _ in range(10):
        clock.forward(3)
        node.run(0.5)
        often.sample()
    seldom.sample()
    assert often.get_metrics()["summary"] == seldom.get_metrics()["summary"]


def test_the_table_has_a_row_for_each_interval_and_the_picture_shows_it(watch, node, clock):
    monitor = watch()
    for n in (1, 2):
        clock.forward(10)
        node.run(0.5, n=n)
        monitor.sample()
    table = monitor.frame()
    assert table["completed"].tolist() == [1, 2]
    assert table.index.name == "time"
    assert [time.timestamp() for time in table.index] == [NOW + 10, NOW + 20]
    assert [axes.get_ylabel() for axes in monitor.plot().axes] == ["tasks", "tasks/s", "seconds", "part of 1"]


def test_a_monitor_that_has_seen_nothing_has_an_empty_table(manager):
    monitor = Monitor(manager, None)
    assert len(monitor.frame()) == 0
    assert monitor.get_metrics()["now"] == {}


# --- clocks


def test_a_clock_that_is_set_back_an_hour_gives_no_negative_metric_and_is_logged(
    watch, manager, node, clock, tmp_path, caplog
):
    manager.store.add([Task(type="a", id="waits", created_at=clock.wall, run_at=clock.wall)])
    monitor = watch(tmp_path)
    clock.forward(10)
    node.run(1.0, n=4)
    monitor.sample()
    clock.wall -= 3600
    clock.forward(10)
    node.run(1.0, n=2, waited=-3600)
    point = monitor.sample()
    assert (point.seconds, point.completed, point.throughput, point.queue_size) == (10, 2, 0.2, 1)
    numbers = [value for point in monitor.get_metrics()["history"] for value in point.values() if value is not None]
    assert min(numbers) >= 0
    assert monitor.get_metrics()["monitor"]["clock_steps"] == 1
    assert "the clock was set by -3600.0 s" in caplog.text
    monitor.stop()
    assert [line["by"] for line in lines(tmp_path / "dtq.log") if line["event"] == "clock:set"] == [-3600]


@pytest.mark.parametrize("url", ["memory:", "{}/queue.db", "file:{}/queue"])
def test_a_queue_whose_clock_is_set_back_an_hour_works_on_and_its_monitor_says_so(url, tmp_path):
    """In the middle: some tasks have run, one runs, the others wait."""
    ahead, go_on = [3600.0], threading.Event()

    def clock():
        return time.time() + ahead[0]

    def work(payload, context):
        assert payload < 5 or go_on.wait(WAIT)

    store = url.format(tmp_path)
    with (
        TaskQueue(store, {"work": work}, 1, executor="thread", clock=clock) as queue,
        Monitor(queue, tmp_path / "logs", 0.02, clock=clock) as monitor,
    ):
        handles = queue.add_many({"type": "work", "payload": n} for n in range(20))
        handles[4].result(WAIT)
        queue.add_many({"type": "work", "payload": n} for n in range(20, 300))  # more than are claimed ahead
        ahead[0] = 0.0
        go_on.set()
        queue.add("work", 300).result(WAIT)
        queue.join(WAIT)
    found = monitor.get_metrics()
    assert (found["summary"]["completed"], found["monitor"]["clock_steps"]) == (301, 1)
    assert sum(point["completed"] for point in found["history"]) == 301
    assert min(value for point in found["history"] for value in point.values() if value is not None) >= 0
    assert [line["event"] for line in lines(tmp_path / "logs" / "dtq.log")].count("clock:set") == 1


# --- alerts

LOADS = {  # metric -> what makes it high
    "queue_size": lambda manager, node: manager.add_many({"type": "a"} for _ in range(1500)),
    "failure_rate": lambda manager, node: node.run(n=5, status="failed"),
    "avg_execution_time": lambda manager, node: node.run(61.0),
    "worker_utilization": lambda manager, node: node.run(9.9),
}


@pytest.mark.parametrize("metric", LOADS)
def test_each_default_threshold_is_raised_and_cleared_once_under_a_flapping_load(metric, watch, manager, node, clock):
    """Every other interval is bad for five minutes; then all is well for two."""
    node.workers = 1 if metric == "worker_utilization" else 20
    monitor, heard = watch(), []
    for name in ("alert:raised", "alert:cleared"):
        monitor.on(name, heard.append)
    for n in range(42):
        clock.forward(10)
        if n < 30 and n % 2 == 0:
            LOADS[metric](manager, node)
        else:
            manager.store.delete([task.id for task in manager.find(limit=10_000)])
            node.run(0.1)
        monitor.sample()
        if n == 20:
            assert set(monitor.get_metrics()["alerts"]) == {metric}
    monitor.stop()
    assert [(alert.name, alert.metric) for alert in heard] == [("alert:raised", metric), ("alert:cleared", metric)]
    assert heard[0].value > heard[0].threshold
    assert heard[0].message.startswith(f"{metric} is ")
    assert monitor.get_metrics()["alerts"] == {}


def test_a_duration_lets_a_short_peak_pass(watch, manager, node, clock):
    monitor, heard = watch(alert_thresholds={"failed": Threshold(0, duration=25)}), []
    monitor.on("alert:raised", heard.append)
    for status in ("failed", "failed", "completed", "failed", "failed", "failed", "failed"):
        clock.forward(10)
        node.run(status=status)
        monitor.sample()
    monitor.stop()
    assert [alert.at for alert in heard] == [NOW + 70]


def test_a_figure_between_clear_and_threshold_changes_nothing():
    watch = AlertState("queue_size", Threshold(100, cooldown=0))
    steps = [watch.step(value, NOW, tick) for tick, value in enumerate((95, 101, 95, 91, 90, 95))]
    assert [step and step.name for step in steps] == [None, "alert:raised", None, None, "alert:cleared", None]


def test_a_threshold_may_be_one_that_a_figure_must_not_fall_below(watch, manager, node, clock):
    monitor, heard = watch(alert_thresholds={"workers": Threshold(1, below=True, cooldown=0, clear=1)}), []
    for name in ("alert:raised", "alert:cleared"):
        monitor.on(name, heard.append)
    node.beat(lease=0)
    monitor.sample()
    node.beat()
    monitor.sample()
    monitor.stop()
    assert [alert.name for alert in heard] == ["alert:raised", "alert:cleared"]
    assert heard[0].message == "workers is 0, below its threshold of 1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alert_thresholds": {"queue_sise": 1}}, "no metric is named 'queue_sise'; there are: avg_execution_time"),
        ({"alert_thresholds": {"failed": -1}}, "a threshold's value is -1; allowed: a number, 0 or more"),
        ({"metrics_interval": 0}, "metrics_interval is 0; allowed: 0.01 to 86,400 seconds"),
        ({"history": 0}, "history is 0; allowed"),
        ({"log_level": "loud"}, "log_level is 'loud'; allowed: 'debug'"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(manager, options, words):
    with pytest.raises(DTQError, match=words):
        Monitor(manager, None, **options)


def test_only_a_queue_can_be_watched():
    with pytest.raises(DTQError, match=r"a monitor watches a TaskQueue or a QueueManager, not 'queue\.db'"):
        Monitor("queue.db")


# --- history


def test_history_goes_on_after_a_restart_and_a_torn_line_costs_that_line_only(watch, node, clock, tmp_path):
    first = watch(tmp_path)
    for _ in range(3):
        clock.forward(10)
        node.run()
        first.sample()
    first.stop()
    before = first.history
    assert [point.at for point in before] == [NOW + 10, NOW + 20, NOW + 30, NOW + 30]  # stop looks once more
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(b'{"at":17000')
    second = watch(tmp_path)
    assert second.history == before
    clock.forward(10)
    second.sample()
    second.stop()
    assert watch(tmp_path).history == second.history


def test_history_is_bounded_in_memory_and_on_the_disk(watch, node, clock, tmp_path):
    monitor = watch(tmp_path, history=50, log_bytes=10_000, log_files=2)
    for _ in range(1000):
        clock.forward(10)
        node.run()
        monitor.sample()
    assert len(monitor.history) == 50
    monitor.stop()
    assert sum(path.stat().st_size for path in tmp_path.glob("history*")) < 3 * 50 * 400 + 2000
    assert sum(path.stat().st_size for path in tmp_path.glob("dtq.log*")) < 3 * 11_000
    assert len(watch(tmp_path, history=50).history) == 50


KILLED = """
import sys, time
from dtq import Monitor, QueueManager

with QueueManager("memory:") as manager, Monitor(manager, sys.argv[1], 0.02):
    time.sleep(600)
"""


def kept(directory):
    path = directory / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_history_survives_processes_that_are_killed(manager, tmp_path):
    """Each point that was kept is there still, and in order, whoever wrote it."""
    for enough in (10, 30):
        with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path]) as process:
            assert _until(lambda enough=enough: kept(tmp_path) >= enough)
            process.kill()
    with Monitor(manager, tmp_path, 3600) as monitor:
        times = [point.at for point in monitor.history]
    assert len(times) == kept(tmp_path) - 1  # this one has looked once more since
    assert times == sorted(times)


@long_and_hourly("intervals", 2000, 100_000)
def test_memory_is_flat_over_very_many_intervals(watch, manager, clock, intervals):
    """Nodes come and go all the while."""
    life = intervals // 10
    monitor = watch(history=100)
    sizes = []
    tracemalloc.start()
    try:
        for n in range(intervals):
            clock.forward(10)
            if n % life == 0:
                node = ScriptedNode(manager.store, clock, f"n{n}")
            if n % 100 == 0:
                node.run(0.001 * (1 + n % 7))
            if n % life == life - 1:
                node.beat(lease=0)
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            monitor.sample()
    finally:
        tracemalloc.stop()
    assert sizes[-1] < sizes[1] * 1.02 + 10_000
    assert monitor.get_metrics()["summary"]["completed"] == intervals // 100


# --- logs


def append(path, at, n, max_bytes):
    """As a process would that is started for this one line."""
    file = RotatingFile(path, max_bytes, 2, lambda: at, max_age=3600)
    file.write(json.dumps({"at": at, "n": n}).encode() + b"\n")
    file.close()


def test_a_file_is_rotated_by_size(tmp_path):
    for n in range(20):
        append(tmp_path / "x.log", NOW, n, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2"]
    assert [found["n"] for name in ("x.log.2", "x.log.1", "x.log") for found in lines(tmp_path / name)] == [
        *range(12, 20)
    ]


def test_a_file_is_rotated_by_the_age_of_its_first_line_whichever_process_wrote_it(tmp_path):
    for n, at in enumerate((NOW, NOW + 1800, NOW + 3599, NOW + 3601, NOW + 7100)):
        append(tmp_path / "x.log", at, n, 10_000)
    assert [found["n"] for found in lines(tmp_path / "x.log.1")] == [0, 1, 2]
    assert [found["n"] for found in lines(tmp_path / "x.log")] == [3, 4]


def test_each_event_of_a_task_is_a_line_with_task_attempt_and_node(tmp_path):
    def fail(payload, context):
        raise ValueError("no")

    with TaskQueue("memory:", {"fail": fail}, 1, executor="thread") as queue:
        with Monitor(queue, tmp_path, log_level="debug"):
            handle = queue.add("fail", max_attempts=2, retry_delay=0)
            queue.join(WAIT)
            queue.events.catch_up()
        found = lines(tmp_path / "dtq.log")
    mine = [line for line in found if line.get("task") == handle.id]
    assert [line["event"] for line in mine if line["event"] != "task:added"] == [  # this one comes from another thread
        "task:started", "task:retrying", "task:started", "task:failed",
    ]  # fmt: skip
    assert len(mine) == 5
    last = mine[-1]
    assert (last["level"], last["attempt"], last["node"]) == ("error", 2, queue.node)
    assert (last["type"], last["error"]) == ("fail", "ValueError: no")
    assert [line["event"] for line in found[-2:]] == ["metrics", "alert:raised"]
    assert all(line["at"] > NOW for line in found)


def test_at_the_usual_level_a_completed_task_costs_no_line(tmp_path):
    with TaskQueue("memory:", {"nothing": lambda payload, context: None}, 1, executor="thread") as queue:
        with Monitor(queue, tmp_path):
            assert not queue.events.has_listeners("task:completed")
            assert queue.events.has_listeners("task:failed")
        assert not queue.events.has_listeners("task:failed")


def test_a_directory_that_cannot_be_written_costs_lines_and_no_task(tmp_path, caplog):
    (tmp_path / "logs").write_text("a file stands where the directory should be")
    with TaskQueue("memory:", {"nothing": lambda payload, context: None}, 1, executor="thread") as queue:
        with Monitor(queue, tmp_path / "logs", 0.05, log_level="debug") as monitor:
            queue.add_many({"type": "nothing"} for _ in range(100))
            queue.join(WAIT)
            queue.events.catch_up()
        found = monitor.get_metrics()
    assert found["summary"]["completed"] == 100
    assert found["monitor"]["lost_lines"] >= 300
    assert (
        "NotADirectoryError" in found["monitor"]["history_trouble"]
        or "FileExists" in found["monitor"]["history_trouble"]
    )
    assert found["monitor"]["log_trouble"]
    assert caplog.text.count("cannot be written, its lines are lost") == 1


def test_a_log_file_that_blocks_delays_no_task(tmp_path, monkeypatch):
    """A pipe without a reader stands in for a file system that hangs."""
    monkeypatch.setattr(logs, "QUEUE_CAPACITY", 100)
    os.mkfifo(tmp_path / "dtq.log")
    pipe = os.open(tmp_path / "dtq.log", os.O_RDWR | os.O_NONBLOCK)
    os.write(pipe, json.dumps({"at": time.time()}).encode() + b"\n")  # what the monitor reads when it opens its log
    with TaskQueue("memory:", {"nothing": lambda payload, context: None}, 1, executor="thread") as queue:
        with Monitor(queue, tmp_path, 3600, log_level="debug") as monitor:
            queue.add_many({"type": "nothing"} for _ in range(1000))
            queue.join(WAIT)
            queue.events.catch_up()
            assert monitor.get_metrics()["monitor"]["lost_lines"] > 1000
            began = time.monotonic()
        assert time.monotonic() - began < 30
    writer = next(thread for thread in threading.enumerate() if thread.name == "dtq-log")
    while writer.is_alive():
        with suppress(BlockingIOError):
            os.read(pipe, 1 << 20)
        time.sleep(0.001)
    os.close(pipe)
    assert monitor.get_metrics()["summary"]["completed"] == 1000


def test_a_full_disk_costs_lines_that_are_counted_and_the_log_goes_on_when_there_is_room(disk, caplog):  # noqa: F811
    with TaskQueue("memory:", {"nothing": lambda payload, context: None}, 1, executor="thread") as queue:
        with Monitor(queue, disk, 3600, log_level="debug") as monitor:
            fill(disk / "ballast")
            queue.add_many({"type": "nothing"} for _ in range(500))
            queue.join(WAIT)
            queue.events.catch_up()
            monitor.sample()
            lost = _until(lambda: monitor.get_metrics()["monitor"]["lost_lines"])
            assert lost > 0
            assert "No space left" in monitor.get_metrics()["monitor"]["history_trouble"]
            (disk / "ballast").unlink()
            queue.add("nothing").result(WAIT)
            queue.events.catch_up()
        found = monitor.get_metrics()
    assert found["monitor"]["log_trouble"] is found["monitor"]["history_trouble"] is None
    assert found["summary"]["completed"] == 501
    assert lines(disk / "dtq.log")[-1]["event"] == "metrics"  # and each line before it is whole
    assert lines(disk / "history.jsonl")[-1]["completed"] == 1


def _until(question):
    end = time.monotonic() + WAIT
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(0.01)
    return answer


def test_a_line_that_a_full_disk_took_in_part_is_cut_off_again(disk):  # noqa: F811
    file = RotatingFile(disk / "x.log", 1 << 20, 1, lambda: NOW)
    file.write(b'{"at":1}\n')
    fill(disk / "ballast")
    os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - 4096)
    with pytest.raises(OSError, match=r"could be written|No space left"):
        file.write(b'{"at":2,"text":"' + b"x" * 20_000 + b'"}\n')
    (disk / "ballast").unlink()
    file.write(b'{"at":3}\n')
    file.close()
    assert [line["at"] for line in lines(disk / "x.log")] == [1, 3]


def test_a_store_that_cannot_be_read_is_logged_once_and_the_monitor_goes_on(watch, manager, node, clock, caplog):
    monitor = watch()
    healthy = manager.store.stats

    def away():
        raise StoreError("the disk is gone")

    manager.store.stats = away
    assert monitor.sample() is monitor.sample() is None
    assert monitor.get_metrics()["monitor"]["store_trouble"] == "StoreError: the disk is gone"
    assert caplog.text.count("the disk is gone") == 1
    manager.store.stats = healthy
    clock.forward(10)
    node.run(n=2)
    assert monitor.sample().completed == 2
    assert monitor.get_metrics()["monitor"]["store_trouble"] is None


def test_a_monitor_is_started_once(watch):
    with pytest.raises(DTQError, match="was started before"):
        watch().start()


def test_a_listener_that_fails_does_not_keep_the_others_from_being_called(watch, node, clock, caplog):
    monitor, heard = watch(alert_thresholds={"failed": 0}), []
    monitor.on("alert:raised", lambda alert: 1 / 0)
    monitor.on("alert:raised", heard.append)
    clock.forward(10)
    node.run(status="failed")
    with caplog.at_level(logging.ERROR):
        monitor.sample()
        monitor.stop()
    assert [alert.value for alert in heard] == [1]

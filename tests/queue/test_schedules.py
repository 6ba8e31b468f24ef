"""Schedules in a store: added, changed, read, and fired by nodes, each tick exactly once in spite of failures.

pytest -m hourly tests/queue/test_schedules.py    the long version of the kills
"""

from __future__ import annotations

import collections
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sizes import long_and_hourly
from stepped_loop import ScriptedPool, make

from dtq import InvalidTask, QueueManager, TaskQueue, UnknownSchedule, UnknownType, open_store
from dtq.policy import cron
from dtq.task.model import Task

HERE = Path(__file__).parents[1]
WAIT = 60.0
NOW = 1_700_000_000.0


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory:", "sqlite", "file"])
def store(request, tmp_path):
    urls = {"sqlite": str(tmp_path / "queue.db"), "file": f"file:{tmp_path / 'queue'}"}
    store = open_store(urls.get(request.param, request.param))
    yield store
    store.close()


@pytest.fixture
def manager(store, clock):
    with QueueManager(store, clock=clock) as manager:
        yield manager


def turn(loop, now):
    """Run turns until nothing is left to do at this time."""
    for _ in range(100):
        if loop.turn(now) > now:
            return
    raise AssertionError("the loop does not come to rest")


def ids(manager):
    return [task.id for task in manager.find(limit=1000)]


# --- what the loop does


def test_a_tick_adds_its_task_once_with_any_number_of_nodes(store, manager):
    manager.schedule("s", type="b", payload=[1], every=10)
    nodes = [make(store, ScriptedPool()) for _ in range(3)]
    for second in range(35):
        for node in nodes:
            turn(node, NOW + second)
    assert ids(manager) == [cron.work_id("s", NOW + at) for at in (10, 20, 30)]


def test_a_tick_that_a_dead_node_has_claimed_is_not_lost(store, manager):
    manager.schedule("s", type="b", every=10, misfire="all")
    for at in (10, 60, 110, 160):  # more deaths than a task would survive
        (tick,) = store.claim("dead", 10, 30, NOW + at, {cron.TYPE})
        assert tick.doom
        turn(make(store, ScriptedPool()), NOW + at + 40)
        manager.schedule("s", type="b", every=10, misfire="all")
    assert ids(manager) == [cron.work_id("s", NOW + at) for at in range(10, 201, 10)]


def test_ticks_fire_despite_limits_and_busy_workers(store, manager):
    store.set_lane(max_running=1)
    store.set_lane(queue=cron.QUEUE, paused=True)
    pool = ScriptedPool(room=1)
    loop = make(store, pool)
    manager.add("a")
    turn(loop, NOW)
    manager.schedule("s", type="a", every=10)
    turn(loop, NOW + 10)
    assert (len(pool.tasks), manager.stats().counts["pending"]) == (1, 1)


def test_a_draining_node_fires_nothing(store, manager):
    manager.schedule("s", type="b", every=10)
    loop = make(store, ScriptedPool())
    loop.drain()
    turn(loop, NOW + 10)
    assert ids(manager) == []


def test_a_year_of_missed_ticks_is_fired_in_batches(store, manager, monkeypatch):
    manager.schedule("s", "* * * * *", "b", misfire="all")
    sizes, update = [], store.update
    monkeypatch.setattr(store, "update", lambda o: sizes.append(sum(len(s) for _, s in o)) or update(o))
    loop = make(store, ScriptedPool())
    for _ in range(10):
        loop.turn(NOW + 365 * 86400)
    assert max(sizes) == cron.TICKS_PER_OUTCOME
    assert manager.stats().total == sum(sizes) >= 5 * cron.TICKS_PER_OUTCOME


# --- what a manager does


def test_find_and_stats_do_not_show_schedules(manager):
    before = manager.add("a", id="before")
    manager.schedule("s", type="b", every=10)
    manager.schedule("t", type="b", every=10)
    after = manager.add("a", id="later")
    assert ids(manager) == [before.id, after.id]
    assert [task.id for task in manager.find(limit=1, after="before")] == ["later"]
    assert manager.find(limit=1, after="later") == []
    stats = manager.stats()
    assert (stats.total, stats.unfinished, set(stats.queues), set(stats.types)) == (2, 2, {"default"}, {"a"})
    assert len(manager.find(queue=cron.QUEUE)) == 2


def test_a_live_schedule_can_be_edited_paused_resumed_and_removed(store, manager, clock):
    loop = make(store, ScriptedPool())
    manager.schedule("s", type="b", payload=1, every=10)
    for step in range(100):
        clock.now = NOW + step
        if step == 15:
            manager.schedule("s", type="b", payload=2, every=10)
        if step == 25:
            assert manager.schedules.pause("s").next_at is None
        if step == 45:
            assert manager.schedules.resume("s").next_at == NOW + 50
        if step == 65:
            manager.schedules.remove("s")
        turn(loop, clock.now)
    added = [(task.run_at - NOW, task.payload) for task in manager.find()]
    assert added == [(10, 1), (20, 2), (50, 2), (60, 2)]
    assert list(manager.schedules) == []


def test_a_removed_schedule_can_be_added_again(manager, clock):
    manager.schedule("s", type="b", every=10)
    manager.schedules.remove("s")
    for call in (manager.schedules.get, manager.schedules.pause, manager.schedules.remove, manager.schedules.upcoming):
        with pytest.raises(UnknownSchedule, match="'s'"):
            call("s")
    clock.now += 100
    assert manager.schedule("s", type="b", every=20).next_at == NOW + 120


def test_an_edit_while_a_node_fires_the_tick_wins_and_the_tick_fires_again(store, manager):
    manager.schedule("s", type="b", payload=1, every=10)
    (tick,) = store.claim("slow", 1, 30, NOW + 10, {cron.TYPE})
    manager.schedule("s", type="b", payload=2, every=10)
    assert store.update([cron.fire(tick, NOW + 10)]) == set()
    turn(make(store, ScriptedPool()), NOW + 10)
    assert [task.payload for task in manager.find()] == [2]


def test_a_change_that_meets_another_is_applied_on_top_of_it(store, manager, monkeypatch):
    manager.schedule("s", type="b", payload=1, every=3600)
    update = store.update

    def overtaken(outcomes):
        monkeypatch.setattr(store, "update", update)
        manager.schedule("s", type="b", payload=2, every=3600)
        return update(outcomes)

    monkeypatch.setattr(store, "update", overtaken)
    manager.schedules.pause("s")
    schedule = manager.schedules.get("s")
    assert (schedule.paused, schedule.task["payload"]) == (True, 2)


def test_options_are_checked_as_those_of_a_task(manager):
    for options, message in [
        ({"type": "a", "priority": 5000}, "priority is 5000"),
        ({"type": "a", "prio": 1}, "no option is named 'prio'"),
        ({"type": "a", "key": "k"}, "key is for one task"),
        ({"type": "a", "delay": 5}, "delay is for one task"),
        ({"type": "a", "payload": object()}, "JSON"),
        ({"type": "a", "webhook": 5}, "webhook is 5"),
        ({}, "type is None"),
    ]:
        with pytest.raises(InvalidTask, match=message):
            manager.schedule("s", every=10, **options)
    assert list(manager.schedules) == []


def test_the_options_of_a_schedule_reach_its_tasks(store, manager):
    manager.schedule(
        "s", "@hourly", "b", {"x": 1}, priority=7, timeout=3, limit_key="t", webhook="https://example.org/"
    )
    turn(make(store, ScriptedPool()), NOW + 3600)
    (task,) = manager.find()
    assert (task.payload, task.priority, task.timeout, task.limit_key) == ({"x": 1}, 7, 3, "t")
    assert task.webhook.url == "https://example.org/"


def test_schedules_survive_a_restart(tmp_path, clock):
    path = str(tmp_path / "queue.db")
    with QueueManager(path, clock=clock) as manager:
        made = manager.schedule("s", "0 6 * * *", "b", tz="Europe/Berlin")
    with QueueManager(path, clock=clock) as manager:
        assert list(manager.schedules) == [made]


# --- the whole queue


def test_join_ignores_schedules_but_waits_for_their_tasks(tmp_path):
    def echo(payload, context):
        return payload

    with TaskQueue(tmp_path / "queue.db", {"echo": echo}, pool_size=1) as queue:
        with pytest.raises(UnknownType):
            queue.schedule("s", type="unknown", every=1)
        queue.schedule("often", type="echo", payload=5, every=0.2)
        queue.schedule("never", type="echo", every=86400)
        give_up_at = time.monotonic() + WAIT
        while queue.stats().counts["completed"] < 3:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        queue.schedules.pause("often")
        queue.join(WAIT)
        assert {task.result for task in queue.find()} == {5}


def test_in_an_inline_queue_a_schedule_neither_fires_nor_blocks_add(tmp_path):
    with TaskQueue("memory:", {"a": lambda payload, context: payload}, executor="inline") as queue:
        queue.schedule("s", type="a", every=2 * 86400)  # a leap there would be the end of what has ended by then
        assert queue.add("a", 5).result(0) == 5
        assert queue.stats().total == 1


def plant(store, fields, **options):
    """A task with the names of a tick. A store may have one from before these names were reserved."""
    task = Task(
        type=cron.TYPE, queue=cron.QUEUE, payload=fields, created_at=NOW - 5, run_at=NOW, expires=NOW,
        **{"id": cron.tick_id("evil"), **options},
    )  # fmt: skip
    assert store.add([task]) == [task.id]
    return task


HOSTILE = [
    {"every": 0}, {"name": "evil", "task": {"type": "a"}, "every": 0}, {"name": "evil", "task": {}, "every": 5},
    {"name": "evil", "task": {"type": "a"}, "cron": "0 0 30 2 *"}, {"name": "evil", "task": {"type": "a"}, "every": 5},
    {"name": "evil", "task": {"type": "dtq.webhook", "payload": {"secret": "shop"}}, "every": 5}, None, 5, [], "x",
    {"name": 5}, {"name": "evil", "task": {"type": "a"}, "every": 5, "since": NOW},
]  # fmt: skip


@pytest.mark.parametrize("fields", HOSTILE, ids=range(len(HOSTILE)))
def test_a_forged_tick_in_a_store_does_not_fire_and_stops_no_node(store, manager, fields):
    manager.schedule("good", type="b", every=10)
    plant(store, fields)
    nodes = [make(store, ScriptedPool()) for _ in range(2)]
    for second in range(25):
        for node in nodes:
            turn(node, NOW + second)
    assert ids(manager) == [cron.work_id("good", NOW + at) for at in (10, 20)]
    assert manager.get(cron.tick_id("evil")).error.type == "ScheduleError"


def test_a_forged_tick_that_a_dead_node_has_claimed_stops_no_other_node(store, manager):
    plant(store, {"every": 0})
    (tick,) = store.claim("dead", 1, 30, NOW + 1, {cron.TYPE})
    assert tick.doom
    turn(make(store, ScriptedPool()), NOW + 40)
    assert manager.get(cron.tick_id("evil")).error.type == "ScheduleError"


def test_a_schedule_replaces_a_forged_tick(store, manager, clock):
    plant(store, {"name": "evil", "task": {"type": "dtq.webhook"}, "every": 5})
    assert manager.schedule("evil", type="b", every=10).next_at == NOW + 10
    turn(make(store, ScriptedPool()), NOW + 10)
    assert ids(manager) == [cron.work_id("evil", NOW + 10)]


def test_an_unreadable_tick_is_listed_with_its_problem_and_hides_no_other(store, manager):
    manager.schedule("good", type="b", every=10)
    plant(store, {"every": "often"})
    bad, good = manager.schedules
    assert (bad.name, good.name, good.problem) == ("evil", "good", None)
    assert "cannot be read" in bad.problem
    with pytest.raises(UnknownSchedule, match="add it again"):
        manager.schedules.pause("evil")
    manager.schedules.remove("evil")
    assert [schedule.name for schedule in manager.schedules] == ["good"]


def test_a_failed_schedule_is_listed_and_can_be_added_again(store, manager, clock, monkeypatch):
    manager.schedule("s", type="b", every=10)
    monkeypatch.setattr(cron, "MAX_EVERY", 5)  # as if another version had made it
    loop = make(store, ScriptedPool())
    turn(loop, NOW + 10)
    (failed,) = manager.schedules
    assert (failed.next_at, manager.schedules.upcoming("s")) == (None, [])
    assert "every is 10" in failed.problem
    with pytest.raises(UnknownSchedule, match="every is 10"):
        manager.schedules.resume("s")
    clock.now = NOW + 10
    assert manager.schedule("s", type="b", every=5).problem is None
    turn(loop, NOW + 15)
    assert ids(manager) == [cron.work_id("s", NOW + 15)]


def test_a_tick_whose_task_id_is_taken_reports_it(store, manager, caplog):
    """A user can no longer add such an id, but a store may have one from earlier."""
    manager.schedule("s", type="b", payload=1, every=10)
    store.add([Task(type="other", id=cron.work_id("s", NOW + 10), created_at=NOW, run_at=NOW)])
    loop = make(store, ScriptedPool())
    turn(loop, NOW + 10)
    assert manager.schedules.get("s").problem == f"NotAdded: {cron.work_id('s', NOW + 10)}: another task has this id"
    assert "the schedule s: NotAdded" in caplog.text
    turn(loop, NOW + 20)
    assert manager.schedules.get("s").problem is None
    assert [task.type for task in manager.find()] == ["other", "b"]


def test_a_user_cannot_take_the_id_of_a_future_tick(store, manager):
    manager.schedule("report", type="b", every=10)
    with pytest.raises(InvalidTask, match="id is"):
        manager.add("b", id=cron.work_id("report", NOW + 10))
    turn(make(store, ScriptedPool()), NOW + 10)
    assert ids(manager) == [cron.work_id("report", NOW + 10)]


def test_a_store_failure_right_after_the_claim_loses_no_tick(store, manager, monkeypatch):
    from dtq import StoreError
    from dtq.queue.scheduler import Scheduler

    def fails(*_):
        raise StoreError("gone")

    manager.schedule("s", type="b", every=10)
    ticker = Scheduler(store, "n", 30)
    monkeypatch.setattr(store, "get", fails)
    monkeypatch.setattr(store, "next_due", fails)
    ((tick, works),) = ticker.turn(NOW + 10)
    assert (tick.expires, len(works)) == (NOW + 20, 1)


def test_a_task_that_only_looks_like_a_tick_fails_alone(store, manager):
    store.add([Task(type=cron.TYPE, queue=cron.QUEUE, id="x", expires=NOW, created_at=NOW, run_at=NOW)])
    turn(make(store, ScriptedPool()), NOW + 1)
    assert manager.get("x").error.type == "ScheduleError"


# --- kills


class Node:
    def __init__(self, path):
        command = [sys.executable, str(HERE / "kill_node.py"), path]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT)
        self.process.stdin.close()
        self.process.stdout.close()


@long_and_hourly("wanted", 150, 5000)
def test_each_tick_fires_exactly_once_while_nodes_are_killed(tmp_path, wanted):
    """Two nodes at a time, one killed about every half second: there is exactly one task for each tick."""
    path, log = str(tmp_path / "queue.db"), tmp_path / "log"
    log.touch()
    chance = random.Random(5)
    with QueueManager(path) as manager:
        made = manager.schedule("s", type="note", payload={"log": str(log)}, every=0.05, misfire="all")
        nodes, kills = [Node(path), Node(path)], 0
        while manager.stats().total < wanted:
            time.sleep(0.3 + chance.random() / 2)
            victim = chance.randrange(2)
            nodes[victim].kill()
            nodes[victim], kills = Node(path), kills + 1
        manager.schedules.pause("s")
        give_up_at = time.monotonic() + WAIT
        while manager.stats().unfinished:
            assert time.monotonic() < give_up_at, manager.stats()
            time.sleep(0.05)
        for node in nodes:
            node.kill()
        tasks = [task for page in pages(manager) for task in page]
    times = sorted(round((task.run_at - made.since) / 0.05) for task in tasks)
    assert times == list(range(1, len(times) + 1))
    assert len(times) >= wanted
    assert kills >= 2
    runs = collections.Counter(line.split()[0] for line in log.read_text().splitlines())
    assert set(runs) == {task.id for task in tasks if task.status == "completed"}
    print(f"{len(times)} ticks, {kills} kills, {sum(runs.values()) - len(runs)} attempts repeated")


def pages(manager):
    after = ""
    while page := manager.find(after=after, limit=1000):
        yield page
        after = page[-1].id

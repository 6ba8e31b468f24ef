"""Dead letters: failed tasks are listed with their history, redriven, purged, and kept within bounds."""

from __future__ import annotations

import threading
import time

import pytest

from dtq import QueueManager, TaskQueue
from dtq.errors import DTQError, InvalidTask, UnknownTask
from dtq.queue.config import QueueConfig
from dtq.queue.events import Emitter
from dtq.queue.handle import Waiters
from dtq.queue.loop import Loop
from dtq.stores.protocol import Node
from dtq.task.model import ErrorInfo
from dtq.task.transitions import end_doomed, fail, revive, succeed

NOW = 1000.0
WAIT = 30.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory:", "{}/q.db"])
def manager(request, tmp_path, clock):
    with QueueManager(request.param.format(tmp_path), clock=clock) as manager:
        manager.store.heartbeat(Node("n"), (), 30, NOW)
        yield manager


def die(manager, error="ValueError", types=("a", "b"), n=100):
    """Claim all tasks and fail them permanently, with their doomed children. Return the ids."""
    ids = []
    while tasks := manager.store.claim("n", n, 30, manager.clock(), set(types)):
        now = manager.clock()
        broken = ErrorInfo(error, "no")
        outcomes = [
            end_doomed(task, now) if task.doom else fail(task, broken, now, lambda: 0, final=True) for task in tasks
        ]
        manager.store.update([(task, ()) for task in outcomes])
        ids += [task.id for task in tasks]
    return ids


def test_a_failed_task_is_a_dead_letter_with_its_history(manager):
    alive, dead = manager.add("b"), manager.add("a", {"n": 1})
    die(manager, types="a")
    (letter,) = manager.dead
    assert (letter.id, letter.payload, letter.error.type) == (dead.id, {"n": 1}, "ValueError")
    assert [(attempt.number, attempt.error.message) for attempt in letter.history] == [(1, "no")]
    assert (len(manager.dead), manager.dead.get(dead.id)) == (1, letter)
    with pytest.raises(UnknownTask, match="only failed tasks"):
        manager.dead.get(alive.id)
    with pytest.raises(UnknownTask, match="no task has the id"):
        manager.dead.get("missing")


def test_dead_letters_are_found_by_queue_type_error_and_time(manager, clock):
    manager.add_many([{"type": "a"}, {"type": "b", "queue": "mail"}])
    first = die(manager, "ValueError")
    clock.now += 10
    manager.add_many([{"type": "a", "queue": "mail"}, {"type": "b"}])
    second = die(manager, "OSError")

    def found(**filters):
        return [task.id for task in manager.dead.find(**filters)]

    assert found() == first + second
    assert found(queue="mail") == [first[1], second[0]]
    assert found(type="a", queue="mail") == [second[0]]
    assert found(error="OSError") == found(since=NOW + 1) == second
    assert (found(limit=1), found(after=first[0], limit=1)) == ([first[0]], [first[1]])
    assert manager.dead.errors() == {"ValueError": 2, "OSError": 2}
    assert manager.dead.errors(queue="mail", error="OSError") == {"OSError": 1}
    with pytest.raises(TypeError):
        found(colour="red")


def test_redriven_tasks_have_all_their_attempts_again(manager):
    one, *many = manager.add_many([{"type": "a", "max_attempts": 1} for _ in range(4)])
    die(manager)
    assert manager.dead.redrive(one.id, "missing") == [one.id]
    assert (one.task.status, one.task.attempts, len(one.task.history)) == ("pending", 0, 1)
    assert manager.dead.redrive(error="OSError") == []
    assert manager.dead.redrive(error="ValueError", limit=2) == [handle.id for handle in many[:2]]
    assert manager.dead.redrive(one.id) == []  # it is none any more
    assert len(manager.dead) == 1


def test_a_rate_spreads_the_starts_without_blocking_the_caller(manager):
    handles = manager.add_many([{"type": "a"} for _ in range(5)])
    die(manager)
    began = time.monotonic()
    manager.dead.redrive(rate=0.5)
    assert time.monotonic() - began < 5
    assert [handle.task.run_at for handle in handles] == [NOW, NOW + 2, NOW + 4, NOW + 6, NOW + 8]
    for wrong in (0, -1, float("nan")):
        with pytest.raises(InvalidTask, match="rate is"):
            manager.dead.redrive(rate=wrong)


def test_parents_are_redriven_before_their_children(manager, clock):
    parent = manager.add("a", max_attempts=1)
    child = manager.add("b", after=[parent])
    die(manager)
    assert [task.error.type for task in manager.dead] == ["ValueError", "ParentFailed"]
    manager.dead.redrive()
    assert [parent.status, child.status] == ["pending", "blocked"]


def test_thousands_are_redriven_in_pages_with_an_event_each(manager):
    announced = []
    manager.on("task:added", lambda event: announced.append(event.task.id))
    manager.add_many([{"type": "a"} for _ in range(2500)])
    manager.events.catch_up()
    announced.clear()
    ids = die(manager, n=5000)
    assert sorted(manager.dead.redrive()) == sorted(ids)
    manager.events.catch_up()
    assert sorted(announced) == sorted(ids)
    assert manager.stats().counts["pending"] == 2500


def test_purge_removes_only_the_matching_tasks(manager, clock):
    a, b, c = manager.add_many([{"type": "a"}, {"type": "b"}, {"type": "a"}])
    die(manager)
    done = manager.add("a")
    manager.store.update([(succeed(task, 1, NOW), ()) for task in manager.store.claim("n", 9, 30, NOW, {"a"})])
    assert manager.dead.purge(c.id, done.id, "missing") == 1
    clock.now += 100
    d = manager.add("b")
    die(manager)
    assert manager.dead.purge(type="b", age=50) == 1
    assert [task.id for task in manager.find()] == [a.id, done.id, d.id]
    assert b.id not in {task.id for task in manager.find()}
    assert manager.dead.purge() == 2
    assert [task.id for task in manager.find()] == [done.id]


def test_purge_keeps_a_task_that_is_redriven_at_the_same_moment(manager, monkeypatch):
    """Another process revives the task between the read and the removal: it must not be lost."""
    handle = manager.add("a")
    die(manager)
    real = manager.store.update

    def update(outcomes):
        monkeypatch.undo()
        real([(revive(handle.task, NOW), ())])
        return real(outcomes)

    monkeypatch.setattr(manager.store, "update", update)
    assert manager.dead.purge() == 0
    assert handle.status == "pending"


@pytest.mark.parametrize("call", ["redrive", "purge"])
def test_ids_together_with_filters_are_refused(manager, call):
    with pytest.raises(InvalidTask, match="not both"):
        getattr(manager.dead, call)("x", type="a")


# --- bounds, kept by the clean-up


def loop(manager, **options):
    return Loop(manager.store, (), Emitter(), Waiters(), QueueConfig(**options))


def test_failed_tasks_may_be_kept_for_longer_than_others(manager, clock):
    manager.add("a")
    die(manager)
    manager.add("b")
    manager.store.update([(succeed(task, 1, NOW), ()) for task in manager.store.claim("n", 9, 30, NOW, {"b"})])
    keeper = loop(manager, cleanup_age=100, dead_age=1000)
    keeper.turn(NOW + 200)
    assert [task.status for task in manager.find()] == ["failed"]
    keeper.turn(NOW + 1100)
    assert manager.find() == []


def test_without_dead_age_failed_tasks_are_removed_as_all_others(manager):
    manager.add("a")
    die(manager)
    keeper = loop(manager, cleanup_age=100)
    keeper.turn(NOW + 90)
    assert len(manager.dead) == 1
    keeper.turn(NOW + 200)
    assert len(manager.dead) == 0


def test_above_dead_limit_the_oldest_failed_tasks_are_removed(manager):
    manager.add_many([{"type": "a"} for _ in range(2500)])
    ids = sorted(die(manager, n=5000))
    loop(manager, dead_limit=10).turn(NOW + 1)
    assert [task.id for task in manager.dead] == ids[-10:]


def test_an_invalid_dead_limit_is_refused(tmp_path):
    with pytest.raises(DTQError, match="dead_limit is -1"):
        TaskQueue(tmp_path / "q.db", dead_limit=-1)


def test_a_redriven_task_runs_on_a_running_queue(tmp_path):
    fixed = threading.Event()

    def sometimes(payload, context):
        if not fixed.is_set():
            raise OSError("not yet")
        return "done"

    with TaskQueue(tmp_path / "q.db", {"a": sometimes}, 1, executor="thread") as queue:
        handle = queue.add("a", max_attempts=1)
        queue.wait_for(handle.id, WAIT)
        fixed.set()
        assert queue.dead.redrive(error="OSError") == [handle.id]
        assert handle.result(WAIT) == "done"
        assert len(queue.dead) == 0

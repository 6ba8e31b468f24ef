"""Unique tasks: which task has a key, for how long, and what happens to a later task with the same key."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from dtq import DuplicateTask, InvalidTask, QueueManager, TaskQueue
from dtq.stores.protocol import Node
from dtq.task.model import ErrorInfo
from dtq.task.transitions import fail, succeed

NOW = 1000.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory:", "{}/q.db", "file:{}/q"])
def manager(request, tmp_path, clock):
    with QueueManager(request.param.format(tmp_path), clock=clock) as manager:
        manager.store.heartbeat(Node("n"), (), 30, NOW)
        yield manager


def start(manager):
    (task,) = manager.store.claim("n", 9, 30, manager.clock(), {"a"})
    return task


def end(manager, task):
    assert manager.store.update([(succeed(task, None, manager.clock()), ())])


def add(manager, payload, **options):
    return manager.add("a", payload, key="k", **options)


def test_without_a_window_a_key_is_taken_as_long_as_its_task_is_stored(manager, clock):
    first = add(manager, 1, on_conflict="existing")
    end(manager, start(manager))
    clock.now += 1e6
    assert add(manager, 2, on_conflict="existing").id == first.id
    manager.delete(first.id)
    assert add(manager, 3).id != first.id


def test_with_a_window_of_zero_there_is_one_at_a_time(manager):
    first = add(manager, 1, window=0)
    assert add(manager, 2, window=0).id == first.id
    running = start(manager)
    assert add(manager, 3, window=0).id == first.id
    end(manager, running)
    second = add(manager, 4, window=0)
    assert second.id != first.id
    assert (second.task.key, first.task.key, first.status) == ("k", None, "completed")


def test_a_window_keeps_the_key_from_the_time_of_adding(manager, clock):
    first = add(manager, 1, window=60)
    end(manager, start(manager))
    clock.now = NOW + 59
    assert add(manager, 2, window=60).id == first.id
    clock.now = NOW + 60
    second = add(manager, 3, window=60)
    assert second.id != first.id
    assert add(manager, 4, window=60).id == second.id


def test_a_task_that_still_runs_keeps_its_key_beyond_the_window(manager, clock):
    first = add(manager, 1, window=60)
    running = start(manager)
    clock.now += 600
    assert add(manager, 2, window=60).id == first.id
    end(manager, running)
    assert add(manager, 3, window=60).id != first.id


def test_rejected_is_rejected_with_the_task_that_has_the_key(manager):
    first = add(manager, 1, on_conflict="reject")
    with pytest.raises(DuplicateTask, match=f"'k' is taken by task {first.id}") as caught:
        add(manager, 2, on_conflict="reject")
    assert caught.value.task.id == first.id
    assert manager.stats().total == 1


def test_one_that_waits_is_replaced_in_one_step_and_told_of(manager):
    heard = []
    manager.on("*", lambda event: heard.append((event.name, event.task.id)))
    first = add(manager, 1)
    second = add(manager, 2, on_conflict="replace")
    assert (first.status, first.task.error.type, first.task.key) == ("cancelled", "Replaced", None)
    assert first.task.error.message == f"replaced by {second.id}"
    assert start(manager).payload == 2
    manager.events.catch_up()
    assert heard == [("task:added", first.id), ("task:cancelled", first.id), ("task:added", second.id)]


def test_one_that_waits_for_another_attempt_is_replaced_too(manager):
    first = add(manager, 1)
    manager.store.update([(fail(start(manager), ErrorInfo("E"), NOW, lambda: 0), ())])
    assert add(manager, 2, on_conflict="replace").id != first.id
    assert first.status == "cancelled"


def test_one_that_runs_or_has_ended_is_not_replaced(manager):
    first = add(manager, 1)
    running = start(manager)
    assert add(manager, 2, on_conflict="replace").id == first.id
    end(manager, running)
    assert add(manager, 3, on_conflict="replace").id == first.id
    assert (first.status, manager.stats().total) == ("completed", 1)


def test_who_is_claimed_in_the_same_moment_is_not_replaced(manager, monkeypatch):
    first = add(manager, 1)
    real = manager.store.update

    def update(outcomes):
        monkeypatch.undo()
        start(manager)
        return real(outcomes)

    monkeypatch.setattr(manager.store, "update", update)
    assert add(manager, 2, on_conflict="replace").id == first.id
    assert (first.status, manager.stats().total) == ("processing", 1)


def test_a_task_that_is_gone_between_two_looks_is_no_obstacle(manager, monkeypatch):
    first = add(manager, 1)
    real = manager.store.get

    def get(ids):
        monkeypatch.undo()
        manager.delete(first.id)
        return real(ids)

    monkeypatch.setattr(manager.store, "get", get)
    second = add(manager, 2, on_conflict="replace")
    assert [task.id for task in manager.find()] == [second.id]


def test_who_lost_the_key_between_two_looks_is_not_taken_for_its_holder(manager, monkeypatch):
    add(manager, 1)
    real = manager.store.get

    def get(ids):
        monkeypatch.undo()
        add(manager, 2, on_conflict="replace")
        return real(ids)

    monkeypatch.setattr(manager.store, "get", get)
    third = add(manager, 3, on_conflict="replace")
    assert [(task.payload, task.key) for task in manager.store.get([third.id])] == [(3, "k")]


@pytest.mark.parametrize(("options", "statuses"), [({"window": 0}, {"completed"}), ({"on_conflict": "replace"}, None)])
def test_of_many_simultaneous_adds_each_key_has_one_task(tmp_path, options, statuses):
    """Eight threads with a manager each. Every task that does not have the key at the end was replaced."""
    path = tmp_path / "q.db"
    with QueueManager(path) as manager:
        manager.store.heartbeat(Node("n"), (), 30, NOW)
        add(manager, -1)
        if statuses:
            end(manager, start(manager))
        gate, ids = threading.Barrier(8), []

        def rush(n):
            with QueueManager(path) as mine:
                gate.wait()
                ids.extend(add(mine, n * 10 + i, **options).id for i in range(10))

        threads = [threading.Thread(target=rush, args=[n]) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tasks = manager.find(limit=1000)
        assert [task.key for task in tasks if task.key is not None] == ["k"]
        counts = Counter(task.status for task in tasks)
        if statuses:
            assert counts == {"completed": 1, "pending": 1}
            assert len(set(ids)) == 1
        else:
            assert counts == {"cancelled": 80, "pending": 1}
            assert len(set(ids)) == 80


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": -1}, "window is -1"), ({"window": True}, "window is True"), ({"on_conflict": "panic"}, "'panic'"),
        ({"window": 0, "key": None}, "pass key="), ({"window": float("nan")}, "window is nan"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(manager, options, words):
    with pytest.raises(InvalidTask, match=words):
        manager.add("a", **{"key": "k", **options})
    with pytest.raises(InvalidTask, match="options of `add`"):
        manager.add_many([{"type": "a", "key": "k", "window": 0}])
    assert manager.stats().total == 0


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_the_newest_of_a_burst_runs(tmp_path, executor):
    with TaskQueue(tmp_path / "q.db", {"a": "flow_handlers:value"}, 1, executor=executor) as queue:
        handles = [queue.add("a", n, key="k", delay=600, on_conflict="replace") for n in range(5)]
        assert [handle.status for handle in handles[:-1]] == ["cancelled"] * 4
        last = queue.add("a", 9, key="k", on_conflict="replace")
        assert last.result(30) == 9

"""QueueManager: add, read, change, wait; every refusal names what was wrong and stores nothing."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime

import pytest

from dtq.errors import IllegalTransition, InvalidTask, QueueFull, TaskCancelled, TaskFailed, UnknownTask
from dtq.queue.manager import QueueManager
from dtq.stores.memory.store import MemoryStore
from dtq.stores.protocol import Node
from dtq.task.model import ErrorInfo, Status, Task
from dtq.task.transitions import fail, succeed

NOW = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory:", "{}/q.db", "file:{}/q"])
def manager(request, tmp_path, clock):
    with QueueManager(request.param.format(tmp_path), clock=clock) as manager:
        yield manager


def work(manager, transition=lambda task: succeed(task, "done", NOW), n=100):
    """Claim all due tasks and complete them, as a node would."""
    manager.store.heartbeat(Node("n"), (), 30, NOW)
    tasks = manager.store.claim("n", n, 30, manager.clock(), {"a", "b"})
    manager.store.update([(transition(task), ()) for task in tasks])
    return tasks


def test_an_added_task_is_stored_as_it_was_given(manager):
    handle = manager.add(
        "a", {"n": [1, None, "ü"]}, priority=3, timeout=5, key="k", limit_key="tenant", webhook="http://x/y"
    )
    task = manager.get(handle.id)
    assert (task.payload, task.priority, task.timeout, task.key) == ({"n": [1, None, "ü"]}, 3, 5, "k")
    assert (task.status, task.created_at, task.run_at, task.version) == ("pending", NOW, NOW, 1)
    assert (task.limit_key, task.webhook.url, handle.status, handle.progress) == ("tenant", "http://x/y", "pending", 0)


def test_times_may_be_given_relative_absolute_or_as_datetime(manager):
    at = datetime(2030, 1, 1, tzinfo=UTC)
    handles = manager.add_many(
        [{"type": "a", "delay": 5}, {"type": "a", "expires_in": 60}, {"type": "a", "run_at": at, "expires": at}]
    )
    tasks = [handle.task for handle in handles]
    assert [t.run_at for t in tasks] == [NOW + 5, NOW, at.timestamp()]
    assert [t.expires for t in tasks] == [None, NOW + 60, at.timestamp()]


def test_the_payload_is_a_copy(manager):
    payload = {"n": [1]}
    handle = manager.add("a", payload)
    payload["n"].append(2)
    assert handle.task.payload == {"n": [1]}


def test_adding_a_taken_key_returns_the_task_that_has_it(manager):
    first = manager.add("a", 1, key="once")
    assert manager.add("a", 2, key="once").id == first.id
    assert manager.stats().total == 1


def test_many_are_added_together_or_not_at_all(manager):
    with pytest.raises(InvalidTask):
        manager.add_many([{"type": "a"}, {"type": "a", "priority": "high"}])
    with pytest.raises(InvalidTask, match="'missing'"):
        manager.add_many([{"type": "a"}, {"type": "a", "after": ["missing"]}])
    assert manager.stats().total == 0
    assert len(manager.add_many([Task(type="a"), {"type": "b"}])) == 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"type": "a", "prority": 3}, "'prority'"), ({"payload": 1}, "type is missing"), ("a", "a task is 'a'"),
        ({"type": "a", "delay": -1}, "delay is -1"), ({"type": "a", "delay": float("nan")}, "delay is nan"),
        ({"type": "a", "expires_in": "soon"}, "expires_in is 'soon'"), ({"type": "a", "status": "failed"}, "'status'"),
        ({"type": "a", "webhook": {"link": 1}}, "webhook is"), ({"type": "a", "payload": object()}, "JSON"),
        ({"type": "a", "payload": "x" * (1 << 20)}, "more than the limit of 1,048,576"),
        ({"type": "a", "payload": 10**5000}, ""), ({"type": "a", 3: 4}, "named 3"),
        ({"type": "a", "priority": [1]}, "priority is [1]"), ({"type": "a", 3: 4, "x": 5}, "named 3"),
    ],
)  # fmt: skip
def test_a_bad_task_is_refused_by_name(manager, given, named):
    with pytest.raises(InvalidTask) as caught:
        manager.add_many([given])
    assert named in str(caught.value)
    assert manager.stats().total == 0


def test_a_task_with_the_options_of_another_is_checked_too(manager):
    manager.add_many([{"type": "a", "priority": 1}, {"type": "a", "priority": 1, "payload": "of its own"}])
    with pytest.raises(InvalidTask, match="priority is True"):
        manager.add_many([{"type": "a", "priority": 1}, {"type": "a", "priority": True}])
    assert [task.payload for task in manager.find()] == [None, "of its own"]


def test_a_cycle_of_tasks_is_refused(manager):
    with pytest.raises(InvalidTask, match="cycle"):
        manager.add_many([Task(type="a", id="x", after=("y",)), Task(type="a", id="y", after=("x",))])
    assert manager.stats().total == 0


def test_children_take_handles_as_parents(manager):
    parent = manager.add("a")
    child = manager.add("b", after=[parent])
    assert child.status == "blocked"
    work(manager)
    assert child.status == "pending"


def test_a_task_that_was_stored_before_is_not_added_again(manager):
    task = manager.add("a").task
    with pytest.raises(InvalidTask, match="use retry"):
        manager.add_many([task])


def test_a_full_backlog_refuses_tasks_until_it_has_drained(tmp_path):
    with QueueManager(str(tmp_path / "q.db"), backlog_limit=2) as manager:
        manager.add("a")
        with pytest.raises(QueueFull, match="1 tasks are unfinished, the limit is 2: 2 more"):
            manager.add_many([{"type": "a"}, {"type": "a"}])
        manager.add("a")
        manager.store.update([(succeed(t, None, NOW), ()) for t in manager.store.claim("n", 9, 30, 1e10, {"a"})])
        manager.add("a")


def test_cancelling_ends_a_waiting_task_and_fences_a_running_one(manager):
    waiting = manager.add("a", delay=50)
    assert manager.cancel(waiting.id).status == "cancelled"
    running = manager.add("a")
    manager.store.heartbeat(Node("n"), (), 30, NOW)
    (claimed,) = manager.store.claim("n", 9, 30, NOW, {"a"})
    running.cancel()
    assert manager.store.update([(succeed(claimed, 1, NOW), ())]) == set()
    assert manager.get(running.id).status == "cancelled"
    with pytest.raises(IllegalTransition, match="is cancelled"):
        running.cancel()
    with pytest.raises(TaskCancelled, match="by request"):
        running.result(1)


def test_a_failed_task_is_retried_by_hand_with_its_history(manager):
    handle = manager.add("a", max_attempts=1)
    work(manager, lambda task: fail(task, ErrorInfo("ValueError", "no"), NOW, lambda: 0.0))
    with pytest.raises(TaskFailed, match="ValueError: no") as caught:
        handle.result(1)
    assert caught.value.error.type == "ValueError"
    assert manager.retry(handle.id).status == "pending"
    work(manager)
    assert handle.result(1) == "done"
    assert [a.error.message for a in handle.task.history] == ["no"]
    with pytest.raises(IllegalTransition, match="is completed"):
        manager.retry(handle.id)


def test_an_unknown_task_is_named_in_the_error(manager):
    for ask in (manager.get, manager.cancel, manager.retry, manager.wait_for):
        with pytest.raises(UnknownTask, match="'nope'"):
            ask("nope")
    assert manager.delete("nope") == 0


def test_find_filters_and_pages(manager):
    ids = [manager.add("ab"[n % 2], n, queue=f"q{n % 3}").id for n in range(12)]
    assert [t.id for t in manager.find()] == ids
    assert [t.payload for t in manager.find(type="b", queue="q0")] == [3, 9]
    first = manager.find(limit=5)
    assert [t.id for t in manager.find(after=first[-1].id, limit=5)] == ids[5:10]
    with pytest.raises(InvalidTask, match="status is 'done'; allowed"):
        manager.find(status="done")
    manager.cancel(ids[3])
    assert [t.id for t in manager.find(status="cancelled")] == [ids[3]]


@pytest.mark.parametrize(
    "options", [{"max_payload": 0}, {"max_payload": "1"}, {"backlog_limit": -1}, {"backlog_limit": 1.5}]
)
def test_invalid_limits_are_refused_by_name(options):
    with pytest.raises(InvalidTask, match=f"{next(iter(options))} is .*allowed: a whole number from 1"):
        QueueManager("memory:", **options)


@pytest.mark.parametrize("limit", [0, -1, 10_001, None])
def test_the_limit_of_a_page_is_checked(manager, limit):
    with pytest.raises(InvalidTask, match=r"limit is .*allowed"):
        manager.find(limit=limit)


def test_cleanup_removes_ended_tasks_by_age(manager, clock):
    done, waiting = manager.add("a"), manager.add("b", delay=10**6)
    work(manager)
    clock.now = NOW + 100
    assert manager.cleanup(age=200) == 0
    assert manager.cleanup(age=50) == 1
    with pytest.raises(UnknownTask):
        manager.get(done.id)
    assert manager.delete(waiting.id) == 1
    assert manager.stats().total == 0


def test_no_task_of_a_paused_queue_is_claimed_until_it_is_resumed(manager):
    manager.add("a", queue="slow")
    manager.pause("slow")
    assert work(manager) == []
    assert [(limit.queue, limit.paused) for limit in manager.stats().limits] == [("slow", True)]
    manager.resume("slow")
    assert len(work(manager)) == 1


def test_waiting_ends_with_the_task_or_reports_its_status(manager):
    handle = manager.add("a")
    with pytest.raises(TimeoutError, match=f"task {handle.id} is still pending after 0.01 s"):
        handle.result(0.01)
    threading.Timer(0.05, work, [manager]).start()
    assert handle.result(10) == "done"


def test_ctrl_c_while_the_poller_starts_raises_only_keyboard_interrupt(tmp_path, monkeypatch):
    """The interrupt comes while the poller's thread is being started."""
    start = threading.Thread.start

    def interrupted(thread):
        if thread.name != "dtq-results":
            return start(thread)
        threading.Timer(0.05, start, [thread]).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), QueueManager(tmp_path / "q.db") as manager:
        manager.add("a").result()
    assert "dtq-results" not in {thread.name for thread in threading.enumerate()}


def test_a_handle_can_be_awaited(manager):
    async def both():
        first, second = manager.add("a"), manager.add("a")
        threading.Timer(0.05, work, [manager]).start()
        return await asyncio.wait_for(asyncio.gather(first, second), 10)

    assert asyncio.run(both()) == ["done", "done"]


def test_a_store_that_was_passed_in_stays_open():
    store = MemoryStore()
    with QueueManager(store) as manager:
        manager.add("a")
    assert store.stats().counts[Status.PENDING] == 1
    store.close()


def test_add_and_cancel_emit_events(manager):
    received = []
    manager.on("*", lambda e: received.append((e.name, e.task.id if e.task else e.data["queue"])))
    handle = manager.add("a")
    handle.cancel()
    manager.retry(handle.id)
    manager.pause("x")
    manager.events.close()
    life = [("task:added", handle.id), ("task:cancelled", handle.id), ("task:added", handle.id)]
    assert received == [*life, ("queue:paused", "x")]


def test_a_waiting_task_can_get_a_higher_priority(manager):
    slow, fast = manager.add("a"), manager.add("a")
    assert manager.prioritise(fast.id, 5).priority == 5
    with pytest.raises(InvalidTask, match="priority is 1001; allowed"):
        manager.prioritise(slow.id, 1001)
    assert [task.id for task in manager.store.claim("w", 2, 30, NOW, {"a"})] == [fast.id, slow.id]
    with pytest.raises(IllegalTransition, match="is processing: it cannot change its priority"):
        manager.prioritise(slow.id, 5)

"""A node survives any failure of one task, one outcome or one store call; if it must end, it reports why."""

from __future__ import annotations

import errno
import sqlite3
from concurrent.futures import Future

import msgspec
import pytest
from msgspec.structs import replace
from stepped_loop import NOW, STORES, ScriptedPool, add, make, opened, status

from dtq import DTQError, QueueManager, TaskQueue
from dtq.errors import InvalidTask, StoreError
from dtq.queue import guards
from dtq.stores.memory.store import MemoryStore
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import ErrorInfo, Task, Webhook
from dtq.task.transitions import succeed
from dtq.webhooks import deliveries
from dtq.workers import backend

WAIT = 30
ERRORS = {
    "EIO": OSError(errno.EIO, "Input/output error"),
    "EMFILE": OSError(errno.EMFILE, "Too many open files"),
    "ENOSPC": OSError(errno.ENOSPC, "No space left on device"),
    "StoreError": StoreError("the server is away"),
    "InvalidTask": InvalidTask("after is 'x'"),
    "MemoryError": MemoryError(),
    "RecursionError": RecursionError("maximum recursion depth exceeded"),
    "ValueError": ValueError("cannot convert float NaN to integer"),
    "TypeError": TypeError("unhashable"),
    "KeyError": KeyError("x"),
    "ZeroDivisionError": ZeroDivisionError(),
    "RuntimeError": RuntimeError("can't start new thread"),
    "sqlite3": sqlite3.OperationalError("disk I/O error"),
    "msgspec": msgspec.ValidationError("Expected `int`"),
    "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
}
METHODS = ("claim", "update", "heartbeat", "reap", "get", "find", "stats", "purge", "next_due")


class Faulty:
    """A memory store that raises `error` at those calls of `method` for which `when(number)` is true: before the work,
    or after it."""

    def __init__(self, method, error, when, after=False):
        self.store = MemoryStore()
        self.method, self.error, self.when, self.after = method, error, when, after
        self.calls = 0

    def __getattr__(self, name):
        found = getattr(self.store, name)
        return self.faulty(found) if name == self.method else found

    def faulty(self, method):
        def call(*args, **options):
            self.calls += 1
            is_hit = self.when(self.calls)
            if is_hit and not self.after:
                raise self.error.with_traceback(None)
            value = method(*args, **options)
            if is_hit:
                raise self.error.with_traceback(None)
            return value

        return call


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


def run(loop, pool, clock, seconds, step=0.5):
    """Run turns for these seconds. Every task that the pool has ends half a second later."""
    end = clock.now + seconds
    while clock.now < end and not loop.failure:
        loop.turn(clock.now)
        for task in list(pool.tasks):
            error = ErrorInfo("ValueError") if task.id == "fails" else None
            pool.finish(task, error=error, result=task.id)
        clock.now += step


def plant(store):
    add(store, "first", "fails", retry_delay=0.5, max_attempts=2)
    add(store, "child", after=("first",))
    add(store, "hooked", webhook=Webhook("https://example.com/x"))
    add(store, "late", run_at=NOW + 2)
    add(store, "gone", expires=NOW + 0.1, run_at=NOW + 1)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_whatever_one_store_call_raises_every_task_ends(error, method, after):
    for number in (1, 2, 3, 5):
        store, pool, clock = Faulty(method, error, lambda n, hit=number: n == hit, after), ScriptedPool(), Clock()
        loop = make(store, pool, clock, lease=5, cleanup_age=1e6)
        plant(store)
        run(loop, pool, clock, 60)
        store.method = ""
        assert (loop.failure, loop.trouble, loop.claimed) == ("", None, {})
        ends = {task.id: str(task.status) for task in store.find() if task.type == "a"}
        assert ends == {
            "first": "completed", "fails": "failed", "child": "completed", "hooked": "completed", "late": "completed",
            "gone": "cancelled",
        }  # fmt: skip
        store.close()


@pytest.mark.parametrize("method", ["claim", "update", "heartbeat", "reap", "next_due"])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_store_that_always_fails_ends_the_node_and_loses_nothing(error, method, caplog):
    store, pool, clock = Faulty(method, error, lambda n: n > 3), ScriptedPool(), Clock()
    loop = make(store, pool, clock, lease=5)
    plant(store)
    add(store, *(f"t{n}" for n in range(20)))
    run(loop, pool, clock, 120)
    if isinstance(error, StoreError):  # a server that is away may come back
        assert loop.failure == ""
    else:
        assert type(error).__name__ in loop.failure
        assert guards.GIVE_UP_AFTER <= clock.now - NOW <= guards.GIVE_UP_AFTER + 10
        assert loop.draining
    assert sum("failed" in record.message for record in caplog.records if record.name == "dtq") <= 3
    store.method = ""
    other = ScriptedPool()
    run(make(store, other, clock, lease=5), other, clock, 60)
    assert store.stats().unfinished == sum(task.type == deliveries.TYPE for task in store.find())
    store.close()


def refusing(store, error, is_bad):
    update = store.update

    def refuse(outcomes):
        if any(is_bad(task) for task, _ in outcomes):
            raise error.with_traceback(None)
        return update(outcomes)

    store.update = refuse


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("n", [1, 2, 17])
def test_an_outcome_that_the_store_refuses_becomes_a_failure_and_delays_no_other(error, n):
    store, pool, clock = MemoryStore(), ScriptedPool(room=n), Clock()
    loop = make(store, pool, clock)
    ids = [f"t{k:02}" for k in range(n)]
    add(store, *ids, max_attempts=1)
    bad = ids[n // 2]
    refusing(store, error, lambda task: task.result == bad)
    loop.turn(clock.now)
    for task in list(pool.tasks):
        pool.finish(task, result=task.id)
    for _ in range(6):
        clock.now += 0.5
        loop.turn(clock.now)
    assert status(store, *ids) == ["failed" if id == bad else "completed" for id in ids]
    (task,) = store.get([bad])
    assert (task.error.type, task.version) == ("InternalError", 3)
    assert type(error).__name__ in task.error.traceback
    assert (loop.trouble, loop.failure) == (None, "")
    store.close()


def test_if_the_failure_is_refused_too_the_lease_of_the_task_runs_out(store_and_loop):
    store, pool, clock, loop = store_and_loop
    add(store, "x", "y")
    loop.turn(clock.now)
    refusing(store, ValueError("no"), lambda task: task.id == "x" and task.interruptions == 0)
    run(loop, pool, clock, 10)
    assert status(store, "y") == ["completed"]
    assert loop.claimed == {}


@pytest.fixture
def store_and_loop():
    store, pool, clock = MemoryStore(), ScriptedPool(), Clock()
    yield store, pool, clock, make(store, pool, clock)
    store.close()


def test_a_success_stays_a_success_when_the_store_was_away(store_and_loop):
    store, pool, clock, loop = store_and_loop
    add(store, "x")
    loop.turn(clock.now)
    pool.finish(pool.tasks[0], result=1)
    update, calls = store.update, []

    def away(outcomes):
        calls.append(1)
        if len(calls) <= 9:
            raise StoreError("away")
        return update(outcomes)

    store.update = away
    run(loop, pool, clock, 20)
    assert status(store, "x") == ["completed"]


def test_an_invalid_report_fails_only_its_attempt(store_and_loop):
    store, pool, clock, loop = store_and_loop
    add(store, "x", "y")
    loop.turn(clock.now)
    x, y = pool.tasks
    pool.reports.append(backend.Finished(x, "w1", "no time", 0.5, None, None, "", False))
    pool.reports.append("no report")
    pool.finish(y, result=1)
    loop.turn(clock.now + 0.5)
    assert status(store, "x", "y") == ["retrying", "completed"]
    assert store.get(["x"])[0].error.type == "InternalError"
    assert store.get(["x"])[0].interruptions == 0
    assert [task.id for task in pool.stopped] == ["x"]


@pytest.mark.parametrize("method", ["poll", "deadline", "capacity", "dispatch", "stop", "workers", "recall"])
@pytest.mark.parametrize("error", [ERRORS["EMFILE"], MemoryError(), TypeError("no"), RuntimeError("no thread")])
def test_a_pool_that_sometimes_raises_loses_no_task(method, error, store_and_loop):
    store, pool, clock, loop = store_and_loop
    add(store, *(f"t{n}" for n in range(9)))
    real, calls = getattr(pool, method), []

    def sometimes(*args):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise error.with_traceback(None)
        return real(*args)

    setattr(pool, method, sometimes)
    run(loop, pool, clock, 60)
    assert store.stats().counts["completed"] == 9
    assert loop.failure == ""


def test_a_task_that_the_pool_refuses_fails_alone(store_and_loop):
    store, pool, clock, loop = store_and_loop
    dispatch = pool.dispatch

    def choosy(tasks, left=None):
        if any(task.id == "bad" for task in tasks):
            raise TypeError("this one cannot be pickled")
        dispatch(tasks)

    pool.dispatch, pool.room = choosy, 5
    add(store, "a", "b", "bad", "c", max_attempts=2, retry_delay=0.1)
    run(loop, pool, clock, 10)
    assert status(store, "a", "b", "bad", "c") == ["completed", "completed", "failed", "completed"]
    assert [attempt.error.type for attempt in store.get(["bad"])[0].history] == ["InternalError"] * 2
    assert {task.attempts for task in store.get(["a", "b", "c"])} == {1}


def test_a_pool_that_never_works_ends_the_node(store_and_loop):
    store, pool, clock, loop = store_and_loop
    add(store, "x")

    def broken():
        raise OSError(errno.EBADF, "Bad file descriptor")

    pool.poll = broken
    run(loop, pool, clock, 60)
    assert "Bad file descriptor" in loop.failure
    loop.sign_off(clock.now)
    assert status(store, "x") == ["pending"]
    assert store.get(["x"])[0].attempts == 0


def test_a_child_whose_parent_cannot_be_read_fails_alone(store_and_loop):
    store, pool, clock, loop = store_and_loop
    pool.room = 4
    add(store, "odd", "even")
    claimed = store.claim("other", 2, 30, NOW, {"a"})
    store.update([(succeed(task, object() if task.id == "odd" else 2, NOW), ()) for task in claimed])
    add(store, "of_odd", "none", after=("odd",), max_attempts=1)
    add(store, "of_even", after=("even",))
    run(loop, pool, clock, 5)
    assert status(store, "of_odd", "of_even") == ["failed", "completed"]
    assert store.get(["of_odd"])[0].error.type == "InternalError"


def test_an_outcome_is_stored_although_its_webhook_cannot_be_made(store_and_loop, monkeypatch):
    store, pool, clock, loop = store_and_loop
    add(store, "x", "y", webhook=Webhook("https://example.com/x"))
    body = deliveries.body

    def odd(task, now):
        return body(task, now) if task.id == "y" else 1 / 0

    monkeypatch.setattr(deliveries, "body", odd)
    run(loop, pool, clock, 3)
    assert status(store, "x", "y") == ["completed", "completed"]
    assert [task.id.partition(":")[0] for task in store.find(type=deliveries.TYPE)] == ["y"]


def test_failures_of_metrics_events_and_clean_up_stop_nothing(store_and_loop, monkeypatch):
    store, pool, clock, loop = store_and_loop
    add(store, "x")

    def broken(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    for part, name in (
        (loop._node_metrics, "record"),
        (loop._node_metrics, "reading"),
        (loop._cleaner, "turn"),
        (loop._events, "emit"),
    ):
        monkeypatch.setattr(part, name, broken)
    loop._each_heartbeat = broken
    loop.post(broken)
    run(loop, pool, clock, 5)
    assert (status(store, "x"), loop.failure) == (["completed"], "")


@pytest.mark.parametrize("kind", STORES)
def test_the_no_op_outcome_changes_nothing(kind, tmp_path):
    store = opened(kind, tmp_path)
    add(store, "x")
    assert store.update([guards.NO_OP]) == set()
    assert (store.stats().total, status(store, "x")) == (1, ["pending"])
    store.close()


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("odd", ["delay", "result", "log"])
def test_every_store_turns_an_invalid_outcome_into_a_failure_and_stores_the_others(kind, odd, tmp_path):
    store, pool, clock = opened(kind, tmp_path), ScriptedPool(3), Clock()
    loop = make(store, pool, clock)
    add(store, "a", "odd", "b")
    loop.turn(clock.now)
    for task in list(pool.tasks):
        if task.id != "odd":
            pool.finish(task, result=1)
            continue
        pool.tasks.remove(task)
        error = ErrorInfo("ValueError") if odd == "delay" else None
        result, log = (object() if odd == "result" else 1), ("\ud800" if odd == "log" else "")
        delay = float("nan") if odd == "delay" else None
        pool.reports.append(backend.Finished(task, "w1", clock.now, 0.5, result, error, log, False, delay))
    for _ in range(6):
        clock.now += 0.5
        loop.turn(clock.now)
    ended = status(store, "a", "odd", "b")
    assert (ended[0], ended[2]) == ("completed", "completed")
    if kind != "memory" or odd == "delay":  # which keeps whatever it is given
        assert ended[1] != "completed"
        assert store.get(["odd"])[0].history[0].error.type == "InternalError"
    assert (loop.trouble, loop.failure) == (None, "")
    store.close()


# --- real nodes -----------------------------------------------------------------------------------------------------


def echo(payload, context):
    return payload


def asks_for_nan(payload, context):
    from dtq import Retry

    error = Retry("later")
    error.delay = float("nan")
    raise error


def test_a_nan_delay_blocks_no_other_outcome(tmp_path):
    with TaskQueue(tmp_path / "queue.db", {"echo": echo, "nan": asks_for_nan}, pool_size=2) as queue:
        bad = queue.add("nan", max_attempts=2, retry_delay=0.05)
        handles = queue.add_many({"type": "echo", "payload": n} for n in range(100))
        assert [handle.result(WAIT) for handle in handles] == list(range(100))
        queue.join(WAIT)
        assert bad.status == "failed"


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_a_broken_store_ends_a_node_and_raises_in_all_waiters(executor, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(guards, "GIVE_UP_AFTER", 0.5)
    store = SQLiteStore(tmp_path / "queue.db")
    # A short lease: the node cannot release its task in the broken store, so the next one takes it over at its end.
    with TaskQueue(store, {"echo": echo}, pool_size=1, executor=executor, lease=2) as queue:
        assert queue.add("echo", 1).result(WAIT) == 1

        def broken(*_, **__):
            raise RuntimeError("a bug in the store")

        monkeypatch.setattr(store, "update", broken)
        handle = queue.add("echo", 2)
        future: Future[Task] = queue.future_of(handle.id)
        with pytest.raises(DTQError, match="a bug in the store"):
            future.result(WAIT)
        with pytest.raises(DTQError, match="a bug in the store"):
            queue.join(WAIT)
        with pytest.raises(DTQError, match="new TaskQueue"):
            queue.add("echo", 3)
        assert "the loop of" in caplog.text
        monkeypatch.undo()
    with TaskQueue(store, {"echo": echo}, pool_size=1) as queue:
        queue.join(WAIT)
        assert handle.id in {task.id for task in queue.find(status="completed")}
    store.close()


@pytest.mark.long
def test_a_node_without_hints_polls_the_store(tmp_path, monkeypatch, caplog):
    store = SQLiteStore(tmp_path / "queue.db")
    with TaskQueue(store, {"echo": echo}, pool_size=1) as queue, QueueManager(tmp_path / "queue.db") as other:
        monkeypatch.setattr(store, "wait", lambda timeout: (_ for _ in ()).throw(ERRORS["EIO"]))
        assert other.add("echo", 5).result(WAIT) == 5
        assert queue.add("echo", 6).result(WAIT) == 6
        monkeypatch.undo()
    store.close()
    assert "receives no hints of changes" in caplog.text


def test_an_inline_queue_raises_what_its_store_raises(monkeypatch):
    with TaskQueue("memory:", {"echo": echo}, executor="inline") as queue:
        monkeypatch.setattr(queue.store, "claim", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            queue.add("echo", 1)
        monkeypatch.undo()
        assert queue.add("echo", 2).result(WAIT) == 2


def test_a_failing_question_raises_in_its_caller_and_not_in_the_loop(tmp_path):
    with TaskQueue(tmp_path / "queue.db", {"echo": echo}, pool_size=1) as queue:
        with pytest.raises(ZeroDivisionError):
            queue._ask(lambda: 1 / 0)
        assert queue.add("echo", 1).result(WAIT) == 1


def test_a_task_whose_backoff_is_invalid_can_still_fail():
    task = Task(type="a", id="x", version=2, status="processing", attempts=1, retry_backoff="odd")
    assert guards.failed(task, ValueError("no"), NOW, lambda: 0.5).status == "failed"
    assert guards.failed(replace(task, retry_backoff="linear"), ValueError("no"), NOW, lambda: 0.5).status == "retrying"


def test_an_error_that_stops_a_node_is_published_until_it_is_over(store_and_loop):
    store, pool, clock, loop = store_and_loop
    poll = pool.poll

    def broken():
        raise ERRORS["EMFILE"].with_traceback(None)

    pool.poll = broken
    run(loop, pool, clock, 3)
    (node,) = store.stats().nodes
    assert node.metrics["trouble"] == "OSError: [Errno 24] Too many open files"
    pool.poll = poll
    run(loop, pool, clock, 3)
    (node,) = store.stats().nodes
    assert "trouble" not in node.metrics

"""Waiting for results: `result`, `join` and `await` end, whatever happens to the store, the loop or the task."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import threading
import time

import pytest
import servers

from dtq import QueueManager, TaskQueue
from dtq.errors import DTQError, StoreError, UnknownTask
from dtq.stores.open import open_store
from dtq.stores.protocol import Node
from dtq.task.model import Status
from dtq.task.transitions import succeed

AWAY = float(os.environ.get("DTQ_TEST_AWAY", "2"))  # seconds for which a server is away
SOON = 1.5  # seconds: an ending without a hint is noticed within one
WAIT = 20.0


def finish(store, result="done"):
    """Claim all tasks and complete them, as a node would."""
    store.heartbeat(Node("elsewhere"), (), 30, time.time())
    claimed = store.claim("elsewhere", 100, 30, time.time() + 60, {"a"})
    store.update([(succeed(task, result, time.time()), ()) for task in claimed])
    return len(claimed)


def later(action, *arguments, seconds=0.1):
    timer = threading.Timer(seconds, action, arguments)
    timer.start()
    return timer


def pollers():
    return [thread for thread in threading.enumerate() if thread.name == "dtq-results"]


def wait_until(condition, seconds=WAIT):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"the condition was still false after {seconds:g} s"
        time.sleep(0.005)


@pytest.fixture(params=["manager", "queue"])
def waiter(request, tmp_path):
    """A manager or a queue that runs no tasks of type "a" itself."""
    if request.param == "manager":
        with QueueManager(tmp_path / "q.db") as manager:
            yield manager
    else:
        with TaskQueue(tmp_path / "q.db", {"other": lambda payload, context: None}, 1) as queue:
            queue._require_type = lambda type: None
            yield queue


@pytest.fixture
def elsewhere(tmp_path):
    store = open_store(tmp_path / "q.db")
    yield store
    store.close()


class Broken:
    """A store whose named methods raise `error` while it is set."""

    def __init__(self, store, *methods):
        self._store, self._methods, self.error, self.calls = store, methods, None, 0

    def __getattr__(self, name):
        if self.error is not None and name in self._methods:
            self.calls += 1
            raise self.error
        return getattr(self._store, name)


# --- tasks that end elsewhere -----------------------------------------------------------------------------------------


def test_the_result_of_another_process_arrives_at_once(waiter, elsewhere):
    handle = waiter.add("a")
    later(finish, elsewhere)
    began = time.monotonic()
    assert handle.result(WAIT) == "done"
    assert time.monotonic() - began < 0.9, "faster than the poll that comes each second"


def test_a_delete_elsewhere_raises_in_all_waiters(waiter, elsewhere):
    handle = waiter.add("a", delay=60)
    later(elsewhere.delete, [handle.id])
    began = time.monotonic()
    with pytest.raises(UnknownTask, match="was deleted or cleaned up while it was waited for"):
        handle.result(WAIT)
    assert time.monotonic() - began < 0.1 + SOON


def test_a_delete_here_raises_at_once(waiter):
    handle = waiter.add("a", delay=60)
    later(waiter.delete, handle.id)
    began = time.monotonic()
    with pytest.raises(UnknownTask):
        handle.result(WAIT)
    assert time.monotonic() - began < 0.9


def test_waiting_continues_when_a_task_is_deleted_and_added_again(waiter, elsewhere):
    handle = waiter.add("a", id="again", delay=60)
    waiting = later(lambda: (elsewhere.delete(["again"]), waiter.add("a", id="again"), finish(elsewhere)))
    try:
        assert handle.result(WAIT) == "done"
    except UnknownTask:  # the poll came between the two
        assert True
    waiting.join()


def test_one_thread_serves_all_waiters(waiter, elsewhere):
    handles = waiter.add_many({"type": "a"} for _ in range(250))
    results = []
    waiting = [threading.Thread(target=lambda h=handle: results.append(h.result(WAIT))) for handle in handles[::10]]
    for thread in waiting:
        thread.start()
    wait_until(lambda: len(waiter._waiters._futures) == len(waiting))
    assert len(pollers()) == 1
    while finish(elsewhere):
        pass
    for thread in waiting:
        thread.join(WAIT)
    assert results == ["done"] * len(waiting)


def test_no_poller_runs_without_waiters(waiter, elsewhere):
    handle = waiter.add("a")
    assert not pollers()
    later(finish, elsewhere)
    handle.result(WAIT)
    wait_until(lambda: not pollers(), 4)


def test_a_waiter_that_comes_while_the_poller_ends_is_served(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr("dtq.queue.poller.LINGER", 0.0)
    monkeypatch.setattr("dtq.queue.poller.POLL_INTERVAL", 0.001)
    with QueueManager(tmp_path / "q.db") as manager:
        for _ in range(200):
            handle = manager.add("a")
            with pytest.raises(TimeoutError):
                handle.result(0.0005)
            finish(elsewhere)
            assert handle.result(WAIT) == "done"


# --- a store that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["get", "fileno", "wait"])
@pytest.mark.parametrize("error", [StoreError("away"), OSError(errno.EIO, "input/output"), RuntimeError("odd")])
def test_waiting_continues_when_a_failed_store_is_back(tmp_path, elsewhere, method, error):
    store = Broken(open_store(tmp_path / "q.db"), method)
    with QueueManager(store) as manager:
        handle = manager.add("a")
        waiting = manager.future_of(handle.id)
        store.error = error
        manager._poller.hint()
        wait_until(lambda: store.calls)
        later(finish, elsewhere, seconds=0.2)
        later(setattr, store, "error", None, seconds=0.5)
        assert waiting.result(WAIT).result == "done"
    store.close()


def test_a_failing_store_is_polled_with_pauses(tmp_path):
    store = Broken(open_store(tmp_path / "q.db"), "get")
    with QueueManager(store) as manager:
        handle = manager.add("a")
        future = manager.future_of(handle.id)
        store.error = StoreError("away")
        manager._poller.hint()
        time.sleep(1)
        assert 1 <= store.calls <= 6
        with pytest.raises(StoreError):
            handle.result(0.1)
        store.error = None
        future.cancel()
    store.close()


def test_a_timeout_while_the_store_is_away_names_the_cause(tmp_path):
    store = Broken(open_store(tmp_path / "q.db"), "get")
    with QueueManager(store) as manager:
        handle = manager.add("a")
        later(setattr, store, "error", StoreError("no answer"), seconds=0.05)
        with pytest.raises(TimeoutError, match=r"within 0\.3 s; its store cannot be read now: no answer"):
            handle.result(0.3)
    store.close()


def test_a_closed_descriptor_causes_a_delay_and_no_busy_loop(tmp_path, elsewhere):
    store = open_store(tmp_path / "q.db")
    reader, writer = os.pipe()
    os.close(writer)
    store.fileno = lambda: reader  # always at end of file
    with QueueManager(store) as manager:
        handle = manager.add("a")
        later(finish, elsewhere, seconds=0.5)
        used = time.thread_time(), time.process_time()
        assert handle.result(WAIT) == "done"
        assert time.process_time() - used[1] < 0.25
    os.close(reader)
    store.close()


def test_waiting_survives_a_server_that_is_away(caplog):
    server = servers.Server("valkey", "--appendonly", "yes", "--appendfsync", "always")
    try:
        with QueueManager(server.url) as manager, QueueManager(server.url) as other:
            handle, gone = manager.add("a"), manager.add("a", delay=3600)
            futures = manager.future_of(handle.id), manager.future_of(gone.id)
            time.sleep(0.2)
            server.kill()
            time.sleep(AWAY)
            server.start()
            finish(other.store)
            assert futures[0].result(WAIT).result == "done"
            other.delete(gone.id)
            with pytest.raises(UnknownTask):
                futures[1].result(WAIT)
            assert pollers()
    finally:
        servers.running.remove(server)
        server.remove()


@pytest.fixture
def many_descriptors():
    """Use up all descriptors up to 1,023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("needs 2,048 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] < 1100:
        taken.append(os.dup(taken[0]))
    yield
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("url", ["{}/q.db", "file:{}/q"])
def test_waiting_works_with_descriptors_above_1023(many_descriptors, tmp_path, url):
    url = url.format(tmp_path)
    with QueueManager(url) as manager, QueueManager(url) as other:
        handle = manager.add("a")
        assert manager.store.fileno() > 1023
        later(finish, other.store)
        began = time.monotonic()
        assert handle.result(WAIT) == "done"
        assert time.monotonic() - began < 0.9


# --- the end of the queue, or of its loop -----------------------------------------------------------------------------


def test_after_a_shutdown_a_handle_waits_for_other_nodes_of_the_store(tmp_path, elsewhere):
    store = open_store(tmp_path / "q.db")
    queue = TaskQueue(store, {"a": lambda payload, context: None}, 0).start()
    handle = queue.add("a")
    queue.shutdown()
    later(finish, elsewhere)
    began = time.monotonic()
    assert handle.result(3) == "done"
    assert time.monotonic() - began < 0.9
    queue._poller.close()
    store.close()


def test_two_nodes_on_one_store_wait_for_each_other(tmp_path):
    with (
        TaskQueue(tmp_path / "q.db", {"a": lambda payload, context: "left"}, 1) as left,
        TaskQueue(tmp_path / "q.db", {"b": lambda payload, context: "right"}, 1) as right,
    ):
        wait_until(lambda: {type for node in left.stats().nodes for type in node.types} == {"a", "b"})
        began = time.monotonic()
        for _ in range(20):
            assert (left.add("b").result(WAIT), right.add("a").result(WAIT)) == ("right", "left")
        assert time.monotonic() - began < 10


def test_waiting_raises_after_the_queue_is_closed_with_its_store(tmp_path):
    with QueueManager(tmp_path / "q.db") as manager:
        handle = manager.add("a")
    with pytest.raises(DTQError, match="closed"):
        handle.result(WAIT)
    assert not pollers()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_loop_fails_result_and_join_raise_with_the_reason(tmp_path, error):
    def fail(now):
        raise error

    queue = TaskQueue(tmp_path / "q.db", {"a": lambda payload, context: None}, 1).start()
    handle = queue.add("a", delay=60)
    joining, errors = [], []

    def collect(call):
        try:
            call()
        except BaseException as error:
            errors.append(error)

    for call in (queue.join, handle.result):
        joining.append(threading.Thread(target=collect, args=[call]))
        joining[-1].start()
    wait_until(lambda: queue._waiters)
    queue._loop.turn = fail
    for thread in joining:
        thread.join(WAIT)
    for call in (queue.join, handle.result):
        collect(lambda call=call: call(timeout=WAIT))
    assert len(errors) == 4
    assert all(type(e) is DTQError and repr(error) in str(e) for e in errors), errors
    queue.shutdown()


def test_a_task_that_ends_at_the_moment_of_the_timeout_is_returned(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr("dtq.queue.poller.ResultPoller.start", lambda self: None)
    with QueueManager(tmp_path / "q.db") as manager:
        handle = manager.add("a")
        later(finish, elsewhere)
        assert handle.result(0.5) == "done"


# --- waiters that give up ---------------------------------------------------------------------------------------------


def test_a_cancelled_await_releases_its_future_at_once(waiter):
    async def cancel_one_of_two():
        handle = waiter.add("a", delay=60)
        one, two = asyncio.ensure_future(_result(handle)), asyncio.ensure_future(_result(handle))
        await asyncio.sleep(0.05)
        assert len(waiter._waiters._futures[handle.id]) == 2
        one.cancel()
        await asyncio.wait([one])
        left = len(waiter._waiters._futures[handle.id])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(two, 0.05)
        return left

    assert asyncio.run(cancel_one_of_two()) == 1
    assert not waiter._waiters


async def _result(handle):
    return await handle


def test_a_timeout_and_an_interrupt_release_their_future_too(waiter, monkeypatch):
    handle = waiter.add("a", delay=60)
    with pytest.raises(TimeoutError, match=r"is still pending after 0\.01 s"):
        handle.result(0.01)
    assert not waiter._waiters

    def interrupted(self, timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handle.result()
    monkeypatch.undo()
    assert not waiter._waiters
    assert handle.status == Status.PENDING

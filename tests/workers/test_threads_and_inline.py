"""Pools inside this process: their reports, and how they deal with handlers that do not end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest
from msgspec.structs import replace

from dtq.task.model import Task
from dtq.workers.backend import Finished, Logged, Progressed, Returned, Started, WorkerChanged
from dtq.workers.inline import InlinePool
from dtq.workers.run.runner import Handlers, Stopped, perform
from dtq.workers.run.worker_thread import AsyncThread, SharedState, ThreadCall, WorkerThread
from dtq.workers.threads import ThreadPool
from dtq.workers.wire import Call, Source

LONG = 30.0  # seconds; no test takes as long


def tasks(n, type="work", **options):
    return [Task(type=type, id=f"t{i}", payload=i, attempts=1, **options) for i in range(n)]


def define(pool, type="work", concurrency=1):
    """Return a decorator that makes the function the handler of the type."""

    def decorate(function):
        pool.define(type, Source("value", "test", concurrency=concurrency), function)
        return function

    return decorate


def reports_until(pool, enough):
    """Wait and poll, as the loop does, until `enough(reports)`. Return all reports."""
    found, end = [], time.monotonic() + LONG
    while not enough(found):
        assert time.monotonic() < end, found
        pool.wait(min(1.0, LONG if (seconds := pool.deadline()) is None else seconds))
        found += pool.poll()
    return found


def of(kind, reports):
    return [report for report in reports if isinstance(report, kind)]


def results(pool, n):
    """Return the result, or the type of the error, of the next n tasks that end, by task id."""
    found = reports_until(pool, lambda reports: len(of(Finished, reports)) >= n)
    return {r.task.id: r.error.type if r.error else r.result for r in of(Finished, found)}


@pytest.fixture
def pool():
    pool = ThreadPool(2, grace=0.05)
    pool.start()
    pool.poll()
    yield pool
    pool.close(kill=True)


@pytest.fixture
def inline():
    pool = InlinePool()
    pool.start()
    pool.poll()
    yield pool
    pool.close()


@pytest.fixture
def gate():
    """An event that is set at the end of the test, so that no thread waits forever."""
    event = threading.Event()
    yield event
    event.set()


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pool", "inline"])
def either(request):
    return request.getfixturevalue(request.param)


def test_a_task_is_reported_from_start_to_end(either):
    @define(either)
    def work(payload, context):
        context.progress(50, "half")
        print("hello")
        return [payload]

    [task] = tasks(1)
    either.dispatch([task])
    found = reports_until(either, lambda reports: of(Finished, reports))
    assert [type(report) for report in found] == [Started, Progressed, Logged, Finished]
    assert all(report.task is task for report in found)
    end = found[-1]
    assert (end.result, end.error, end.log, end.final) == ([0], None, "hello\n", False)
    assert end.worker == found[0].worker
    assert end.started_at == found[0].at


def test_an_async_handler_runs_like_any_other(either):
    @define(either)
    async def work(payload, context):
        await asyncio.sleep(0)
        print("hello")
        return payload + 1

    either.dispatch(tasks(3))
    assert results(either, 3) == {"t0": 1, "t1": 2, "t2": 3}


def test_a_failure_is_reported(either):
    @define(either)
    def work(payload, context):
        raise ValueError("no")

    either.dispatch(tasks(1))
    [end] = of(Finished, reports_until(either, lambda reports: of(Finished, reports)))
    assert (end.result, str(end.error)) == (None, "ValueError: no")


def test_a_reported_task_is_no_longer_outstanding(either):
    define(either)(lambda payload, context: None)
    either.dispatch(tasks(10))
    assert either.outstanding() == 10
    results(either, 10)
    assert either.outstanding() == 0
    assert sum(worker.done for worker in either.workers()) == 10


def test_a_pool_has_capacity_only_for_types_with_a_handler(either):
    assert list(either.capacity()) == []
    define(either)(lambda payload, context: None)
    [(n, types)] = either.capacity()
    assert n >= 1
    assert types == {"work"}


def test_wake_ends_the_current_wait_or_the_next_one(either):
    either.wake()
    either.wait(LONG)
    either.poll()
    threading.Timer(0.01, either.wake).start()
    started = time.monotonic()
    either.wait(LONG)
    assert time.monotonic() - started < LONG / 2


def test_a_readable_watched_descriptor_ends_a_wait(either):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        either.watch(ours.fileno())
        theirs.send(b"!")
        either.wait(LONG)


def test_a_new_definition_applies_from_the_next_call(either):
    define(either)(lambda payload, context: 1)
    either.dispatch(tasks(1))
    assert results(either, 1) == {"t0": 1}
    define(either)(lambda payload, context: 2)
    either.dispatch(tasks(1))
    assert results(either, 1) == {"t0": 2}


def test_modules_are_torn_down_when_the_pool_is_closed(tmp_path):
    path = tmp_path / "handler.py"
    path.write_text(f"def teardown(): open({str(tmp_path / 'torn')!r}, 'w').close()\ndef execute(p, c): return p")
    for pool in (ThreadPool(1), InlinePool()):
        pool.start()
        pool.define("work", Source("path", str(path)))
        pool.dispatch(tasks(1))
        assert results(pool, 1) == {"t0": 0}
        pool.close()
        (tmp_path / "torn").unlink()


# --- inline -----------------------------------------------------------------------------------------------------------


def test_inline_runs_in_dispatch_in_the_callers_thread(inline):
    threads = []
    define(inline)(lambda payload, context: threads.append(threading.get_ident()))
    inline.dispatch(tasks(2))
    assert threads == [threading.get_ident()] * 2


def test_inline_runs_async_handlers_where_a_loop_is_running(inline):
    @define(inline)
    async def work(payload, context):
        return payload

    async def main():
        inline.dispatch(tasks(1))

    asyncio.run(main())
    assert results(inline, 1) == {"t0": 0}


# --- threads ----------------------------------------------------------------------------------------------------------


def test_every_task_is_reported_once(pool):
    define(pool)(lambda payload, context: payload)
    pool.dispatch(tasks(2000))
    found = reports_until(pool, lambda reports: len(of(Finished, reports)) == 2000)
    assert Counter(report.task.id for report in of(Finished, found)) == Counter(f"t{i}" for i in range(2000))
    assert all(report.result == report.task.payload for report in of(Finished, found))


def test_as_many_run_at_once_as_there_are_threads(pool):
    barrier = threading.Barrier(2)
    define(pool)(lambda payload, context: barrier.wait(LONG))
    pool.dispatch(tasks(4))
    assert sorted(results(pool, 4).values()) == [0, 0, 1, 1]


def test_workers_are_reported_and_listed(gate):
    pool = ThreadPool(2, name="here")
    pool.start()
    found = pool.poll()
    assert [(r.worker, r.state) for r in of(WorkerChanged, found)] == [
        ("here-1", "started"), ("here-1", "ready"), ("here-2", "started"), ("here-2", "ready"),
    ]  # fmt: skip
    define(pool)(lambda payload, context: gate.wait(LONG))
    pool.dispatch(tasks(1))
    reports_until(pool, lambda reports: of(Started, reports))
    busy, idle = sorted(pool.workers(), key=lambda worker: worker.state)
    assert (busy.state, busy.outstanding, busy.task_id, busy.pid) == ("busy", 1, "t0", os.getpid())
    assert (idle.state, idle.outstanding, idle.task_id) == ("idle", 0, None)
    gate.set()
    results(pool, 1)
    pool.close()


def test_a_handler_over_its_timeout_is_interrupted(pool):
    @define(pool)
    def work(payload, context):
        try:
            while True:
                time.sleep(0.001)
        except Exception:
            return "swallowed"

    pool.dispatch(tasks(1, timeout=0.02))
    [end] = of(Finished, reports_until(pool, lambda reports: of(Finished, reports)))
    assert str(end.error) == "Timeout: ran longer than its timeout of 0.02 s"
    assert "in work" in end.error.traceback
    assert [worker.id for worker in pool.workers()] == ["thread-1", "thread-2"]  # no thread was replaced


TIMED_OUT_THEN_PROFILED = """
import sys, time
from dtq import TaskQueue

def endless(payload, context):
    while True:
        time.sleep(0.001)

with TaskQueue("memory:", handlers={"endless": endless}, executor="thread", pool_size=1) as queue:
    queue.add("endless", timeout=0.05, max_attempts=1)
    queue.join(timeout=20)

sys.setprofile(lambda *_: None)
len(str(queue))
print("traced")
"""


def test_code_can_be_traced_after_a_handler_was_interrupted():
    result = subprocess.run(
        [sys.executable, "-c", TIMED_OUT_THEN_PROFILED], stdout=subprocess.PIPE, text=True, timeout=LONG
    )
    assert result.stdout == "traced\n"


def test_a_thread_that_ignores_its_timeout_is_replaced_and_its_messages_are_ignored(pool, gate):
    @define(pool)
    def work(payload, context):
        print("before")
        gate.wait(LONG)
        print("after")
        return "late"

    pool.dispatch(tasks(2, timeout=0.02))
    found = reports_until(pool, lambda reports: len(of(Finished, reports)) == 2)
    assert {report.error.type for report in of(Finished, found)} == {"Timeout"}
    assert {report.log for report in of(Finished, found)} == {"before\n"}
    assert [report.state for report in of(WorkerChanged, found)] == ["exited", "started", "ready"] * 2
    assert [worker.id for worker in pool.workers()] == ["thread-3", "thread-4"]
    gate.set()
    define(pool, "next")(lambda payload, context: "done")
    pool.dispatch(tasks(4, "next"))
    assert results(pool, 4) == dict.fromkeys(["t0", "t1", "t2", "t3"], "done")


def test_a_timeout_is_never_raised_outside_its_handler(pool):
    """Calls that end at about their timeout: each ends with its result or with a Timeout."""

    @define(pool)
    def work(payload, context):
        end = time.monotonic() + 0.003
        while time.monotonic() < end:
            pass
        return "done"

    pool.dispatch(tasks(60, timeout=0.003))
    assert set(results(pool, 60).values()) <= {"done", "Timeout"}
    assert pool.outstanding() == 0


def test_a_running_task_is_stopped(pool):
    seen = []

    @define(pool)
    def work(payload, context):
        try:
            while True:
                time.sleep(0.001)
        finally:
            seen.append(context.cancelled)

    [task] = tasks(1)
    pool.dispatch([task])
    reports_until(pool, lambda reports: of(Started, reports))
    pool.stop(task)
    pool.stop(task)
    [end] = of(Finished, reports_until(pool, lambda reports: of(Finished, reports)))
    assert str(end.error) == "Cancelled: stopped while it ran"
    assert seen == [True]


def test_a_running_task_that_ignores_the_stop_is_abandoned(pool, gate):
    define(pool)(lambda payload, context: gate.wait(LONG))
    [task] = tasks(1)
    pool.dispatch([task])
    reports_until(pool, lambda reports: of(Started, reports))
    pool.stop(task)
    assert results(pool, 1) == {"t0": "Cancelled"}


def test_a_waiting_task_that_is_stopped_is_returned_and_never_runs(pool, gate):
    ran = []

    @define(pool)
    def work(payload, context):
        ran.append(context.task_id)
        gate.wait(LONG)

    batch = tasks(3)
    pool.dispatch(batch)
    reports_until(pool, lambda reports: len(of(Started, reports)) == 2)
    pool.stop(batch[2])
    assert of(Returned, pool.poll()) == [Returned(batch[2])]
    gate.set()
    results(pool, 2)
    assert sorted(ran) == ["t0", "t1"]


def test_stopping_an_attempt_does_not_stop_another_attempt_of_the_task(pool, gate):
    define(pool)(lambda payload, context: gate.wait(LONG))
    [new] = tasks(1)
    pool.dispatch([new])
    reports_until(pool, lambda reports: of(Started, reports))
    pool.stop(replace(new, version=new.version - 1))  # compare versions: a retry by hand resets `attempts`
    gate.set()
    assert results(pool, 1) == {"t0": True}


def test_stopping_an_unknown_task_does_nothing(pool):
    pool.stop(tasks(1)[0])
    assert pool.poll() == []


def test_recall_returns_all_tasks_that_have_not_started(pool, gate):
    define(pool)(lambda payload, context: gate.wait(LONG))
    batch = tasks(10)
    pool.dispatch(batch)
    reports_until(pool, lambda reports: len(of(Started, reports)) == 2)
    pool.recall()
    assert [report.task for report in of(Returned, pool.poll())] == batch[2:]
    gate.set()
    assert results(pool, 2) == {"t0": True, "t1": True}


def test_the_shorter_the_calls_the_larger_the_capacity(pool, monkeypatch):
    spent = threading.local()  # a clock for each thread, on which only its handlers' work takes time
    monkeypatch.setattr("dtq.workers.run.context.monotonic", lambda: getattr(spent, "seconds", 0.0))

    @define(pool)
    def work(seconds, context):
        spent.seconds = getattr(spent, "seconds", 0.0) + seconds

    def wanted_after(seconds):
        pool.dispatch([Task(type="work", id=f"t{i}", payload=seconds, attempts=1) for i in range(300)])
        results(pool, 300)
        return [n for n, _ in pool.capacity()]

    assert list(pool.capacity()) == [(2, {"work"})]
    assert wanted_after(2**-20) == [2 + 256]
    assert wanted_after(2**-10) == [2 + 10]  # 0.005 s of work for each of the two
    assert wanted_after(1) == [2]


def test_a_pool_can_grow_and_shrink(pool):
    barrier = threading.Barrier(4)
    define(pool)(lambda payload, context: barrier.wait(LONG))
    pool.resize(4)
    assert len(pool.workers()) == 4
    pool.dispatch(tasks(4))
    assert sorted(results(pool, 4).values()) == [0, 1, 2, 3]
    pool.resize(1)
    found = reports_until(pool, lambda reports: len(of(WorkerChanged, reports)) == 3)
    assert {report.state for report in found} == {"exited"}
    assert len(pool.workers()) == 1


def test_prints_of_threads_do_not_mix_and_none_reaches_the_console(pool, capsys):
    barrier = threading.Barrier(2)

    @define(pool)
    def work(payload, context):
        for _ in range(20):
            barrier.wait(LONG)
            print(payload, file=sys.stderr if payload else sys.stdout)

    pool.dispatch(tasks(2))
    found = of(Finished, reports_until(pool, lambda reports: len(of(Finished, reports)) == 2))
    assert {report.task.id: report.log for report in found} == {"t0": "0\n" * 20, "t1": "1\n" * 20}
    assert capsys.readouterr() == ("", "")


def test_a_module_that_cannot_be_loaded_fails_its_tasks(pool, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    pool.define("work", Source("path", str(path)))
    pool.dispatch(tasks(5))
    assert set(results(pool, 5).values()) == {"HandlerError"}


def test_close_with_kill_stops_running_tasks():
    pool = ThreadPool(1, grace=1)
    pool.start()
    ended = threading.Event()

    @define(pool)
    def work(payload, context):
        try:
            while True:
                time.sleep(0.001)
        finally:
            ended.set()

    pool.dispatch(tasks(5))
    reports_until(pool, lambda reports: of(Started, reports))
    pool.close(kill=True)
    assert ended.is_set()


# --- async handlers in a thread pool ----------------------------------------------------------------------------------


def test_as_many_async_calls_run_at_once_as_size_times_concurrency(pool):
    running, most = 0, 0

    @define(pool, concurrency=5)
    async def work(payload, context):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1

    assert list(pool.capacity()) == [(10, {"work"})]
    pool.dispatch(tasks(40))
    assert len(results(pool, 40)) == 40
    assert most == 10


def test_waiting_async_calls_can_be_recalled(pool):
    release = []

    @define(pool)
    async def work(payload, context):
        release.append((asyncio.get_running_loop(), event := asyncio.Event()))
        await event.wait()

    batch = tasks(6)
    pool.dispatch(batch)
    reports_until(pool, lambda reports: len(of(Started, reports)) == 2)
    pool.recall()
    assert len(of(Returned, pool.poll())) == 4
    for loop, event in release:
        loop.call_soon_threadsafe(event.set)
    assert len(results(pool, 2)) == 2


def test_an_async_handler_is_timed_out(pool):
    @define(pool, concurrency=10)
    async def work(payload, context):
        await asyncio.sleep(LONG)

    pool.dispatch(tasks(10, timeout=0.02))
    assert set(results(pool, 10).values()) == {"Timeout"}


def test_an_async_handler_is_stopped(pool):
    @define(pool)
    async def work(payload, context):
        await asyncio.sleep(LONG)

    batch = tasks(2)
    pool.dispatch(batch)
    reports_until(pool, lambda reports: len(of(Started, reports)) == 2)
    for task in batch:
        pool.stop(task)
    assert results(pool, 2) == {"t0": "Cancelled", "t1": "Cancelled"}


@pytest.mark.parametrize("way", ["timeout", "stop"])
def test_an_async_handler_that_ignores_cancellation_is_abandoned_and_frees_its_place(pool, way):
    @define(pool)
    async def work(payload, context):
        while payload is not None and not closing.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return "done"

    closing = threading.Event()
    batch = tasks(2, timeout=0.02 if way == "timeout" else LONG)
    pool.dispatch(batch)
    reports_until(pool, lambda reports: len(of(Started, reports)) == 2)
    pool.dispatch([Task(type="work", id="next")])
    if way == "stop":
        pool.stop(batch[0])
        pool.stop(batch[1])
    error = "Timeout" if way == "timeout" else "Cancelled"
    assert results(pool, 3) == {"t0": error, "t1": error, "next": "done"}
    closing.set()


def test_async_handlers_do_not_wait_for_busy_threads(pool, gate):
    define(pool, "slow")(lambda payload, context: gate.wait(LONG))

    @define(pool)
    async def work(payload, context):
        return "done"

    pool.dispatch(tasks(1))
    results(pool, 1)
    pool.dispatch([*tasks(2, "slow"), Task(type="work", id="quick")])
    assert results(pool, 1) == {"quick": "done"}


def test_no_frame_of_the_pool_is_in_a_traceback():
    """An interrupt just before the handler starts is raised in the pool's own code."""
    handlers = Handlers()
    handlers.define("work", Source("value", "test"), lambda payload, context: None)
    shared = SharedState(handlers, lambda: None, grace=1, max_result=1000)
    call = ThreadCall(shared, tasks(1)[0], Call(1, "t0", "work", b"null", 1, LONG))
    loop = AsyncThread(shared, "loop")
    call.try_start(WorkerThread(shared, loop, "w"))
    call.interrupt(Stopped)
    done = perform(handlers, call.call, "w", call.send, call)
    loop.stop()
    assert done.error.type == "Cancelled"
    assert "dtq/workers" not in done.error.traceback

"""Ctrl-C at any moment of any call on a store. See interrupts.py, which also runs by hand."""

from __future__ import annotations

import gc
import signal
import sqlite3
import threading
import time
from contextlib import suppress

import pytest
from interrupts import Interrupted, Presses, pester, sweep
from servers import url_of
from sizes import long_and_hourly, small_and_large

from dtq import QueueManager, TaskQueue
from dtq.queue.events import Emitter
from dtq.queue.handle import Waiters
from dtq.stores.open import open_store
from dtq.stores.shared.group_commit import Batch, GroupCommit
from dtq.stores.sqlite.store import SQLiteStore
from dtq.sync.waits import Condition, SafeFuture
from dtq.task.model import Status, Task
from dtq.workers.process.pool import WorkerPool

KINDS = ("memory", "sqlite", "file")


@pytest.fixture
def presses():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    callbacks, gc.callbacks[:] = gc.callbacks[:], []  # an interrupt in one of them, which others set, is not for us
    yield Presses()
    gc.callbacks[:] = callbacks
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(params=KINDS)
def url(request, tmp_path):
    return {"memory": "memory:", "sqlite": f"{tmp_path}/queue.db", "file": f"file:{tmp_path}/queue"}[request.param]


@small_and_large("stride", 29, 1)
def test_a_call_that_is_interrupted_at_any_moment_has_happened_whole_or_not_at_all(url, presses, stride):
    store = open_store(url)
    lasts = url != "memory:"
    sweep(store, presses, stride=stride, reopen=(lambda: store.close() or open_store(url)) if lasts else None)
    store.close()


@small_and_large("interrupts", 300, 20_000)
def test_other_threads_and_the_node_go_on_while_calls_are_interrupted(url, presses, interrupts):
    store = open_store(url)
    pester(store, presses, interrupts)
    store.close()


@pytest.fixture
def without_hiredis(monkeypatch):
    """Let redis-py pack requests itself: hiredis 3.5 crashes now and then under a trace function."""
    monkeypatch.setattr("redis.connection.HIREDIS_AVAILABLE", False)


@pytest.mark.usefixtures("without_hiredis")
def test_no_reply_goes_astray_where_a_call_to_a_server_is_interrupted(presses):
    """In steps, as each interrupt costs a connection."""
    store = open_store(url_of("valkey"))
    sweep(store, presses, stride=37, settle=0.01, calls={"add", "claim", "update", "heartbeat", "get", "delete"})
    store.close()


@long_and_hourly("interrupts", 60, 2_000)
@pytest.mark.usefixtures("without_hiredis")
def test_other_threads_and_the_node_go_on_while_calls_to_a_server_are_interrupted(presses, interrupts):
    store = open_store(url_of("valkey"))
    pester(store, presses, interrupts, settle=0.02)
    store.close()


class Committer:
    """Commits batches for a GroupCommit. An interrupt strikes in the first: in a job, or right after the commit."""

    def __init__(self, after_the_commit: bool) -> None:
        self.batches = 0
        self.committed: list[str] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self._after_the_commit = after_the_commit

    def commit(self, batch: Batch) -> None:
        self.batches += 1
        first = self.batches == 1
        if first:
            self.entered.set()
            assert self.go_on.wait(10)
        for job in batch.jobs:
            job.value = job.work(self)
        if first and not self._after_the_commit:
            raise KeyboardInterrupt
        self.committed += [job.value for job in batch.jobs]
        batch.is_done = True
        if first:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after_the_commit", [False, True])
def test_only_the_interrupted_thread_hears_of_its_interrupt(tmp_path, after_the_commit):
    committer = Committer(after_the_commit)
    group = GroupCommit(f"{tmp_path}/lock", committer.commit)
    heard = {}

    def run(name: str) -> None:
        try:
            heard[name] = group.run(lambda _: name, flush=True)
        except BaseException as error:
            heard[name] = type(error)

    with group.lock:  # so that all three stand in line
        threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        while len(group._waiting) < 3:
            time.sleep(0.001)
    assert committer.entered.wait(10)
    committer.go_on.set()
    for thread in threads:
        thread.join(10)
    group.close(lambda: None)
    struck = [name for name, value in heard.items() if value is KeyboardInterrupt]
    others = set("abc") - set(struck)
    assert len(struck) == 1
    assert {name: heard[name] for name in others} == {name: name for name in others}
    assert sorted(committer.committed) == sorted("abc" if after_the_commit else others)
    assert not group._waiting


def test_a_job_that_fails_in_the_hands_of_another_thread_is_done_again_by_its_own(tmp_path):
    tries = []

    def commit(batch: Batch) -> None:
        tries.append([job.work(None) for job in batch.jobs])
        for job in batch.jobs:
            job.value, job.error = job.work(None), ValueError("of another") if len(tries) == 1 else None
        batch.is_done = True

    group = GroupCommit(f"{tmp_path}/lock", commit)
    values = []
    group.lock.acquire()
    thread = threading.Thread(target=lambda: values.append(group.run(lambda _: "mine", flush=False)))
    thread.start()
    while not group._waiting:
        time.sleep(0.001)
    group._run_batch(Batch(list(group._waiting)))
    group.lock.release()
    thread.join(10)
    group.close(lambda: None)
    assert values == ["mine"]
    assert tries == [["mine"], ["mine"]]


def test_a_read_that_was_interrupted_right_before_its_end_does_not_break_the_next(tmp_path):
    store = open_store(tmp_path / "queue.db")
    (task_id,) = store.add([Task(type="a", id="x", created_at=1.0, run_at=1.0)])
    store.database.reader.execute("BEGIN")  # as the interrupt leaves it: after the query, before the COMMIT
    assert store.database.reader.execute("SELECT count(*) FROM task").fetchone() == (1,)
    store.add([Task(type="a", id="y", created_at=1.0, run_at=1.0)])
    assert [task.id for task in store.get([task_id, "y"])] == ["x", "y"]
    store.close()


def test_a_cursor_in_the_traceback_of_an_interrupt_does_not_hold_the_database(tmp_path):
    """A notebook keeps the last traceback. A read that it holds open would see old tasks for ever, and the next write
    would find the database locked."""
    store = SQLiteStore(tmp_path / "queue.db")
    other = SQLiteStore(tmp_path / "queue.db")
    store.add([Task(type="any", id=f"{n}") for n in range(5)])
    kept = []

    def look(db: sqlite3.Connection) -> None:
        for _ in [row for row in db.execute("SELECT id FROM task") if interrupt()]:
            pass

    def interrupt() -> bool:
        raise KeyboardInterrupt

    for use in (store.database.read, lambda work: store.database.write(work, flush=True)):
        with pytest.raises(KeyboardInterrupt) as caught:
            use(look)
        kept.append(caught.value)
    other.add([Task(type="any", id="a")])
    assert store.stats().total == 6
    store.add([Task(type="any", id="b")])
    assert other.stats().total == store.stats().total == 7
    store.close()
    other.close()


def in_another_thread(act) -> list:
    """What it returned there; [] if it hangs."""
    heard = []
    thread = threading.Thread(target=lambda: heard.append(act()), daemon=True)
    thread.start()
    thread.join(5)
    return heard


def at_every_moment(presses, prepare) -> int:
    """Interrupt the call that `prepare` returns at each of its moments; `check` must not hang in another thread."""
    moment = 0
    while True:
        call, check = prepare()
        try:
            presses.at(moment, call)
            return moment
        except Interrupted:
            assert in_another_thread(check), f"hangs after an interrupt at moment {moment}"
        moment += 1


def test_a_thread_that_is_interrupted_while_it_waits_locks_no_other_out(presses):
    def a_future():
        future = SafeFuture()

        def call() -> None:
            with suppress(TimeoutError):
                future.result(0.001)

        return call, lambda: future.set_result(1) or True

    def a_condition():
        condition = Condition()

        def call() -> None:
            with condition:
                condition.notify_all()

        def check() -> bool:
            with condition:
                return True

        return call, check

    assert at_every_moment(presses, a_future) > 3
    assert at_every_moment(presses, a_condition) > 1


def test_an_interrupted_emit_leaves_the_emitter_usable(presses):
    emitter = Emitter()
    emitter.on("queue:idle", lambda event: None)
    assert at_every_moment(
        presses, lambda: (lambda: emitter.emit("queue:idle", 0.0), lambda: emitter.catch_up() or True)
    )
    emitter.close()


def test_endings_that_an_interrupt_kept_are_told_at_the_next_look(presses):
    ended = Task(type="any", id="a", status=Status.COMPLETED)

    def several():
        endings = Waiters()
        futures = [endings.future("a") for _ in range(3)]

        def check() -> bool:
            endings.poll(lambda ids, brief=False: [ended for id in ids if id == "a"])
            return all(future.result(1) is ended for future in futures)

        return lambda: endings.resolve([ended]), check

    assert at_every_moment(presses, several) > 5


def test_an_interrupted_wake_does_not_suppress_the_next(presses):
    pool = WorkerPool(1)

    def wake():
        pool.poll()  # clear the wakeup
        return pool.wake, lambda: pool.wake() or pool.wait(1) or pool._wakeup._is_set

    try:
        assert at_every_moment(presses, wake) > 1
    finally:
        pool.close(kill=True)


def test_a_shutdown_that_was_interrupted_is_finished_by_the_next(presses, tmp_path):
    started = threading.Event()

    def wait(payload: object, context: object) -> None:
        started.set()
        time.sleep(1)

    queue = TaskQueue(tmp_path / "queue.db", {"wait": wait}, 1, executor="thread").start()
    handle = queue.add("wait")
    assert started.wait(10)
    with pytest.raises(Interrupted):
        presses.after(0.2, queue.shutdown)
    began = time.monotonic()
    queue.shutdown(force=True)
    assert time.monotonic() - began < 5
    assert not queue._thread.is_alive()
    with QueueManager(tmp_path / "queue.db") as manager:
        assert manager.get(handle.id).status in ("pending", "completed")

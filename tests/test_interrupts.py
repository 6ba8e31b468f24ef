"""Ctrl-C at any moment of any call on a store: see interrupts.py, which runs many more of them by hand."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time

import pytest
from interrupts import Presses, pester, sweep
from servers import url_of

from dtq.stores import open_store
from dtq.stores.sqlite import SQLiteStore
from dtq.stores.turnstile import Batch, Turnstile
from dtq.task import Task

KINDS = ("memory", "sqlite", "file")


@pytest.fixture
def presses():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    yield Presses()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(params=KINDS)
def url(request, tmp_path):
    return {"memory": "memory:", "sqlite": f"{tmp_path}/queue.db", "file": f"file:{tmp_path}/queue"}[request.param]


def test_a_call_that_is_interrupted_at_any_moment_has_happened_whole_or_not_at_all(url, presses):
    store = open_store(url)
    lasts = url != "memory:"
    sweep(store, presses, stride=29, reopen=(lambda: store.close() or open_store(url)) if lasts else None)
    store.close()


def test_other_threads_and_the_node_go_on_while_calls_are_interrupted(url, presses):
    store = open_store(url)
    pester(store, presses, 300)
    store.close()


def test_no_reply_goes_astray_where_a_call_to_a_server_is_interrupted(presses, monkeypatch):
    """In steps, as each interrupt costs a connection. (redis-py packs requests itself here: hiredis 3.5 crashes now and
    then under a trace function.)"""
    monkeypatch.setattr("redis.connection.HIREDIS_AVAILABLE", False)
    store = open_store(url_of("valkey"))
    sweep(store, presses, stride=37, settle=0.01, calls={"add", "claim", "update", "heartbeat", "get", "delete"})
    store.close()


class Carrier:
    """Carries jobs for a Turnstile, and is interrupted in the first batch: in a job, or right behind the commit."""

    def __init__(self, behind_the_commit: bool) -> None:
        self.batches = 0
        self.committed: list[str] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self._behind_the_commit = behind_the_commit

    def carry(self, batch: Batch) -> None:
        self.batches += 1
        first = self.batches == 1
        if first:
            self.entered.set()
            assert self.go_on.wait(10)
        for job in batch.jobs:
            job.value = job.work(self)
        if first and not self._behind_the_commit:
            raise KeyboardInterrupt
        self.committed += [job.value for job in batch.jobs]
        batch.is_done = True
        if first:
            raise KeyboardInterrupt


@pytest.mark.parametrize("behind_the_commit", [False, True])
def test_only_the_interrupted_thread_hears_of_its_interrupt(tmp_path, behind_the_commit):
    carrier = Carrier(behind_the_commit)
    turnstile = Turnstile(f"{tmp_path}/lock", carrier.carry)
    heard = {}

    def run(name: str) -> None:
        try:
            heard[name] = turnstile.run(lambda _: name, flush=True)
        except BaseException as error:
            heard[name] = type(error)

    with turnstile._lock:  # so that all three stand in line
        threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        while len(turnstile._waiting) < 3:
            time.sleep(0.001)
    assert carrier.entered.wait(10)
    carrier.go_on.set()
    for thread in threads:
        thread.join(10)
    turnstile.close(lambda: None)
    struck = [name for name, value in heard.items() if value is KeyboardInterrupt]
    others = set("abc") - set(struck)
    assert len(struck) == 1
    assert {name: heard[name] for name in others} == {name: name for name in others}
    assert sorted(carrier.committed) == sorted("abc" if behind_the_commit else others)
    assert not turnstile._waiting


def test_a_job_that_fails_in_the_hands_of_another_thread_is_done_again_by_its_own(tmp_path):
    tries = []

    def carry(batch: Batch) -> None:
        tries.append([job.work(None) for job in batch.jobs])
        for job in batch.jobs:
            job.value, job.error = job.work(None), ValueError("of another") if len(tries) == 1 else None
        batch.is_done = True

    turnstile = Turnstile(f"{tmp_path}/lock", carry)
    values = []
    turnstile._lock.acquire()
    thread = threading.Thread(target=lambda: values.append(turnstile.run(lambda _: "mine", flush=False)))
    thread.start()
    while not turnstile._waiting:
        time.sleep(0.001)
    turnstile._let_through(Batch(list(turnstile._waiting)))
    turnstile._lock.release()
    thread.join(10)
    turnstile.close(lambda: None)
    assert values == ["mine"]
    assert tries == [["mine"], ["mine"]]


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

"""What is special about the SQLite store: its file, its neighbours, its disk."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from dtq.errors import StoreError
from dtq.queue.manager import QueueManager
from dtq.stores.open import open_store
from dtq.stores.protocol import Node
from dtq.stores.shared.peers import Peers
from dtq.stores.sqlite import schema
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import Task
from dtq.task.transitions import succeed

NOW = 1000.0


def task(n: int = 0, **options: object) -> Task:
    return Task(type="a", id=f"t{n}", created_at=NOW, run_at=NOW, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["postgres:/x", "sqlite:q.db", "sqlite:///", "sqlite://q.db", "mysql://x/y", "http://x", "memory:x"]
)
def test_a_url_that_names_no_store_is_refused_with_those_that_do(url):
    with pytest.raises(StoreError, match="sqlite:///"):
        open_store(url)


@pytest.mark.parametrize("store", [None, 3, object(), b"q.db"])
def test_what_is_no_store_is_refused(store):
    with pytest.raises(StoreError, match="allowed: a URL, a path"):
        QueueManager(store)


def test_a_path_is_a_sqlite_store(tmp_path):
    with QueueManager(tmp_path / "q.db") as manager:
        manager.add("a")
    assert (tmp_path / "q.db").exists()


def test_a_url_names_a_relative_or_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url, path in [("sqlite:///r.db", "r.db"), (f"sqlite:///{tmp_path}/a.db", "a.db"), ("bare.db", "bare.db")]:
        open_store(url).close()
        assert (tmp_path / path).exists()


@pytest.mark.parametrize("path", ["missing/q.db", "."])
def test_a_place_that_cannot_be_written_is_named(tmp_path, path):
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        SQLiteStore(tmp_path / path)
    assert str(tmp_path / path) in str(caught.value)


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        SQLiteStore(path)
    assert path.read_text() == "dear diary, " * 1000


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE person (name TEXT)")
    other.close()
    with pytest.raises(StoreError, match="another program"):
        SQLiteStore(path)


def test_a_database_from_a_newer_version_is_refused_with_both_versions(tmp_path):
    path = tmp_path / "q.db"
    SQLiteStore(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    newer.close()
    with pytest.raises(
        StoreError, match=f"version {schema.VERSION + 1}, this dtq knows version {schema.VERSION}: upgrade"
    ):
        SQLiteStore(path)


def test_durability_has_two_words():
    with pytest.raises(StoreError, match="'full', 'relaxed'"):
        SQLiteStore("x.db", durability="none")


def test_two_processes_may_make_the_database_at_the_same_time(tmp_path):
    code = "import sys; from dtq.stores.sqlite.store import SQLiteStore; SQLiteStore(sys.argv[1]).close()"
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "q.db")]) for _ in range(4)]
    assert [child.wait(30) for child in children] == [0] * 4


def test_a_full_disk_refuses_and_loses_nothing_and_goes_on_when_there_is_room(tmp_path):
    store = SQLiteStore(tmp_path / "q.db")
    store.add([task(1)])
    pages = store.database.writer.execute("PRAGMA page_count").fetchone()[0]
    store.database.writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="nothing was stored: database or disk is full"):
        store.add([task(n, payload="x" * 5000) for n in range(2, 50)])
    assert [t.id for t in store.find()] == ["t1"]
    store.database.writer.execute("PRAGMA max_page_count = 1000000")
    store.add([task(2)])
    assert store.stats().counts["pending"] == 2
    store.close()


def test_threads_that_add_at_the_same_time_share_commits(tmp_path):
    store = SQLiteStore(tmp_path / "q.db")
    commits = []
    store.database.writer.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    start = threading.Barrier(16)

    def add(thread: int) -> None:
        start.wait()
        for n in range(20):
            store.add([task(thread * 100 + n)])

    threads = [threading.Thread(target=add, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.stats().counts["pending"] == 320
    assert len(commits) < 320
    store.close()


def test_a_lane_whose_making_was_taken_back_is_made_again(tmp_path):
    with QueueManager(str(tmp_path / "q.db")) as manager:
        store = manager.store

        def make_a_lane_and_fail(db):
            store._lanes.find(db, ("new", "a", ""))
            raise StoreError("planted")

        with pytest.raises(StoreError, match="planted"):
            store.database.write(make_a_lane_and_fail, flush=False, wake=None)
        manager.add("b", queue="other")
        manager.add("a", queue="new")
        assert {(t.queue, t.type) for t in manager.find()} == {("new", "a"), ("other", "b")}


def test_an_idle_node_writes_nothing(tmp_path):
    store = SQLiteStore(tmp_path / "q.db")
    store.heartbeat(Node("n", seen_at=NOW), (), 30, NOW)
    store.claim("n", 1, 30, NOW, {"a"})
    before = (tmp_path / "q.db-wal").stat().st_mtime_ns, store.database.writer.total_changes
    for second in range(5):
        store.heartbeat(Node("n", seen_at=NOW + second), (), 30, NOW + second)
        store.reap("n", 10, 30, NOW + second)
        store.claim("n", 1, 30, NOW + second, {"a"})
        store.purge(NOW, {"completed"})
        store.wait(0)
    assert before == ((tmp_path / "q.db-wal").stat().st_mtime_ns, store.database.writer.total_changes)
    store.close()


def test_a_commit_wakes_the_other_processes(tmp_path):
    waiting, adding = SQLiteStore(tmp_path / "q.db"), SQLiteStore(tmp_path / "q.db")
    waiting.wait(0)
    adding.add([task(1)])
    assert waiting.wait(5)
    (claimed,) = waiting.claim("n", 1, 30, NOW, {"a"})
    adding.wait(0)
    waiting.update([(succeed(claimed, None, NOW), ())])
    assert adding.wait(5)
    adding.close()
    waiting.close()


def test_two_nodes_that_come_within_one_tick_of_the_file_system_know_each_other(tmp_path):
    """Before Linux 6.13 a directory's time stands still for up to 10 ms; what is not seen would be taken for dead."""
    first = Peers(tmp_path)
    tick = time.time_ns() // 10_000_000 * 10_000_000
    os.utime(tmp_path, ns=(tick, tick))
    assert first.others() == []
    second = Peers(tmp_path)
    os.utime(tmp_path, ns=(tick, tick))
    assert first.others() == [second.name]
    for peer in (first, second):
        peer.close()


def test_a_closed_store_raises_and_does_not_open_again(tmp_path):
    """A late call raises, and opens no socket that no one would close."""
    store = SQLiteStore(tmp_path / "q.db")
    store.close()
    for ask in (store.fileno, lambda: store.wait(0), lambda: store.add([])):
        with pytest.raises(StoreError):
            ask()
    assert not any((tmp_path / "q.db-nodes").glob("*"))


def test_of_parents_that_are_deleted_together_a_child_names_the_first(tmp_path):
    with QueueManager(tmp_path / "queue.db") as manager:
        manager.add_many([{"type": "a", "id": "one"}, {"type": "a", "id": "two"}])
        manager.add("a", id="child", after=["one", "two"])
        manager.store.delete(["two", "one"])
        assert manager.get("child").doom == "its parent two is cancelled"

"""A process that has a queue may fork: the child is a separate client, and the parent is not affected."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from dtq import QueueManager, TaskQueue
from dtq.errors import DTQError, StoreError
from dtq.stores.open import open_store
from dtq.stores.protocol import Node
from dtq.stores.sqlite import database
from dtq.task.model import Task

HERE = Path(__file__).parents[1]
NOW = 1000.0
WAIT = 60.0
SCHEMES = {"sqlite": "", "file": "file:"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@pytest.fixture(params=SCHEMES)
def url(request, tmp_path):
    return f"{SCHEMES[request.param]}{tmp_path}/queue"


class Child:
    """A child that does this work and ends at once; `result` is what the work returns."""

    def __init__(self, work) -> None:
        self._out, back = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12: this process has threads
            self.pid = os.fork()
        if self.pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                try:
                    value = work()
                except BaseException as error:
                    value = error
                os.write(back, pickle.dumps(value))
                code = 0
            os._exit(code)
        os.close(back)

    def result(self, seconds=WAIT):
        timer = threading.Timer(seconds, os.kill, [self.pid, signal.SIGKILL])  # one that hangs
        timer.start()
        with open(self._out, "rb") as pipe:
            data = pipe.read()
        timer.cancel()
        os.waitpid(self.pid, 0)
        assert data, "the child hung, or died"
        value = pickle.loads(data)
        if isinstance(value, BaseException):
            raise value
        return value


def task(n: object = 0) -> Task:
    return Task(type="a", id=f"t{n}", created_at=NOW, run_at=NOW)


def wait_until(condition, seconds=WAIT):
    give_up_at = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up_at, "it did not come to be"
        time.sleep(0.01)
    return found


def script(text: str, *args: object) -> subprocess.Popen[str]:
    """Start a script that can fork as it likes."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(text), *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)


# --- stores ----------------------------------------------------------------------------------------------------------


def test_parent_and_children_write_through_the_store_that_they_share_and_lose_nothing(url):
    """Four processes with one inherited store, 600 tasks each."""
    store = open_store(url)
    store.add([task("first")])

    def add(who):
        for n in range(120):
            store.add([task(f"{who}-{n}-{k}") for k in range(5)])

    children = [Child(lambda who=who: add(who)) for who in ("a", "b", "c")]
    add("parent")
    for child in children:
        child.result()
    assert store.stats().total == 2401
    store.close()
    again = open_store(url)
    assert again.stats().total == 2401
    again.close()


def test_what_a_child_commits_survives_the_parent_that_closes(url):
    """The parent was the first to open the file, and would remove SQLite's log as the last to close it."""
    store = open_store(url)
    store.add([task("parent")])
    ready, go = os.pipe(), os.pipe()

    def work():
        store.add([task("child-1")])
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        store.add([task("child-2")])
        store.close()

    child = Child(work)
    os.read(ready[0], 1)
    store.close()
    os.write(go[1], b"x")
    child.result()
    for fd in (*ready, *go):
        os.close(fd)
    again = open_store(url)
    assert {found.id for found in again.find()} == {"tparent", "tchild-1", "tchild-2"}
    again.close()


def test_a_child_opens_a_store_of_its_own_on_the_same_place(url):
    store = open_store(url)
    store.add([task("parent")])

    def work():
        mine = open_store(url)
        mine.add([task("child")])
        mine.close()

    child = Child(work)
    store.add([task("more")])
    child.result()
    assert store.stats().total == 3
    store.close()


def test_a_child_that_closes_the_store_leaves_the_parents_nodes_alone(url):
    store, other = open_store(url), open_store(url)
    store.heartbeat(Node("parent"), (), 30, NOW)
    other.heartbeat(Node("other"), (), 30, NOW)
    store.add([task()])
    store.claim("parent", 1, 30, NOW, {"a"})

    def work():
        store.stats()
        store.add([task("child")])
        store.close()
        gc.collect()

    for how in (work, store.close, gc.collect, lambda: None):
        Child(how).result()
        assert other.reap("other", 10, 30, NOW + 1) == []
        assert {node.id for node in other.stats().nodes} == {"parent", "other"}
    for either in (store, other):
        either.close()


def test_a_child_of_a_child_writes_too(url):
    store = open_store(url)
    store.add([task(0)])

    def work():
        store.add([task(1)])
        Child(lambda: store.add([task(2)])).result()
        store.add([task(3)])

    Child(work).result()
    store.add([task(4)])
    assert store.stats().total == 5
    store.close()


@pytest.mark.parametrize("seconds", [3])
def test_a_fork_amid_writing_and_reading_threads_hangs_no_child(url, seconds):
    store, stop = open_store(url), threading.Event()
    names = iter(range(10**9))

    def write():
        while not stop.is_set():
            store.add([task(next(names))])

    def read():
        while not stop.is_set():
            store.stats()
            store.wait(0)

    threads = [threading.Thread(target=work) for work in (write, write, read)]
    for thread in threads:
        thread.start()
    until, children = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        assert Child(lambda n=children: store.add([task(f"child-{n}")])).result() == [f"tchild-{children}"]
        children += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert store.stats().total == next(names) + children
    store.close()


def test_a_store_that_was_closed_stays_closed_in_a_child(url):
    store = open_store(url)
    store.add([task()])
    store.close()
    for work in (store.fileno, lambda: store.add([task(1)]), store.stats):
        with pytest.raises(StoreError):
            Child(work).result()
    Child(store.close).result()


def test_a_memory_store_refuses_in_a_child_and_goes_on_in_the_parent():
    store = open_store("memory:")
    store.add([task()])
    for work in (
        lambda: store.add([task(1)]),
        lambda: store.claim("w", 1, 30, NOW, {"a"}),
        lambda: store.update([]),
        lambda: store.heartbeat(Node("w"), [], 30, NOW),
        lambda: store.reap("w", 1, 30, NOW),
        lambda: store.get(["t0"]),
        lambda: store.find(),
        lambda: store.stats(),
        lambda: store.next_due(NOW),
        lambda: store.set_lane("q", paused=True),
        lambda: store.delete(["t0"]),
        lambda: store.purge(NOW, {"completed"}),
        lambda: store.fileno(),
        lambda: store.wait(0),
    ):
        with pytest.raises(StoreError, match="a memory: store works only in the process that created it"):
            Child(work).result()
    Child(store.close).result()
    assert store.add([task(2)]) == ["t2"]
    assert store.wait(1)
    store.close()


def test_a_fork_within_a_long_transaction_refuses_that_database_in_the_child(tmp_path, monkeypatch):
    """Its connection could not be closed before; in the child it is neither used nor closed."""
    monkeypatch.setattr(database, "FORK_TIMEOUT", 0.1)
    path = str(tmp_path / "queue")
    store, within, go = open_store(path), threading.Event(), threading.Event()

    def work(_db):
        within.set()
        go.wait(WAIT)

    thread = threading.Thread(target=store.database.write, args=[work], kwargs={"flush": False, "wake": None})
    thread.start()
    within.wait(WAIT)
    for use in (lambda: store.add([task()]), store.stats, lambda: open_store(path)):
        with pytest.raises(StoreError, match="it was forked while another thread was using that database"):
            Child(use).result()
    go.set()
    thread.join()
    store.add([task(1)])
    assert store.stats().total == 1
    store.close()


def test_a_fork_goes_before_the_threads_that_begin_to_use_the_database_later(tmp_path):
    """Busy threads take a lock again and again: without an order, the fork would wait until it is lucky."""
    store, within, go = open_store(str(tmp_path / "queue")), threading.Event(), threading.Event()

    def work(_db):
        within.set()
        go.wait(WAIT)

    def fork():
        store.before_fork()
        assert store.database._write_connection is store.database._read_connection is None
        seen.append(sorted(thread.name for thread in later if not thread.is_alive()))
        store.after_fork()

    seen: list[list[str]] = []
    running = threading.Thread(target=store.database.write, args=[work], kwargs={"flush": False, "wake": None})
    forking = threading.Thread(target=fork)
    later = [threading.Thread(target=use, name=use.__name__) for use in (lambda: store.add([task()]), store.stats)]
    running.start()
    within.wait(WAIT)
    forking.start()
    wait_until(store.database._entrance.locked)
    for thread in later:
        thread.start()
    time.sleep(0.05)
    go.set()
    for thread in (running, forking, *later):
        thread.join(WAIT)
    assert seen == [[]]
    assert store.stats().total == 1
    store.close()


def test_a_fork_keeps_descriptors_in_bounds(url):
    store = open_store(url)

    def work():
        before = None
        for n in range(5):
            Child(lambda n=n: store.add([task(f"{os.getpid()}-{n}")])).result()
            store.add([task(n)])
            count = len(os.listdir("/proc/self/fd"))
            before = before or count
            assert count <= before
        store.close()

    if Path("/proc/self/fd").exists():
        work()


# --- queues ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def queue(url):
    handlers = {"note": "queue_handlers:note"}
    with TaskQueue(url, handlers, pool_size=2) as queue:
        yield queue


@pytest.fixture
def neighbour(url, tmp_path):
    """Another node, which takes over whatever is left without an owner."""
    node = subprocess.Popen(
        [sys.executable, str(HERE / "kill_node.py"), url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert node.stdout.readline().startswith("READY")
    yield node
    node.communicate("")


def test_the_end_of_a_child_leaves_the_parents_node_alone(url, queue, neighbour, tmp_path):
    """However the child ends: by closing, shutting down, leaving the block, collecting garbage, or as a process of
    multiprocessing."""
    log = tmp_path / "log"
    queue.add_many({"type": "note", "payload": {"log": str(log), "seconds": 4}} for _ in range(4))
    wait_until(lambda: queue.stats().running == 4)

    def collect():
        nonlocal queue
        del queue
        gc.collect()

    for work in (
        queue.close,
        queue.shutdown,
        lambda: queue.shutdown(force=True),
        lambda: queue.__exit__(None, None, None),
        collect,
    ):
        Child(work).result()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=queue.stats)
        process.start()
        process.join(WAIT)
    assert process.exitcode == 0
    queue.join(WAIT)
    assert [(task.status, task.interruptions, task.attempts) for task in queue.find()] == [("completed", 0, 1)] * 4
    assert set(Counter(line.split()[0] for line in log.read_text().splitlines()).values()) == {1}


def test_a_queue_in_a_child_is_a_client(queue, tmp_path):
    heard = []
    queue.on("task:added", heard.append)

    def work():
        handle = queue.add("note", {"log": str(tmp_path / "log"), "n": 7})
        assert handle.result(WAIT) == 7
        assert queue.get(handle.id).status == "completed"
        queue.join(WAIT)
        assert queue.workers() == []
        queue.pause("other")
        queue.resume("other")
        assert queue.cancel(queue.add("note", {}, delay=60).id).status == "cancelled"
        for refused in (queue.start, queue.__enter__):
            with pytest.raises(DTQError, match="belongs to the process that was forked"):
                refused()
        with pytest.raises(DTQError, match="has no workers"):
            queue.resize(3)
        return [event.name for event in heard]

    assert Child(work).result() == []
    assert queue.add("note", {"log": str(tmp_path / "log"), "n": 8}).result(WAIT) == 8
    assert len(queue.workers()) == 2


def test_a_queue_that_was_not_started_cannot_be_started_in_a_child(url):
    queue = TaskQueue(url, {"note": "queue_handlers:note"}, pool_size=1)
    with pytest.raises(DTQError, match="make a new one here"):
        Child(queue.start).result()
    Child(queue.close).result()
    with queue:
        assert queue.workers()


def test_a_child_makes_a_queue_of_its_own_and_runs_tasks(url, queue, tmp_path):
    def work():
        with TaskQueue(url, {"mine": "queue_handlers:note"}, pool_size=1) as mine:
            return mine.add("mine", {"log": str(tmp_path / "log"), "n": 5}).result(WAIT)

    assert Child(work).result() == 5
    assert queue.add("note", {"log": str(tmp_path / "log"), "n": 6}).result(WAIT) == 6


def test_a_manager_waits_for_results_in_parent_and_child(url, queue, tmp_path):
    with QueueManager(url) as manager:
        payload = {"log": str(tmp_path / "log"), "n": 1, "seconds": 0.5}
        handle = manager.add("note", payload)
        child = Child(lambda: (handle.result(WAIT), manager.add("note", payload).result(WAIT)))
        assert handle.result(WAIT) == 1
        assert child.result() == (1, 1)
        assert manager.add("note", payload).result(WAIT) == 1


PRELOAD = """
    import os, sys, signal, atexit
    from dtq import QueueManager, TaskQueue
    url, log = sys.argv[1:]
    queue = TaskQueue(url, {"note": "queue_handlers:note"}, pool_size=2).start()   # as --preload loads the application
    manager = QueueManager(url)
    manager.add("note", {"log": log, "seconds": 2.5})
    children = []
    for number in range(3):
        if not (pid := os.fork()):
            handles = [source.add("note", {"log": log, "n": number}) for source in (manager, queue) for _ in range(10)]
            assert {handle.result(60) for handle in handles} == {number}
            sys.exit(0)    # with everything that belongs to a proper end
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    queue.join(60)
    print(codes, sorted({(task.status.value, task.attempts, task.interruptions) for task in manager.find()}))
"""


def test_workers_of_a_preloaded_application_use_its_queue_and_end_properly(url, neighbour, tmp_path):
    preload = script(PRELOAD, url, tmp_path / "log")
    out, _ = preload.communicate(timeout=WAIT)
    assert out == "[0, 0, 0] [('completed', 1, 0)]\n"
    assert len((tmp_path / "log").read_text().splitlines()) == 61


# --- orphans ---------------------------------------------------------------------------------------------------------

PARENT = """
    import os, sys, threading, time
    from dtq import TaskQueue
    url, log = sys.argv[1:]
    queue = TaskQueue(url, {"long": "queue_handlers:note", "note": "queue_handlers:note"}, pool_size=1).start()
    queue.add("long", {"log": log, "seconds": 30}, id="long")
    while queue.get("long").status != "processing":
        time.sleep(0.01)
    def add():
        while True:
            queue.add_many([{"type": "note", "payload": {}, "delay": 3600}] * 20)
    for _ in range(2):
        threading.Thread(target=add, daemon=True).start()
    time.sleep(0.2)
    orphan = os.fork()
    if not orphan:
        time.sleep(40)
        os._exit(0)
    print(orphan, flush=True)
    time.sleep(40)
"""


@pytest.mark.parametrize("kill", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 5))])
def test_an_orphan_holds_no_lock_of_its_killed_parent(url, kill, neighbour, tmp_path):
    parent = script(PARENT, url, tmp_path / "log")
    orphan = int(parent.stdout.readline())
    try:
        time.sleep(0.1 * kill / 5)
        parent.kill()
        parent.wait()
        for pipe in (parent.stdin, parent.stdout):  # the orphan has them too: they do not end
            pipe.close()
        began = time.monotonic()
        with QueueManager(url) as manager:
            manager.add("note", {"log": str(tmp_path / "log")}, delay=3600)
            assert time.monotonic() - began < 5
            wait_until(lambda: manager.get("long").interruptions == 1, 10)
            os.kill(orphan, 0)  # it is there all the time
    finally:
        os.kill(orphan, signal.SIGKILL)

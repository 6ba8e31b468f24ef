"""Live nodes are recognised as alive, whatever name they use for the queue, and whatever happens to their files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from dtq import QueueManager, TaskQueue
from dtq.errors import StoreError
from dtq.stores.open import open_store
from dtq.stores.protocol import Node
from dtq.stores.shared.peers import Peers
from dtq.task.model import Task
from dtq.task.transitions import succeed

HERE = Path(__file__).parents[1]
NOW = 1000.0
WAIT = 60.0
KINDS = {"sqlite": "", "file": "file:"}


@pytest.fixture(params=KINDS)
def scheme(request):
    return KINDS[request.param]


def nodes_of(path: Path) -> Path:
    """Return the directory of the peers' files, for a queue of either kind."""
    return path / "nodes" if path.is_dir() else path.with_name(f"{path.name}-nodes")


def task(n: int = 0) -> Task:
    return Task(type="a", id=f"t{n}", created_at=NOW, run_at=NOW)


def wait_until(condition, seconds=WAIT):
    give_up_at = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up_at, "it did not come to be"
        time.sleep(0.01)
    return found


@pytest.fixture
def start_node():
    """Start nodes that end with their test, also where it fails."""
    started = []

    def start(store: str, cwd: Path, *, lease: float = 30, chdir: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "kill_node.py"), store, str(lease), chdir]
        node = subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(node)
        assert node.stdout.readline().startswith("READY")
        return node

    yield start
    for node in started:
        node.kill()
        node.communicate()


# --- one queue under two names ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_nodes_that_open_the_queue_by_two_names_leave_each_others_tasks_alone(scheme, tmp_path, start_node):
    """A symlink to the queue, a symlinked directory, and a relative path whose process changes its directory."""
    (tmp_path / "real").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").symlink_to("real")
    queue, log = tmp_path / "real" / "queue", tmp_path / "log"
    with QueueManager(f"{scheme}{queue}") as manager:
        (tmp_path / "link").symlink_to("real/queue")
        start_node(f"{scheme}{tmp_path}/link", tmp_path)
        start_node(f"{scheme}{tmp_path}/folder/queue", tmp_path)
        start_node(f"{scheme}queue", tmp_path / "real", chdir=str(tmp_path / "elsewhere"))
        payload = {"log": str(log), "seconds": 1.0}
        manager.add_many({"type": "note", "payload": payload} for _ in range(8))
        wait_until(lambda: not manager.stats().unfinished)
        found = manager.find()
        assert {node.id for node in manager.stats().nodes if node.types} == {node.id for node in manager.stats().nodes}
        assert len(manager.stats().nodes) == 3
    assert [(task.status, task.interruptions) for task in found] == [("completed", 0)] * 8
    assert Counter(line.split()[0] for line in log.read_text().splitlines()) == {task.id: 1 for task in found}
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_queue_opened_by_a_relative_path_goes_on_when_the_directory_changes(scheme, moment, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    option = "?persistence_interval=0.05" if scheme else ""
    queue = TaskQueue(
        f"{scheme}queue{option}", {"double": lambda payload, _: 2 * payload}, executor="thread", pool_size=1
    )
    if moment == "before":
        monkeypatch.chdir("elsewhere")
    with queue:
        monkeypatch.chdir(tmp_path / "elsewhere")
        with QueueManager(f"{scheme}{tmp_path}/queue") as other:
            assert other.add("double", 2).result(WAIT) == 4
            assert queue.add("double", 3).result(WAIT) == 6
            assert queue.cleanup(0) == 2
            if scheme:
                wait_until(lambda: not (tmp_path / "queue" / "journal-1").exists())
    assert list((tmp_path / "elsewhere").iterdir()) == []
    with QueueManager(f"{scheme}{tmp_path}/queue") as again:
        assert again.stats().nodes == []


def test_an_error_names_the_place_that_a_relative_path_meant_at_the_beginning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=f"{tmp_path}/file/queue"):
        open_store("file/queue")


# --- files that are removed ------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("what", ["the files", "the directory"])
def test_removed_files_of_living_nodes_cost_no_task(scheme, what, tmp_path, start_node):
    queue, log = tmp_path / "queue", tmp_path / "log"
    with QueueManager(f"{scheme}{queue}") as manager:
        for _ in range(2):
            start_node(f"{scheme}{queue}", tmp_path)
        payload = {"log": str(log), "seconds": 1.5}
        manager.add_many({"type": "note", "payload": payload} for _ in range(4))
        wait_until(lambda: manager.stats().running == 4)
        names = {path.name for path in nodes_of(queue).iterdir()}
        for _ in range(10):
            for path in nodes_of(queue).glob("*"):
                path.unlink(missing_ok=True)
            if what == "the directory":
                shutil.rmtree(nodes_of(queue), ignore_errors=True)
            time.sleep(0.1)
        wait_until(lambda: not manager.stats().unfinished)
        found = manager.find()
        wait_until(lambda: len(list(nodes_of(queue).glob("*-*"))) >= 2)
        assert {path.name for path in nodes_of(queue).iterdir()} <= names
    assert [(task.status, task.interruptions) for task in found] == [("completed", 0)] * 4
    assert Counter(line.split()[0] for line in log.read_text().splitlines()) == {task.id: 1 for task in found}


def test_a_dead_neighbours_tasks_are_taken_over_at_once_and_a_living_ones_are_not(scheme, tmp_path):
    url = f"{scheme}{tmp_path / 'queue'}"
    alive, dead, third = (open_store(url) for _ in range(3))
    for name, store in (("alive", alive), ("dead", dead), ("third", third)):
        store.heartbeat(Node(name), (), 30, NOW)
    alive.add([task(1), task(2)])
    alive.claim("alive", 1, 30, NOW, {"a"})
    dead.claim("dead", 1, 30, NOW, {"a"})
    assert third.reap("third", 10, 30, NOW + 1) == []
    dead.abandon()
    assert [t.id for t in third.reap("third", 10, 30, NOW + 1)] == ["t2"]
    assert third.reap("third", 10, 30, NOW + 2) == []
    assert sorted(node.id for node in third.stats().nodes) == ["alive", "third"]
    alive.close()
    third.close()
    fourth = open_store(url)  # of what the others left behind, with tasks of theirs
    taken = fourth.reap("fourth", 10, 30, NOW + 3)
    assert sorted(t.id for t in taken) == ["t1", "t2"]
    fourth.update([(succeed(t, None, NOW), ()) for t in taken])
    fourth.reap("fourth", 10, 30, NOW + 4)
    fourth.close()
    assert list(nodes_of(tmp_path / "queue").iterdir()) == []


def test_a_node_that_is_killed_is_noticed_at_once_where_its_file_was_removed_and_made_again(
    scheme, tmp_path, start_node
):
    queue, log = tmp_path / "queue", tmp_path / "log"
    with QueueManager(f"{scheme}{queue}") as manager:
        victim = start_node(f"{scheme}{queue}", tmp_path)
        for path in nodes_of(queue).iterdir():
            path.unlink()
        manager.add("note", {"log": str(log), "seconds": 60.0}, id="long")
        wait_until(lambda: manager.get("long").status == "processing")
        time.sleep(1.5)
        start_node(f"{scheme}{queue}", tmp_path)
        victim.kill()
        wait_until(lambda: manager.get("long").interruptions, 3)


def test_a_killed_node_without_a_file_is_taken_over_when_its_lease_ends(scheme, tmp_path, start_node):
    queue, log = tmp_path / "queue", tmp_path / "log"
    with QueueManager(f"{scheme}{queue}") as manager:
        victim = start_node(f"{scheme}{queue}", tmp_path, lease=4)
        manager.add("note", {"log": str(log), "seconds": 1.0}, id="long")
        wait_until(lambda: manager.get("long").status == "processing")
        start_node(f"{scheme}{queue}", tmp_path, lease=4)
        victim.kill()
        for path in nodes_of(queue).iterdir():
            path.unlink()
        time.sleep(1.5)
        assert manager.get("long").interruptions == 0
        wait_until(lambda: manager.get("long").status == "completed", 10)
        assert manager.get("long").interruptions == 1
        wait_until(lambda: len(manager.stats().nodes) == 1, 10)


def test_a_missing_file_counts_as_dead_only_when_the_lease_is_over(scheme, tmp_path):
    one, two = (open_store(f"{scheme}{tmp_path}/queue") for _ in range(2))
    for name, store in (("one", one), ("two", two)):
        store.heartbeat(Node(name), (), 30, NOW)
    one.add([task()])
    one.claim("one", 1, 30, NOW, {"a"})
    for path in nodes_of(tmp_path / "queue").iterdir():
        path.unlink()
    for seconds in (1, 29):
        assert two.reap("two", 10, 30, NOW + seconds) == []
        assert {node.id for node in two.stats().nodes} == {"one", "two"}
    assert [task.id for task in two.reap("two", 10, 30, NOW + 30)] == ["t0"]
    two.reap("two", 10, 30, NOW + 62)
    assert {node.id for node in two.stats().nodes} == {"two"}
    one.close()
    two.close()


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.replace(path.parent / "copy-1")])
def test_a_heartbeat_puts_the_nodes_own_file_back(harm, tmp_path):
    store = open_store(str(tmp_path / "queue"))
    store.heartbeat(Node("one"), (), 30, NOW)
    (own,) = nodes_of(tmp_path / "queue").iterdir()
    harm(own)
    store.heartbeat(Node("one"), (), 30, NOW)
    other = open_store(str(tmp_path / "queue"))
    assert own.exists()
    assert own.name not in other.database.watch.peers.dead()
    other.close()
    store.close()
    assert not own.exists()


def test_a_copy_in_place_of_a_nodes_file_is_replaced_by_one_that_is_locked(tmp_path):
    one, two = Peers(tmp_path), Peers(tmp_path)
    (tmp_path / one.name).unlink()
    (tmp_path / one.name).touch()  # as a backup that is played back does it
    assert two.dead() == [one.name]
    one.ensure_file()
    assert two.dead() == []
    for peer in (one, two):
        peer.close()


def test_a_look_at_the_peers_makes_no_file(tmp_path):
    one, two = Peers(tmp_path), Peers(tmp_path)
    assert two.others() == [one.name]
    (tmp_path / one.name).unlink()
    assert not two._is_dead(one.name)
    assert [path.name for path in tmp_path.iterdir()] == [two.name]
    for peer in (one, two):
        peer.close()


# --- the end of a node -----------------------------------------------------------------------------------------------


def test_a_node_that_cannot_take_its_leave_is_taken_over_at_once(scheme, tmp_path, monkeypatch):
    one, two = (open_store(f"{scheme}{tmp_path}/queue") for _ in range(2))
    one.heartbeat(Node("one"), (), 30, NOW)
    two.heartbeat(Node("two"), (), 30, NOW)
    one.add([task()])
    one.claim("one", 1, 30, NOW, {"a"})

    def fail(*_args):
        raise StoreError("planted: the disk is full")

    monkeypatch.setattr(one, "heartbeat", fail)
    one.close()
    assert [task.id for task in two.reap("two", 10, 30, NOW + 1)] == ["t0"]
    two.update([(replace(two.get(["t0"])[0], status="completed", finished_at=NOW), ())])
    two.reap("two", 10, 30, NOW + 2)
    two.reap("two", 10, 30, NOW + 3)
    assert {node.id for node in two.stats().nodes} == {"two"}
    two.close()
    assert list(nodes_of(tmp_path / "queue").iterdir()) == []


def test_a_process_that_only_looks_makes_no_file_when_it_closes(scheme, tmp_path):
    open_store(f"{scheme}{tmp_path}/queue").close()
    looking = open_store(f"{scheme}{tmp_path}/queue")
    looking.stats()
    looking.close()
    assert not nodes_of(tmp_path / "queue").exists()


def test_a_nodes_file_costs_one_stat_a_heartbeat(tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "queue"))
    store.heartbeat(Node("one"), (), 30, NOW)
    looks, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: looks.append(path) or stat(path, **options))
    for second in range(5):
        store.heartbeat(Node("one"), (), 30, NOW + second)
    assert len(looks) == 5
    store.close()

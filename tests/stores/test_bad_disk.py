"""Disks that refuse to write, descriptors that run out, and what is on the disk when `add` returns.

Kills prove that a dead process loses nothing. That a power cut loses nothing either is shown in another way: by every
prefix of the file store's writes without what was not flushed (test_file.py), and here by counting SQLite's flushes.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, suppress

import httpx
import pytest
import servers

from dtq import TaskQueue
from dtq.errors import StoreError
from dtq.stores.open import open_store
from dtq.task.model import Task

NOW = 1000.0
WAIT = 60.0
URLS = ["{}/queue.db", "file:{}/queue"]

refused = pytest.mark.parametrize("url", URLS)


def task(n: object, **options: object) -> Task:
    return Task(**{"type": "work", "id": f"t{n}", "created_at": NOW, "run_at": NOW, **options})  # type: ignore[arg-type]


def ids(store) -> list[str]:
    return [task.id for task in store.find(limit=1000)]


@contextmanager
def no_more_writes():
    """Make the kernel refuse every write to a file, as on a disk that became read-only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that they fail, and do not kill
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@contextmanager
def no_more_descriptors():
    """Make every call that opens a file raise EMFILE."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/dev/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@refused
def test_a_disk_that_refuses_writes_acknowledges_nothing_and_recovers(url, tmp_path):
    store = open_store(url.format(tmp_path))
    store.add([task(1)])
    with no_more_writes():
        for _ in range(3):
            with pytest.raises(StoreError, match="nothing was stored"):
                store.add([task(2)])
        assert ids(store) == ["t1"]
    assert store.add([task(2)]) == ["t2"]
    store.abandon()
    again = open_store(url.format(tmp_path))
    assert ids(again) == ["t1", "t2"]
    again.close()


@refused
def test_a_node_keeps_its_outcomes_while_the_disk_refuses_to_write(url, tmp_path, caplog):
    with TaskQueue(url.format(tmp_path), {"work": "queue_handlers:sleep_if_asked"}, 1) as queue:
        handles = queue.add_many({"type": "work", "payload": 0.2} for _ in range(4))
        handles[0].result(WAIT)
        with no_more_writes():
            with pytest.raises(StoreError, match="nothing was stored"):
                queue.add("work", 0)
            assert queue.get(handles[0].id).status == "completed"
        queue.join(WAIT)
        assert {handle.task.attempts for handle in handles} == {1}
        assert queue.stats().counts["completed"] == len(handles)


@refused
def test_without_descriptors_add_raises_or_stores_and_nothing_opens(url, tmp_path):
    store = open_store(url.format(tmp_path))
    with no_more_descriptors():
        try:
            acknowledged = store.add([task(1)])
        except StoreError:
            acknowledged = []
        with pytest.raises(StoreError, match="cannot be opened"):
            open_store(url.format(tmp_path))
    assert ids(store) == acknowledged
    assert store.add([task(2)]) == ["t2"]
    assert ids(store) == [*acknowledged, "t2"]
    store.close()


@refused
def test_a_store_on_a_read_only_disk_raises_an_error_that_names_the_path(url, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"needs the right to mount a small file system: {mount.stderr.strip()}")
    try:
        store = open_store(url.format(disk))
        store.add([task(1)])
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreError, match=str(disk)):
            add_anew(url.format(disk))
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert add_anew(url.format(disk)) == ["t1", "t2"]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def add_anew(url: str) -> list[str]:
    with closing(open_store(url)) as store:
        store.add([task(2)])
        return ids(store)


# --- the same, through the API ---------------------------------------------------------------------------------------


def add(client: httpx.Client, n: object) -> int:
    return client.post("/tasks", json={"type": "work", "id": f"t{n}", "payload": "x" * 20_000}).status_code


@contextmanager
def limited(process: int, what: int, most: int):
    """Lower a resource limit of another process."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux changes the limits of another process")
    before = resource.prlimit(process, what)
    resource.prlimit(process, what, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, what, before)


@refused
def test_the_api_answers_503_while_the_disk_refuses_writes_and_recovers(url, tmp_path):
    with servers.serving(url.format(tmp_path), tmp_path / "log") as (process, client):
        assert add(client, 1) == 201
        with limited(process, resource.RLIMIT_FSIZE, 0):
            answers = [client.post("/tasks", json={"type": "work", "id": "t2"}) for _ in range(3)]
            assert {answer.status_code for answer in answers} == {503}
            assert "nothing was stored" in answers[0].json()["detail"]
            assert int(answers[0].headers["retry-after"]) >= 1
            assert client.get("/health/ready").status_code == 200  # it can be read
            assert client.get("/tasks/t2").status_code == 404
        assert add(client, 2) == 201
        assert client.get("/stats").json()["counts"]["pending"] == 2


@refused
def test_without_descriptors_the_api_serves_open_connections_and_later_accepts_new_ones(url, tmp_path):
    with servers.serving(url.format(tmp_path), tmp_path / "log") as (process, client):
        taken = set(map(int, os.listdir(f"/proc/{process}/fd")))
        with limited(process, resource.RLIMIT_NOFILE, min(set(range(len(taken) + 1)) - taken)):
            answers = [add(client, n) for n in range(3)]
            assert set(answers) <= {201, 503}
            with httpx.Client(base_url=client.base_url, timeout=1.5) as other, pytest.raises(httpx.TransportError):
                other.get("/health/ready")
            assert client.get("/health/ready").status_code in (200, 503)
        with httpx.Client(base_url=client.base_url, timeout=WAIT) as other:
            assert add(other, 3) == 201
            assert other.get("/stats").json()["counts"]["pending"] == answers.count(201) + 1
    assert len((tmp_path / "log").read_bytes()) < 10_000  # it says so, and not without end


# --- flushed before it is acknowledged -------------------------------------------------------------------------------

BATCHES = 12
CLIENT = """
import os, sys
from dtq.stores import open_store
from dtq.task.model import Task
from dtq.task.transitions import succeed
store = open_store(sys.argv[1])
os.write(2, b"ACK ready\\n")
for n in range(int(sys.argv[2])):
    store.add([Task(type="a", id=f"t{n}-{k}", created_at=1.0, run_at=1.0) for k in range(10)])
    os.write(2, b"ACK added\\n")
    tasks = store.claim("w", 10, 30, 2.0, {"a"})
    store.update([(succeed(task, None, 3.0), ()) for task in tasks])
    os.write(2, b"ACK updated\\n")
store.close()
"""


def unflushed(url: str, directory) -> int:
    """Return how many acknowledgements had no flush since the one before."""
    if not shutil.which("strace"):
        pytest.skip("counts system calls with strace, which is not installed")
    trace = directory / "trace"
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", trace, sys.executable, "-c", CLIENT]
    run = subprocess.run([*command, url, str(BATCHES)], capture_output=True, text=True)
    if "ACK ready" not in run.stderr:
        pytest.skip(f"strace cannot trace here: {run.stderr[-200:]}")
    assert run.returncode == 0, run.stderr
    parts = re.split(r'write\(2, "ACK \w+', trace.read_text())
    assert len(parts) == 2 * BATCHES + 2
    return sum(not re.search(r"\b(fsync|fdatasync)\(\d+\)\s+= 0", part) for part in parts[1:-1])


@refused
def test_each_acknowledged_batch_was_flushed_to_the_disk(url, tmp_path):
    assert unflushed(url.format(tmp_path), tmp_path) == 0


@refused
def test_the_flush_test_detects_a_store_that_does_not_flush(url, tmp_path):
    separator = "sqlite:///" if not url.startswith("file") else ""
    assert unflushed(f"{separator}{url.format(tmp_path)}?durability=relaxed", tmp_path) > BATCHES

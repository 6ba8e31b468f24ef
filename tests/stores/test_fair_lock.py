"""FairLock: processes write one at a time, wait for each other up to a limit, and name the process they wait for."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dtq.errors import StoreError
from dtq.stores.open import open_store
from dtq.stores.shared import fair_lock
from dtq.stores.shared.fair_lock import FairLock
from dtq.stores.shared.lockfile import Lockfile
from dtq.task.model import Task

HOLD = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""

ORPHAN = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
if child := os.fork():
    print(child, flush=True)
else:
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Start processes that lock a file until their standard input ends."""
    holders = []

    def start(path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(path)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout.readline() == "locked\n"
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize(("url", "lock"), [("q", "q-lock"), ("file:q", "q/lock")])
def test_a_store_that_waits_too_long_names_the_process_that_holds_the_lock(url, lock, tmp_path, monkeypatch, hold):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fair_lock, "LOCK_TIMEOUT", 0.3)
    store = open_store(url)
    holder = hold(lock)
    began = time.monotonic()
    with pytest.raises(
        StoreError, match=f"nothing was stored: .*{lock} has been locked for 0.3 s by process"
    ) as caught:
        store.add([Task(type="a")])
    assert 0.3 <= time.monotonic() - began < 2
    assert f"process {holder.pid} ({sys.executable} -c" in str(caught.value)
    holder.communicate("")
    store.add([Task(type="a")])
    assert store.stats().total == 1
    store.close()


def test_the_error_says_so_where_the_process_that_locked_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(fair_lock, "LOCK_TIMEOUT", 0.2)
    started = subprocess.Popen([sys.executable, "-c", ORPHAN, f"{tmp_path}/lock"], stdout=subprocess.PIPE, text=True)
    orphan = int(started.stdout.readline())
    started.stdout.close()
    started.wait()
    mine = FairLock(f"{tmp_path}/lock")
    try:
        with pytest.raises(TimeoutError, match="which has ended, and a process that it forked: `lsof "):
            mine.acquire()
    finally:
        os.kill(orphan, signal.SIGKILL)
    mine.file.unlock()
    mine.file.close()


def test_a_keyboard_interrupt_ends_the_wait_at_once(tmp_path, hold):
    store = open_store(str(tmp_path / "q"))
    holder = hold(tmp_path / "q-lock")
    threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.add([Task(type="a")])
    assert time.monotonic() - began < 1
    holder.communicate("")
    store.add([Task(type="a")])
    assert store.stats().total == 1
    store.close()


def test_a_lock_that_was_given_up_is_free_for_the_others_later(tmp_path, monkeypatch, hold):
    mine, path, before = FairLock(f"{tmp_path}/lock"), tmp_path / "lock", _thread._count()
    holder = hold(path)
    monkeypatch.setattr(fair_lock, "LOCK_TIMEOUT", 0.05)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            mine.acquire()
        mine.file.unlock()
    assert _thread._count() == before + 1
    holder.communicate("")
    other = Lockfile(str(path))
    give_up_at = time.monotonic() + 5
    while not other.try_lock():
        assert time.monotonic() < give_up_at
    other.close()
    mine.acquire()
    mine.file.unlock()
    mine.file.close()


def test_a_wait_that_goes_on_gets_the_lock_from_the_thread_in_the_line(tmp_path, monkeypatch, hold):
    mine, path = FairLock(f"{tmp_path}/lock"), tmp_path / "lock"
    holder = hold(path)
    monkeypatch.setattr(fair_lock, "LOCK_TIMEOUT", 0.05)
    with pytest.raises(TimeoutError):
        mine.acquire()
    mine.file.unlock()
    monkeypatch.setattr(fair_lock, "LOCK_TIMEOUT", 10)
    timer = threading.Timer(0.2, holder.communicate, [""])
    timer.start()
    mine.acquire()
    timer.join()
    assert not Lockfile(str(path)).try_lock()
    mine.file.unlock()
    assert Lockfile(str(path)).try_lock()
    mine.file.close()


def test_the_wait_goes_on_where_no_thread_can_be_started(tmp_path, monkeypatch, hold):
    def refuse(*_args):
        raise RuntimeError("can't start new thread")

    mine = FairLock(f"{tmp_path}/lock")
    holder = hold(tmp_path / "lock")
    timer = threading.Timer(0.2, holder.communicate, [""])
    timer.start()
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    mine.acquire()
    monkeypatch.undo()
    timer.join()
    assert not Lockfile(f"{tmp_path}/lock").try_lock()
    mine.file.unlock()
    mine.file.close()


def count_up(path: str, n: int) -> None:
    mine = FairLock(f"{path}/lock")
    for turn_number in range(n):
        mine.acquire()
        try:
            with open(f"{path}/number", "r+") as file:
                number = int(file.read())
                file.seek(0)
                file.write(str(number + 1))
            if turn_number % 50 == 0:
                os.unlink(f"{path}/lock")
        finally:
            mine.file.unlock()
    mine.file.close()


def test_processes_keep_each_other_out_also_where_the_lock_file_is_removed(tmp_path):
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("spawn")
    counters = [context.Process(target=count_up, args=(str(tmp_path), 300)) for _ in range(3)]
    for counter in counters:
        counter.start()
    for counter in counters:
        counter.join(60)
    assert [counter.exitcode for counter in counters] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "900"


def test_a_closed_lock_cannot_be_taken(tmp_path):
    mine = FairLock(f"{tmp_path}/lock")
    mine.file.close()
    with pytest.raises(OSError, match="was closed"):
        mine.acquire()
    mine.file.unlock()

"""A process with a monitor may fork: the parent goes on watching, and the child's copy writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

SCRIPT = """
import atexit, logging, os, signal, sys, threading, warnings
from dtq import DTQError, Monitor, TaskQueue
from dtq.monitor import webhook

logging.basicConfig(level=logging.ERROR)
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: this process has threads
told = []
webhook.AlertWebhook.deliver = lambda self, alert, id: deliver(alert)


async def deliver(alert):
    told.append(os.getpid())


def fork(work):
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    signal.alarm(20)  # a child that hangs
    work()
    sys.exit()  # runs what is registered with atexit


def sizes():
    return [os.stat(f"logs/{name}").st_size for name in ("dtq.log", "history.jsonl")]


queue = TaskQueue("queue.db", {"a": lambda payload, context: None}, 1, executor="thread").start()
monitor = Monitor(queue, "logs", 3600, {"queue_size": 0}, webhook="https://example.org/", log_level="debug").start()
monitor.sample()
atexit.register(monitor.stop)
"""

BODY = """
while queue.stats().unfinished or monitor._writer._queue.qsize():
    pass
monitor.sample()
threading.Event().wait(0.5)  # until the log's thread has written
before, points = sizes(), len(monitor.history)


def look():
    assert len(monitor.history) == points
    assert monitor.get_metrics()["now"]
    monitor.sample()
    monitor.stop()
    try:
        monitor.start()
    except DTQError as error:
        assert "make a new one" in str(error), error
    else:
        raise AssertionError("it was started twice")


def watch():
    queue.add("a", delay=60)  # whose alert the parent's monitor would raise
    monitor.sample()
    with Monitor(queue, None, 3600) as own:
        own.sample()


for work in (lambda: None, monitor.stop, lambda: monitor.__exit__(None, None, None), look, watch):
    assert fork(work) == 0, work
    assert sizes() == before, work
monitor.sample()
monitor.stop()
assert sizes() > before
assert told and set(told) == {os.getpid()}
queue.shutdown(force=True)
"""

LOCKED = """
locks = [monitor._lock, monitor._writer._queue.mutex, monitor._sender._queue.mutex, monitor._stopping._cond]
for lock in locks:
    lock.acquire()  # another thread holds them at the moment of the fork
status = fork(lambda: (monitor.sample(), monitor.history, monitor.get_metrics(), monitor.stop()))
for lock in locks:
    lock.release()
assert status == 0
queue.shutdown(force=True)
"""


@pytest.mark.parametrize("body", [BODY, LOCKED], ids=["files", "locks"])
def test_a_forked_child_leaves_the_monitor_and_its_files_to_the_parent(tmp_path, body):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr

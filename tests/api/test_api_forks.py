"""A process that serves the API may fork: the child owns no server, and the parent's goes on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("starlette")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
WAIT = 60.0

SCRIPT = """
import os, signal, sys, warnings
from dtq import APIServer, DTQError, QueueManager
import httpx

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: this process has threads


def fork(work):
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    signal.alarm(20)  # a child that hangs
    work()
    sys.exit()  # runs what is registered with atexit


api = APIServer("queue.db", port=0, clustered=sys.argv[1] == "cluster", num_workers=2).start()
pids = api.pids()
"""


def run(tmp_path, mode, body):
    """Run this after SCRIPT in its own process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body, mode], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", ["cluster", "thread"])
def test_a_forked_child_that_exits_leaves_the_parents_server_running(tmp_path, mode):
    body = """
def serve():
    assert repr(api).endswith("is stopped>")
    with APIServer("queue.db", port=0) as own:
        assert httpx.get(own.url + "health/live", timeout=20).status_code == 200
    try:
        api.start()
    except DTQError as error:
        assert "cannot listen on" in str(error), error
    else:
        raise AssertionError("the parent has this port")

for work in (lambda: None, api.stop, lambda: api.__exit__(None, None, None), serve):
    assert fork(work) == 0
    assert httpx.get(api.url + "health/live", timeout=20).status_code == 200
assert api.pids() == pids
assert api._cluster is None or api._cluster.restarts == 0
assert httpx.post(api.url + "tasks", json={"type": "some"}, timeout=20).status_code == 201
api.stop()
with QueueManager("queue.db") as manager:
    assert manager.stats().total == 1
"""
    run(tmp_path, mode, body)


@pytest.mark.parametrize("mode", ["cluster", "thread"])
def test_a_forked_child_that_lives_on_keeps_neither_the_port_nor_a_client_of_the_parent(tmp_path, mode):
    body = """
import socket
connection = socket.create_connection(("127.0.0.1", api.port), timeout=20)
request = b"GET /health/live HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"
connection.sendall(request)
assert b" 200 " in connection.recv(10_000)
out, back = os.pipe()
if (child := os.fork()) == 0:
    signal.alarm(30)
    os.write(back, b"!")
    signal.pause()
os.read(out, 1)
api.stop()
connection.settimeout(10)
assert connection.recv(10_000) == b"", "the connection is still open"
try:
    socket.create_connection(("127.0.0.1", api.port), timeout=5)
except ConnectionRefusedError:
    pass
else:
    raise AssertionError("the port is still open")
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""
    run(tmp_path, mode, body)


def test_a_cluster_ends_with_its_supervisor_though_a_forked_child_lives_on(tmp_path):
    body = """
import time
out, back = os.pipe()
supervisor = os.getpid()
if (child := os.fork()) == 0:
    signal.alarm(30)
    os.write(back, b"!")
    signal.pause()
os.read(out, 1)
if (killer := os.fork()) == 0:
    signal.alarm(40)
    time.sleep(0.2)
    os.kill(supervisor, signal.SIGKILL)
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.05)
    left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    os.kill(child, signal.SIGKILL)
    open("verdict", "w").write(f"left: {left}")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)
signal.pause()
"""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT + body, "cluster"], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT
    )
    assert (tmp_path / "verdict").read_text() == "left: []", process.stderr


@pytest.mark.parametrize("mode", ["cluster", "thread"])
def test_a_program_that_ends_without_stopping_its_server_ends_without_an_error(tmp_path, mode):
    run(tmp_path, mode, "assert httpx.post(api.url + 'tasks', json={'type': 'some'}).status_code == 201")

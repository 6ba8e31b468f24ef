"""Waiting for a task over HTTP while the store is away."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import servers

from dtq import QueueManager
from dtq.stores.protocol import Node
from dtq.task.transitions import succeed

pytest.importorskip("uvicorn")
from dtq import APIServer

AWAY = float(os.environ.get("DTQ_TEST_AWAY", "2"))  # seconds for which a server is away
WAIT = 20.0


def finish(store):
    """Claim a task and complete it, as a node would."""
    store.heartbeat(Node("elsewhere"), (), 30, time.time())
    (task,) = store.claim("elsewhere", 1, 30, time.time() + 60, {"a"})
    store.update([(succeed(task, "done", time.time()), ())])


def test_a_request_that_waits_for_a_task_outlives_an_outage_of_the_store():
    registered = threading.Semaphore(0)

    class Manager(QueueManager):
        def future_of(self, task_id):
            future = super().future_of(task_id)
            registered.release()
            return future

    server = servers.Server("valkey", "--appendonly", "yes", "--appendfsync", "always")
    try:
        with (
            Manager(server.url) as manager,
            APIServer(manager, port=0) as api,
            httpx.Client(base_url=api.url, timeout=2 * WAIT) as client,
            ThreadPoolExecutor() as threads,
        ):
            ended, deleted = manager.add("a").id, manager.add("a", delay=3600).id
            waits = [threads.submit(client.get, f"tasks/{id}/wait?timeout={WAIT}") for id in (ended, deleted)]
            for _ in waits:
                assert registered.acquire(timeout=WAIT)
            server.kill()
            time.sleep(AWAY)
            server.start()
            with QueueManager(server.url) as other:
                finish(other.store)
                other.delete(deleted)
            answers = [wait.result(2 * WAIT) for wait in waits]
            assert [answer.status_code for answer in answers] == [200, 404]
            assert answers[0].json()["result"] == "done"
    finally:
        servers.running.remove(server)
        server.remove()

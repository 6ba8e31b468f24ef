"""A disk that is really full (a small tmpfs): acknowledged changes are stored, and work goes on with new room."""

from __future__ import annotations

import pytest
import servers
from full_disks import disk, fill  # noqa: F401

from dtq import TaskQueue
from dtq.errors import StoreError

WAIT = 30.0


@pytest.mark.parametrize(("url", "why"), [("{}/q.db", "database or disk is full"), ("file:{}/q", ".*No space left")])
def test_a_full_disk_refuses_new_tasks_keeps_outcomes_and_recovers(disk, caplog, url, why):  # noqa: F811
    with TaskQueue(url.format(disk), {"work": "queue_handlers:sleep_if_asked"}, 2) as queue:
        handles = queue.add_many({"type": "work", "payload": 0.05} for _ in range(40))
        handles[0].result(WAIT)
        fill(disk / "ballast")
        with pytest.raises(StoreError, match=f"nothing was stored: {why}"):
            queue.add_many({"type": "work", "payload": "x" * 10_000} for _ in range(100))
        assert queue.stats().total == len(handles)
        (disk / "ballast").unlink()
        queue.join(WAIT)
        assert queue.stats().counts["completed"] == len(handles)
        assert {handle.task.attempts for handle in handles} == {1}


@pytest.mark.parametrize("url", ["{}/q.db", "file:{}/q"])
def test_the_api_answers_503_while_the_disk_is_full_and_recovers(disk, url, tmp_path_factory):  # noqa: F811
    log = tmp_path_factory.mktemp("log") / "log"
    with servers.serving(url.format(disk), log) as (_, client):

        def add(task):
            answer = client.post("/tasks", json={"type": "work", "id": task, "payload": "x" * 20_000})
            return answer.status_code

        assert add("a") == 201
        fill(disk / "ballast")
        while add("b") == 201:  # what still fits into what the store has of the disk
            assert client.delete("/tasks/b").status_code == 200
        assert [add("b"), add("c")] == [503, 503]
        assert client.get("/health/ready").status_code == 200  # it can be read
        assert client.get("/tasks/a").json()["status"] == "pending"
        assert client.get("/tasks/b").status_code == 404
        (disk / "ballast").unlink()
        assert [add("b"), add("c")] == [201, 201]

"""A payload and a result are encoded once, where they are made, and decoded once, where they are read.

JSON allows numbers that no float can hold: text may carry them, but decoding them fails. So a task with one fails at
the first decode. Spaces show that no step has encoded a value again.
"""

from __future__ import annotations

import msgspec
import pytest
import servers

from dtq import QueueManager, TaskFailed, TaskQueue
from dtq.errors import InvalidTask
from dtq.task.codec import raw
from dtq.task.model import Task

WAIT = 60.0
UNDECODABLE = msgspec.Raw(b'{ "x": 1e999 }')
STORES = ("memory", "sqlite", "file", "redis")


def undecodable(payload, context):
    return UNDECODABLE


def double(payload, context):
    return 2 * payload["n"]


@pytest.fixture(params=STORES)
def url(request, tmp_path):
    places = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/queue.db", "file": f"file:{tmp_path}/queue"}
    return places.get(request.param) or servers.url_of("valkey")


@pytest.fixture(params=["process", "thread"])
def queue(request, url):
    handlers = {"double": double, "undecodable": undecodable}
    with TaskQueue(url, handlers=handlers, executor=request.param, pool_size=1) as queue:
        yield queue


def test_a_payload_is_first_decoded_in_the_worker(queue):
    handle = queue.add("double", UNDECODABLE, max_attempts=1)
    with pytest.raises(TaskFailed, match="out of range"):
        handle.result(WAIT)
    failed = queue.get(handle.id)
    assert "runner" not in failed.error.traceback
    assert failed.raw_payload == UNDECODABLE


def test_a_result_is_first_decoded_where_somebody_looks_at_it(queue):
    handle = queue.add("undecodable")
    with pytest.raises(msgspec.ValidationError, match="out of range"):
        handle.result(WAIT)
    completed = queue.get(handle.id)
    assert (completed.status, completed.raw_result) == ("completed", UNDECODABLE)


def test_users_see_plain_data(queue):
    spaced = msgspec.Raw(b'{ "n" : 21 }')
    handle = queue.add("double", spaced)
    assert handle.result(WAIT) == 42
    task = queue.get(handle.id)
    assert task.raw_payload == spaced
    assert (task.payload, task.result) == ({"n": 21}, 42)


def test_what_a_user_changes_in_a_payload_stays_in_that_task(url):
    with QueueManager(url) as manager:
        given = {"n": [1]}
        handle = manager.add("double", given)
        given["n"].append(2)
        task = manager.get(handle.id)
        task.payload["n"].append(3)
        assert task.payload == {"n": [1, 3]}
        assert manager.get(handle.id).payload == {"n": [1]}
        (found,) = manager.find(type="double")
        found.payload.clear()
        assert manager.find(type="double")[0].payload == manager.get(handle.id).payload == {"n": [1]}


def test_raw_text_that_is_no_json_is_refused(url):
    with QueueManager(url) as manager:
        for broken in (b'{"n": }', b'"\xff"', b"[" * 2000):
            for payload in (msgspec.Raw(broken), [msgspec.Raw(broken)]):
                with pytest.raises(InvalidTask):
                    manager.add("double", payload)
        assert manager.stats().total == 0


def test_a_task_that_keeps_json_is_like_one_that_keeps_data():
    data = {"type": "a", "payload": {"n": [1, None]}, "result": "ä"}
    plain = Task(**data, id="t")
    kept = Task(type="a", id="t", payload=raw('{"n": [1, null]}'), result=raw('"ä"'.encode()))
    document = msgspec.json.encode(kept)
    assert msgspec.json.decode(document, type=Task) == plain == kept
    assert repr(kept) == repr(plain)
    assert hash(kept) == hash(plain)
    assert msgspec.json.encode(kept) == msgspec.json.encode(plain)
    assert kept != msgspec.structs.replace(kept, payload={"n": [2]})
    assert (raw(b"null"), raw(" null")) == (None, None)

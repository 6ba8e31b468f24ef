"""Limits and nodes in a store that cannot be read, because another version of dtq or a person wrote them, affect
nothing else."""

from __future__ import annotations

import json
import sqlite3
from zlib import crc32

import pytest
import redis
import servers

from dtq import QueueManager, TaskQueue
from dtq.policy.limits import Limit
from dtq.stores.file.journal import format_line
from dtq.stores.open import open_store
from dtq.stores.shared.decoding import _warn_once

NOW = 1_700_000_000.0
WAIT = 60.0
GOOD = '{"queue":"slow","type":null,"key":null,"paused":true,"rate":0.0,"burst":1,"max_running":0}'
ODD = [  # selector, limit: as `pause(5)`, `pause(["a"])` once wrote them, and worse
    ('[5,null,null]', '{"queue":5,"type":null,"key":null,"paused":true,"rate":0.0,"burst":1,"max_running":0}'),
    ('[["a"],null,null]', '{"queue":["a"],"type":null,"key":null,"paused":true,"rate":0.0,"burst":1,"max_running":0}'),
    ('["x",null,null]', '{"queue":"x","paused":true,"rate":"fast","burst":1,"max_running":0}'),
    ('["y",null,null]', '{"queue":"y","paused":true,"rate":{},"burst":null,"max_running":[]}'),
    ('["z",null,null]', '[1]'),
]  # fmt: skip
NOT_JSON = [('["v",null,null]', "{"), ('["w",null,null]', "")]
ODD_NODE = '{"id":5,"host":[]}'


def spoil_sqlite(path):
    with sqlite3.connect(path) as db:
        rows = [*ODD, *NOT_JSON, ('["slow",null,null]', GOOD)]
        db.executemany("INSERT INTO lane_limit (selector, body) VALUES (?, ?)", rows)
        db.execute("INSERT INTO node (id, peer, body) VALUES ('odd', 'missing', ?)", (ODD_NODE,))
    db.close()


def change(limits):
    return f'{{"limits":[{",".join(limits)}],"nodes":[["missing",{ODD_NODE}]]}}'.encode()


def spoil_journal(directory):
    """A line that another process appends, behind those that are read."""
    (journal,) = directory.glob("journal-*")
    lines = journal.read_bytes().count(b"\n")
    number = json.loads(journal.read_bytes().splitlines()[0].split(b" ")[1]) + lines
    with journal.open("ab") as file:
        file.write(format_line(number, change([body for _, body in ODD] + [GOOD])))


def spoil_files(directory):
    body = change([body for _, body in ODD] + [GOOD])
    for name in ("queue.json", "queue-copy.json"):
        (directory / name).write_bytes(b'{"crc32":%d,"change":%s}' % (crc32(body), body))


def spoil_redis(url):
    place, namespace = url.split("?namespace=")
    with redis.Redis.from_url(place) as client:
        client.hset(f"dtq:{{{namespace}}}:limits", mapping=dict([*ODD, *NOT_JSON, ('["slow",null,null]', GOOD)]))
        client.hset(f"dtq:{{{namespace}}}:nodes", "odd", ODD_NODE)
        client.hset(f"dtq:{{{namespace}}}:n", mapping={"odd": "1", "x\x1fy\x1f\x1fpending": "many"})


@pytest.fixture(params=["sqlite", "journal", "files", "valkey"])
def spoilt(request, tmp_path):
    """The URL of a store with a task of the queue `default`, one of the paused queue `slow`, and odd rows."""
    kind = request.param
    _warn_once.cache_clear()  # each problem is told once
    url = {"sqlite": str(tmp_path / "queue.db"), "valkey": kind == "valkey" and servers.url_of(kind)}
    url = url.get(kind, f"file:{tmp_path / 'queue'}")
    with QueueManager(url) as manager:
        manager.add("a", id="good")
        manager.add("a", id="waits", queue="slow")
        if kind == "journal":
            spoil_journal(tmp_path / "queue")
            assert manager.get("good").id == "good"
    if kind == "sqlite":
        spoil_sqlite(url)
    elif kind == "files":
        spoil_files(tmp_path / "queue")
    elif kind == "valkey":
        spoil_redis(url)
    return url


def test_odd_rows_hide_nothing_and_hold_nothing_back(spoilt, caplog):
    store = open_store(spoilt)
    try:
        stats = store.stats()
        assert (stats.total, [node for node in stats.nodes if node.id == 5]) == (2, [])
        assert [limit.queue for limit in stats.limits] == ["slow"]
        assert store.next_due(NOW * 2) is None
        assert [task.id for task in store.claim("n", 10, 30, NOW * 2, {"a"})] == ["good"]
        store.set_lane(queue="slow", paused=False)
        assert [task.id for task in store.claim("n", 10, 30, NOW * 2, {"a"})] == ["waits"]
    finally:
        store.close()
    told = [record.getMessage() for when in ("setup", "call") for record in caplog.get_records(when)]
    assert any("a limit" in text or "limits" in text for text in told if "cannot be read, and is passed over" in text)


def test_a_limit_that_cannot_be_read_is_replaced_by_one_of_its_names(spoilt):
    with QueueManager(spoilt) as manager:
        for name in "xyz":
            assert manager.limit(name, max_running=2) == Limit(name, max_running=2)
            manager.unlimit(name)
        manager.pause("x")
        assert {limit.queue for limit in manager.limits() if limit.paused} == {"slow", "x"}
        manager.resume("x")
        manager.resume("slow")
        assert manager.limits() == []


def test_a_node_works_beside_odd_rows_and_after_another_start(spoilt):
    for n in range(2):
        with TaskQueue(spoilt, {"a": lambda payload, context: payload}, executor="thread", pool_size=1) as queue:
            queue.resume("slow")
            assert queue.add("a", n).result(WAIT) == n
            queue.join(WAIT)
    with QueueManager(spoilt) as manager:
        assert manager.stats().counts["completed"] == 4

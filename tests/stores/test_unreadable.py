"""Depth has one limit wherever data comes in, and a task in a store that cannot be read costs itself only."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading

import msgspec
import pytest
import redis
import servers

from dtq import QueueManager, TaskFailed, TaskQueue
from dtq.errors import InvalidTask
from dtq.stores.file.journal import format_line, parse
from dtq.stores.open import open_store
from dtq.task.codec import CUT, MAX_DEPTH, cut, encoded, from_json, is_nested, is_too_deep, to_json
from dtq.task.transitions import unreadable_doom

WAIT = 60.0
DEPTHS = [MAX_DEPTH, MAX_DEPTH + 1, 987, 3_000, 100_000]
ODD = {
    "garbage": b"{",
    "nothing": b"",
    "no JSON": b"[1, 2",
    "half a surrogate": b'"\xed\xa0\x80"',
}  # in place of a payload


def nested(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


def nested_json(depth):
    return b"[" * depth + b"]" * depth


# --- the limit


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: {"[": v, '"]\\': "]"}])
@pytest.mark.parametrize("depth", [1, 2, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 300])
def test_depth_is_counted_over_bytes_as_over_the_value(wrap, depth):
    value = "[[[{{{" * 50
    for _ in range(depth):
        value = wrap(value)
    data = msgspec.json.encode(value)
    assert is_too_deep(data) == is_nested(value) == (depth > MAX_DEPTH)
    if depth <= MAX_DEPTH:
        encoded(value, 1 << 20, "payload")
    else:
        with pytest.raises(InvalidTask, match="payload has more than 64 levels of nested arrays and objects"):
            encoded(value, 1 << 20, "payload")


def test_many_arrays_beside_each_other_are_not_deep():
    value = [[{"a": [1, "]"]}] * 3] * 1000
    assert from_json(encoded(value, 1 << 20, "payload")) == value


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 987, 3_000, 100_000])
def test_a_value_that_is_too_deep_is_refused_and_never_a_recursion_error(depth):
    for value in (nested(depth), {"x": [None, nested(depth)]}):
        with pytest.raises(InvalidTask, match="nested arrays and objects"):
            encoded(value, 1 << 30, "payload")
    with QueueManager("memory:") as manager:
        with pytest.raises(InvalidTask, match="nested arrays and objects"):
            manager.add_many([{"type": "a", "payload": 1}, {"type": "a", "payload": nested(depth)}])
        for refused in (
            lambda: manager.schedule("s", every=60, type="a", payload=nested(depth)),
            lambda: manager.flow({"a": {"type": "a", "payload": nested(depth)}}),
        ):
            with pytest.raises(InvalidTask):
                refused()
        assert manager.store.stats().total == 0


def test_a_raised_recursion_limit_does_not_exhaust_the_stack():
    code = """
import sys
from dtq.task.codec import to_json
from dtq.errors import InvalidTask
sys.setrecursionlimit(10**7)
value = []
for _ in range(2_000_000): value = [value]
try: to_json(value)
except InvalidTask as error: print("refused", flush=True)
import os; os._exit(0)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).stdout == b"refused\n"


def test_what_is_cut_is_what_is_too_deep():
    assert cut(nested_json(100), 3) == b"[[[" + CUT + b"]]]"
    assert cut(b'{"a":[["[[["],[[1]]],"b":{"c":[[]]}}', 3) == b'{"a":[["[[["],[' + CUT + b']],"b":{"c":[' + CUT + b"]}}"
    assert cut(nested_json(80)) == nested_json(80)


# --- results


def deep(depth, context):
    sys.setrecursionlimit(10**6)
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_a_result_that_is_too_deep_fails_its_attempt_with_the_reason(executor, tmp_path):
    limit = sys.getrecursionlimit()
    try:
        with TaskQueue(tmp_path / "queue.db", {"deep": deep, "echo": lambda p, c: p}, 1, executor=executor) as queue:
            assert queue.add("deep", MAX_DEPTH).result(WAIT) == nested(MAX_DEPTH)
            for depth in DEPTHS[1:]:
                handle = queue.add("deep", depth)
                with pytest.raises(TaskFailed, match="ResultError"):
                    handle.result(WAIT)
                assert "nested arrays and objects" in handle.task.error.message
            assert queue.add("echo", 1).result(WAIT) == 1
            child = queue.add("echo", 2, after=[queue.add("deep", MAX_DEPTH)])
            assert child.result(WAIT) == 2
    finally:
        sys.setrecursionlimit(limit)


# --- records that cannot be read


def spoil_sqlite(path, column, data):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA busy_timeout = 5000")
        db.execute(f"UPDATE task SET {column} = CAST(? AS TEXT) WHERE id = 'bad'", (data,))
    db.close()


def spoil_journal(directory, old, data):
    for journal in directory.glob("journal-*"):
        lines = [parse(line) for line in journal.read_bytes().splitlines()]
        journal.write_bytes(b"".join(format_line(number, body.replace(old, data)) for number, body in lines))


def spoil_file(directory, old, data):
    (path,) = directory.glob("tasks/*/bad.json")
    path.write_bytes(path.read_bytes().replace(old, data))


def spoil_redis(url, data):
    place, namespace = url.split("?namespace=")
    with redis.Redis.from_url(place) as client:
        client.hset(f"dtq:{{{namespace}}}:b", "bad", data)


STORES = ["sqlite", "file", "files", "valkey"]


def spoilt(kind, tmp_path, payload):
    """The URL of a store with three tasks that were added together, of which `bad` has this payload."""
    url = str(tmp_path / "queue.db") if kind == "sqlite" else f"file:{tmp_path / 'queue'}"
    url = servers.url_of("valkey") if kind == "valkey" else url
    store = open_store(url)
    with QueueManager(store) as manager:
        manager.add_many({"type": "a", "id": id, "payload": "BAD"} for id in ("first", "bad", "last"))
    if kind == "file":
        store.abandon()  # the tasks stand in the journal alone
        directory = tmp_path / "queue"
        (journal,) = directory.glob("journal-*")
        whole = journal.read_bytes()
        number, body = parse(whole.splitlines()[0])
        assert body.count(b'"payload":"BAD"') == 3, body
        head, tail = body.split(b'"id":"bad"')
        at = head.rindex(b'"payload":"BAD"')
        head = head[:at] + b'"payload":' + payload + head[at + len(b'"payload":"BAD"') :]
        lines = whole.splitlines()[1:]
        rest = b"".join(line + b"\n" for line in lines)
        journal.write_bytes(format_line(number, head + b'"id":"bad"' + tail) + rest)
        return url
    store.close()
    if kind == "sqlite":
        spoil_sqlite(url, "payload", payload)
    elif kind == "files":
        spoil_file(tmp_path / "queue", b'"BAD"', payload)
    else:
        spoil_redis(url, b'{"created_at":1.0,"payload":' + payload + b"}")
    return url


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", STORES)
def test_a_payload_that_is_too_deep_ends_its_task_and_no_other(kind, depth, tmp_path):
    url = spoilt(kind, tmp_path, nested_json(depth))
    with QueueManager(url) as manager:
        assert {task.id for task in manager.find()} == {"first", "bad", "last"}
        assert manager.get("bad").id == "bad"
        assert manager.stats().unfinished == 3
    with TaskQueue(url, {"a": lambda payload, context: "done"}, 1, executor="thread") as queue:
        queue.join(WAIT)
        ends = {task.id: task.status for task in queue.find()}
        assert (ends["first"], ends["last"]) == ("completed", "completed")
        bad = queue.get("bad")
        if depth <= MAX_DEPTH:
            assert bad.status == "completed"
        elif depth >= 3_000:
            assert (bad.status, bad.error.type) == ("failed", "Unreadable")
            assert "nested too deep" in bad.error.message
        assert queue.add("a").result(WAIT) == "done"
    with QueueManager(url) as manager:
        assert manager.stats().counts["completed"] >= 3
        assert manager.get("bad").is_terminal
        assert manager.delete("bad") == 1


@pytest.mark.parametrize("payload", ODD.values(), ids=ODD)
@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
def test_a_payload_of_garbage_ends_its_task_and_no_other(kind, payload, tmp_path):
    """A file or a line of garbage is put aside instead: see test_file.py."""
    url = spoilt(kind, tmp_path, payload)
    with TaskQueue(url, {"a": lambda payload, context: "done"}, 1, executor="thread") as queue:
        queue.join(WAIT)
        assert {task.id: str(task.status) for task in queue.find()} == {
            "first": "completed", "bad": "failed", "last": "completed",
        }  # fmt: skip
        assert queue.get("bad").error.type == "Unreadable"
        queue.retry("bad")
        queue.join(WAIT)
        assert queue.get("bad").error.type == "Unreadable"


@pytest.mark.parametrize(
    "options",
    [b'{"retry_backoff":"sometimes"}', b'{"timeout":"long"}', b"[]", b'{"webhook":5}', b'{"after":"x"}', b"{"],
)
def test_options_that_cannot_be_read_end_their_task_and_no_other(options, tmp_path):
    url = spoilt("sqlite", tmp_path, b"1")
    spoil_sqlite(url, "options", options)
    with TaskQueue(url, {"a": lambda payload, context: "done"}, 1, executor="thread") as queue:
        queue.join(WAIT)
        assert {str(task.status) for task in queue.find() if task.id != "bad"} == {"completed"}
        assert queue.get("bad").error.type == "Unreadable"


@pytest.mark.parametrize("column", ["outcome", "error"])
@pytest.mark.parametrize("data", [b"{", b"[]", b'{"result":' + nested_json(3_000) + b"}"], ids=["half", "list", "deep"])
def test_what_an_attempt_left_and_cannot_be_read_hides_nothing_else(column, data, tmp_path):
    url = spoilt("sqlite", tmp_path, b"1")
    with TaskQueue(url, {"a": lambda payload, context: "done"}, 1, executor="thread") as queue:
        queue.join(WAIT)
    spoil_sqlite(url, column, data)
    with QueueManager(url) as manager:
        assert {str(task.status) for task in manager.find()} == {"completed"}
        assert manager.get("bad").status == "completed"


def test_an_unknown_backoff_in_a_journal_dooms_its_task_alone(tmp_path):
    url = spoilt("file", tmp_path, b'1,"retry_backoff":"sometimes"')
    with TaskQueue(url, {"a": lambda payload, context: "done"}, 1, executor="thread") as queue:
        queue.join(WAIT)
        assert {task.id: str(task.status) for task in queue.find()} == {
            "first": "completed", "bad": "failed", "last": "completed",
        }  # fmt: skip
        assert queue.get("bad").error.type == "Unreadable"


def test_a_node_that_follows_a_journal_survives_a_line_that_it_cannot_read(tmp_path):
    """Another process, of an older dtq, appends what is too deep."""
    url = f"file:{tmp_path / 'queue'}"
    with TaskQueue(url, {"a": lambda payload, context: "done"}, 1, executor="thread") as queue:
        queue.add("a").result(WAIT)
        (journal,) = (tmp_path / "queue").glob("journal-*")
        number, _ = parse(journal.read_bytes().splitlines()[-1])
        now = queue.clock()
        for n, payload in enumerate((b"1", nested_json(3_000), b"2")):
            body = b'{"put":[{"number":%d,"task":{"type":"a","id":"t%d","version":1,"run_at":%f,"payload":%s}}]}'
            with journal.open("ab") as file:
                file.write(format_line(number + 1 + n, body % (100 + n, n, now, payload)))
        queue.join(WAIT)
        assert [str(queue.get(f"t{n}").status) for n in range(3)] == ["completed", "failed", "completed"]


def test_the_doom_of_a_record_says_why():
    assert unreadable_doom(RecursionError()) == "unreadable: it is nested too deep"
    assert unreadable_doom(ValueError("x" * 5000)).startswith("unreadable: ValueError: xxx")
    assert len(unreadable_doom(ValueError("x" * 5000))) < 600


def test_a_deep_value_is_refused_in_a_thread_with_a_small_stack():
    found = []

    def work():
        try:
            to_json(nested(100_000))
        except InvalidTask as error:
            found.append(error)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert len(found) == 1

"""What comes from outside may be anything: bytes on a socket, values of users, files that something has damaged.

`pytest -m hourly` damages 5,000 files; HYPOTHESIS_PROFILE=deep looks at more values.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import long_and_hourly, small_and_large

from dtq.errors import InvalidTask, StoreError
from dtq.stores.file.journal import parse
from dtq.stores.file.store import FileStore
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task import codec
from dtq.task.model import WAITING, ErrorInfo, Task, Webhook
from dtq.task.transitions import end_doomed, succeed
from dtq.workers import wire

EXAMPLES = settings(max_examples=5000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 150, deadline=None)
NOW = 1000.0
CHILDREN = {"task-07": {"task-06"}, "task-11": {"task-10", "task-05"}}

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
anything = st.recursive(
    st.none() | st.floats() | st.text(max_size=5) | st.binary(max_size=5) | st.complex_numbers() | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.tuples(), inner, max_size=3),
)


# --- values ----------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(values)
def test_plain_data_comes_back_from_json_and_from_messagepack_as_it_was(value):
    assert codec.from_json(codec.to_json(value)) == value
    assert codec.unpack(codec.pack(value)) == value
    assert json.loads(codec.to_json(value)) == value


@EXAMPLES
@given(anything)
def test_what_json_cannot_carry_is_refused_and_never_changed_in_silence(value):
    try:
        data = codec.to_json(value)
    except InvalidTask:
        return
    assert codec.to_json(codec.from_json(data)) == data
    assert not any(math.isnan(leaf) or math.isinf(leaf) for leaf in _floats(value))


def _floats(value):
    if isinstance(value, float):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _floats(inner)


@EXAMPLES
@given(st.dictionaries(st.sampled_from(Task.__struct_fields__), anything, max_size=4))
def test_a_task_of_any_fields_is_made_or_refused_by_name(fields):
    fields = {name: value for name, value in fields.items() if name not in ("version", "payload")}
    try:
        Task(**{"type": "a", **fields})
    except InvalidTask as error:
        named = str(error).split(" ")[0]
    else:
        return
    assert named in fields


# --- the wire --------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_told_from_messages(data):
    for decode in (wire.to_pool, wire.to_worker):
        try:
            message = decode(data)
        except msgspec.DecodeError:
            continue
        assert decode(wire.frame(message)[4:]) == message


messages = st.one_of(
    st.builds(wire.Ready, st.integers(0, 2**31)),
    st.builds(wire.Returned, st.lists(st.integers(0, 2**40), max_size=5)),
    st.builds(wire.Log, st.integers(0, 9), texts),
    st.builds(wire.Done, st.integers(0, 9), st.floats(0, 1e10), st.floats(0, 1e5), st.binary(max_size=99)),
    st.builds(wire.Done, st.just(1), st.just(0.0), st.just(0.0), st.just(b""), st.builds(ErrorInfo, texts, texts)),
)


@EXAMPLES
@given(st.lists(st.lists(messages, max_size=3), max_size=6), st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_frames_come_out_whole_and_in_order_however_they_are_cut(sent, cuts):
    stream, inbox, heard = b"".join(map(wire.frame, sent)), bytearray(), []
    for n in [*cuts, len(stream)]:
        inbox += stream[:n]
        stream = stream[n:]
        heard += map(wire.to_pool, wire.split(inbox))
    assert heard == sent
    assert inbox == b""


# --- files of a store ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Eight tasks in files, some of which have changed since, four in the journal alone; all of them; the limits."""
    directory = tmp_path_factory.mktemp("healthy") / "queue"
    store = FileStore(directory, persistence_interval=86400)
    store.set_lane(queue="q", rate=100)
    store.set_lane(key="slow", max_running=1)
    store.set_lane(type="held", paused=True)
    store.add([_task(n, key=f"key {n}", payload={"text": "x" * n, "n": [n]}) for n in range(7)])
    store.add([_task(7, after=("task-06",), webhook=Webhook("https://a.example"))])
    store.checkpoint()
    for task in store.claim("w", 3, 30, NOW, {"a"}):
        store.update([(succeed(task, {"ok": True}, NOW), ())])
    store.add([_task(8), _task(9), _task(10)])
    store.add([_task(11, after=("task-10", "task-05"))])
    tasks = {task.id: task for task in store.find(limit=100)}
    limits = sorted(store.stats().limits, key=str)
    store.abandon()
    return directory, tasks, limits


def _task(n: int, **options: object) -> Task:
    return Task(**{"type": "a", "id": f"task-{n:02}", "created_at": NOW, "run_at": NOW, **options})  # type: ignore[arg-type]


def damage(data: bytes, chance: random.Random) -> bytes:
    """Something has written over it, cut it off, mixed it up, or changed a value and left it whole."""
    if not data:
        return chance.randbytes(20)
    at, n = chance.randrange(len(data)), chance.choice((1, 1, 4, 40))
    kind = chance.choice(("flip", "cut", "zero", "insert", "repeat", "drop", "digit", "empty", "word"))
    middle = {
        "flip": bytes(byte ^ 1 << chance.randrange(8) for byte in data[at : at + n]),
        "zero": bytes(len(data[at : at + n])),
        "insert": chance.randbytes(n) + data[at : at + n],
        "repeat": data[at : at + n] * 2,
        "digit": bytes(chance.choice(b"0123456789") if 48 <= byte <= 57 else byte for byte in data[at : at + n]),
    }
    if kind in middle:
        return data[:at] + middle[kind] + data[at + n :]
    if kind == "word":
        old, new = chance.sample((b"task-0", b"task-1", b'"a"', b"1", b"null", b"{}", b'"pending"', b"[]", b"-7"), 2)
        return data.replace(old, new, chance.choice((1, -1)))
    return {"cut": data[:at], "drop": data[:at] + data[at + n :], "empty": b""}[kind]


def spoiled_by(directory: Path, path: Path, before: bytes, after: bytes) -> set[str]:
    """Ids of the tasks of which something stood in what was damaged, and of those that wait for them."""
    spoiled: set[str] = set()
    if path.parent.parent.name == "tasks":
        spoiled = {path.stem}
    elif path.name.startswith("journal-"):
        left = {line for line in after.split(b"\n") if parse(line)}
        lost = b"\n".join(line for line in before.split(b"\n") if line not in left)
        spoiled = {f"task-{n:02}" for n in range(12) if b"task-%02d" % n in lost}
    return spoiled | {child for child, parents in CHILDREN.items() if parents & spoiled}


@long_and_hourly("damaged", 250, 5000)
def test_a_start_never_fails_for_a_damaged_file_and_its_neighbours_are_as_they_were(healthy, tmp_path, caplog, damaged):
    template, tasks, limits = healthy
    caplog.set_level(logging.CRITICAL, "dtq")
    names = sorted(
        path.relative_to(template) for path in template.rglob("*") if path.is_file() and path.parent.name != "nodes"
    )
    for seed in range(damaged):
        chance = random.Random(seed)
        directory = tmp_path / str(seed)
        shutil.copytree(template, directory)
        path = directory / chance.choice(names)
        before = path.read_bytes()
        path.write_bytes(after := damage(before, chance))
        if path.name == "format" and re.fullmatch(rb"dtq file store \d+\n", after) and after != before:
            continue  # now the format is that of a newer dtq
        store = FileStore(directory, persistence_interval=86400)
        found = {task.id: task for task in store.find(limit=100)}
        for id in tasks.keys() - spoiled_by(directory, path, before, after):
            assert found.get(id) == tasks[id], f"seed {seed}: {path} {after!r}"
        assert sorted(store.stats().limits, key=str) == limits, f"seed {seed}: {path} {after!r}"
        _works(store, seed)
        store.close()
        shutil.rmtree(directory)


def _works(store: FileStore, seed: int) -> None:
    """It takes a new task, and whatever waits comes to its end, once nothing limits it."""
    assert store.add([_task(99)]) == ["task-99"], seed
    for limit in store.stats().limits:
        store.set_lane(*limit.selector, paused=False, rate=0, max_running=0)
    types = {task.type for task in store.find(limit=100)}
    while tasks := store.claim("v", 50, 30, 1e11, types):
        store.update([(end_doomed(task, NOW) if task.doom else succeed(task, None, NOW), ()) for task in tasks])
    assert not [task for task in store.find(limit=100) if task.status in WAITING], seed
    assert store.get(["task-99"])[0].status == "completed", seed


@small_and_large("damaged", 50, 1000)
def test_a_damaged_database_is_refused_or_read_and_never_ends_in_another_error(tmp_path, damaged):
    store = SQLiteStore(tmp_path / "healthy.db")
    store.add([_task(n, payload="x" * 500) for n in range(40)])
    store.close()
    whole = (tmp_path / "healthy.db").read_bytes()
    for seed in range(damaged):
        chance = random.Random(seed)
        path = tmp_path / f"{seed}.db"
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.choice((chance.randrange(100), chance.randrange(len(data))))
            data[at : at + 40] = chance.randbytes(40)
        path.write_bytes(data)
        assert str(path) in _complaint(path)


def _complaint(path: Path) -> str:
    """Return the store's error about its file, if there is one; else the path."""
    try:
        store = SQLiteStore(path)
    except StoreError as error:
        return str(error)
    try:
        store.find(limit=100)
        store.claim("w", 100, 30, NOW, {"a"})
    except StoreError as error:
        return str(error)
    finally:
        store.close()
    return str(path)

"""Records: convert tasks to what the Lua scripts of the Redis store take, and their replies back to tasks.

    Task --new_record, outcome_record--> list, packed as MessagePack --> script
    Task <--tasks_of-------------------- id, State, Body, Remains    <-- script

    Body      fields that never change: JSON, written once
    Remains   result, error, history, log: JSON; absent if all have their defaults, as in most tasks
    State     its status and progress: MessagePack. Its last three values are texts of several parts, separated by
              \\x1f, which most scripts pass on unchanged

Times are text: as numbers they would lose digits in Lua.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar

import msgspec

from dtq.errors import InvalidTask
from dtq.policy.limits import Lane, Limit
from dtq.stores.protocol import Node, Stats, sum_counts
from dtq.stores.shared.decoding import decode_or_skip
from dtq.task.codec import cut, pack, to_json
from dtq.task.model import DAY, Attempt, Backoff, ErrorInfo, OnParentFailure, Status, Task, Webhook
from dtq.task.transitions import brief_of, unreadable

T = TypeVar("T")


class Body(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The fields that never change. The payload comes last, so that lib.lua can cut it off for a brief record."""

    created_at: float = 0.0
    max_attempts: int = 3
    timeout: float = 30.0
    retry_delay: float = 1.0
    retry_backoff: Backoff = "exponential"
    retry_jitter: float = 0.0
    retry_cap: float = DAY
    on_parent_failure: OnParentFailure = "fail"
    webhook: Webhook | None = None
    payload: msgspec.Raw = None  # type: ignore[assignment]


class Remains(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Result, error, history and log. The error comes first: lib.lua puts only that into a brief record."""

    error: ErrorInfo | None = None
    result: msgspec.Raw = None  # type: ignore[assignment]
    history: tuple[Attempt, ...] = ()
    log: str = ""


class State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Status and progress of a task: the values in the order that lib.lua states."""

    status: str
    version: int
    attempts: int
    token: str
    lane: str
    left: bool
    children: bool
    claim: str
    course: str
    fixed: str


NUMBER_DIGITS = 14  # of the insertion number that the server gives to a new task
NO_REMAINS = Remains()
_state = msgspec.msgpack.Decoder(State).decode
_decode_body = msgspec.json.Decoder(Body).decode
_decode_remains = msgspec.json.Decoder(Remains).decode
_node = msgspec.json.Decoder(Node).decode
read_limit = msgspec.json.Decoder(Limit).decode
_STATUS = {str(status): status for status in Status}
_SEP = "\x1f"  # between the parts of a text: no name and no key has this character
_ARRAY_OF_10 = b"\x9a"  # the head of a MessagePack array of ten values; the store keeps the values without it
_text_head = partial(struct.Struct(">BH").pack, 0xDA)  # returns the head of a MessagePack text of n bytes


# --- tasks to records


def place(priority: int, run_at: float) -> str:
    """Return text that sorts in the order of claims: higher priority first, then earlier due time.

    The bits of a non-negative float sort in the same order as the float.
    """
    return f"{1000 - priority:04d}{struct.pack('>d', run_at + 0.0).hex()}"


def lowest_place(min_priority: int | None) -> str:
    """Return the prefix of the last places from which a claim with this lowest priority may take tasks."""
    return f"{1000 - (-1000 if min_priority is None else min_priority):04d}"


def due_time(place: str) -> float:
    """Return the due time in a place."""
    (run_at,) = struct.unpack(">d", bytes.fromhex(place[4:20]))
    return float(run_at)


def new_record(task: Task) -> list[Any]:
    """Return a new task as plant.lua takes it."""
    lane, key = _SEP.join(task.lane), task.key or ""
    where, head, tail = _new_state(lane, task.priority, task.run_at, task.expires, task.on_parent_failure, key)
    is_ready = task.run_at <= task.created_at and task.expires is None
    record = [task.id, key, lane, where if is_ready else "", head, tail, _body_of(task)]
    return [*record, task.after] if task.after else record


def _body_of(task: Task) -> str:
    body = Body(
        task.created_at, task.max_attempts, task.timeout, task.retry_delay, task.retry_backoff, task.retry_jitter,
        task.retry_cap, task.on_parent_failure, task.webhook, task.raw_payload,
    )  # fmt: skip
    return to_json(body).decode()


@lru_cache(256)
def _new_state(
    lane: str, priority: int, run_at: float, expires: float | None, on_parent_failure: str, key: str
) -> tuple[str, msgspec.Raw, msgspec.Raw]:
    """Return the place of a new task and its packed State, in two parts: from `attempts` up to the insertion number in
    `fixed`, which plant.lua puts in between, and from there to the end.

    Packed by hand, and cached: tasks that are added together share it.
    """
    plan = _plan(priority, run_at, expires)
    course = f"{plan}{_SEP}".encode()
    fixed = f"{_SEP}{'1' if on_parent_failure == 'fail' else ''}{_SEP}{_SEP}{key}".encode()  # behind the number
    head = _state_before_course(lane) + _text_head(len(course)) + course + _text_head(NUMBER_DIGITS + len(fixed))
    return plan.split(_SEP)[1], _raw_text(head), _raw_text(fixed)


@lru_cache(256)
def _state_before_course(lane: str) -> bytes:
    """Return the values of a new State from `attempts` to `claim`, as MessagePack."""
    return b"".join(map(pack, (0, "", lane, False, False, _SEP * 4)))


def _raw_text(value: bytes) -> msgspec.Raw:
    """Return bytes as a MessagePack text: scripts only know texts, which may hold any bytes."""
    return msgspec.Raw(_text_head(len(value)) + value)


def outcome_record(task: Task, token: str, successors: list[list[Any]]) -> list[Any]:
    """Return an outcome as update.lua takes it."""
    plan = _plan(task.priority, task.run_at, task.expires)
    course = f"{_text(task.finished_at)}{plan}{task.interruptions or ''}\x1f{task.doom or ''}"
    record = [task.id, task.version, token, task.status, task.attempts, _left(task), claim_text(task), course]
    return [*record, successors] if successors else record


def _left(task: Task) -> str:
    """Return result, error, history and log as JSON; "" if they are those of a new task."""
    if task.raw_result is None and task.error is None and not task.history and not task.log:
        return ""
    return to_json(Remains(task.error, task.raw_result, task.history, task.log)).decode()


@lru_cache(256)
def _plan(priority: int, run_at: float, expires: float | None) -> str:
    """Return the middle of a course, which tasks that are added together share."""
    return f"\x1f{place(priority, run_at)}\x1f{run_at!r}\x1f{_text(expires)}\x1f"


def claim_text(task: Task) -> str:
    """Return the `claim` of a State: worker, start of the attempt, end of the lease, progress and note."""
    since, until = _text(task.started_at), _text(task.lease_until)
    return f"{task.worker or ''}\x1f{since}\x1f{until}\x1f{progress_text(task)}"


def progress_text(task: Task) -> str:
    """Return the part of `claim` that a heartbeat updates."""
    progress = repr(task.progress) if task.progress else ""
    return f"{progress}\x1f{task.note}"


# --- records to tasks


@lru_cache(1024)
def lane_of(text: str) -> Lane:
    """Return the lane that lib.lua writes as "queue \\x1f type \\x1f limit key"."""
    queue, type, key = text.split(_SEP, 2)
    return queue, type, key


def tasks_of(reply: list[bytes]) -> list[Task]:
    """Return the tasks of a reply, which has id, State, Body and Remains for each."""
    parts = iter(reply)
    return [_task_of(*record) for record in zip(parts, parts, parts, parts, strict=True)]


def brief_tasks_of(reply: list[bytes]) -> list[Task]:
    """Return the tasks of a reply with brief records."""
    return list(map(brief_of, tasks_of(reply)))


def _body(data: bytes) -> Body:
    return _decode_body(data.decode())  # as text: a payload decoded from bytes would not be checked for UTF-8


def _remains(data: bytes) -> Remains:
    return _decode_remains(data.decode())


def _task_of(id: bytes, state: bytes, body: bytes, remains: bytes) -> Task:
    try:
        s = _state(_ARRAY_OF_10 + state)
        return _assembled(id, s, _body(body), _remains(remains) if remains else NO_REMAINS)
    except Exception as why:  # written by another version of dtq, or by hand: other tasks must still be read
        return _remnant(id, state, body, remains, why)


def _remnant(id: bytes, state: bytes, body: bytes, remains: bytes, why: Exception) -> Task:
    """Return a task with the readable parts of its record."""
    b, r = _or_else(_body, cut(body), Body()), _or_else(_remains, cut(remains or b"{}"), NO_REMAINS)
    try:
        return unreadable(_assembled(id, _state(_ARRAY_OF_10 + state), b, r), why)
    except Exception:
        name = id.decode("utf-8", "replace")
        return Task(type="unreadable", id=name, version=1, status=Status.FAILED, payload=b.payload, result=r.result)


def _or_else(read: Callable[[bytes], T], data: bytes, otherwise: T) -> T:
    try:
        return read(data)
    except Exception:
        return otherwise


def _assembled(id: bytes, s: State, b: Body, r: Remains) -> Task:
    queue, type, limit_key = lane_of(s.lane)
    worker, started_at, lease_until, progress, note = _claim_of(s.claim)
    finished, _, rest = s.course.partition(_SEP)
    priority, run_at, expires, interruptions, doom = _course_of(rest)
    _, _, parents, key = s.fixed.split(_SEP, 3)
    return Task(
        id=id.decode(), queue=queue, type=type, limit_key=limit_key, status=_STATUS[s.status], version=s.version,
        priority=priority, run_at=run_at, expires=expires, doom=doom, started_at=started_at,
        finished_at=_number(finished), attempts=s.attempts, interruptions=interruptions, worker=worker,
        lease_until=lease_until, progress=progress, note=note,
        after=tuple(parents.split(",")) if parents else (), payload=b.payload, created_at=b.created_at, key=key or None,
        max_attempts=b.max_attempts, timeout=b.timeout, retry_delay=b.retry_delay, retry_backoff=b.retry_backoff,
        retry_jitter=b.retry_jitter, retry_cap=b.retry_cap, on_parent_failure=b.on_parent_failure, webhook=b.webhook,
        result=r.result, error=r.error, history=r.history, log=r.log,
    )  # fmt: skip


@lru_cache(256)
def _claim_of(text: str) -> tuple[str | None, float | None, float | None, float, str]:
    """Return the parts of a `claim`, which tasks that were claimed together share."""
    worker, since, until, progress, note = text.split(_SEP, 4)
    return worker or None, _number(since), _number(until), float(progress or 0), note


@lru_cache(256)
def _course_of(text: str) -> tuple[int, float, float | None, int, str | None]:
    """Return priority, due time, expiry, interruptions and doom from a `course` without the time at which the task
    ended. Tasks that were added together share it."""
    where, run_at, expires, interruptions, doom = text.split(_SEP, 4)
    return 1000 - int(where[:4]), float(run_at), _number(expires), int(interruptions or 0), doom or None


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)


def _number(text: str) -> float | None:
    return float(text) if text else None


def pairs_of(values: list[Any]) -> list[tuple[Any, Any]]:
    """Return the (field, value) pairs of a hash, which the server sends as one list."""
    return list(zip(values[::2], values[1::2], strict=True))


def counter_of(pair: tuple[str, str]) -> tuple[str, str, str, int]:
    """Return queue, type, status and number of tasks from a (name, number) pair of stats.lua."""
    queue, type, *_, status = pair[0].split(_SEP)
    return queue, type, status, int(pair[1])


def ids_of(reply: list[Any]) -> list[str]:
    """Return the ids in a reply of add.lua or update.lua. Raise InvalidTask if it names an unknown parent."""
    if reply[0] is False:
        raise InvalidTask(f"after is {reply[1]!r}; allowed: the id of a task that is stored, or added by the same call")
    ids: list[str] = reply[0] or []
    return ids


def stats_of(reply: list[Any]) -> Stats:
    """Return the statistics in the reply of stats.lua."""
    counters, heads, later, nodes, limits = reply
    times = [due_time(head) for head in heads] + ([float(later)] if later else [])
    return Stats(
        *sum_counts(decode_or_skip(counter_of, pairs_of(counters), "a counter")),
        min(times, default=None),
        decode_or_skip(_node, nodes, "a node"),
        decode_or_skip(read_limit, limits[1::2], "a limit"),
    )

"""Between tasks and what the scripts of the Redis store take and give.

What a task is (`Body`) is JSON and written once; what its attempts leave behind (`Remains`) is JSON, and absent where
nothing differs from the defaults, as for most tasks. How far it is (`State`) is MessagePack; its last three values are
texts in parts, which most scripts pass on as they are. Times are text: as numbers they would not come through Lua
unchanged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar

import msgspec

from dtq.policy.limits import Lane
from dtq.task.codec import cut, pack, to_json
from dtq.task.model import DAY, Attempt, Backoff, ErrorInfo, OnParentFailure, Status, Task, Webhook
from dtq.task.transitions import brief_of, unreadable

T = TypeVar("T")


class Body(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a task is. The payload is written last, so that lib.lua can leave it out of a brief record."""

    created_at: float = 0.0
    max_attempts: int = 3
    timeout: float = 30.0
    retry_delay: float = 1.0
    retry_backoff: Backoff = "exponential"
    retry_jitter: float = 0.0
    retry_cap: float = DAY
    on_parent_failure: OnParentFailure = "fail"
    webhook: Webhook | None = None
    payload: Any = None


class Remains(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What attempts left behind. The error is written first: it is all that lib.lua puts into a brief record."""

    error: ErrorInfo | None = None
    result: Any = None
    history: tuple[Attempt, ...] = ()
    log: str = ""


class State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a task is, in the order of lib.lua."""

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


NUMBER = 14  # digits of the number that the server gives to a new task
NOTHING = Remains()
_state = msgspec.msgpack.Decoder(State).decode
_body = msgspec.json.Decoder(Body).decode
_remains = msgspec.json.Decoder(Remains).decode
_STATUS = {str(status): status for status in Status}
_BETWEEN = "\x1f"  # the parts of a text: it is in no name and no key
_TEN = b"\x9a"  # what MessagePack has before ten values that are one; in the store they are so many


@lru_cache(1024)
def lane_of(text: str) -> Lane:
    queue, type, key = text.split(_BETWEEN, 2)
    return queue, type, key


def place(priority: int, run_at: float) -> str:
    """Text that sorts as claims are ordered: higher priority first, then what is due earlier. A float that is not
    negative sorts as its bits do."""
    return f"{1000 - priority:04d}{struct.pack('>d', run_at + 0.0).hex()}"


def due_time(place: str) -> float:
    (run_at,) = struct.unpack(">d", bytes.fromhex(place[4:20]))
    return float(run_at)


def new_record(task: Task) -> list[Any]:
    """A new task as plant.lua takes it."""
    body = Body(
        task.created_at, task.max_attempts, task.timeout, task.retry_delay, task.retry_backoff, task.retry_jitter,
        task.retry_cap, task.on_parent_failure, task.webhook, task.payload,
    )  # fmt: skip
    lane, key = _BETWEEN.join(task.lane), task.key or ""
    where, head, tail = _beginning(lane, task.priority, task.run_at, task.expires, task.on_parent_failure, key)
    ready = where if task.run_at <= task.created_at and task.expires is None else ""
    record = [task.id, key, lane, ready, head, tail, to_json(body).decode()]
    return [*record, task.after] if task.after else record


@lru_cache(256)
def _beginning(
    lane: str, priority: int, run_at: float, expires: float | None, on_parent_failure: str, key: str
) -> tuple[str, msgspec.Raw, msgspec.Raw]:
    """The place of a new task; how far it is, packed, from its attempts up to the number that the server gives it, and
    behind that."""
    plan = _plan(priority, run_at, expires)
    where = plan.split(_BETWEEN)[1]
    course = f"{plan}\x1f".encode()
    rest = f"\x1f{'1' if on_parent_failure == 'fail' else ''}\x1f\x1f{key}".encode()
    head = _front(lane) + _of_length(len(course)) + course + _of_length(NUMBER + len(rest))
    return where, _as_it_is(head), _as_it_is(rest)


@lru_cache(256)
def _front(lane: str) -> bytes:
    """The values of State between `version` and `course`, in MessagePack."""
    return b"".join(map(pack, (0, "", lane, False, False, _BETWEEN * 4)))


def _as_it_is(value: bytes) -> msgspec.Raw:
    """Bytes for a script: its MessagePack knows texts alone, of any bytes."""
    return msgspec.Raw(_of_length(len(value)) + value)


_of_length = partial(struct.Struct(">BH").pack, 0xDA)  # what MessagePack has before a text


def outcome_record(task: Task, token: str, successors: list[list[Any]]) -> list[Any]:
    """An outcome as update.lua takes it."""
    plan = _plan(task.priority, task.run_at, task.expires)
    course = f"{_text(task.finished_at)}{plan}{task.interruptions or ''}\x1f{task.doom or ''}"
    record = [task.id, task.version, token, task.status, task.attempts, _left(task), claim_text(task), course]
    return [*record, successors] if successors else record


def _left(task: Task) -> str:
    """What its attempts left; nothing, where that is what a new task has."""
    if task.result is None and task.error is None and not task.history and not task.log:
        return ""
    return to_json(Remains(task.error, task.result, task.history, task.log)).decode()


@lru_cache(256)
def _plan(priority: int, run_at: float, expires: float | None) -> str:
    """The middle of a course: one for all tasks that were added at once."""
    return f"\x1f{place(priority, run_at)}\x1f{run_at!r}\x1f{_text(expires)}\x1f"


def claim_text(task: Task) -> str:
    """Who has it, since and until when, and what was heard of it."""
    since, until = _text(task.started_at), _text(task.lease_until)
    return f"{task.worker or ''}\x1f{since}\x1f{until}\x1f{heard_text(task)}"


def heard_text(task: Task) -> str:
    """The part of it that a heartbeat tells."""
    progress = repr(task.progress) if task.progress else ""
    return f"{progress}\x1f{task.note}"


def tasks_of(reply: list[bytes]) -> list[Task]:
    """The tasks of records, as the scripts give them: for each its id, state, body and remains."""
    parts = iter(reply)
    return [_task_of(*record) for record in zip(parts, parts, parts, parts, strict=True)]


def brief_tasks_of(reply: list[bytes]) -> list[Task]:
    """Return the tasks of brief records."""
    return list(map(brief_of, tasks_of(reply)))


def _task_of(id: bytes, state: bytes, body: bytes, remains: bytes) -> Task:
    try:
        s = _state(_TEN + state)
        return _assembled(id, s, _body(body), _remains(remains) if remains else NOTHING)
    except Exception as why:  # another version of dtq wrote it, or a hand: the others must not suffer for it
        return _remnant(id, state, body, remains, why)


def _remnant(id: bytes, state: bytes, body: bytes, remains: bytes, why: Exception) -> Task:
    """What can be read of a record."""
    b, r = _or_else(_body, cut(body), Body()), _or_else(_remains, cut(remains or b"{}"), NOTHING)
    try:
        return unreadable(_assembled(id, _state(_TEN + state), b, r), why)
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
    finished, _, rest = s.course.partition(_BETWEEN)
    priority, run_at, expires, interruptions, doom = _course_of(rest)
    _, _, parents, key = s.fixed.split(_BETWEEN, 3)
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
    """What `claim_text` has put together; one text for all that were claimed at once."""
    worker, since, until, progress, note = text.split(_BETWEEN, 4)
    return worker or None, _number(since), _number(until), float(progress or 0), note


@lru_cache(256)
def _course_of(text: str) -> tuple[int, float, float | None, int, str | None]:
    """Of a course without its end: priority, due time, expiry, interruptions, doom; one text for all that were added
    at once."""
    where, run_at, expires, interruptions, doom = text.split(_BETWEEN, 4)
    return 1000 - int(where[:4]), float(run_at), _number(expires), int(interruptions or 0), doom or None


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)


def _number(text: str) -> float | None:
    return float(text) if text else None

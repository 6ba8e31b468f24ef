"""Between tasks and what the scripts of the Redis store take and give.

What a task is (`Body`) is JSON and written once; what its attempts leave behind (`Remains`) is JSON, and absent where
nothing differs from the defaults, as for most tasks. How far it is (`State`) is MessagePack, and all of it text, which
scripts pass on as it is: numbers would not come through Lua unchanged.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from dtq.codec import to_json
from dtq.limits import Lane
from dtq.task import DAY, Attempt, Backoff, ErrorInfo, OnParentFailure, Status, Task, Webhook


class Body(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    payload: Any = None
    created_at: float = 0.0
    max_attempts: int = 3
    timeout: float = 30.0
    retry_delay: float = 1.0
    retry_backoff: Backoff = "exponential"
    retry_jitter: float = 0.0
    retry_cap: float = DAY
    on_parent_failure: OnParentFailure = "fail"
    webhook: Webhook | None = None


class Remains(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    result: Any = None
    error: ErrorInfo | None = None
    history: tuple[Attempt, ...] = ()
    log: str = ""


class State(msgspec.Struct, frozen=True, rename={"in_": "in"}, gc=False):
    """How far a task is, named as in lib.lua; what is not set is not there."""

    s: str
    v: str
    l: str  # noqa: E741
    p: str
    r: str
    e: str | None = None
    d: str | None = None
    sa: str | None = None
    fa: str | None = None
    at: str = "0"
    in_: str = "0"
    w: str | None = None
    lu: str | None = None
    pr: str = "0"
    no: str = ""
    k: str | None = None
    a: str = ""


NOTHING = Remains()
_state = msgspec.msgpack.Decoder(State).decode
_body = msgspec.json.Decoder(Body).decode
_remains = msgspec.json.Decoder(Remains).decode
_STATUS = {str(status): status for status in Status}
_BETWEEN = "\x1f"  # the parts of a lane: it is in no name and no key


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
        task.payload, task.created_at, task.max_attempts, task.timeout, task.retry_delay, task.retry_backoff,
        task.retry_jitter, task.retry_cap, task.on_parent_failure, task.webhook,
    )  # fmt: skip
    return [
        task.id, task.key or "", _BETWEEN.join(task.lane), place(task.priority, task.run_at), repr(task.run_at),
        _text(task.expires), task.after, task.on_parent_failure == "fail", task.run_at <= task.created_at,
        to_json(body).decode(),
    ]  # fmt: skip


def outcome_record(task: Task, token: str, successors: list[list[Any]]) -> list[Any]:
    """An outcome as update.lua takes it."""
    remains = Remains(task.result, task.error, task.history, task.log)
    state = {
        "s": task.status, "p": place(task.priority, task.run_at), "r": repr(task.run_at), "e": _text(task.expires),
        "d": task.doom or "", "sa": _text(task.started_at), "fa": _text(task.finished_at),
        "at": str(task.attempts or ""), "in": str(task.interruptions or ""), "w": task.worker or "",
        "lu": _text(task.lease_until), "pr": repr(task.progress) if task.progress else "", "no": task.note,
    }  # fmt: skip
    left = "" if remains == NOTHING else to_json(remains).decode()
    return [task.id, task.version, token, state, left, successors]


def tasks_of(reply: list[bytes]) -> list[Task]:
    """The tasks of records, as the scripts give them: for each its id, state, body and remains."""
    return [_task_of(*reply[i : i + 4]) for i in range(0, len(reply), 4)]


def _task_of(id: bytes, state: bytes, body: bytes, remains: bytes) -> Task:
    s = _state(state)
    queue, type, limit_key = lane_of(s.l)
    b = _body(body)
    r = _remains(remains) if remains else NOTHING
    return Task(
        id=id.decode(), queue=queue, type=type, limit_key=limit_key, status=_STATUS[s.s], version=int(s.v),
        priority=1000 - int(s.p[:4]), run_at=float(s.r), expires=_number(s.e), doom=s.d, started_at=_number(s.sa),
        finished_at=_number(s.fa), attempts=int(s.at), interruptions=int(s.in_), worker=s.w, lease_until=_number(s.lu),
        progress=float(s.pr), note=s.no, after=tuple(s.a.split(",")) if s.a else (), payload=b.payload,
        created_at=b.created_at, key=s.k, max_attempts=b.max_attempts, timeout=b.timeout, retry_delay=b.retry_delay,
        retry_backoff=b.retry_backoff, retry_jitter=b.retry_jitter, retry_cap=b.retry_cap,
        on_parent_failure=b.on_parent_failure, webhook=b.webhook, result=r.result, error=r.error, history=r.history,
        log=r.log,
    )  # fmt: skip


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)

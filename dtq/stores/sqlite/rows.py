"""Rows: convert between tasks and rows.

A field that queries use has its own column. Fields that are set once (`options`), and those that an attempt leaves
behind (`outcome`), share a JSON column each, which is NULL if all are defaults, as for most tasks. The payload is
written once. The `error` of the latest attempt has its own column, so that lists need not read results and logs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from dtq.policy.limits import Lane
from dtq.stores.sqlite.queries import of_one
from dtq.stores.sqlite.schema import BLOCKED, DOOMED, LATER, READY
from dtq.task.codec import cut, raw, to_json
from dtq.task.model import DAY, Attempt, Backoff, ErrorInfo, OnParentFailure, Status, Task, Webhook
from dtq.task.transitions import unreadable

T = TypeVar("T")


class Options(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    max_attempts: int = 3
    timeout: float = 30.0
    retry_delay: float = 1.0
    retry_backoff: Backoff = "exponential"
    retry_jitter: float = 0.0
    retry_cap: float = DAY
    after: tuple[str, ...] = ()
    on_parent_failure: OnParentFailure = "fail"
    webhook: Webhook | None = None


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    result: msgspec.Raw = None  # type: ignore[assignment]
    history: tuple[Attempt, ...] = ()
    log: str = ""


NO_OPTIONS, NO_OUTCOME = Options(), Outcome()
_options = msgspec.json.Decoder(Options).decode
_outcome = msgspec.json.Decoder(Outcome).decode
_error = msgspec.json.Decoder(ErrorInfo).decode
_STATUS = {str(status): status for status in Status}
_STAGE = {Status.BLOCKED: BLOCKED, Status.PENDING: LATER, Status.RETRYING: LATER}


def _json(value: msgspec.Struct) -> str | None:
    text = to_json(value).decode()
    return None if text == "{}" else text


def json_list(values: Iterable[Any]) -> str:
    """Return many values as one parameter, for `IN (SELECT value FROM json_each(?))`."""
    return to_json(list(values)).decode()


def about(db: sqlite3.Connection, query: str, values: Sequence[Any], *others: Any) -> sqlite3.Cursor:
    """Run a statement that binds these others, and then a list of values. A single value takes less time."""
    if len(values) == 1:
        return db.execute(of_one(query), (*others, values[0]))
    return db.execute(query, (*others, json_list(values)))


def options_of(task: Task) -> str | None:
    return _json(
        Options(
            task.max_attempts, task.timeout, task.retry_delay, task.retry_backoff, task.retry_jitter, task.retry_cap,
            task.after, task.on_parent_failure, task.webhook,
        )
    )  # fmt: skip


def outcome_of(task: Task) -> str | None:
    return _json(Outcome(task.raw_result, task.history, task.log))


def stage_of(task: Task) -> int | None:
    """Return the stage of a task after a transition (see schema.py). For a new task that is already due it is READY."""
    stage = _STAGE.get(task.status)
    return DOOMED if task.doom and stage is not None else stage


def new_row(task: Task, lane: int) -> tuple[Any, ...]:
    """Return the values for INSERT. `task` has its first status and doom."""
    stage = stage_of(task)
    if stage == LATER and task.run_at <= task.created_at:
        stage = READY
    payload = None if task.raw_payload is None else to_json(task.raw_payload).decode()
    return (
        task.id, lane, task.key, stage, task.status, task.priority, task.run_at, task.expires,
        task.created_at, task.doom, options_of(task), payload,
    )  # fmt: skip


def state_row(task: Task, seq: int) -> tuple[Any, ...]:
    """Return the values for REPLACE."""
    return (
        stage_of(task), task.status, task.priority, task.expires, task.run_at, task.started_at, task.finished_at,
        task.attempts, task.interruptions, task.worker, task.lease_until, task.doom, task.progress, task.note,
        None if task.error is None else to_json(task.error).decode(), outcome_of(task), seq,
    )  # fmt: skip


def task_of(row: tuple[Any, ...], lanes: Mapping[int, Lane]) -> Task:
    """Return the task of a row of FIELDS. `lanes` maps numbers to lanes. A damaged row becomes
    a task that cannot run (see `unreadable`)."""
    (
        _, id, lane, key, status, version, priority, run_at, expires, created_at, started_at, finished_at, attempts,
        interruptions, worker, lease_until, doom, progress, note, options, error, outcome, payload,
    ) = row  # fmt: skip
    try:
        problem = None
        queue, type, limit_key = lanes[lane]
        state = _STATUS[status]
        o = NO_OPTIONS if options is None else _options(options)
        r = NO_OUTCOME if outcome is None else _outcome(outcome)
        failure = None if error is None else _error(error)
        data = None if payload is None else raw(payload)
    except Exception as why:  # written by another version of dtq, or by hand: all other tasks must stay readable
        problem = why
        queue, type, limit_key = lanes.get(lane, ("unreadable", "unreadable", ""))
        state = _STATUS.get(status, Status.FAILED)
        o, r = _or_else(_options, options, NO_OPTIONS), _or_else(_outcome, outcome, NO_OUTCOME)
        failure, data = _or_else(_error, error, None), _or_else(raw, payload, None)
    task = Task(
        id=id, queue=queue, type=type, limit_key=limit_key, key=key, status=state, version=version,
        priority=priority, run_at=run_at, expires=expires, created_at=created_at, started_at=started_at,
        finished_at=finished_at, attempts=attempts, interruptions=interruptions, worker=worker, lease_until=lease_until,
        doom=doom, progress=progress, note=note, payload=data,
        max_attempts=o.max_attempts, timeout=o.timeout, retry_delay=o.retry_delay, retry_backoff=o.retry_backoff,
        retry_jitter=o.retry_jitter, retry_cap=o.retry_cap, after=o.after, on_parent_failure=o.on_parent_failure,
        webhook=o.webhook, result=r.result, history=r.history, log=r.log, error=failure,
    )  # fmt: skip
    return task if problem is None else unreadable(task, problem)


def _or_else(read: Callable[[Any], T], text: Any, otherwise: T) -> T:
    try:
        return otherwise if text is None else read(cut(text.encode()))
    except Exception:
        return otherwise

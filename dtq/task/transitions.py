"""Transitions: what can happen to a task. Each is a pure function that returns a new task.

            claim               succeed
    waiting -----> processing ---------------------------> completed
       ^               |  fail: attempts are left
       +---------------+  release, interrupt
                       |  fail: none is left, or final
                       +---------------------------------> failed      -- revive --> waiting
    waiting or processing  -- cancel --------------------> cancelled   -- revive --> waiting

Time and random numbers are parameters, so that the same arguments always return the same task. Every transition raises
IllegalTransition where the task's status does not allow it. Times are UTC seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dtq.errors import IllegalTransition
from dtq.task.model import (
    DAY,
    EXPIRED,
    MAX_CRASHES,
    MAX_HISTORY,
    MAX_INTERRUPTIONS,
    PARENT_FAILED,
    UNREADABLE,
    UNREADABLE_DOOM,
    WAITING,
    WORKER_DIED,
    Attempt,
    ErrorInfo,
    Status,
    Task,
    check_number,
)


def succeed(task: Task, result: Any, now: float) -> Task:
    """Return the task completed with this result."""
    _require(task, Status.PROCESSING, Status.COMPLETED)
    return msgspec.structs.replace(
        task, status=Status.COMPLETED, result=result, error=None, progress=100.0, finished_at=now, lease_until=None
    )


def fail(
    task: Task, error: ErrorInfo, now: float, chance: Callable[[], float], *, final: bool = False,
    delay: float | None = None,
) -> Task:  # fmt: skip
    """Return the task after a failed attempt: retrying, or failed if no attempt is left.

    It retries after its backoff, or after `delay` seconds. It fails after `max_attempts`, after MAX_CRASHES crashes in
    a row, or at once if `final`. `chance` returns a number from 0 to 1; it is called only for a task with jitter.
    """
    _require(task, Status.PROCESSING, Status.FAILED)
    attempt = Attempt(task.attempts, task.started_at, now, task.worker, error)
    history = (*task.history, attempt)[-MAX_HISTORY:]
    if final or task.attempts >= task.max_attempts or (task.attempts >= MAX_CRASHES and is_poison(history)):
        return msgspec.structs.replace(
            task, status=Status.FAILED, error=error, history=history, finished_at=now, lease_until=None
        )
    wait = backoff(task, task.attempts, chance) if delay is None else delay
    check_number("delay", wait, 0, 30 * DAY)
    return msgspec.structs.replace(
        task, status=Status.RETRYING, run_at=now + wait, error=error, history=history, lease_until=None
    )


def is_poison(history: Sequence[Attempt]) -> bool:
    """Return whether each of the last MAX_CRASHES attempts killed its worker: the next ones would too."""
    last = history[-MAX_CRASHES:]
    return len(last) == MAX_CRASHES and all(attempt.error.type == WORKER_DIED for attempt in last)


def release(task: Task) -> Task:
    """Return the task pending again, after it was claimed and not started. The attempt does not count. (A doomed task
    was claimed without one.)"""
    _require(task, Status.PROCESSING, Status.PENDING)
    return msgspec.structs.replace(
        task, status=Status.PENDING, attempts=task.attempts - (not task.doom), worker=None, lease_until=None
    )


def interrupt(task: Task, now: float) -> Task:
    """Return the task pending again, after its node died. The attempt does not count, the interruption does.

    After MAX_INTERRUPTIONS the task is failed instead: it may be what kills the nodes.
    """
    _require(task, Status.PROCESSING, Status.PENDING)
    task = msgspec.structs.replace(task, interruptions=task.interruptions + 1)
    if task.interruptions < MAX_INTERRUPTIONS:
        return release(task)
    error = ErrorInfo("Interrupted", f"{task.interruptions} nodes died while they had this task; it may be the cause")
    return fail(task, error, now, lambda: 0.0, final=True)


def cancel(task: Task, now: float, reason: str = "cancelled by request", kind: str = "Cancelled") -> Task:
    """Return the task cancelled, with `reason` as the message of its error and `kind` as its type.

    The node that runs an attempt of it sees the new status and stops the attempt.
    """
    if task.is_terminal:
        _refuse_transition(task, Status.CANCELLED)
    error = ErrorInfo(kind, reason)
    return msgspec.structs.replace(task, status=Status.CANCELLED, error=error, finished_at=now, lease_until=None)


def end_doomed(task: Task, now: float) -> Task:
    """Return the end of a task that was claimed with a doom: an expired task is cancelled; a child of a failed parent
    and a task whose record cannot be read fail."""
    if task.doom == "expired":
        return cancel(task, now, "it expired before it could start", EXPIRED)
    doom = task.doom or ""
    kind = UNREADABLE if doom.startswith(UNREADABLE_DOOM) else PARENT_FAILED
    return fail(task, ErrorInfo(kind, doom), now, lambda: 0.0, final=True)


def unreadable(task: Task, error: Exception) -> Task:
    """Return what a store returns for a record that it cannot read in full: `task`, which has the readable fields,
    doomed unless it has ended."""
    if task.is_terminal:
        return task
    return msgspec.structs.replace(task, doom=unreadable_doom(error))


def unreadable_doom(error: Exception) -> str:
    """Return the doom of a task whose record raised this error when it was read."""
    problem = "it is nested too deep" if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"
    return f"{UNREADABLE_DOOM}{problem[:500]}"


def failed_with_parent(task: Task) -> bool:
    """Return whether the task failed without running because a parent did not complete."""
    return task.error is not None and task.error.type == PARENT_FAILED


def revive(task: Task, now: float) -> Task:
    """Return a failed or cancelled task pending again, with all its attempts; its history stays.

    The store blocks it again if some of its parents have not ended.
    """
    if task.status not in (Status.FAILED, Status.CANCELLED):
        _refuse_transition(task, Status.PENDING)
    return msgspec.structs.replace(
        task, status=Status.PENDING, run_at=now, attempts=0, interruptions=0, expires=None, started_at=None,
        finished_at=None, worker=None, doom=None, progress=0.0, note="", result=None, error=None,
    )  # fmt: skip


def brief_of(task: Task) -> Task:
    """Return the task without its payload, result, history and log, and without the traceback of its error, all of
    which may be large.

    Use it for lists and decisions. Never pass it to `Store.update`, which would erase what is missing here.
    """
    error = task.error and msgspec.structs.replace(task.error, traceback="")
    return msgspec.structs.replace(task, payload=None, result=None, history=(), log="", error=error)


def prioritise(task: Task, priority: int) -> Task:
    """Return a waiting task with another priority. Raise IllegalTransition for one that was claimed or has ended."""
    check_number("priority", priority, -1000, 1000, whole=True)
    if task.status not in WAITING:
        raise IllegalTransition(
            f"task {task.id or '(new)'} is {task.status}: it cannot change its priority, only a waiting task can"
        )
    return msgspec.structs.replace(task, priority=priority)


def backoff(task: Task, attempt: int, chance: Callable[[], float] = lambda: 0.0) -> float:
    """Return the seconds to wait after the given failed attempt (1, 2, ...).

    With retry_delay=2 these are 2, 4, 8, 16 (exponential), 2, 4, 6, 8 (linear) or 2, 2, 2, 2 (constant). They are at
    most `retry_cap`, and shortened by a random part of up to `retry_jitter`.
    """
    factor = {"exponential": 2.0 ** min(attempt - 1, 64), "linear": attempt, "constant": 1}[task.retry_backoff]
    delay = min(task.retry_delay * factor, task.retry_cap)
    return delay * (1 - task.retry_jitter * chance()) if task.retry_jitter else delay


def _require(task: Task, status: Status, target: Status) -> None:
    if task.status is not status and task.status != status:
        _refuse_transition(task, target)


def _refuse_transition(task: Task, target: Status) -> None:
    raise IllegalTransition(f"task {task.id or '(new)'} is {task.status}: it cannot become {target}")

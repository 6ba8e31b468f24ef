"""What happens to a task: each transition is a pure function from a task to a task.

            claim               succeed
    waiting -----> processing ---------------------------> completed
       ^               |  fail: attempts are left
       +---------------+  release, interrupt
                       |  fail: none is left, or final
                       +---------------------------------> failed      -- revive --> waiting
    waiting or processing  -- cancel --------------------> cancelled   -- revive --> waiting

The time and the source of chance are parameters, so that a transition gives the same task each time it is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dtq.errors import IllegalTransition
from dtq.task.model import (
    _UNREADABLE,
    DAY,
    EXPIRED,
    MAX_CRASHES,
    MAX_HISTORY,
    MAX_INTERRUPTIONS,
    PARENT_FAILED,
    UNREADABLE,
    WAITING,
    WORKER_DIED,
    Attempt,
    ErrorInfo,
    Status,
    Task,
    _check_number,
)


def succeed(task: Task, result: Any, now: float) -> Task:
    """The attempt has given its result."""
    _require(task, Status.PROCESSING, Status.COMPLETED)
    return msgspec.structs.replace(
        task, status=Status.COMPLETED, result=result, error=None, progress=100.0, finished_at=now, lease_until=None
    )


def fail(
    task: Task, error: ErrorInfo, now: float, chance: Callable[[], float], *, final: bool = False,
    delay: float | None = None,
) -> Task:  # fmt: skip
    """The attempt has failed: it runs again after its backoff (or `delay` seconds), or is given up: after
    `max_attempts`, after MAX_CRASHES in a row, or at once if `final`.

    `chance` gives a number from 0 to 1 and is asked only where the task has jitter.
    """
    _require(task, Status.PROCESSING, Status.FAILED)
    attempt = Attempt(task.attempts, task.started_at, now, task.worker, error)
    history = (*task.history, attempt)[-MAX_HISTORY:]
    if final or task.attempts >= task.max_attempts or (task.attempts >= MAX_CRASHES and is_poison(history)):
        return msgspec.structs.replace(
            task, status=Status.FAILED, error=error, history=history, finished_at=now, lease_until=None
        )
    wait = backoff(task, task.attempts, chance) if delay is None else delay
    _check_number("delay", wait, 0, 30 * DAY)
    return msgspec.structs.replace(
        task, status=Status.RETRYING, run_at=now + wait, error=error, history=history, lease_until=None
    )


def is_poison(history: Sequence[Attempt]) -> bool:
    """Whether the last MAX_CRASHES attempts each took a worker down: the next ones would too."""
    last = history[-MAX_CRASHES:]
    return len(last) == MAX_CRASHES and all(attempt.error.type == WORKER_DIED for attempt in last)


def release(task: Task) -> Task:
    """The task goes back untouched: it was claimed and never started, so the attempt (doomed ones have none) is
    refunded."""
    _require(task, Status.PROCESSING, Status.PENDING)
    return msgspec.structs.replace(
        task, status=Status.PENDING, attempts=task.attempts - (not task.doom), worker=None, lease_until=None
    )


def interrupt(task: Task, now: float) -> Task:
    """The node that had the task has died, and nobody knows whether it ran: the attempt is refunded, the interruption
    counted.

    After MAX_INTERRUPTIONS it is parked as failed: it may be what kills the nodes.
    """
    _require(task, Status.PROCESSING, Status.PENDING)
    task = msgspec.structs.replace(task, interruptions=task.interruptions + 1)
    if task.interruptions < MAX_INTERRUPTIONS:
        return release(task)
    error = ErrorInfo("Interrupted", f"{task.interruptions} nodes died while they had this task; it may be the cause")
    return fail(task, error, now, lambda: 0.0, final=True)


def cancel(task: Task, now: float, reason: str = "cancelled by request", kind: str = "Cancelled") -> Task:
    """The task ends without a result; its error, of this kind, says why. A running attempt is stopped by whoever runs
    it."""
    if task.is_terminal:
        _refuse_transition(task, Status.CANCELLED)
    error = ErrorInfo(kind, reason)
    return msgspec.structs.replace(task, status=Status.CANCELLED, error=error, finished_at=now, lease_until=None)


def end_doomed(task: Task, now: float) -> Task:
    """The end of a task that `claim` gave out marked: expired ones are cancelled, children of a failed parent fail, and
    so do those whose record cannot be read."""
    if task.doom == "expired":
        return cancel(task, now, "it expired before it could start", EXPIRED)
    doom = task.doom or ""
    kind = UNREADABLE if doom.startswith(_UNREADABLE) else PARENT_FAILED
    return fail(task, ErrorInfo(kind, doom), now, lambda: 0.0, final=True)


def unreadable(task: Task, error: Exception) -> Task:
    """What a store gives for a record that it cannot read in full: `task` has what it could read. One that has not
    ended is doomed."""
    if task.is_terminal:
        return task
    return msgspec.structs.replace(task, doom=unreadable_doom(error))


def unreadable_doom(error: Exception) -> str:
    problem = "it is nested too deep" if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"
    return f"{_UNREADABLE}{problem[:500]}"


def fell_with_its_parent(task: Task) -> bool:
    """Whether it failed without an attempt, because one of its parents had."""
    return task.error is not None and task.error.type == PARENT_FAILED


def revive(task: Task, now: float) -> Task:
    """A failed or cancelled task starts afresh, with all its attempts; its history stays. A store has it wait for those
    of its parents that have not ended."""
    if task.status not in (Status.FAILED, Status.CANCELLED):
        _refuse_transition(task, Status.PENDING)
    return msgspec.structs.replace(
        task, status=Status.PENDING, run_at=now, attempts=0, interruptions=0, expires=None, started_at=None,
        finished_at=None, worker=None, doom=None, progress=0.0, note="", result=None, error=None,
    )  # fmt: skip


def brief_of(task: Task) -> Task:
    """Return the task without what may be large: its payload, result, history and log, and the traceback of its error.

    It is for lists and decisions. Never pass it to `Store.update`, which would erase what is missing here.
    """
    error = task.error and msgspec.structs.replace(task.error, traceback="")
    return msgspec.structs.replace(task, payload=None, result=None, history=(), log="", error=error)


def prioritise(task: Task, priority: int) -> Task:
    """The task waits with another priority from now on. One that was claimed, or has ended, waits no more."""
    _check_number("priority", priority, -1000, 1000, whole=True)
    if task.status not in WAITING:
        raise IllegalTransition(f"task {task.id or '(new)'} is {task.status}: it does not wait any more")
    return msgspec.structs.replace(task, priority=priority)


def backoff(task: Task, attempt: int, chance: Callable[[], float] = lambda: 0.0) -> float:
    """Seconds to wait after the given failed attempt (1, 2, ...): retry_delay=2 gives 2, 4, 8, 16 s (exponential), 2,
    4, 6, 8 s (linear), 2, 2, 2, 2 s (constant), shortened by up to `retry_jitter` of it, and never over
    `retry_cap`."""
    factor = {"exponential": 2.0 ** min(attempt - 1, 64), "linear": attempt, "constant": 1}[task.retry_backoff]
    delay = min(task.retry_delay * factor, task.retry_cap)
    return delay * (1 - task.retry_jitter * chance()) if task.retry_jitter else delay


def _require(task: Task, status: Status, target: Status) -> None:
    if task.status is not status and task.status != status:
        _refuse_transition(task, target)


def _refuse_transition(task: Task, target: Status) -> None:
    raise IllegalTransition(f"task {task.id or '(new)'} is {task.status}: it cannot become {target}")

"""The exceptions of dtq: one root, and a subclass for each case that a caller may want to catch."""

from __future__ import annotations

from typing import Any

MAX_DELAY = 30 * 86400  # seconds


class DTQError(Exception):
    """The root of all errors of dtq."""


class InvalidTask(DTQError, ValueError):
    """A task, an option or a payload is not allowed; nothing was added."""


class DuplicateTask(DTQError):
    """Another task has the key, and `on_conflict` is "reject". `task` is the task that has the key."""

    def __init__(self, task: Any) -> None:
        self.task = task
        super().__init__(f"the key {task.key!r} is taken by task {task.id} ({task.type}), which is {task.status}")


class IllegalTransition(DTQError):
    """A task cannot change from its status to the requested one."""


class UnknownTask(DTQError, LookupError):
    """The store has no task with this id."""


class UnknownSchedule(DTQError, LookupError):
    """The store has no schedule with this name."""


class UnknownType(DTQError, LookupError):
    """No handler is registered for this type."""


class HandlerError(DTQError):
    """A handler cannot be found, loaded or sent to a worker."""


class QueueFull(DTQError):
    """The queue has as many tasks as `backlog_limit` allows; try again later."""


class StoreError(DTQError):
    """The store cannot be opened, read or written. Only what was acknowledged is certain to be stored."""


class Retry(Exception):
    """Raised by a handler to fail this attempt and try again.

    Args:
        reason: recorded as the message of the attempt's error.
        delay: seconds until the next attempt; None: the task's own backoff. After the last attempt, there is no next.
    """

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        if delay is not None and (isinstance(delay, bool) or not 0 <= delay <= MAX_DELAY):
            raise ValueError(
                f"delay is {delay!r}; allowed: 0 to {MAX_DELAY:,} seconds, or None for the task's own backoff"
            )
        self.delay = delay
        super().__init__(reason)


class Discard(Exception):
    """Raised by a handler when the work is no longer needed. The task ends as cancelled, with this reason, and is not
    retried."""


class TaskFailed(DTQError):
    """The task has failed, so it has no result. `error` is its ErrorInfo, `task` the task itself."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.error = task.error
        super().__init__(f"task {task.id} ({task.type}) failed: {task.error or 'no error was recorded'}")


class TaskCancelled(DTQError):
    """The task was cancelled, so it has no result."""

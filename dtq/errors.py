"""Everything that dtq raises on purpose: one root, a child for each thing a caller may want to catch."""

from __future__ import annotations

from typing import Any

MAX_DELAY = 30 * 86400  # seconds


class DTQError(Exception):
    """The root of all errors of dtq."""


class InvalidTask(DTQError, ValueError):
    """A task, an option or a payload that cannot be accepted; nothing was added."""


class DuplicateTask(DTQError):
    """The key is taken, and the task was to be rejected in that case; `.task` is the one that has it."""

    def __init__(self, task: Any) -> None:
        self.task = task
        super().__init__(f"the key {task.key!r} is taken by task {task.id} ({task.type}), which is {task.status}")


class IllegalTransition(DTQError):
    """A task cannot go from the status that it has to the one that was asked for."""


class UnknownTask(DTQError, LookupError):
    """No task of this id is in the store."""


class UnknownSchedule(DTQError, LookupError):
    """No schedule of this name is in the store."""


class UnknownType(DTQError, LookupError):
    """No handler is registered for this type."""


class HandlerError(DTQError):
    """A handler cannot be found, loaded or sent to a worker."""


class QueueFull(DTQError):
    """The backlog limit is reached; try again when the queue has drained."""


class StoreError(DTQError):
    """The store cannot be opened, read or written; what was not acknowledged was not stored."""


class Retry(Exception):
    """Raised by a handler: try again, after `delay` seconds where it is given, else after the task's own backoff. It is
    a failed attempt like any other: the last one is not followed by another."""

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        if delay is not None and (isinstance(delay, bool) or not 0 <= delay <= MAX_DELAY):
            raise ValueError(f"delay is {delay!r}; allowed: 0 to {MAX_DELAY:,} seconds, or None for the usual backoff")
        self.delay = delay
        super().__init__(reason)


class Discard(Exception):
    """Raised by a handler: the work has become pointless. The task ends as cancelled, with this reason, and is not
    tried again."""


class TaskFailed(DTQError):
    """The task whose result was asked for has failed; `.error` says why, `.task` is the task."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.error = task.error
        super().__init__(f"task {task.id} ({task.type}) failed: {task.error or 'no error was recorded'}")


class TaskCancelled(DTQError):
    """The task whose result was asked for was cancelled."""

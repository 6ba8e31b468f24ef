"""Everything that dtq raises on purpose: one root, a child for each thing a caller may want to catch."""

from __future__ import annotations

from typing import Any


class DTQError(Exception):
    """The root of all errors of dtq."""


class InvalidTask(DTQError, ValueError):
    """A task, an option or a payload that cannot be accepted; nothing was added."""


class IllegalTransition(DTQError):
    """A task cannot go from the status that it has to the one that was asked for."""


class UnknownTask(DTQError, LookupError):
    """No task of this id is in the store."""


class UnknownType(DTQError, LookupError):
    """No handler is registered for this type."""


class HandlerError(DTQError):
    """A handler cannot be found, loaded or sent to a worker."""


class QueueFull(DTQError):
    """The backlog limit is reached; try again when the queue has drained."""


class StoreError(DTQError):
    """The store cannot be opened, read or written; what was not acknowledged was not stored."""


class TaskFailed(DTQError):
    """The task whose result was asked for has failed; `.error` says why, `.task` is the task."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.error = task.error
        super().__init__(f"task {task.id} ({task.type}) failed: {task.error or 'no error was recorded'}")


class TaskCancelled(DTQError):
    """The task whose result was asked for was cancelled."""

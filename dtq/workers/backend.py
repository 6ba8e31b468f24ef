"""WorkerBackend: what the loop asks of a pool of workers, and what the pool reports: deciding here, running there.

        loop (queue/loop.py)                              pool (process/pool.py, threads.py, inline.py)
         | -- define, dispatch, recall, stop, resize -->    |
         | <-- poll: Started, Progressed, Logged, Finished, |
         |           Returned, WorkerChanged -------------- |

Every dispatched task comes back exactly once, as Finished or as Returned. The pool decides where it runs: in a process,
a thread, or the caller's own thread. So one loop serves all pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import time
from typing import Any, ClassVar, Literal, Protocol

from msgspec import Struct

from dtq.task.internal_error import internal_error
from dtq.task.model import ErrorInfo, Task, keep_json
from dtq.workers import wire
from dtq.workers.wire import Source

WorkerState = Literal["starting", "idle", "busy", "retiring"]


class Started(Struct, frozen=True):
    """The attempt started at `at` (UTC seconds)."""

    task: Task
    worker: str
    at: float


class Progressed(Struct, frozen=True):
    """The handler reported its progress: `percent` from 0 to 100, and a note."""

    task: Task
    percent: float
    note: str


class Logged(Struct, frozen=True):
    """The handler printed this text."""

    task: Task
    text: str


class Finished(Struct, frozen=True):
    """The attempt has ended, with a result or an error.

    `final` is true when another attempt is useless, `delay` holds the seconds after which the handler asked for another
    attempt, and `discarded` is true when the handler dropped the task.
    """

    task: Task
    worker: str
    started_at: float
    seconds: float
    result: Any
    error: ErrorInfo | None
    log: str
    final: bool
    delay: float | None = None
    discarded: bool = False
    raw_result: ClassVar[Any]  # the result as JSON (see JsonField)


keep_json(Finished, "result")


class Returned(Struct, frozen=True):
    """The task did not start, or its worker was killed because of another task. It goes back to the store unchanged."""

    task: Task


class WorkerChanged(Struct, frozen=True):
    """A worker was started, accepts calls, or has exited: with `signal` or `exit_code`, for this `reason`."""

    worker: str
    state: Literal["started", "ready", "exited"]
    pid: int
    signal: int | None = None
    exit_code: int | None = None
    reason: str = ""


def unfit(task: Task, error: Exception) -> Finished:
    """Return the report of a task that a pool cannot pass to a worker."""
    return Finished(task, "none", time(), 0.0, None, internal_error(error), "", False)


def finished(task: Task, worker: str, done: wire.Done, result: Any) -> Finished:
    """Return the report of a call that has ended. `result` is the result of the message, as a task keeps it."""
    return Finished(
        task, worker, done.started_at, done.seconds, result, done.error, done.log, done.final, done.delay,
        done.discarded,
    )  # fmt: skip


def output(task: Task, message: wire.Progress | wire.Log) -> Report:
    """Return the report of progress, or of printed text."""
    if isinstance(message, wire.Progress):
        return Progressed(task, message.percent, message.note)
    return Logged(task, message.text)


Report = Started | Progressed | Logged | Finished | Returned | WorkerChanged


class WorkerInfo(Struct, frozen=True):
    """One worker at this moment. `outstanding` counts the calls that it holds; `task_id` is the task that runs."""

    id: str
    pid: int
    state: WorkerState
    outstanding: int
    done: int
    busy_seconds: float
    task_id: str | None


class WorkerBackend(Protocol):
    """Runs tasks. The loop's thread calls all methods; any thread may call `wake`. No method but `wait` blocks."""

    def start(self) -> None:
        """Start to accept calls."""

    def define(self, type: str, source: Source, function: Callable[..., Any] | None = None) -> None:
        """Use this handler for new calls of the type. Running calls keep the handler that they began with.

        `function` is the handler itself, if it was registered as a function. Pools inside this process call it.
        """

    def capacity(self) -> Iterator[tuple[int, frozenset[str]]]:
        """Yield how many tasks of which types to claim next. The loop dispatches what it claimed for one step before it
        asks for the next step."""

    def dispatch(self, tasks: Sequence[Task], parents: Mapping[str, bytes] = {}) -> None:
        """Run these tasks. Accept all of them, even if they exceed the capacity.

        A task that cannot be passed to a worker is reported as Finished, with an error. `parents` holds, by task id,
        the results of the parents of a task as JSON, for tasks that have parents.
        """

    def poll(self) -> list[Report]:
        """Return what happened since the last call, in order. Enforce timeouts and replace workers. Never block."""

    def deadline(self) -> float | None:
        """Return the seconds until `poll` must be called, or None if only an event can require it."""

    def wait(self, timeout: float | None) -> None:
        """Wait until a worker sends a message, a watched descriptor is readable, `wake` is called, or `timeout` seconds
        have passed. May return early."""

    def wake(self) -> None:
        """End the current `wait`, or the next one. Safe to call from any thread."""

    def watch(self, fd: int) -> None:
        """Let this descriptor end `wait` while it is readable. Its owner reads it."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when `poll` has work, for a loop that serves several pools."""

    def stop(self, task: Task) -> None:
        """Stop this attempt (its id and version), running or not. Ignore unknown attempts.

        It is reported once: as Returned if it had not started, else as Finished, with the error "Cancelled" unless it
        ended by itself first.
        """

    def recall(self) -> None:
        """Take back all tasks that have not started. Each is reported as Returned."""

    def resize(self, size: int) -> None:
        """Change the number of workers. Running calls are not disturbed."""

    def workers(self) -> list[WorkerInfo]: ...

    def outstanding(self) -> int:
        """Return how many calls are dispatched and not yet reported."""

    def close(self, kill: bool = False) -> None:
        """Retire idle workers and release everything. With `kill`, do it at once, whatever runs."""

"""What a pool tells the loop, and what the loop may ask of a pool: the seam between deciding and running.

        loop (queue.py)                                   pool (pool.py, executors.py)
         | -- define, dispatch, recall, stop, resize -->    |
         | <-- poll: Started, Progressed, Logged, Finished, |
         |           Returned, WorkerChanged -------------- |

Every dispatched task comes back exactly once, as Finished or as Returned. Whether it runs in a process, in a thread or
at once in the caller is the pool's own business, so that one loop serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import time
from typing import Any, Literal, Protocol

from msgspec import Struct

from dtq.task.internal_error import internal_error
from dtq.task.model import ErrorInfo, Task
from dtq.workers.wire import Source

WorkerState = Literal["starting", "idle", "busy", "retiring"]


class Started(Struct, frozen=True):
    """The attempt runs since `at` (UTC seconds)."""

    task: Task
    worker: str
    at: float


class Progressed(Struct, frozen=True):
    """How far the handler says that it is."""

    task: Task
    percent: float
    note: str


class Logged(Struct, frozen=True):
    """A piece of what the handler printed, as it came."""

    task: Task
    text: str


class Finished(Struct, frozen=True):
    """The attempt has ended: with a result (plain JSON types) or an error. `final`: another attempt would be no use;
    `delay`: seconds after which the handler wants another; `discarded`: it wants the task to be dropped."""

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


class Returned(Struct, frozen=True):
    """The task never started (or stood behind one whose worker was killed): it goes back untouched."""

    task: Task


class WorkerChanged(Struct, frozen=True):
    """A worker was started, takes calls, or is gone; `signal`, `exit_code` and `reason` say how it went."""

    worker: str
    state: Literal["started", "ready", "exited"]
    pid: int
    signal: int | None = None
    exit_code: int | None = None
    reason: str = ""


def unfit(task: Task, error: Exception) -> Finished:
    """Report a task that a pool cannot hand to a worker."""
    return Finished(task, "none", time(), 0.0, None, internal_error(error), "", False)


Report = Started | Progressed | Logged | Finished | Returned | WorkerChanged


class WorkerInfo(Struct, frozen=True):
    """One worker at this moment. `outstanding` counts the calls that it holds, `task_id` is the one that runs."""

    id: str
    pid: int
    state: WorkerState
    outstanding: int
    done: int
    busy_seconds: float
    task_id: str | None


class WorkerBackend(Protocol):
    """Runs tasks. All methods but `wake` are called by one thread, the loop's; none but `wait` blocks."""

    def start(self) -> None:
        """Takes calls from here on."""

    def define(self, type: str, source: Source, function: Callable[..., Any] | None = None) -> None:
        """This is the handler of the type from now on; calls that run keep the one they began with.

        `function` is the handler itself where it was given as one: a pool inside this process calls it directly.
        """

    def capacity(self) -> Iterator[tuple[int, frozenset[str]]]:
        """How many tasks of which types to claim next. A generator: what was claimed for one step is dispatched before
        the next step is asked for."""

    def dispatch(self, tasks: Sequence[Task], parents: Mapping[str, bytes] = {}) -> None:
        """Run these. All of them are taken, also more than `wants` asked for; one that cannot be handed to a worker is
        reported as Finished, with an error. `parents`: by id, what the parents of a task left, for those that have
        any."""

    def poll(self) -> list[Report]:
        """What happened since the last call, in order. Fires timeouts and replaces workers on the way; never blocks."""

    def deadline(self) -> float | None:
        """Seconds until `poll` has something to do by itself; None: nothing."""

    def wait(self, timeout: float | None) -> None:
        """Returns when a worker has said something, a watched descriptor is readable, `wake` was called, or after
        `timeout` seconds. May return early."""

    def wake(self) -> None:
        """Ends `wait`, also one that has not begun. From any thread."""

    def watch(self, fd: int) -> None:
        """This descriptor, when readable, ends `wait` too. Whoever gave it reads it."""

    def fileno(self) -> int:
        """A descriptor that is readable when `poll` has something to read, for a loop that serves several pools."""

    def stop(self, task: Task) -> None:
        """Stop this attempt (its id and version), running or not; unknown ones are ignored. It is reported once:
        Returned if it had not started, else Finished, with the error "Cancelled" unless it ended by itself first."""

    def recall(self) -> None:
        """Take back all that has not started; it is reported as Returned."""

    def resize(self, size: int) -> None:
        """So many workers from now on. What runs is not disturbed."""

    def workers(self) -> list[WorkerInfo]: ...

    def outstanding(self) -> int:
        """Calls dispatched and not yet reported."""

    def close(self, kill: bool = False) -> None:
        """Retire idle workers and release everything; with `kill`, at once and whatever runs."""

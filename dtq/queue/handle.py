"""Handle: what `add` returns, to read a task's state and to wait for its result. Waiters: the futures behind it.

result() --future--> Waiters <--resolve-- the loop, for each outcome that it has committed
                        ^------poll------ a ResultPoller, for tasks that end in another process or are deleted
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, Protocol

from dtq.errors import DTQError, TaskCancelled, TaskFailed, UnknownTask
from dtq.stores.protocol import Outcome, Store
from dtq.sync.waits import SafeFuture
from dtq.task.model import Status, Task

POLL_INTERVAL = 1.0  # seconds between two reads of the store when no hint comes
TASKS_PER_READ = 100  # each task may have megabytes


class Waiters:
    """The futures of the tasks that callers wait for. Thread-safe. False while there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: dict[str, list[Future[Task]]] = {}
        self.closed = ""  # why no future will be resolved any more; empty while open

    def in_child(self) -> None:
        """Forget all futures after a fork: their waiters are in the parent."""
        self._lock, self._futures, self.closed = threading.Lock(), {}, ""

    def __bool__(self) -> bool:
        return bool(self._futures)

    def future(self, task_id: str) -> Future[Task]:
        """Return a new future that resolves to the ended task. Cancel it to stop waiting."""
        future: Future[Task] = SafeFuture()
        future.add_done_callback(partial(self._forget_if_cancelled, task_id))
        with self._lock:
            self._futures.setdefault(task_id, []).append(future)
        return future

    def _forget_if_cancelled(self, task_id: str, future: Future[Task]) -> None:
        if future.cancelled():
            self._drop(task_id, [future])

    def _drop(self, task_id: str, futures: Collection[Future[Task]]) -> None:
        with self._lock:
            left = [other for other in self._futures.get(task_id, ()) if other not in futures]
            self._futures[task_id] = left
            if not left:
                del self._futures[task_id]

    def resolve(self, tasks: Iterable[Task]) -> None:
        """Resolve the futures of those of these tasks that have ended."""
        for task in tasks:
            if task.id in self._futures and task.is_terminal:
                self._complete(task.id, lambda future, task=task: future.set_result(task))  # type: ignore[misc]

    def fail(self, task_id: str, error: DTQError) -> None:
        """Raise this error in all waiters of the task."""
        self._complete(task_id, lambda future: future.set_exception(error))

    def _complete(self, task_id: str, complete: Callable[[Future[Task]], None]) -> None:
        """Complete all futures of a task, then drop them. In this order, the next poll completes those that an
        interrupt has left."""
        with self._lock:
            futures = list(self._futures.get(task_id, ()))
        for future in futures:
            with suppress(InvalidStateError):  # cancelled, or completed before an interrupt
                complete(future)
        if futures:
            self._drop(task_id, futures)

    def fail_all(self, why: str, for_good: bool = True) -> None:
        """Raise DTQError in all waiters. With `for_good`, also in all later ones, by `require_open`."""
        if for_good:
            self.closed = self.closed or why
        for task_id in list(self._futures):
            self.fail(task_id, DTQError(f"task {task_id} had not ended when {why}"))

    def require_open(self, task_id: str) -> None:
        """Raise DTQError in the waiters of this task if its future can no longer be resolved."""
        if self.closed:
            self.fail(task_id, DTQError(f"task {task_id} had not ended when {self.closed}"))

    def poll(self, get: Callable[..., list[Task]]) -> None:
        """Read all awaited tasks with the store's `get`, whole only if they have ended. Resolve those, and fail the
        ones that are no longer stored with UnknownTask."""
        with self._lock:
            ids = list(self._futures)
        for start in range(0, len(ids), TASKS_PER_READ):
            batch = ids[start : start + TASKS_PER_READ]
            tasks = get(batch, brief=True)
            if ended := [task.id for task in tasks if task.is_terminal]:
                self.resolve(get(ended))
            for task_id in set(batch).difference(task.id for task in tasks):
                self.fail(task_id, UnknownTask(f"task {task_id} was deleted or cleaned up while it was waited for"))


def wait(future: Future[Task], timeout: float | None) -> Task:
    """Return the result of the future. Raise TimeoutError after `timeout` seconds (None: never). Check it every second:
    an interrupt may keep the resolving thread from waking this one."""
    give_up_at = time.monotonic() + (inf if timeout is None else timeout)
    while (left := give_up_at - time.monotonic()) > POLL_INTERVAL:
        with suppress(TimeoutError):
            return future.result(POLL_INTERVAL)
    return future.result(max(0.0, left))


class TaskSource(Protocol):
    """What handles and flows need of the queue or the manager that they come from."""

    store: Store
    clock: Callable[[], float]

    def get(self, task_id: str) -> Task: ...
    def cancel(self, task_id: str) -> Task: ...
    def wait_for(self, task_id: str, timeout: float | None = None) -> Task: ...
    def future_of(self, task_id: str) -> Future[Task]: ...
    def apply(self, outcomes: Sequence[Outcome]) -> list[Task]: ...


class Handle:
    """A task that was added. Each property reads the task's current state from the store.

    Args:
        id: The id of the task.
        source: The queue or the manager that the handle reads from.
    """

    __slots__ = ("_source", "id")

    def __init__(self, id: str, source: TaskSource) -> None:
        self.id = id
        self._source = source

    @property
    def task(self) -> Task:
        """The task as it is now. Raises UnknownTask."""
        return self._source.get(self.id)

    @property
    def status(self) -> Status:
        """The status of the task. Raises UnknownTask."""
        return self.task.status

    @property
    def progress(self) -> float:
        """The progress of the task, in percent, as its handler reported it. Raises UnknownTask."""
        return self.task.progress

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the task. Return what its handler returned.

        After the `shutdown` of a queue whose store was passed in and is still open, this waits for other nodes of that
        store.

        Args:
            timeout: Seconds to wait; None waits as long as it takes.

        Raises:
            TaskFailed: The task failed; `.error` tells why.
            TaskCancelled: The task was cancelled.
            TimeoutError: The task has not ended in time; it continues.
            UnknownTask: The task was deleted.
            DTQError: The queue was closed, or its loop failed, before the task ended.
        """
        return _value(self._source.wait_for(self.id, timeout))

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio  # loaded already wherever something is awaited

        future = self._source.future_of(self.id)
        try:
            task = yield from asyncio.wrap_future(future).__await__()
        finally:
            future.cancel()  # also if the asyncio task was cancelled
        return _value(task)

    def cancel(self) -> Task:
        """Cancel the task. Return it as it is then. Raise UnknownTask; IllegalTransition if it has ended."""
        return self._source.cancel(self.id)

    def __repr__(self) -> str:
        return f"<Handle {self.id}>"


def _value(task: Task) -> Any:
    if task.status == Status.FAILED:
        raise TaskFailed(task)
    if task.status == Status.CANCELLED:
        raise TaskCancelled(f"task {task.id} ({task.type}) was cancelled: {task.error.message if task.error else ''}")
    return task.result

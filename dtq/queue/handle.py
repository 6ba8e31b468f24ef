"""Handle: what `add` returns, to ask for a task's state and to wait for its result; Waiters: the futures of waiters.

result() --register--> Waiters <--settle-- the loop, for each outcome it has committed
                          ^------check---- a ResultPoller, for tasks that end in another process or are deleted
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
from dtq.sync.condition import SafeFuture
from dtq.task.model import Status, Task

POLL_INTERVAL = 1.0  # seconds between looks at the store where no hint comes
TASKS_PER_READ = 100  # tasks that are read at once: each may carry megabytes


class Waiters:
    """The futures of tasks that are waited for. Thread-safe. It is empty, and false, while nothing is waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: dict[str, list[Future[Task]]] = {}
        self.over = ""  # why no ending will be heard of any more

    def in_child(self) -> None:
        """After a fork: what waits is in the parent."""
        self._lock, self._futures, self.over = threading.Lock(), {}, ""

    def __bool__(self) -> bool:
        return bool(self._futures)

    def future(self, task_id: str) -> Future[Task]:
        """Return a new future of the ended task. Cancel it to stop waiting."""
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
        """Resolve the futures of those tasks that have ended."""
        for task in tasks:
            if task.id in self._futures and task.is_terminal:
                self._complete(task.id, lambda future, task=task: future.set_result(task))  # type: ignore[misc]

    def fail(self, task_id: str, error: DTQError) -> None:
        """Raise the error in all that wait for this task."""
        self._complete(task_id, lambda future: future.set_exception(error))

    def _complete(self, task_id: str, resolve: Callable[[Future[Task]], None]) -> None:
        """Resolve all futures of a task, and drop them only then: where an interrupt comes between, the next look in
        the store resolves the others."""
        with self._lock:
            futures = list(self._futures.get(task_id, ()))
        for future in futures:
            with suppress(InvalidStateError):  # cancelled, or resolved before the interrupt
                resolve(future)
        if futures:
            self._drop(task_id, futures)

    def fail_all(self, why: str, for_good: bool = True) -> None:
        """Raise DTQError in all that wait. `for_good`: and in all that will, as `require_open` does."""
        if for_good:
            self.over = self.over or why
        for task_id in list(self._futures):
            self.fail(task_id, DTQError(f"task {task_id} had not ended when {why}"))

    def require_open(self, task_id: str) -> None:
        """Raise DTQError where nothing will hear of the ending of this task."""
        if self.over:
            self.fail(task_id, DTQError(f"task {task_id} had not ended when {self.over}"))

    def check(self, get: Callable[..., list[Task]]) -> None:
        """Look in the store, with its `get`, for the tasks that are waited for. Only those that have ended are read
        whole. Those that are gone fail with UnknownTask."""
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
    """Return the result of the future. Raises TimeoutError. It looks again every second: the thread that resolved it
    may have been interrupted before it woke this one."""
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
    """A task that was added: its `id`, and its state, which is looked up each time."""

    __slots__ = ("_source", "id")

    def __init__(self, id: str, source: TaskSource) -> None:
        self.id = id
        self._source = source

    @property
    def task(self) -> Task:
        return self._source.get(self.id)

    @property
    def status(self) -> Status:
        return self.task.status

    @property
    def progress(self) -> float:
        return self.task.progress

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the task up to `timeout` seconds (None: as long as it takes), and return what its handler returned.

        Raises TaskFailed (with `.error`); TaskCancelled; TimeoutError, after which the task itself goes on; UnknownTask
        where the task is deleted; DTQError where the queue is closed, or its loop fails, before the task ends. After
        the `shutdown` of a queue whose store was passed in and is still open, it waits for other nodes of that store.
        """
        return _value(self._source.wait_for(self.id, timeout))

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio  # where something is awaited it is there already; elsewhere nobody needs it

        future = self._source.future_of(self.id)
        try:
            task = yield from asyncio.wrap_future(future).__await__()
        finally:
            future.cancel()  # whatever ended the waiting: an asyncio task may be cancelled
        return _value(task)

    def cancel(self) -> Task:
        return self._source.cancel(self.id)

    def __repr__(self) -> str:
        return f"<Handle {self.id}>"


def _value(task: Task) -> Any:
    if task.status == Status.FAILED:
        raise TaskFailed(task)
    if task.status == Status.CANCELLED:
        raise TaskCancelled(f"task {task.id} ({task.type}) was cancelled: {task.error.message if task.error else ''}")
    return task.result

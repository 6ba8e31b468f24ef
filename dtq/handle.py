"""Handle: what `add` gives back, to ask after a task and to wait for its result; Endings: who waits for which task.

result() --register--> Endings <--settle-- the loop, for each outcome it has committed
                          ^------check---- the loop, or a Lookout, for tasks that end in another process
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import Any, Protocol

from dtq.errors import DTQError, TaskCancelled, TaskFailed
from dtq.stores import Store
from dtq.stores.bell import Bell
from dtq.task import Status, Task

LOOK = 1.0  # seconds between looks at the store where no hint comes


class Endings:
    """The futures of those who wait for a task to end. A thread-safe dictionary, and nothing where nobody waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: dict[str, list[Future[Task]]] = {}

    def __bool__(self) -> bool:
        return bool(self._futures)

    def future(self, task_id: str) -> Future[Task]:
        future: Future[Task] = Future()
        with self._lock:
            self._futures.setdefault(task_id, []).append(future)
        return future

    def forget(self, task_id: str, future: Future[Task]) -> None:
        with self._lock:
            left = [other for other in self._futures.get(task_id, ()) if other is not future]
            self._futures[task_id] = left
            if not left:
                del self._futures[task_id]

    def settle(self, tasks: Iterable[Task]) -> None:
        """Tells those who wait for these tasks, as far as they have ended."""
        for task in tasks:
            if task.id in self._futures and task.is_terminal:
                with self._lock:
                    futures = self._futures.pop(task.id, [])
                for future in futures:
                    if future.set_running_or_notify_cancel():
                        future.set_result(task)

    def give_up(self, why: str) -> None:
        """Nobody will tell of endings any more: those who wait get a DTQError instead of waiting for ever."""
        with self._lock:
            waiting, self._futures = self._futures, {}
        for task_id, futures in waiting.items():
            for future in futures:
                if future.set_running_or_notify_cancel():
                    future.set_exception(DTQError(f"task {task_id} had not ended when {why}"))

    def check(self, get: Callable[[list[str]], list[Task]]) -> None:
        """Looks in the store for the tasks that somebody waits for."""
        with self._lock:
            ids = list(self._futures)
        self.settle(get(ids))


class Lookout:
    """Looks out for the endings on a thread of its own, while somebody waits for one: for a process that runs no
    loop."""

    def __init__(self, store: Store, endings: Endings) -> None:
        self._store = store
        self._endings = endings
        self._bell = Bell()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._has_begun = threading.Event()
        self._closed = False

    def start(self) -> None:
        """Looks out from now on, until nobody waits any more."""
        with self._lock:
            if self._thread is None and not self._closed:
                self._has_begun.clear()
                self._thread = threading.Thread(target=self._look_out, name="dtq-lookout", daemon=True)
                self._thread.start()

    def _look_out(self) -> None:
        self._has_begun.set()
        ears = [self._store.fileno(), self._bell.fileno()]
        while self._is_needed():
            self._endings.check(self._store.get)
            select.select(ears, [], [], LOOK)
            if not self._closed:
                self._store.wait(0)

    def _is_needed(self) -> bool:
        with self._lock:
            if self._endings and not self._closed:
                return True
            self._thread = None
            return False

    def close(self) -> None:
        with self._lock:
            self._closed, thread = True, self._thread
        self._bell.ring()
        if thread is not None and self._has_begun.wait(10 * LOOK):  # not yet, where ctrl-C came while it was started
            thread.join()
        self._bell.close()


class Watcher(Protocol):
    """What a handle needs of the queue or the manager that it comes from."""

    def get(self, task_id: str) -> Task: ...
    def cancel(self, task_id: str) -> Task: ...
    def wait_for(self, task_id: str, timeout: float | None = None) -> Task: ...
    def future_of(self, task_id: str) -> Future[Task]: ...


class Handle:
    """A task that was added: its `id`, and what has become of it, looked up each time it is asked for."""

    __slots__ = ("_watcher", "id")

    def __init__(self, id: str, watcher: Watcher) -> None:
        self.id = id
        self._watcher = watcher

    @property
    def task(self) -> Task:
        return self._watcher.get(self.id)

    @property
    def status(self) -> Status:
        return self.task.status

    @property
    def progress(self) -> float:
        return self.task.progress

    def result(self, timeout: float | None = None) -> Any:
        """What the handler returned. Waits for it up to `timeout` seconds, or as long as it takes.

        Raises TaskFailed (with `.error`), TaskCancelled, or TimeoutError; the task itself goes on after a TimeoutError.
        """
        return _value(self._watcher.wait_for(self.id, timeout))

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio  # where something is awaited it is there already; elsewhere nobody needs it

        task = yield from asyncio.wrap_future(self._watcher.future_of(self.id)).__await__()
        return _value(task)

    def cancel(self) -> Task:
        return self._watcher.cancel(self.id)

    def __repr__(self) -> str:
        return f"<Handle {self.id}>"


def _value(task: Task) -> Any:
    if task.status == Status.FAILED:
        raise TaskFailed(task)
    if task.status == Status.CANCELLED:
        raise TaskCancelled(f"task {task.id} ({task.type}) was cancelled: {task.error.message if task.error else ''}")
    return task.result

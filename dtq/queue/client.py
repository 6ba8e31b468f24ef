"""StoreClient: a store with a clock, events and waiters. The base of QueueManager: reads tasks and waits for them.

result() --future--> Waiters <-- ResultPoller <-- store        tasks that end elsewhere
                         ^------ resolve -------- this client  tasks that end through a call here
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from dtq.errors import StoreError, UnknownTask
from dtq.queue.events import Emitter, Listener
from dtq.queue.handle import Waiters, wait
from dtq.queue.poller import ResultPoller
from dtq.stores.open import open_store
from dtq.stores.protocol import Store, clock_of
from dtq.sync.forks import Forkable
from dtq.task import names
from dtq.task.model import Task


class StoreClient(Forkable):
    """Reads the tasks of a store, waits for them, and emits events.

    Args:
        store: A store, which stays open, or the URL or path of one, which `close` closes. `url` keeps the latter.
        clock: Returns the time, in UTC seconds. None: the store's own clock (Redis: the server's), or else time.time.
    """

    def __init__(self, store: str | os.PathLike[str] | Store, clock: Callable[[], float] | None = None) -> None:
        self._owns_store = isinstance(store, (str, os.PathLike))
        self.url = os.fspath(store) if isinstance(store, (str, os.PathLike)) else None
        self.store = open_store(store)
        self.clock = clock or clock_of(self.store)
        self.events = Emitter()
        self._waiters = Waiters()
        self._poller = ResultPoller(self.store, self._waiters, self._has_loop)
        self.follow_forks()

    def get(self, task_id: str) -> Task:
        """Return the task with the id `task_id` as it is now. Raise UnknownTask if there is none."""
        for task in self.store.get([task_id] if names.can_exist(task_id) else []):
            return task
        raise UnknownTask(f"no task has the id {task_id!r}: it was never added, or was deleted or cleaned up")

    # --- wait

    def wait_for(self, task_id: str, timeout: float | None = None) -> Task:
        """Wait until a task has ended. Return it.

        Args:
            task_id: The id of the task.
            timeout: Seconds to wait; None waits as long as it takes.

        Raises:
            UnknownTask: There is no such task, or it was deleted meanwhile.
            TimeoutError: It has not ended in time; it continues.
            DTQError: The queue was closed before the task ended.
        """
        future = self.future_of(task_id)
        try:
            return wait(future, timeout)
        except TimeoutError:
            pass
        finally:
            future.cancel()
        task = self._get_after(task_id, timeout)
        if task.is_terminal:
            return task
        raise TimeoutError(f"task {task_id} is still {task.status} after {timeout} s")

    def _get_after(self, task_id: str, timeout: float | None) -> Task:
        try:
            return self.get(task_id)
        except StoreError as error:
            raise TimeoutError(
                f"task {task_id} was not seen to end within {timeout} s; its store cannot be read now: {error}"
            ) from None

    def future_of(self, task_id: str) -> Future[Task]:
        """Return a future that resolves to the task `task_id` when it has ended; cancel it to stop waiting. Raise
        UnknownTask if there is no such task."""
        names.can_exist(task_id)
        future = self._waiters.future(task_id)
        try:
            self._waiters.resolve([self.get(task_id)])  # it may have ended before the future was there
            self._waiters.require_open(task_id)
            if not future.done():
                self._poller.start()
        except BaseException:
            future.cancel()
            raise
        return future

    def _has_loop(self) -> bool:
        """Return whether a loop of this queue reads the store's descriptor and resolves the tasks that end here."""
        return False

    # --- events

    def on(self, name: str, listener: Listener) -> Listener:
        """Call `listener(event)` for each event with this `name` ("*": all events), on a separate thread. Return the
        listener. Raise DTQError if no event has this name."""
        return self.events.on(name, listener)

    def once(self, name: str, listener: Listener) -> Listener:
        """Call `listener(event)` for the next event with this `name` only. Return the listener. Raise as `on` does."""
        return self.events.once(name, listener)

    def off(self, name: str, listener: Listener) -> None:
        """Stop calling this `listener` for events with this `name`."""
        self.events.off(name, listener)

    # --- end

    def in_child(self) -> None:
        """Begin without waiters and listeners after a fork: they are in the parent."""
        self._waiters.in_child()
        self._poller.in_child()

    def close(self) -> None:
        """Raise DTQError in all waiters, deliver the last events, and close the store if its URL was given."""
        self._waiters.fail_all("the queue was closed", for_good=self._owns_store)
        self._poller.close()
        self.events.close()
        if self._owns_store:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""AppState: what the route handlers share: the manager, called in threads, the batcher, and the stream of events.

handler --await call(manager.get, id)--> thread --> store
handler --await add(tasks)-------------> AddBatcher --> one commit for all requests that wait
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from dtq.api.batcher import AddBatcher
from dtq.api.config import MIB
from dtq.api.problems import HTTPProblem
from dtq.api.stream import EventStream
from dtq.queue.manager import QueueManager
from dtq.task.model import Task

T = TypeVar("T")
THREADS = 8
MAX_WAITS = 256  # requests that wait for the end of a task, in one process
MAX_STREAMS = 64  # readers of /events, in one process


class AppState:
    """The state of one application on one event loop. `stopping` is set when the server stops: requests that wait are
    then answered at once. `max_body` is the largest body of a request, in bytes."""

    def __init__(self, manager: QueueManager, max_body: int = MIB) -> None:
        self.manager = manager
        self.max_body = max_body
        self.stopping = asyncio.Event()
        self.events = EventStream(manager, self.call)
        self._batcher = AddBatcher(manager)
        self._threads = ThreadPoolExecutor(THREADS, "dtq-api")
        self._slots_in_use = {"wait": 0, "events": 0}

    async def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Return what the function returns. It runs in a thread, as it may block on the store."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *arguments, **options))

    async def add(self, tasks: list[Task]) -> list[str]:
        """Commit these tasks, all or none. Return their ids."""
        return await self._batcher.add(tasks)

    async def wait_for_end(self, task_id: str, timeout: float, disconnected: asyncio.Future[Any]) -> Task:
        """Return the task when it has ended. Return it as it is after `timeout` seconds, when the server stops, or when
        the client has `disconnected`. Raises UnknownTask."""
        future = await self._future_of(task_id)
        ending: asyncio.Future[Any] = asyncio.wrap_future(future)
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait([ending, stopping, disconnected], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                ended: Task = ending.result()
                return ended
        finally:
            stopping.cancel()
            future.cancel()
        return await self.call(self.manager.get, task_id)

    async def _future_of(self, task_id: str) -> Future[Task]:
        registering = self._threads.submit(self.manager.future_of, task_id)
        try:
            return await asyncio.wrap_future(registering)
        except asyncio.CancelledError:
            registering.add_done_callback(_cancel_result)  # the thread may still be registering it
            raise

    def require_slot(self, kind: str, limit: int) -> None:
        """Raise HTTPProblem (503) if `limit` long requests of this kind are being served: other requests need room."""
        if self._slots_in_use[kind] >= limit:
            detail = f"this server already serves {limit} such requests; try again later"
            raise HTTPProblem(503, detail, headers={"Retry-After": "5"})

    @contextmanager
    def slot(self, kind: str) -> Iterator[None]:
        """Count one long request of this kind while the context lasts."""
        self._slots_in_use[kind] += 1
        try:
            yield
        finally:
            self._slots_in_use[kind] -= 1

    def stop(self) -> None:
        """Answer the requests that wait, and end the streams."""
        self.stopping.set()
        self.events.close()

    async def close(self) -> None:
        self.stop()
        await self._batcher.close()
        self._threads.shutdown(wait=False)


def _cancel_result(registering: Future[Future[Task]]) -> None:
    """Cancel the future that a thread has registered, so that nothing waits for its task any more."""
    if not registering.cancelled() and registering.exception() is None:
        registering.result().cancel()

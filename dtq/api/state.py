"""Desk: what the routes have in hand: the manager, asked in threads, the combiner, and the end that is to come.

handler --await ask(manager.get, id)--> thread --> store
handler --await add(tasks)------------> AddBatcher --> one commit for all who wait
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from dtq.api.batcher import AddBatcher
from dtq.api.problems import HTTPProblem
from dtq.api.stream import Feed
from dtq.queue.manager import QueueManager
from dtq.task.model import Task

T = TypeVar("T")
THREADS = 8
MAX_WAITS = 256  # requests that wait for a task's end, in one process
MAX_STREAMS = 64  # readers of /events, in one process


class AppState:
    """For one event loop. `leaving` is set when the server stops: whoever waits is to be answered now."""

    def __init__(self, manager: QueueManager) -> None:
        self.manager = manager
        self.leaving = asyncio.Event()
        self.feed = Feed(manager, self.ask)
        self._combiner = AddBatcher(manager)
        self._threads = ThreadPoolExecutor(THREADS, "dtq-api")
        self._taken = {"wait": 0, "events": 0}

    async def ask(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """What the function gives, called in a thread: it may wait for the store."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *arguments, **options))

    async def add(self, tasks: list[Task]) -> list[str]:
        return await self._combiner.add(tasks)

    async def ended(self, task_id: str, timeout: float, gone: asyncio.Future[Any]) -> Task:
        """The task when it has ended, or as it is after `timeout` seconds, or when the server leaves, or when whoever
        asked has `gone`. Raises UnknownTask."""
        future = await self._future_of(task_id)
        ending: asyncio.Future[Any] = asyncio.wrap_future(future)
        leaving: asyncio.Future[Any] = asyncio.ensure_future(self.leaving.wait())
        try:
            await asyncio.wait([ending, leaving, gone], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                ended: Task = ending.result()
                return ended
        finally:
            leaving.cancel()
            future.cancel()
        return await self.ask(self.manager.get, task_id)

    async def _future_of(self, task_id: str) -> Future[Task]:
        registering = self._threads.submit(self.manager.future_of, task_id)
        try:
            return await asyncio.wrap_future(registering)
        except asyncio.CancelledError:
            registering.add_done_callback(_cancel_result)  # the thread may still be registering it
            raise

    def require_place(self, kind: str, limit: int) -> None:
        """What takes long has so many places, so that others find room beside it. Raises HTTPProblem (503)."""
        if self._taken[kind] >= limit:
            raise HTTPProblem(
                503, f"{limit} clients are served by this already; try again", headers={"Retry-After": "5"}
            )

    @contextmanager
    def place(self, kind: str) -> Iterator[None]:
        self._taken[kind] += 1
        try:
            yield
        finally:
            self._taken[kind] -= 1

    def leave(self) -> None:
        """The server stops: whoever waits or listens is answered now."""
        self.leaving.set()
        self.feed.close()

    async def close(self) -> None:
        self.leave()
        await self._combiner.close()
        self._threads.shutdown(wait=False)


def _cancel_result(registering: Future[Future[Task]]) -> None:
    """Cancel the future that a thread has registered, so that nothing waits for its task any more."""
    if not registering.cancelled() and registering.exception() is None:
        registering.result().cancel()

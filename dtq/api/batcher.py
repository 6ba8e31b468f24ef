"""AddBatcher: requests that add tasks at the same time share one commit.

request A --.                                  .-- add_many(A + B + C), in a thread --.
request B --+--> wait while the last commit ---+                                      +--> answers to A, B, C
request C --'    is under way                  '-- one by one if that was refused ----'

GroupCommit does the same for threads; this needs no thread for each request. A commit waits a moment for more requests:
few large commits leave the event loop more of the processor than many small ones (1.4 times the requests, with 16
clients).

If one request of a group cannot be added, the others must not fail with it: each is then tried by itself.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from dtq.errors import StoreError
from dtq.queue.manager import QueueManager
from dtq.task.model import Task

MAX_TASKS_PER_COMMIT = 4000  # except that the first request is always taken whole
TURNS_BEFORE_COMMIT = 4  # of the event loop, about 0.1 ms: clients answered by the last commit send their next request

Outcome = list[str] | Exception
Waiting = tuple[list[Task], "asyncio.Future[Outcome]"]

CANCELLED = RuntimeError("the server ended before the tasks were added")


class AddBatcher:
    """Adds the tasks of requests in groups. It belongs to one event loop."""

    def __init__(self, manager: QueueManager) -> None:
        self._manager = manager
        self._waiting: list[Waiting] = []
        self._thread = ThreadPoolExecutor(1, "dtq-api-add")
        self._runner: asyncio.Task[None] | None = None

    async def add(self, tasks: list[Task]) -> list[str]:
        """Commit all of these tasks or none. Return their ids, or those of the tasks that already have their keys.

        Raises:
            DTQError: what `QueueManager.add_many` raises; then none was added.
            Exception: an unexpected error; then none was added either.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((tasks, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
            self._runner.add_done_callback(self._end)
        outcome = await future
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _run(self) -> None:
        while self._waiting:
            for _ in range(TURNS_BEFORE_COMMIT):
                await asyncio.sleep(0)
            await self._commit(self._take())

    def _end(self, runner: asyncio.Task[None]) -> None:
        """Answer the requests that a cancelled runner leaves behind."""
        if runner.cancelled():
            _answer(self._waiting, [CANCELLED] * len(self._waiting))
            self._waiting = []

    async def _commit(self, group: list[Waiting]) -> None:
        """Add the tasks of these requests. Each request gets its outcome, whatever happens here."""
        outcomes: list[Outcome] = [CANCELLED] * len(group)
        try:
            tasks = [tasks for tasks, _ in group]
            outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._add, tasks)
        except Exception as error:  # no thread could be started
            outcomes = [error] * len(group)
        finally:
            _answer(group, outcomes)

    def _take(self) -> list[Waiting]:
        """Remove and return the requests that have waited longest, up to MAX_TASKS_PER_COMMIT tasks."""
        n = total = 0
        while n < len(self._waiting) and (n == 0 or total + len(self._waiting[n][0]) <= MAX_TASKS_PER_COMMIT):
            total += len(self._waiting[n][0])
            n += 1
        group, self._waiting = self._waiting[:n], self._waiting[n:]
        return group

    def _add(self, group: list[list[Task]]) -> list[Outcome]:
        if len(group) > 1:
            try:
                handles = self._manager.add_checked(task for tasks in group for task in tasks)
                ids = iter([handle.id for handle in handles])
                return [[next(ids) for _ in tasks] for tasks in group]
            except StoreError as error:  # each of them would fail the same way
                return [error] * len(group)
            except BaseException:  # nothing was added: each request learns its own error
                pass
        return [self._add_one(tasks) for tasks in group]

    def _add_one(self, tasks: list[Task]) -> Outcome:
        try:
            return [handle.id for handle in self._manager.add_checked(tasks)]
        except Exception as error:
            return error
        except BaseException as error:  # as an Exception: no request may end the server
            return RuntimeError(f"the add failed: {error!r}")

    async def close(self) -> None:
        """Wait for the last commit, then end the thread."""
        if self._runner is not None:
            await asyncio.wait([self._runner])
        self._thread.shutdown()


def _answer(group: list[Waiting], outcomes: list[Outcome]) -> None:
    for (_, future), outcome in zip(group, outcomes, strict=True):
        if not future.done():  # or its request was cancelled
            future.set_result(outcome)

"""TaskQueue: a QueueManager with workers that run its tasks.

with TaskQueue("queue.db", handlers={"double": double}) as queue:
    queue.add("double", {"n": 21}).result()

callers --add--> store --wake--> loop thread --calls--> workers
                   ^------------- outcomes ----------------+

    task_queue.py (handlers, workers)  -->  lifecycle.py (start, run, stop)  -->  manager.py (tasks)
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from dtq.errors import DTQError, UnknownType
from dtq.queue.config import QueueConfig
from dtq.queue.lifecycle import POLL_INTERVAL, Lifecycle
from dtq.queue.manager import DEFAULT_MAX_JSON
from dtq.stores.protocol import Node, Store
from dtq.task.model import Task
from dtq.webhooks import deliveries
from dtq.webhooks import handler as webhook_handler
from dtq.webhooks.handler import WebhookHandler
from dtq.workers import backend, groups
from dtq.workers.groups import Executor, Pool
from dtq.workers.handler_registry import Errors, Handler, Registry
from dtq.workers.run.parents import MAX_PARENTS

T = TypeVar("T")


class TaskQueue(Lifecycle):
    """A queue and the workers that run its tasks, in this process and below it. Use it in a `with` block, or call
    `start` and `shutdown`. Any number of TaskQueues, in any number of processes, may share one store.

    Args:
        store: A store, which stays open, or the URL or path of one, which `close` closes.
        handlers: Type -> function, "package.module:function", or the path of a .py file (its `execute`).
        pool_size: Number of workers.
        executor: "process" (workers are killed when they hang), "thread", "inline" (`add` itself runs the task, for
            tests), or a WorkerBackend of your own.
        pools: Several pools by name, instead of `pool_size`: `{"urgent": Pool(1, min_priority=5), "rest": Pool(3)}`.
        lease: Seconds without a heartbeat of this node after which other nodes may take over its tasks.
        max_tasks_per_worker: How many tasks a worker runs before it is replaced; None: any number.
        auto_cleanup: Remove tasks that ended long ago.
        cleanup_age: Seconds after its end at which a task is removed.
        dead_age: The same for failed tasks; None: `cleanup_age`.
        dead_limit: Remove the oldest failed tasks when there are more than this; None: no limit.
        max_result: Bytes of JSON that a result may have.
        max_parents: Bytes of JSON that the results of all parents of a task may have together.
        backlog_limit: How many tasks may be unfinished before `add` raises QueueFull; None: any number.
        max_payload: Bytes of JSON that a payload may have.
        secrets: Name -> secret (whsec_...) that signs webhooks.
        webhook_networks: Networks that webhooks may reach besides public addresses, such as "10.0.0.0/8".
        webhook_http: Allow webhook URLs without TLS.
        clock: Returns the time, in UTC seconds. None: the store's own clock (Redis: the server's), or else time.time.
        chance: Returns a number from 0 to 1, for the jitter of retries.

    Raises:
        DTQError: An option is out of range.
        StoreError: The store cannot be opened.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store = "queue.db",
        handlers: Mapping[str, Handler] | None = None,
        pool_size: int = 4,
        *,
        executor: Executor = "process",
        pools: Mapping[str, Pool] | None = None,
        lease: float = 30.0,
        max_tasks_per_worker: int | None = None,
        auto_cleanup: bool = True,
        cleanup_age: float = 86400.0,
        dead_age: float | None = None,
        dead_limit: int | None = None,
        max_result: int = DEFAULT_MAX_JSON,
        max_parents: int = MAX_PARENTS,
        backlog_limit: int | None = None,
        max_payload: int = DEFAULT_MAX_JSON,
        secrets: Mapping[str, str] | None = None,
        webhook_networks: Sequence[str] = (),
        webhook_http: bool = False,
        clock: Callable[[], float] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        config = QueueConfig(
            pools=pools or {"w": Pool(pool_size)}, executor=executor, max_tasks_per_worker=max_tasks_per_worker,
            lease=lease, cleanup_age=cleanup_age if auto_cleanup else None, dead_age=dead_age, dead_limit=dead_limit,
            max_result=max_result, max_parents=max_parents, backlog_limit=backlog_limit, max_payload=max_payload,
            clock=clock, chance=chance,
        )  # fmt: skip
        config.check()
        registry = Registry(pickles=executor not in ("thread", "inline"))
        for type, handler in (handlers or {}).items():
            registry.register(type, handler)
        self._webhook_handler = WebhookHandler(secrets or {}, webhook_networks, webhook_http)
        super().__init__(store, registry, config)
        self._delivers = not self._inline and webhook_handler.is_installed()

    # --- handlers

    def register(
        self, type: str, handler: Handler, concurrency: int = 1, *, retry_on: Errors = (), give_up_on: Errors = ()
    ) -> None:
        """Set or replace the handler of a type.

        Args:
            type: The type of the tasks that it runs.
            handler: A function, "package.module:function", or the path of a .py file (its `execute`).
            concurrency: How many calls of an async handler may run at once in a worker.
            retry_on: The only exceptions after which there is another attempt, as classes or names; none given: all.
            give_up_on: Exceptions after which there is no other attempt, as classes or names.

        Raises:
            InvalidTask: The type is not valid, or is reserved.
            HandlerError: The handler cannot be used; the message says why.
        """
        self.registry.register(type, handler, concurrency, retry_on=retry_on, give_up_on=give_up_on)
        if self._state == "running":
            self._post(partial(self._define, type))

    def handler(
        self, type: str, concurrency: int = 1, *, retry_on: Errors = (), give_up_on: Errors = ()
    ) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Return a decorator that registers a function for this `type` and leaves it unchanged. `concurrency`,
        `retry_on` and `give_up_on` are those of `register`."""

        def decorate(function: Callable[..., T]) -> Callable[..., T]:
            self.register(type, function, concurrency, retry_on=retry_on, give_up_on=give_up_on)
            return function

        return decorate

    def _at_heartbeat(self) -> None:
        """Register the webhook handler once a delivery is due, and not before: every registered type slows each
        turn."""
        is_wanted = self._delivers and deliveries.TYPE not in self.registry
        if is_wanted and self._loop.find_due(deliveries.TYPE, self.clock()):
            self.registry.enter(
                deliveries.TYPE,
                self._webhook_handler,
                webhook_handler.CONCURRENCY,
                give_up_on=webhook_handler.GIVE_UP_ON,
            )
            self._define(deliveries.TYPE)

    # --- methods of the manager that must also tell the loop

    def _entering(self, task: Task, now: float) -> Task:
        self._require_loop()
        if task.type not in self.registry:
            self._require_type(task.type)
        return super()._entering(task, now)

    def _require_type(self, type: str) -> None:
        """Raise UnknownType if no living node handles this type."""
        known = {known for node in self.store.stats().nodes for known in node.types} | set(self.registry.types())
        if type not in known:
            raise UnknownType(
                f"no handler is registered for {type!r}, here or on another node; there are: "
                f"{', '.join(sorted(known)) or 'none'}. "
                f"Register it, or add the task through a QueueManager if its node starts later"
            )

    def _added(self, tasks: Sequence[Task]) -> None:
        super()._added(tasks)
        if self._state == "client":
            return
        if self._inline:
            self._run_inline()
        else:
            self._groups[0].pool.wake()

    def _run_inline(self) -> None:
        """Run all tasks. Skip the time until a retry instead of waiting for it."""
        if self._state == "new":
            self.start()
        now = self.clock()
        while (due := self._run_due(now)) is not None:
            now = max(now, due)

    def _run_due(self, now: float) -> float | None:
        """Run all tasks that are due. Return the time at which the next one will be due."""
        while self._loop.turn(now) <= now:
            self._raise_trouble()
        self._raise_trouble()
        return self.store.next_due(now) if self.stats().unfinished else None

    def _raise_trouble(self) -> None:
        """Raise an error that no task caused in the call that runs the tasks."""
        if self._loop.trouble is not None:
            raise self._loop.trouble

    def get(self, task_id: str) -> Task:
        """Return the task with the id `task_id` as it is now, with the current progress if it runs here. Raise
        UnknownTask if there is none."""
        task = super().get(task_id)
        claimed = self._loop.claimed.get(task_id)
        return claimed if claimed is not None and claimed.version == task.version else task

    def _ended(self, task: Task) -> None:
        super()._ended(task)
        self._post(lambda: self._loop.end_by_request(task))

    def pause(self, queue: str = "default") -> None:
        """Start no more tasks of this `queue`, on any node, until `resume`. Running tasks continue. Raise InvalidTask
        if no user's queue can have this name."""
        super().pause(queue)
        self._post(self._loop.recall)

    def resume(self, queue: str = "default") -> None:
        """Start tasks of a paused `queue` again. Raise InvalidTask if no user's queue can have this name."""
        super().resume(queue)
        self._post(lambda: None)

    # --- workers

    def resize(self, size: int, pool: str | int = 0) -> None:
        """Change the number of workers of a pool to `size`: 0 to 1,000. `pool` is its name, or its position if there
        are several. Raise DTQError if there is no such pool, or if the size is not allowed."""
        groups.check_size(size)
        group = groups.named(self._groups, pool)
        if self._state in ("stopped", "client"):
            raise DTQError(
                "the queue is shut down, or the parent's, and has no workers to resize: make a new TaskQueue"
            )
        self._require_loop()
        change = partial(group.pool.resize, size)
        self._post(change) if self._state == "new" else self._ask(change)

    def workers(self) -> list[backend.WorkerInfo]:
        """Return the workers of this queue as they are now; none in a child made by os.fork."""
        return [] if self._state == "client" else self._ask(self._loop.workers)

    def snapshot(self) -> Node:
        """Return this node as it is now, as its next heartbeat would publish it."""
        return self._ask(lambda: self._loop.node(self.clock()))

    def join(self, timeout: float | None = None) -> None:
        """Wait until all tasks in the store have ended. Does not wait for schedules.

        Args:
            timeout: Seconds to wait; None waits as long as it takes.

        Raises:
            TimeoutError: Some tasks have not ended in time; the message counts them by status.
            DTQError: The queue does not run, or its loop has failed.
        """
        give_up_at = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (left := self.stats()).unfinished:
            seconds = give_up_at - time.monotonic()
            if seconds <= 0:
                raise TimeoutError(f"{left.unfinished} tasks have not ended after {timeout} s: {_nonzero(left.counts)}")
            self._require_loop()
            if self._state not in ("running", "client"):
                raise DTQError(
                    f"this queue does not run, and {left.unfinished} tasks have not ended: start the queue first"
                )
            with self._idle:
                self._idle.wait(min(seconds, POLL_INTERVAL))


def _nonzero(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in counts.items() if n)

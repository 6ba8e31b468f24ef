"""TaskQueue: a QueueManager with workers. It runs the loop on a thread of its own, and looks after its life.

with TaskQueue("queue.db", handlers={"double": double}) as queue:
    queue.add("double", {"n": 21}).result()

callers --add--> store --wake--> loop thread --calls--> workers
                   ^------------- outcomes ----------------+
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeVar

from dtq.errors import DTQError, UnknownType
from dtq.queue.config import LoopConfig
from dtq.queue.guards import ErrorBackoff
from dtq.queue.loop import Loop
from dtq.queue.manager import MIB, QueueManager
from dtq.stores.protocol import Node, Store
from dtq.sync.condition import Condition, SafeFuture
from dtq.task.model import WAITING, Task
from dtq.webhooks import deliveries
from dtq.webhooks import handler as webhook_handler
from dtq.webhooks.handler import WebhookHandler
from dtq.workers import backend, groups
from dtq.workers.groups import Executor, Pool
from dtq.workers.registry import Errors, Handler, Registry
from dtq.workers.run.parents import MAX_PARENTS

log = logging.getLogger("dtq")

T = TypeVar("T")
POLL_INTERVAL = 1.0  # seconds between looks at the store where no hint comes


class TaskQueue(QueueManager):
    """A queue and the workers that run its tasks, in this process and below it.

    - `handlers`: type -> function, "package.module:function", or path of a .py file (its `execute`).
    - `pool_size` workers, or several `pools` by name: `{"urgent": Pool(1, min_priority=5), "rest": Pool(3)}`.
    - `executor`: "process" (killed when they hang), "thread", "inline" (in `add` itself, for tests), or a Pool of your
      own.
    - `lease`: seconds for which a claimed task is safe from other nodes without a sign of life from this one.
    - `max_tasks_per_worker`: a worker is replaced after so many (None: never).
    - `auto_cleanup` removes what ended more than `cleanup_age` seconds ago. What has failed is removed after `dead_age`
      seconds (None: after `cleanup_age` as well), the oldest of it where there are more than `dead_limit`.
    - `max_result`: bytes of JSON that a result may have; `max_parents`: those of all parents of a task together.

    - `secrets`: name -> secret that webhooks are signed with (whsec_...); `webhook_networks` are those that they may
      reach beside public addresses, `webhook_http` allows URLs without TLS.

    Further arguments are those of QueueManager. Any number of TaskQueues, in any number of processes, may share one
    store.
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
        max_result: int = MIB,
        max_parents: int = MAX_PARENTS,
        backlog_limit: int | None = None,
        max_payload: int = MIB,
        secrets: Mapping[str, str] | None = None,
        webhook_networks: Sequence[str] = (),
        webhook_http: bool = False,
        clock: Callable[[], float] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        specs = pools or {"w": Pool(pool_size)}
        groups.check(specs, executor)
        if not 1 <= lease <= 86400:
            raise DTQError(f"lease is {lease!r}; allowed: 1 to 86,400 seconds")
        if dead_limit is not None and not dead_limit >= 0:
            raise DTQError(f"dead_limit is {dead_limit!r}; allowed: a number of failed tasks to keep, 0 or more")
        self.registry = Registry(pickles=executor not in ("thread", "inline"))
        for type, handler in (handlers or {}).items():
            self.registry.register(type, handler)
        self._webhook_handler = WebhookHandler(secrets or {}, webhook_networks, webhook_http)
        super().__init__(store, backlog_limit=backlog_limit, max_payload=max_payload, clock=clock)
        self._inline = executor == "inline"
        self._groups = groups.make_executors(specs, executor, max_tasks_per_worker, max_result)
        config = LoopConfig(
            lease=lease, cleanup_age=cleanup_age if auto_cleanup else None, dead_age=dead_age, dead_limit=dead_limit,
            max_parents=max_parents, fires_schedules=not self._inline,
        )  # fmt: skip
        self._loop = Loop(
            self.store, self._groups, self.events, self._waiters, config, types=self.registry.types, chance=chance,
            each_heartbeat=self._register_webhook_handler,
            ahead=(lambda: self.clock() - time.time()) if clock else None,
        )  # fmt: skip
        self._thread: threading.Thread | None = None
        self._stop_at = float("inf")  # by the monotonic clock
        self._idle = Condition()
        self._state: Literal["new", "running", "stopped", "client"] = "new"
        self._loop_ended: Future[None] = SafeFuture()  # the loop's thread is at its end
        self._is_shut = False  # all that belongs to it has ended
        self._failure = ""  # why the loop has ended without being asked to
        self._wait_backoff = ErrorBackoff(time.monotonic)

    @property
    def node(self) -> str:
        """The id of this node: what a task that runs here has as its `worker`."""
        return self._loop.id

    @property
    def health(self) -> float:
        """Seconds since this node last asked its store for work and was answered: about a second at most while all is
        well, infinite before it is started. Nothing has to answer for it to be read, so it tells of a loop that hangs,
        too."""
        return self._loop.health()

    # --- life

    def start(self) -> Self:
        """Starts the workers and the loop. Raises DTQError where the queue was started before."""
        if self._state == "client":
            raise DTQError("this TaskQueue belongs to the process that was forked: make a new one here to run tasks")
        if self._state != "new":
            raise DTQError("a TaskQueue is started once: make a new one on the same store")
        self._state = "running"
        for group in self._groups:
            group.pool.start()
        for type in self.registry.types():
            self._define(type)
        atexit.register(self.shutdown, timeout=0, force=True)
        _after_each_cell("register", self._refresh)
        if not self._inline:
            self._groups[0].pool.watch(self.store.fileno())
            for group in self._groups[1:]:
                self._groups[0].pool.watch(group.pool.fileno())
            self._thread = threading.Thread(target=self._main, name="dtq-loop", daemon=True)
            self._thread.start()
        return self

    def _main(self) -> None:
        try:
            self._run()
        finally:
            self._loop_ended.set_result(None)

    def _run(self) -> None:
        try:
            due = self._loop.turn(self.clock())
            while not self._is_over():
                self._wait(due)
                due = self._loop.turn(self.clock())
            if self._loop.failure:
                self._fail(self._loop.failure)
        except BaseException as error:  # an interrupt that has reached this thread, say
            self._fail(repr(error), error)
        finally:
            self._sign_off()

    def _is_over(self) -> bool:
        return bool(self._loop.failure) or self._loop.is_drained() or time.monotonic() >= self._stop_at

    def _fail(self, why: str, error: BaseException | None = None) -> None:
        """Everybody who waits here hears of it; what was added stays in the store."""
        log.error("the loop of %s has failed, and its workers are stopped: %s", self.node, why, exc_info=error)
        self._failure = why
        self._waiters.fail_all(f"the loop failed: {why} (see the log)")
        with self._idle:
            self._idle.notify_all()

    def _wait(self, due: float) -> None:
        if self._loop.idle:
            with self._idle:
                self._idle.notify_all()
        self._wait_backoff.begin_turn()
        try:
            self._listen(max(0.0, min(due - self.clock(), POLL_INTERVAL)))
        except Exception as error:  # it goes on by looking at the store itself
            self._wait_backoff.note(error, "this node hears of no changes, and looks for them now and then")
            time.sleep(self._wait_backoff.wait)
            return
        self._wait_backoff.end_turn()

    def _listen(self, seconds: float) -> None:
        self._groups[0].pool.wait(seconds)
        for group in self._groups[1:]:
            group.pool.wait(0)
        if self.store.wait(0):
            self._poller.hint()

    def _sign_off(self) -> None:
        """Workers first: what is given back to the store must not run any more."""
        for group in self._groups:
            try:
                group.pool.close(kill=bool(self._loop.claimed))
            except Exception:
                log.exception("a pool of %s could not be closed", self.node)
        try:
            self._loop.sign_off(self.clock())
        except Exception as error:
            log.error("the store failed while %s was leaving; its tasks will be taken over: %s", self.node, error)

    def shutdown(self, timeout: float = 30.0, force: bool = False) -> None:
        """Stops claiming, waits up to `timeout` seconds for what runs (with `force`: not at all), and ends the workers.

        What has not ended by then goes back to the store, and no attempt is counted for it. Harmless when repeated: a
        call after one that was interrupted finishes it, and may shorten the wait.
        """
        if self._state == "running":
            self._state = "stopped"
            _after_each_cell("unregister", self._refresh)
        if self._state == "stopped" and not self._is_shut:
            self._stop_at = min(self._stop_at, time.monotonic() + (0 if force else timeout))
            self._post(self._loop.drain)
            if self._thread is None:
                self._sign_off()
            elif self._thread is not threading.current_thread():
                self._loop_ended.result()  # a `join` that is interrupted takes a living thread for dead (CPython 3.11)
                self._thread.join()
            self.events.emit("queue:shutdown", self.clock())
            super().close()
            atexit.unregister(self.shutdown)
            self._is_shut = True
        elif self._state == "client":
            super().close()

    def close(self) -> None:
        if self._state == "new":
            self._state = "stopped"
            for group in self._groups:
                group.pool.close(kill=True)
            super().close()
            self._is_shut = True
        self.shutdown()

    def in_child(self) -> None:
        """After a fork: the node, its loop and its workers are the parent's, and this is a client of the store."""
        super().in_child()
        self._idle = Condition()
        self._loop.claimed = {}
        self._thread = None
        if self._state == "stopped":
            self._is_shut = True
        else:
            self._state = "client"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shuts down; who interrupts (Ctrl-C, the notebook's Stop) does not wait for what runs: it goes back."""
        self.shutdown(force=isinstance(error, KeyboardInterrupt))

    # --- handlers

    def register(
        self, type: str, handler: Handler, concurrency: int = 1, *, retry_on: Errors = (), give_up_on: Errors = ()
    ) -> None:
        """This is the handler of the type from now on; an async one runs up to `concurrency` calls at once in a
        worker. `retry_on` and `give_up_on`: after which of its exceptions there is another attempt, or none."""
        self.registry.register(type, handler, concurrency, retry_on=retry_on, give_up_on=give_up_on)
        if self._state == "running":
            self._post(partial(self._define, type))

    def handler(
        self, type: str, concurrency: int = 1, *, retry_on: Errors = (), give_up_on: Errors = ()
    ) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator: registers the function for the type, and leaves it as it is."""

        def decorate(function: Callable[..., T]) -> Callable[..., T]:
            self.register(type, function, concurrency, retry_on=retry_on, give_up_on=give_up_on)
            return function

        return decorate

    def _define(self, type: str) -> None:
        for group in self._groups:
            group.pool.define(type, self.registry.source(type), self.registry.function(type))

    def _register_webhook_handler(self) -> None:
        """He comes with the first delivery there is: each type that workers wait for makes a turn longer."""
        if not self._inline and deliveries.TYPE not in self.registry:
            waiting = self.store.stats().types.get(deliveries.TYPE, {})
            if any(waiting.get(status) for status in WAITING) and webhook_handler.is_installed():
                self.registry.enter(
                    deliveries.TYPE,
                    self._webhook_handler,
                    webhook_handler.CONCURRENCY,
                    give_up_on=webhook_handler.GIVE_UP_ON,
                )
                self._define(deliveries.TYPE)

    def _refresh(self, *_: object) -> None:
        """A notebook cell has run: handlers that it changed are sent to the workers again."""
        for type in self.registry.refresh():
            self._post(lambda type=type: self._define(type))  # type: ignore[misc]

    # --- what a manager does, where the loop has to know

    def _entering(self, task: Task, now: float) -> Task:
        self._require_loop()
        if task.type not in self.registry:
            self._require_type(task.type)
        return super()._entering(task, now)

    def _require_type(self, type: str) -> None:
        """A type that is not handled here must be handled by another node that lives."""
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
        """Runs all there is to run, and leaps over the time until a retry instead of waiting for it."""
        if self._state == "new":
            self.start()
        now = self.clock()
        while (due := self._run_due(now)) is not None:
            now = max(now, due)

    def _run_due(self, now: float) -> float | None:
        """Runs what is due; gives the time at which something else will be."""
        while self._loop.turn(now) <= now:
            self._raise_trouble()
        self._raise_trouble()
        return self.store.next_due(now) if self.stats().unfinished else None

    def _raise_trouble(self) -> None:
        """What no task is to blame for fails the call that runs the tasks."""
        if self._loop.trouble is not None:
            raise self._loop.trouble

    def get(self, task_id: str) -> Task:
        """The task as it is now, with the progress of one that runs here. Raises UnknownTask."""
        task = super().get(task_id)
        held = self._loop.claimed.get(task_id)
        return held if held is not None and held.version == task.version else task

    def _ended(self, task: Task) -> None:
        super()._ended(task)
        self._post(lambda: self._loop.end_by_request(task))

    def pause(self, queue: str = "default") -> None:
        super().pause(queue)
        self._post(self._loop.recall)

    def resume(self, queue: str = "default") -> None:
        super().resume(queue)
        self._post(lambda: None)

    def resize(self, size: int, pool: str | int = 0) -> None:
        """Let this pool have `size` workers from now on: 0 to 1,000. `pool` is its name, or its position where there
        are several. Raises DTQError where there is no such pool, or the size is not allowed."""
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
        """The workers of this queue at this moment; none in a child made by os.fork."""
        return [] if self._state == "client" else self._ask(self._loop.workers)

    def snapshot(self) -> Node:
        """This node at this moment, as its next heartbeat would describe it."""
        return self._ask(lambda: self._loop.node(self.clock()))

    def join(self, timeout: float | None = None) -> None:
        """Waits until every task in the store has ended, schedules aside. Raises TimeoutError, saying what is left."""
        give_up_at = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (left := self.stats()).unfinished:
            seconds = give_up_at - time.monotonic()
            if seconds <= 0:
                raise TimeoutError(f"{left.unfinished} tasks have not ended after {timeout} s: {_nonzero(left.counts)}")
            self._require_loop()
            if self._state not in ("running", "client"):
                raise DTQError(
                    f"nobody is at work here, and {left.unfinished} tasks have not ended: start the queue first"
                )
            with self._idle:
                self._idle.wait(min(seconds, POLL_INTERVAL))

    def _require_loop(self) -> None:
        if self._failure:
            raise DTQError(
                f"the loop of this queue has failed: {self._failure} (see the log). What was added is in the store: "
                "shut this queue down, and start a new TaskQueue on the same store"
            )

    def _has_loop(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _post(self, action: Callable[[], None]) -> None:
        if self._state != "client":
            self._loop.post(action)
            self._groups[0].pool.wake()

    def _ask(self, question: Callable[[], T]) -> T:
        """Return the answer of the loop's thread, or raise what the question raises there. It may look at what only
        that thread may touch."""
        if self._thread is None or not self._thread.is_alive() or self._thread is threading.current_thread():
            return question()
        answer: Future[T] = SafeFuture()
        self._post(partial(_answer, answer, question))
        while self._thread.is_alive():
            with suppress(TimeoutError):
                return answer.result(POLL_INTERVAL)
        return answer.result(0) if answer.done() else question()  # the loop had ended before it came to this


def _answer(answer: Future[T], question: Callable[[], T]) -> None:
    try:
        answer.set_result(question())
    except Exception as error:
        answer.set_exception(error)


def _nonzero(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in counts.items() if n)


def _after_each_cell(verb: Literal["register", "unregister"], callback: Callable[..., None]) -> None:
    """In a notebook: has the callback called after each cell (or no longer)."""
    ipython = sys.modules.get("IPython")
    if shell := ipython and ipython.get_ipython():
        getattr(shell.events, verb)("post_run_cell", callback)

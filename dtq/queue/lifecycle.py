"""Lifecycle: starts the loop and the workers of a queue, runs the loop on a thread, and shuts everything down.

    new --start--> running --shutdown--> stopped
     |                |
     +---- close      +--os.fork--> client (in the child: the node stays with the parent)

The loop's thread: turn, wait for the pools and the store, turn, ... until the loop has failed, is drained, or the time
of the shutdown is over; then sign off.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeVar

from dtq.errors import DTQError
from dtq.queue.config import QueueConfig
from dtq.queue.guards import ErrorBackoff
from dtq.queue.loop import Loop
from dtq.queue.manager import QueueManager
from dtq.stores.protocol import Store
from dtq.sync.waits import Condition, SafeFuture
from dtq.workers import groups
from dtq.workers.handler_registry import Registry

log = logging.getLogger("dtq")

T = TypeVar("T")
POLL_INTERVAL = 1.0  # seconds between two reads of the store when no hint comes


class Lifecycle(QueueManager):
    """A QueueManager with a loop and workers. Part of TaskQueue, which documents the parameters."""

    def __init__(self, store: str | os.PathLike[str] | Store, registry: Registry, config: QueueConfig) -> None:
        super().__init__(
            store, backlog_limit=config.backlog_limit, max_payload=config.max_payload, clock=config.clock
        )  # fmt: skip
        self.registry = registry
        self._inline = config.is_inline
        self._groups = groups.make_executors(
            config.pools, config.executor, config.max_tasks_per_worker, config.max_result
        )
        self._loop = Loop(
            self.store, self._groups, self.events, self._waiters, config, types=registry.types,
            each_heartbeat=self._at_heartbeat, ahead=(lambda: self.clock() - time.time()) if config.clock else None,
        )  # fmt: skip
        self._thread: threading.Thread | None = None
        self._stop_at = float("inf")  # by the monotonic clock
        self._idle = Condition()
        self._state: Literal["new", "running", "stopped", "client"] = "new"
        self._loop_ended: Future[None] = SafeFuture()
        self._is_shut = False  # everything that belongs to the queue has ended
        self._failure = ""  # why the loop ended without a shutdown
        self._wait_backoff = ErrorBackoff(time.monotonic)

    @property
    def node(self) -> str:
        """The id of this node. The `worker` of a task that runs here begins with it."""
        return self._loop.id

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not shut down since; a queue whose loop has failed does not run."""
        return self._state == "running" and not self._failure

    @property
    def health(self) -> float:
        """The seconds since the store last answered this node: about one at most in normal operation, infinite before
        the start. Reading it waits for nothing, so it also shows that a loop hangs."""
        return self._loop.health()

    def _at_heartbeat(self) -> None:
        """Called by the loop's thread once a second."""

    # --- start

    def start(self) -> Self:
        """Start the workers and the loop. Return the queue. Raise DTQError if it was started before."""
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

    def _define(self, type: str) -> None:
        """Send the handler of this type to all pools."""
        for group in self._groups:
            group.pool.define(type, self.registry.source(type), self.registry.function(type))

    def _refresh(self, *_: object) -> None:
        """Send handlers that a notebook cell has changed to the workers again."""
        for type in self.registry.refresh():
            self._post(lambda type=type: self._define(type))  # type: ignore[misc]

    # --- the loop's thread

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
        except BaseException as error:  # for example an interrupt that reached this thread
            self._fail(repr(error), error)
        finally:
            self._sign_off()

    def _is_over(self) -> bool:
        return bool(self._loop.failure) or self._loop.is_drained() or time.monotonic() >= self._stop_at

    def _fail(self, why: str, error: BaseException | None = None) -> None:
        """Raise DTQError in all waiters. The tasks that were added stay in the store."""
        log.error("the loop of %s has failed, and its workers are stopped: %s", self.node, why, exc_info=error)
        self._failure = why
        self._waiters.fail_all(f"the loop failed: {why} (see the log)")
        with self._idle:
            self._idle.notify_all()

    def _wait(self, due: float) -> None:
        """Wait for a report, a change of the store, or the time of the next turn."""
        if self._loop.idle:
            with self._idle:
                self._idle.notify_all()
        self._wait_backoff.begin_turn()
        try:
            seconds = max(0.0, min(due - self.clock(), POLL_INTERVAL))
            if self._loop.is_pausing:
                time.sleep(seconds)
                seconds = 0.0
            self._listen(seconds)
        except Exception as error:  # continue by polling
            self._wait_backoff.note(error, "this node receives no hints of changes, and polls the store instead")
            time.sleep(self._wait_backoff.wait)
            return
        self._wait_backoff.end_turn()

    def _listen(self, seconds: float) -> None:
        self._groups[0].pool.wait(seconds)
        if self.store.wait(0):
            self._poller.hint()

    def _sign_off(self) -> None:
        """Close the pools, then release everything that is still claimed. In this order: a released task must not run
        here any more."""
        for group in self._groups:
            try:
                group.pool.close(kill=bool(self._loop.claimed))
            except Exception:
                log.exception("a pool of %s could not be closed", self.node)
        try:
            self._loop.sign_off(self.clock())
        except Exception as error:
            log.error("the store failed while %s signed off; its tasks will be taken over: %s", self.node, error)

    # --- stop

    def shutdown(self, timeout: float = 30.0, force: bool = False) -> None:
        """Claim no more tasks, wait up to `timeout` seconds for those that run (with `force`: not at all), and end the
        workers.

        Tasks that have not ended by then go back to the store; no attempt is counted for them. It may be called again:
        a call after an interrupted one finishes it, and may shorten the wait.
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
                self._loop_ended.result()  # an interrupted `join` takes a living thread for ended (CPython 3.11)
                self._thread.join()
            self.events.emit("queue:shutdown", self.clock())
            super().close()
            atexit.unregister(self.shutdown)
            self._is_shut = True
        elif self._state == "client":
            super().close()

    def close(self) -> None:
        """Shut down with the default timeout. A queue that was never started just closes its pools and its store."""
        if self._state == "new":
            self._state = "stopped"
            for group in self._groups:
                group.pool.close(kill=True)
            super().close()
            self._is_shut = True
        self.shutdown()

    def in_child(self) -> None:
        """Become a client of the store after a fork: the node, its loop and its workers are the parent's."""
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
        """Shut down. After an interrupt (Ctrl-C, the notebook's Stop), give running tasks back at once."""
        self.shutdown(force=isinstance(error, KeyboardInterrupt))

    # --- talk to the loop

    def _require_loop(self) -> None:
        """Raise DTQError if the loop has failed."""
        if self._failure:
            raise DTQError(
                f"the loop of this queue has failed: {self._failure} (see the log). The tasks that were added are in "
                "the store: shut this queue down, and start a new TaskQueue on the same store"
            )

    def _has_loop(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _post(self, action: Callable[[], None]) -> None:
        """Run `action` on the loop's thread, soon."""
        if self._state != "client":
            self._loop.post(action)
            self._groups[0].pool.wake()

    def _ask(self, question: Callable[[], T]) -> T:
        """Call `question` on the loop's thread, which alone may use the loop's state. Return its value, or raise its
        exception."""
        if self._thread is None or not self._thread.is_alive() or self._thread is threading.current_thread():
            return question()
        answer: Future[T] = SafeFuture()
        self._post(partial(_answer, answer, question))
        while self._thread.is_alive():
            with suppress(TimeoutError):
                return answer.result(POLL_INTERVAL)
        return answer.result(0) if answer.done() else question()  # the loop ended before it ran the question


def _answer(answer: Future[T], question: Callable[[], T]) -> None:
    try:
        answer.set_result(question())
    except Exception as error:
        answer.set_exception(error)


def _after_each_cell(verb: Literal["register", "unregister"], callback: Callable[..., None]) -> None:
    """In a notebook, register or unregister a callback that runs after each cell."""
    ipython = sys.modules.get("IPython")
    if shell := ipython and ipython.get_ipython():
        getattr(shell.events, verb)("post_run_cell", callback)

"""InlinePool, which runs tasks in the thread that dispatches them, and what it shares with the ThreadPool.

dispatch --> perform --> message --> report_of --> reports --> poll
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

from dtq.sync.waits import Wakeup
from dtq.task.codec import raw, to_json
from dtq.task.model import Task
from dtq.workers import backend, wire
from dtq.workers.run.runner import Handlers, is_async, perform, perform_async
from dtq.workers.wire import MAX_RESULT

_log = logging.getLogger(__name__)


class LocalPool:
    """What the pools inside this process share: handlers, calls, and waiting for an event."""

    def __init__(self, name: str, max_result: int) -> None:
        self.name = name
        self.max_result = max_result
        self.handlers = Handlers()
        self._concurrency: dict[str, int] = {}
        self._reports: list[backend.Report] = []
        self._numbers = count(1)
        self._wakeup = Wakeup()
        self._selector = selectors.DefaultSelector()
        self.watch(self._wakeup.fileno())

    def define(self, type: str, source: wire.Source, function: Callable[..., Any] | None = None) -> None:
        """Use this handler for new calls of the type."""
        self.handlers.define(type, source, function)
        self._concurrency[type] = source.concurrency

    def wait(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for an event."""
        self._selector.select(timeout)

    def wake(self) -> None:
        """End `wait`. Safe to call from any thread."""
        self._wakeup.wake()

    def watch(self, fd: int) -> None:
        """Let this descriptor end `wait` while it is readable."""
        self._selector.register(fd, selectors.EVENT_READ)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `poll` has work."""
        return self._wakeup.fileno()

    def _call(self, task: Task, parents: bytes = b"") -> wire.Call:
        payload = to_json(task.raw_payload)
        return wire.Call(next(self._numbers), task.id, task.type, payload, task.attempts, task.timeout, parents)

    def _release(self) -> None:
        for problem in self.handlers.teardown():
            _log.warning(problem)
        self._selector.close()
        self._wakeup.close()


class InlinePool(LocalPool):
    """A WorkerBackend (see backend.py) that runs each task inside `dispatch`, in the thread that calls it. Use it to
    test your own handlers.

    It cannot interrupt a sync handler, so timeouts apply to async handlers only. An async handler runs on an event loop
    in a thread made for it, since the caller's thread may have a running loop, as in a notebook.
    """

    def __init__(self, *, name: str = "inline", max_result: int = MAX_RESULT) -> None:
        super().__init__(name, max_result)
        self._unreported = 0
        self._done = 0
        self._busy_seconds = 0.0

    def start(self) -> None:
        self._reports += started_reports(self.name)

    def capacity(self) -> Iterator[tuple[int, frozenset[str]]]:
        if self._concurrency:
            yield 1, frozenset(self._concurrency)

    def dispatch(self, tasks: Sequence[Task], parents: Mapping[str, bytes] = {}) -> None:
        for task in tasks:
            try:
                call = self._call(task, parents.get(task.id, b""))
            except Exception as error:
                self._reports.append(backend.unfit(task, error))
            else:
                self._run(task, call)

    def poll(self) -> list[backend.Report]:
        self._wakeup.clear()
        reports, self._reports, self._unreported = self._reports, [], 0
        return reports

    def deadline(self) -> float | None:
        return 0.0 if self._reports else None

    def stop(self, task: Task) -> None:
        """Do nothing: every dispatched task has ended."""

    def recall(self) -> None:
        """Do nothing: every dispatched task has ended."""

    def resize(self, size: int) -> None:
        """Do nothing: the caller's thread is the only worker."""

    def workers(self) -> list[backend.WorkerInfo]:
        return [backend.WorkerInfo(self.name, os.getpid(), "idle", 0, self._done, self._busy_seconds, None)]

    def outstanding(self) -> int:
        return self._unreported

    def close(self, kill: bool = False) -> None:
        self._release()

    def _run(self, task: Task, call: wire.Call) -> None:
        def send(message: wire.ToPool) -> None:
            if report := report_of(task, self.name, message):
                self._reports.append(report)

        done = self._perform(call, send)
        self._unreported += 1
        self._done += 1
        self._busy_seconds += done.seconds
        send(done)

    def _perform(self, call: wire.Call, send: Callable[[wire.ToPool], None]) -> wire.Done:
        if not is_async(self.handlers, call, send):
            return perform(self.handlers, call, self.name, send, max_result=self.max_result)
        with ThreadPoolExecutor(1) as thread:
            coroutine = perform_async(self.handlers, call, self.name, send, max_result=self.max_result)
            return thread.submit(asyncio.run, coroutine).result()


def report_of(task: Task, worker: str, message: wire.ToPool) -> backend.Report | None:
    """Return the report that follows from a message about the task's call, or None: while its handler is being loaded,
    the task has not started."""
    match message:
        case wire.Started(loading=True):
            return None
        case wire.Started(at=at):
            return backend.Started(task, worker, at)
        case wire.Progress() | wire.Log():
            return backend.output(task, message)
        case wire.Done(error=error, result=result):
            return backend.finished(task, worker, message, raw(result) if error is None else None)
    raise TypeError(f"{message!r} is not about a call")


def started_reports(worker: str) -> list[backend.Report]:
    """Return the reports of a worker that is ready as soon as it starts."""
    pid = os.getpid()
    return [backend.WorkerChanged(worker, "started", pid), backend.WorkerChanged(worker, "ready", pid)]

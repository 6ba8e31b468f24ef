"""ThreadPool: runs tasks in threads of this process.

    dispatch --> inbox --> WorkerThread 1..size --> perform ----------+
                              |                                       +--> messages --> poll --> reports
                              +--> async handler --> AsyncThread -----+        |
                                                                               +--> wakeup, which ends `wait`

Use threads for handlers that wait (for the network, a disk, a C library that releases the interpreter), for handlers
that share memory, and where there is no fork. See run/worker_thread.py for the threads themselves.

A thread cannot be killed. A handler over its timeout gets an exception raised in it, which arrives when it next runs
Python code. If it has not ended `grace` seconds later, it is abandoned: the task is reported, the thread is replaced,
and whatever it still does is ignored. A handler that crashes the process takes all others with it, and an async handler
that blocks delays all other async handlers. A WorkerPool has none of these limits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from time import monotonic
from typing import Any

from dtq.task.model import Task
from dtq.workers import backend, wire
from dtq.workers.inline import LocalPool, report_of, started_reports
from dtq.workers.run.runner import Stopped, TimedOut
from dtq.workers.run.worker_thread import AsyncThread, SharedState, ThreadCall, WorkerThread
from dtq.workers.wire import MAX_RESULT

QUEUED_SECONDS = 0.005  # of work for each thread that may wait in the inbox, so that no thread waits for the loop
MAX_QUEUED = 256  # calls


class ThreadPool(LocalPool):
    """A WorkerBackend (see backend.py) with `size` threads for sync handlers, and one more for all async handlers.

    Of an async type, `size * concurrency` calls run at once. A handler is abandoned `grace` seconds after an interrupt
    that it ignores. `max_result` limits a result, in bytes of JSON.
    """

    def __init__(
        self, size: int = 4, *, name: str = "thread", grace: float = 0.5, max_result: int = MAX_RESULT
    ) -> None:
        super().__init__(name, max_result)
        self._size = size
        self._shared = SharedState(self.handlers, self.wake, grace, max_result)
        self._async_thread = AsyncThread(self._shared, f"{name}-loop")
        self._workers: list[WorkerThread] = []
        self._worker_numbers = count(1)
        self._in_flight: dict[int, ThreadCall] = {}  # by the number of the call: dispatched and not yet reported
        self._counts: Counter[str] = Counter()  # the same by type
        self._mean = 1.0  # moving average of the seconds that a call takes

    def start(self) -> None:
        for _ in range(self._size):
            self._start_worker()

    def define(self, type: str, source: wire.Source, function: Callable[..., Any] | None = None) -> None:
        super().define(type, source, function)
        self._shared.limits[type] = self._size * source.concurrency

    def capacity(self) -> Iterator[tuple[int, frozenset[str]]]:
        parallel = [type for type, concurrency in self._concurrency.items() if concurrency > 1]
        plain = frozenset(self._concurrency).difference(parallel)
        if (room := self._size + self._queue_limit() - sum(self._counts[type] for type in plain)) > 0 and plain:
            yield room, plain
        for type in parallel:
            if (room := self._shared.limits[type] - self._counts[type]) > 0:
                yield room, frozenset({type})

    def dispatch(self, tasks: Sequence[Task], parents: Mapping[str, bytes] = {}) -> None:
        for task in tasks:
            try:
                call = ThreadCall(self._shared, task, self._call(task, parents.get(task.id, b"")))
            except Exception as error:
                self._reports.append(backend.unfit(task, error))
                continue
            self._in_flight[call.call.number] = call
            self._counts[task.type] += 1
            if self._is_known_as_async(task.type):
                self._async_thread.submit(call)  # directly: the threads may all be busy
            else:
                self._shared.inbox.put(call)

    def poll(self) -> list[backend.Report]:
        self._wakeup.clear()
        for _ in range(len(self._shared.messages)):
            self._handle_safely(*self._shared.messages.popleft())
        self._enforce_deadlines(monotonic())
        self._report_ended_workers()
        reports, self._reports = self._reports, []
        return reports

    def deadline(self) -> float | None:
        if self._reports:
            return 0.0
        ends = [c.deadline for worker in self._workers if (c := worker.current) and c.deadline is not None]
        return max(0.0, min(ends) - monotonic()) if ends else None

    def stop(self, task: Task) -> None:
        attempt = (task.id, task.version)
        for call in [c for c in self._in_flight.values() if (c.task.id, c.task.version) == attempt]:
            if not self._give_back(call):
                call.interrupt(Stopped)

    def recall(self) -> None:
        for call in list(self._in_flight.values()):
            self._give_back(call)

    def resize(self, size: int) -> None:
        for _ in range(size, self._size):
            self._shared.inbox.put(None)
        for _ in range(self._size, size):
            self._start_worker()
        self._size = size
        self._shared.limits.update({type: size * concurrency for type, concurrency in self._concurrency.items()})

    def workers(self) -> list[backend.WorkerInfo]:
        infos = [_info(worker, [call] if (call := worker.current) else []) for worker in self._workers]
        if (loop := self._async_thread).is_running:
            infos.append(_info(loop, [call for call in self._in_flight.values() if call.worker is loop]))
        return infos

    def outstanding(self) -> int:
        return len(self._in_flight)

    def close(self, kill: bool = False) -> None:
        """Retire the threads, and wait up to `grace` seconds for them. A handler that runs on dies with the process."""
        self.recall()
        if kill:
            for call in self._in_flight.values():
                call.interrupt(Stopped)
        self.resize(0)
        self._async_thread.stop()
        end = monotonic() + self._shared.grace
        threads = [worker.thread for worker in self._workers]
        if self._async_thread.is_running:
            threads.append(self._async_thread.thread)
        for thread in threads:
            thread.join(max(0.0, end - monotonic()))
        self._release()

    def _is_known_as_async(self, type: str) -> bool:
        return self.handlers.is_loaded(type) and self.handlers.load(type).is_async

    def _queue_limit(self) -> int:
        return min(MAX_QUEUED, int(self._size * QUEUED_SECONDS / self._mean))

    def _start_worker(self) -> None:
        worker = WorkerThread(self._shared, self._async_thread, f"{self.name}-{next(self._worker_numbers)}")
        self._workers.append(worker)
        worker.thread.start()
        self._reports += started_reports(worker.name)

    # --- messages from the threads ---------------------------------------------------------------------------------

    def _handle_safely(self, call: ThreadCall, message: wire.ToPool) -> None:
        """Handle a message. If that raises, fail the call that the message is about."""
        try:
            self._handle(call, message)
        except Exception as error:
            if call.call.number in self._in_flight:
                self._forget(call)
                call.interrupt(Stopped)
                self._reports.append(backend.unfit(call.task, error))

    def _handle(self, call: ThreadCall, message: wire.ToPool) -> None:
        if call.call.number not in self._in_flight or call.worker is None:
            return  # an abandoned handler: its call was reported
        if report := report_of(call.task, call.worker.name, message):
            self._reports.append(report)
        if isinstance(message, wire.Done):
            self._end(call, message.seconds)

    def _end(self, call: ThreadCall, seconds: float) -> None:
        self._forget(call)
        self._mean = 0.9 * self._mean + 0.1 * max(seconds, 1e-6)
        if call.worker is not None:
            call.worker.done += 1
            call.worker.busy_seconds += seconds

    def _give_back(self, call: ThreadCall) -> bool:
        """Return the call if it has not started."""
        if not call.try_withdraw():
            return False
        self._forget(call)
        self._reports.append(backend.Returned(call.task))
        return True

    def _forget(self, call: ThreadCall) -> None:
        del self._in_flight[call.call.number]
        self._counts[call.task.type] -= 1

    # --- deadlines, and threads that end ---------------------------------------------------------------------------

    def _enforce_deadlines(self, now: float) -> None:
        for worker in list(self._workers):
            call = worker.current
            if call is not None and call.deadline is not None and call.deadline <= now:
                if call.interrupted_by is None:
                    call.interrupt(TimedOut)
                elif worker.try_abandon(call):
                    self._replace(worker, call)

    def _replace(self, worker: WorkerThread, call: ThreadCall) -> None:
        self._handle(call, call.abandoned())
        self._workers.remove(worker)
        reason = f"its thread ignored an interrupt: {call.task.id} was reported, and what it still does is ignored"
        self._reports.append(backend.WorkerChanged(worker.name, "exited", os.getpid(), reason=reason))
        self._start_worker()

    def _report_ended_workers(self) -> None:
        while self._shared.ended:
            worker = self._shared.ended.popleft()
            if worker in self._workers:  # else it was replaced and reported before
                self._workers.remove(worker)
                self._reports.append(backend.WorkerChanged(worker.name, "exited", os.getpid(), reason="retired"))


def _info(worker: WorkerThread | AsyncThread, calls: list[ThreadCall]) -> backend.WorkerInfo:
    task_id = calls[0].task.id if calls else None
    state: backend.WorkerState = "busy" if calls else "idle"
    return backend.WorkerInfo(worker.name, os.getpid(), state, len(calls), worker.done, worker.busy_seconds, task_id)

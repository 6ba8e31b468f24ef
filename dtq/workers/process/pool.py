"""WorkerPool: runs tasks in processes of their own, which may hang, crash or be killed without harm to other tasks.

    dispatch --> dispatch.py: the least loaded worker --> Channel ==> worker process
                                                                          |
    poll <-- reports <---- Started, Progress, Log, Done, Returned <== Channel
                 ^
                 +------ a worker is gone (supervisor.py), or was killed because a call was overdue

Everything happens in the thread that calls `poll`, `wait` and the other methods. One selector waits for all workers,
the zygote, the watched descriptors and `wake`. No worker can block it, whatever it does.

How the calls of a worker end when the worker is gone: if it died by itself, every call that ran there ends as
WorkerDied. If the pool killed it for one call, that call ends as Timeout or Cancelled, and the calls beside it are
returned. Calls that had not started are always returned.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

import msgspec

from dtq.sync.waits import Wakeup
from dtq.task.codec import raw
from dtq.task.model import Task
from dtq.workers import backend, wire
from dtq.workers.backend import Report, WorkerInfo
from dtq.workers.process.dispatch import NO_PARENTS, Dispatcher
from dtq.workers.process.prefetch import Prefetch
from dtq.workers.process.process import WorkerProcess, overdue_error
from dtq.workers.process.supervisor import GONE_WITHIN, Supervisor
from dtq.workers.wire import MAX_RESULT

log = logging.getLogger("dtq")

MAX_CALLS = 128  # in one frame
CLOSE_WITHIN = 5.0  # seconds that `close` gives to running calls
KILL_WITHIN = 3.0  # seconds that `close` then waits for killed workers


class WorkerPool:
    """A WorkerBackend (see backend.py) of `size` processes, called w1, w2, ...

    Args:
        max_tasks_per_worker: calls after which a worker is replaced; None: never.
        grace: seconds from the timeout or the stop of a call to the kill of its worker.
        max_result: limit of a result, in bytes of JSON.
        name: prefix of the workers' names.
        clock: returns seconds of a clock that is never set back.
    """

    def __init__(
        self,
        size: int = 4,
        *,
        max_tasks_per_worker: int | None = None,
        grace: float = 0.5,
        max_result: int = MAX_RESULT,
        name: str = "w",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size = size
        self._max_tasks = inf if max_tasks_per_worker is None else max_tasks_per_worker
        self._grace = grace
        self._max_result = max_result
        self._clock = clock
        self._sources: dict[str, wire.Source] = {}
        self._reports: list[Report] = []
        self._is_closed = False
        self._selector = selectors.DefaultSelector()
        self._wakeup = Wakeup()
        self._watched: list[int] = []
        self._selector.register(self._wakeup, selectors.EVENT_READ, lambda mask: self._wakeup.clear())
        self._supervisor = Supervisor(
            name, self._selector, on_start=self._greet, on_event=self._on_event, on_gone=self._fail_in_flight,
            report=lambda report: self._reports.append(report), clock=clock,
        )  # fmt: skip
        self._workers = self._supervisor.workers
        self._prefetch = Prefetch()
        self._dispatcher = Dispatcher(self._workers, self._prefetch)

    # --- what the loop calls ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers."""
        self._supervisor.resize(self._size)

    def define(self, type: str, source: wire.Source, function: Callable[..., Any] | None = None) -> None:
        """Use this handler for new calls of the type. `function` is not used: workers load handlers from `source`."""
        self._sources[type] = source
        self._prefetch.define(type, source.concurrency)
        for worker in self._workers.values():
            worker.totals.loaded.discard(type)
            worker.channel.send(wire.Define(type, source))

    def capacity(self) -> Iterator[tuple[int, frozenset[str]]]:
        """Yield, step by step, how many tasks of which types to dispatch next."""
        return self._dispatcher.capacity(self._clock())

    def dispatch(self, tasks: Sequence[Task], parents: Mapping[str, bytes] = NO_PARENTS) -> None:
        """Send the tasks to workers. `parents` holds, by task id, the JSON of the results of its parents."""
        placed, unplaced = self._dispatcher.place(tasks, self._clock(), parents)
        self._reports += unplaced
        for worker, calls in placed.items():
            for start in range(0, len(calls), MAX_CALLS):
                worker.channel.send(wire.Calls(calls[start : start + MAX_CALLS]))
            if worker.allowance < 1:
                worker.retire(f"retired: it has had {self._max_tasks:g} tasks", self._clock())

    def stop(self, task: Task) -> None:
        """Stop this attempt of the `task` (its id and version), or return it if it has not started."""
        for worker in self._workers.values():
            for number, call in worker.in_flight.items():
                if call.task.id == task.id and call.task.version == task.version and not call.is_stopping:
                    worker.stop(number, self._clock(), self._grace)

    def recall(self) -> None:
        """Take back all calls that have not started."""
        for worker in self._workers.values():
            if worker.waiting:
                worker.channel.send(wire.Recall())

    def resize(self, size: int) -> None:
        """Start or retire workers until there are `size`."""
        self._size = size
        self._supervisor.resize(size)

    def workers(self) -> list[WorkerInfo]:
        """Return the state of each worker. Safe to call from any thread."""
        return [worker.info() for worker in list(self._workers.values())]

    def outstanding(self) -> int:
        """Return how many calls are dispatched and not yet reported."""
        return sum(len(worker.in_flight) for worker in self._workers.values())

    def fileno(self) -> int:
        """Return a descriptor that is readable when `poll` has work."""
        return self._selector.fileno()

    # --- waiting ---------------------------------------------------------------------------------------------------

    def poll(self) -> list[Report]:
        """Return the reports since the last call. After `close`, return the last ones."""
        if not self._is_closed:
            self._turn()
        reports, self._reports = self._reports, []
        return reports

    def deadline(self) -> float | None:
        """Return the seconds until `poll` must be called, or None if only an event can require it."""
        if self._reports:
            return 0.0
        due = self._supervisor.next_due()
        return None if due == inf else max(0.0, due - self._clock())

    def wait(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for an event."""
        if not self._is_closed:
            self._selector.select(timeout)

    def wake(self) -> None:
        """End `wait`. Safe to call from any thread."""
        self._wakeup.wake()

    def watch(self, fd: int) -> None:
        """Let the descriptor `fd` end `wait` while it is readable."""
        self._watched.append(fd)
        self._selector.register(fd, selectors.EVENT_READ, _ignore)

    def close(self, kill: bool = False) -> None:
        """End all workers. Running calls get CLOSE_WITHIN seconds to end, or none with `kill`.

        The calls that still run are interrupted, so that their `finally` runs, and killed `grace` seconds later. In
        both cases they are reported as Returned.
        """
        if self._is_closed:
            return
        while self._watched:  # a readable one would end each wait below
            self._selector.unregister(self._watched.pop())
        self.recall()
        self.resize(0)
        if not kill:
            self._turn_until(lambda: not self._workers, CLOSE_WITHIN)
        self._interrupt_all()
        self._turn_until(lambda: not any(worker.is_ready for worker in self._workers.values()), self._grace)
        for worker in self._workers.values():
            worker.ending.is_innocent = True
            self._supervisor.kill(worker, "killed: the pool was closed", self._clock())
        self._turn_until(lambda: not self._workers, KILL_WITHIN)
        self._supervisor.close(KILL_WITHIN)
        self._is_closed = True
        self._selector.close()
        self._wakeup.close()

    def _interrupt_all(self) -> None:
        for worker in self._workers.values():
            for number in worker.in_flight:
                worker.interrupt(number)

    def _turn_until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = self._clock() + seconds
        while not condition() and (now := self._clock()) < end:
            self._selector.select(max(0.0, min(end, self._supervisor.next_due()) - now))
            self._turn()

    def _turn(self) -> None:
        for key, mask in self._selector.select(0):
            key.data(mask)
        now = self._clock()
        for worker in list(self._workers.values()):
            if now >= worker.next_due() and worker.ending.gone_by == inf:
                worker.recall_if_held_up(now)
                self._kill_if_overdue(worker, now)
        self._supervisor.check(now)

    def _kill_if_overdue(self, worker: WorkerProcess, now: float) -> None:
        for number, call in worker.overdue(now):
            worker.ending.is_innocent = True
            worker.ending.killed_for[number] = error = overdue_error(call)
            self._supervisor.kill(worker, f"killed: task {call.task.id} {error.message}", now)

    # --- messages from workers -------------------------------------------------------------------------------------

    def _greet(self, worker: WorkerProcess) -> None:
        worker.allowance = self._max_tasks
        worker.channel.send(wire.Hello(worker.name, self._max_result, self._grace))
        for type, source in self._sources.items():
            worker.channel.send(wire.Define(type, source))

    def _on_event(self, worker: WorkerProcess, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            worker.channel.flush()
        if mask & selectors.EVENT_READ:
            self._receive(worker)

    def _receive(self, worker: WorkerProcess) -> None:
        now = self._clock()
        try:
            for body in worker.channel.receive():
                for message in wire.to_pool(body):
                    self._handle_safely(worker, message, now)
        except msgspec.DecodeError as error:
            worker.channel.close()
            self._supervisor.kill(worker, f"killed: it sent what is no message ({error})", now)
        if not worker.channel.is_open:
            worker.ending.gone_by = min(worker.ending.gone_by, now + GONE_WITHIN)

    def _handle_safely(self, worker: WorkerProcess, message: wire.ToPool, now: float) -> None:
        """Handle a message. If that raises, fail the call that the message is about."""
        try:
            self._handle(worker, message, now)
        except Exception as error:
            number = getattr(message, "number", 0)
            if call := worker.in_flight.get(number):
                worker.stop(number, now, self._grace)
                worker.remove(number, now)
                self._reports.append(backend.unfit(call.task, error))
            else:
                log.exception("worker %s sent %s, which cannot be used", worker.name, type(message).__name__)

    def _handle(self, worker: WorkerProcess, message: wire.ToPool, now: float) -> None:
        if isinstance(message, wire.Done):  # the two messages of every call are tested first
            self._handle_done(worker, message, now)
        elif isinstance(message, wire.Started):
            self._handle_started(worker, message, now)
        elif isinstance(message, wire.Returned):
            for number in message.numbers:
                if call := worker.remove(number, now):
                    self._reports.append(backend.Returned(call.task))
        elif isinstance(message, wire.Ready):
            self._supervisor.set_pid(worker, message.pid)
            worker.set_ready(now)
            self._reports.append(backend.WorkerChanged(worker.name, "ready", worker.pid))
        elif call := worker.in_flight.get(message.number):
            self._reports.append(backend.output(call.task, message))

    def _handle_started(self, worker: WorkerProcess, message: wire.Started, now: float) -> None:
        call = worker.in_flight.get(message.number)
        if call is not None:
            if call.since == inf:
                self._reports.append(backend.Started(call.task, worker.name, message.at))
            worker.started(call, message, now, self._grace)

    def _handle_done(self, worker: WorkerProcess, message: wire.Done, now: float) -> None:
        result = raw(message.result)
        call = worker.remove(message.number, now)
        if call is not None:
            worker.totals.done += 1
            worker.totals.busy_seconds += message.seconds
            worker.totals.loaded.add(call.task.type)
            self._prefetch.learn(call.profile, message.seconds)
            if call.is_returning and message.error is not None:
                self._reports.append(backend.Returned(call.task))
            else:
                self._reports.append(backend.finished(call.task, worker.name, message, result))

    def _fail_in_flight(self, worker: WorkerProcess, code: int) -> None:
        """Report the calls of a worker that is gone, after its last messages."""
        self._receive(worker)
        now = self._clock()
        for number, call in list(worker.in_flight.items()):
            worker.remove(number, now)
            self._reports.append(worker.report_lost(number, call, code, now))


def _ignore(mask: int) -> None:
    """Do nothing: the owner of the descriptor reads it."""

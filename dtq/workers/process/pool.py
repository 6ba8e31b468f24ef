"""WorkerPool: runs tasks in processes of their own, which may hang, crash and be killed without harm to anyone else.

    dispatch --> placing.py: the least loaded worker --> channel ==> worker process
                                                                         |
    poll <-- reports <---- Started, Progress, Log, Done, Returned <== channel
                 ^
                 +------ a worker is gone (crew.py), or was killed because a call was overdue

Everything happens in the thread that calls `poll`, `wait` and the rest; one selector waits for all workers, the
zygote, the watched descriptors and `wake`. No worker can block it, whatever it does.

What a call is charged with when its worker goes: if the worker died of itself, every call that ran there ends as
WorkerDied. If the pool killed it because of one call, that one ends as Timeout or Cancelled, and its neighbours go back
untouched. What had not started goes back in any case.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

import msgspec

from dtq.task.codec import from_json
from dtq.task.model import Task
from dtq.workers import backend, wire
from dtq.workers.backend import Report, WorkerInfo
from dtq.workers.process import verdict
from dtq.workers.process.dispatch import NONE, Dispatcher
from dtq.workers.process.prefetch import Prefetch
from dtq.workers.process.process import WorkerProcess
from dtq.workers.process.supervisor import GONE_WITHIN, Supervisor
from dtq.workers.wire import MAX_RESULT

log = logging.getLogger("dtq")

MAX_CALLS = 128  # in one frame
CLOSE_WITHIN = 5.0  # seconds that `close` gives to calls that run
KILL_WITHIN = 3.0  # seconds that it then waits for killed workers


class WorkerPool:
    """A Pool (see reports.py) of `size` processes, which are called w1, w2, ... A worker is replaced after
    `max_tasks_per_worker` calls, and killed when a call has not ended `grace` seconds after its timeout. A result has
    at most `max_result` bytes of JSON."""

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
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._rings = False
        self._ring_lock = threading.Lock()
        self._watched: list[int] = []
        self._selector.register(self._bell, selectors.EVENT_READ, self._silence)
        self._crew = Supervisor(
            name, self._selector, on_start=self._greet, on_event=self._on_event, on_gone=self._settle,
            report=lambda report: self._reports.append(report), clock=clock,
        )  # fmt: skip
        self._pace = Prefetch()
        self._placing = Dispatcher(self._crew.members, self._pace)

    # --- what the loop asks for ------------------------------------------------------------------------------------

    def start(self) -> None:
        self._crew.resize(self._size)

    def define(self, type: str, source: wire.Source, function: Callable[..., Any] | None = None) -> None:
        """`function` is not used: workers get handlers from their source only."""
        self._sources[type] = source
        self._pace.define(type, source.concurrency)
        for member in self._crew.members.values():
            member.known.discard(type)
            member.channel.send(wire.Define(type, source))

    def capacity(self) -> Iterator[tuple[int, frozenset[str]]]:
        return self._placing.capacity(self._clock())

    def dispatch(self, tasks: Sequence[Task], parents: Mapping[str, bytes] = NONE) -> None:
        placed, others = self._placing.place(tasks, self._clock(), parents)
        self._reports += others
        for member, calls in placed.items():
            for start in range(0, len(calls), MAX_CALLS):
                member.channel.send(wire.Calls(calls[start : start + MAX_CALLS]))
            if member.allowance < 1:
                member.retire(f"retired: it has had {self._max_tasks:g} tasks", self._clock())

    def stop(self, task: Task) -> None:
        for member in self._crew.members.values():
            for number, job in member.jobs.items():
                if job.task.id == task.id and job.task.version == task.version and not job.stopping:
                    member.stop(number, self._clock(), self._grace)

    def recall(self) -> None:
        for member in self._crew.members.values():
            if member.waiting:
                member.channel.send(wire.Recall())

    def resize(self, size: int) -> None:
        self._size = size
        self._crew.resize(size)

    def workers(self) -> list[WorkerInfo]:
        return [member.info() for member in list(self._crew.members.values())]

    def outstanding(self) -> int:
        return sum(len(member.jobs) for member in self._crew.members.values())

    def fileno(self) -> int:
        return self._selector.fileno()

    # --- time ------------------------------------------------------------------------------------------------------

    def poll(self) -> list[Report]:
        """After `close`, once more, it gives what came in meanwhile."""
        if not self._closed:
            self._turn()
        found, self._reports = self._reports, []
        return found

    def deadline(self) -> float | None:
        if self._reports:
            return 0.0
        due = self._crew.next_due()
        return None if due == inf else max(0.0, due - self._clock())

    def wait(self, timeout: float | None) -> None:
        if not self._closed:
            self._selector.select(timeout)

    def wake(self) -> None:
        if not self._rings:  # one byte on its way is enough
            with self._ring_lock, contextlib.suppress(OSError):  # closed
                self._ringer.send(b"!")
                self._rings = True  # only now: behind an interrupt, the next ring must send a byte

    def watch(self, fd: int) -> None:
        self._watched.append(fd)
        self._selector.register(fd, selectors.EVENT_READ, _ignore)

    def close(self, kill: bool = False) -> None:
        """End all workers. Calls that run have CLOSE_WITHIN seconds to end (with `kill`: none). Those that are left are
        interrupted, so that their `finally` runs, and killed `grace` seconds later; in both cases they go back."""
        if self._closed:
            return
        while self._watched:  # or one that is readable would keep us awake
            self._selector.unregister(self._watched.pop())
        self.recall()
        self.resize(0)
        if not kill:
            self._until(lambda: not self._crew.members, CLOSE_WITHIN)
        self._interrupt()
        self._until(lambda: not any(member.ready for member in self._crew.members.values()), self._grace)
        for member in self._crew.members.values():
            member.spares = True
            self._crew.kill(member, "killed: the pool was closed", self._clock())
        self._until(lambda: not self._crew.members, KILL_WITHIN)
        self._crew.dismiss(KILL_WITHIN)
        self._closed = True
        self._selector.close()
        self._bell.close()
        self._ringer.close()

    def _interrupt(self) -> None:
        for member in self._crew.members.values():
            for number in member.jobs:
                member.interrupt(number)

    def _until(self, is_over: Callable[[], bool], seconds: float) -> None:
        end = self._clock() + seconds
        while not is_over() and (now := self._clock()) < end:
            self._selector.select(max(0.0, min(end, self._crew.next_due()) - now))
            self._turn()

    def _turn(self) -> None:
        for key, mask in self._selector.select(0):
            key.data(mask)
        now = self._clock()
        for member in list(self._crew.members.values()):
            if now >= member.next_due() and member.gone_by == inf:
                member.recall_if_held_up(now)
                self._kill_if_overdue(member, now)
        self._crew.check(now)

    def _kill_if_overdue(self, member: WorkerProcess, now: float) -> None:
        for number, job in member.overdue(now):
            member.spares = True
            member.verdicts[number] = error = verdict.of_overdue(job)
            self._crew.kill(member, f"killed: task {job.task.id} {error.message}", now)

    def _silence(self, mask: int) -> None:
        with self._ring_lock, contextlib.suppress(BlockingIOError):
            self._rings = False  # before what the ring was about is looked for
            self._bell.recv(64)

    # --- reports in ------------------------------------------------------------------------------------------------

    def _greet(self, member: WorkerProcess) -> None:
        member.allowance = self._max_tasks
        member.channel.send(wire.Hello(member.name, self._max_result, self._grace))
        for type, source in self._sources.items():
            member.channel.send(wire.Define(type, source))

    def _on_event(self, member: WorkerProcess, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            member.channel.flush()
        if mask & selectors.EVENT_READ:
            self._listen(member)

    def _listen(self, member: WorkerProcess) -> None:
        now = self._clock()
        try:
            for body in member.channel.receive():
                for message in wire.to_pool(body):
                    self._hear_safely(member, message, now)
        except msgspec.DecodeError as error:
            member.channel.close()
            self._crew.kill(member, f"killed: it sent what is no message ({error})", now)
        if not member.channel.is_open:
            member.gone_by = min(member.gone_by, now + GONE_WITHIN)

    def _hear_safely(self, member: WorkerProcess, message: wire.ToPool, now: float) -> None:
        """A message that cannot be used fails the call that it is about."""
        try:
            self._hear(member, message, now)
        except Exception as error:
            number = getattr(message, "number", 0)
            if job := member.jobs.get(number):
                member.stop(number, now, self._grace)
                member.remove(number, now)
                self._reports.append(backend.unfit(job.task, error))
            else:
                log.exception("worker %s sent %s, which cannot be used", member.name, type(message).__name__)

    def _hear(self, member: WorkerProcess, message: wire.ToPool, now: float) -> None:
        """The two that come with every call are asked for first."""
        if isinstance(message, wire.Done):
            self._hear_done(member, message, now)
        elif isinstance(message, wire.Started):
            self._hear_started(member, message, now)
        elif isinstance(message, wire.Returned):
            for number in message.numbers:
                if job := member.remove(number, now):
                    self._reports.append(backend.Returned(job.task))
        elif isinstance(message, wire.Ready):
            self._crew.introduce(member, message.pid)
            member.get_ready(now)
            self._reports.append(backend.WorkerChanged(member.name, "ready", member.pid))
        elif job := member.jobs.get(message.number):
            self._reports.append(_news(job.task, message))

    def _hear_started(self, member: WorkerProcess, message: wire.Started, now: float) -> None:
        job = member.jobs.get(message.number)
        if job is not None:
            if job.since == inf:
                self._reports.append(backend.Started(job.task, member.name, message.at))
            member.started(job, message, now, self._grace)

    def _hear_done(self, member: WorkerProcess, message: wire.Done, now: float) -> None:
        result = from_json(message.result)
        job = member.remove(message.number, now)
        if job is not None:
            member.done += 1
            member.busy_seconds += message.seconds
            member.known.add(job.task.type)
            self._pace.learn(job.gait, message.seconds)
            if job.returning and message.error is not None:
                self._reports.append(backend.Returned(job.task))
                return
            self._reports.append(
                backend.Finished(
                    job.task, member.name, message.started_at, message.seconds, result, message.error,
                    message.log, message.final, message.delay, message.discarded,
                )
            )  # fmt: skip

    def _settle(self, member: WorkerProcess, code: int) -> None:
        """The worker is gone; what it said last counts."""
        self._listen(member)
        now = self._clock()
        for number, job in list(member.jobs.items()):
            member.remove(number, now)
            self._reports.append(verdict.settle(member, number, job, code, now))


def _news(task: Task, message: wire.Progress | wire.Log) -> Report:
    if isinstance(message, wire.Progress):
        return backend.Progressed(task, message.percent, message.note)
    return backend.Logged(task, message.text)


def _ignore(mask: int) -> None:
    """Whoever gave the descriptor reads it."""

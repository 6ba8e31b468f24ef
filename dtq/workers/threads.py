"""Pools without processes: threads of this one, or no thread at all. They keep the promises of `reports.WorkerBackend`.

    dispatch --> inbox --> thread 1..size --> perform ---------------+
                              |                                      +--> mail --> poll --> reports
                              +--> async handler --> one event loop -+      |
                                                                            +--> bell, which ends wait

Use threads where handlers wait for others (network, disk, a C library that lets go of the interpreter), where they must
share memory, or where there is no fork. Use `inline` in tests.

What a thread cannot do is be killed. A handler that is over its time gets an exception raised in it, which arrives when
it next runs Python code; if it ignores that for `grace` seconds, it is given up: the task is reported, the thread is
replaced, and nobody listens to what it still does. A handler that crashes the process takes everything with it, and an
async handler that blocks holds up all other async ones. With processes none of this is so.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from time import monotonic
from typing import Any

from dtq.task.model import Task
from dtq.workers import backend, wire
from dtq.workers.inline import LocalPool, arrival, report
from dtq.workers.run.runner import Stopped, TimedOut, is_async, perform, perform_async
from dtq.workers.run.worker_thread import InFlight, Loop, Shared, Worker
from dtq.workers.wire import MAX_RESULT

AHEAD = 0.005  # seconds of work that may wait in the inbox, so that no thread has to wait for the loop
MAX_AHEAD = 256  # calls


class InlinePool(LocalPool):
    """Runs each task inside `dispatch`, in the thread that calls it: for tests of your own handlers.

    Nothing can interrupt a sync handler here, so its timeout is not kept. An async one runs on an event loop in a
    thread made for it, since the caller's thread may have a running loop, as a notebook's has.
    """

    def __init__(self, *, name: str = "inline", max_result: int = MAX_RESULT) -> None:
        super().__init__(name, max_result)
        self._reports: list[backend.Report] = []
        self._unreported = 0
        self._done = 0
        self._busy_seconds = 0.0

    def start(self) -> None:
        self._reports += arrival(self.name)

    def capacity(self) -> Iterator[tuple[int, frozenset[str]]]:
        if self._concurrency:
            yield 1, frozenset(self._concurrency)

    def dispatch(self, tasks: Sequence[Task], parents: Mapping[str, bytes] = {}) -> None:
        for task in tasks:
            try:
                call = self.call(task, parents.get(task.id, b""))
            except Exception as error:
                self._reports.append(backend.unfit(task, error))
            else:
                self._run(task, call)

    def poll(self) -> list[backend.Report]:
        self._bell.quiet()
        ready, self._reports, self._unreported = self._reports, [], 0
        return ready

    def deadline(self) -> float | None:
        return 0.0 if self._reports else None

    def stop(self, task: Task) -> None:
        """Nothing: whatever was dispatched has ended."""

    def recall(self) -> None:
        """Nothing: whatever was dispatched has ended."""

    def resize(self, size: int) -> None:
        """Nothing: the caller's thread is the only worker."""

    def workers(self) -> list[backend.WorkerInfo]:
        return [backend.WorkerInfo(self.name, os.getpid(), "idle", 0, self._done, self._busy_seconds, None)]

    def outstanding(self) -> int:
        return self._unreported

    def close(self, kill: bool = False) -> None:
        self._release()

    def _run(self, task: Task, call: wire.Call) -> None:
        done = self._perform(task, call)
        self._unreported += 1
        self._done += 1
        self._busy_seconds += done.seconds
        self._take(task, done)

    def _perform(self, task: Task, call: wire.Call) -> wire.Done:
        def send(message: wire.ToPool) -> None:
            self._take(task, message)

        if not is_async(self.handlers, call, send):
            return perform(self.handlers, call, self.name, send, max_result=self.max_result)
        with ThreadPoolExecutor(1) as thread:
            coroutine = perform_async(self.handlers, call, self.name, send, max_result=self.max_result)
            return thread.submit(asyncio.run, coroutine).result()

    def _take(self, task: Task, message: wire.ToPool) -> None:
        if said := report(task, self.name, message):
            self._reports.append(said)


# --- threads ----------------------------------------------------------------------------------------------------------


class ThreadPool(LocalPool):
    """`size` threads for sync handlers, and one more for all async ones, of which `size * concurrency` of a type run at
    once."""

    def __init__(
        self, size: int = 4, *, name: str = "thread", grace: float = 0.5, max_result: int = MAX_RESULT
    ) -> None:
        super().__init__(name, max_result)
        self._size = size
        self._shared = Shared(self.handlers, self.wake, grace, max_result)
        self._loop = Loop(self._shared, f"{name}-loop")
        self._workers: list[Worker] = []
        self._worker_numbers = count(1)
        self._jobs: dict[int, InFlight] = {}  # by the number of the call: dispatched and not yet reported
        self._counts: Counter[str] = Counter()  # the same by type
        self._reports: list[backend.Report] = []
        self._mean = 1.0  # seconds that a call takes, lately

    def start(self) -> None:
        for _ in range(self._size):
            self._hire()

    def define(self, type: str, source: wire.Source, function: Callable[..., Any] | None = None) -> None:
        super().define(type, source, function)
        self._shared.limits[type] = self._size * source.concurrency

    def capacity(self) -> Iterator[tuple[int, frozenset[str]]]:
        wide = [type for type, concurrency in self._concurrency.items() if concurrency > 1]
        plain = frozenset(self._concurrency).difference(wide)
        if (room := self._size + self._ahead() - sum(self._counts[type] for type in plain)) > 0 and plain:
            yield room, plain
        for type in wide:
            if (room := self._shared.limits[type] - self._counts[type]) > 0:
                yield room, frozenset({type})

    def dispatch(self, tasks: Sequence[Task], parents: Mapping[str, bytes] = {}) -> None:
        for task in tasks:
            try:
                job = InFlight(self._shared, task, self.call(task, parents.get(task.id, b"")))
            except Exception as error:
                self._reports.append(backend.unfit(task, error))
                continue
            self._jobs[job.call.number] = job
            self._counts[task.type] += 1
            if self._is_known_as_async(task.type):
                self._loop.submit(job)  # at once: the threads may all be busy
            else:
                self._shared.inbox.put(job)

    def poll(self) -> list[backend.Report]:
        self._bell.quiet()
        for _ in range(len(self._shared.mail)):
            self._take_safely(*self._shared.mail.popleft())
        self._enforce(monotonic())
        self._say_farewell()
        ready, self._reports = self._reports, []
        return ready

    def deadline(self) -> float | None:
        if self._reports:
            return 0.0
        ends = [job.deadline for worker in self._workers if (job := worker.job) and job.deadline is not None]
        return max(0.0, min(ends) - monotonic()) if ends else None

    def stop(self, task: Task) -> None:
        attempt = (task.id, task.version)
        for job in [job for job in self._jobs.values() if (job.task.id, job.task.version) == attempt]:
            if not self._take_back(job):
                job.ask(Stopped)

    def recall(self) -> None:
        for job in list(self._jobs.values()):
            self._take_back(job)

    def resize(self, size: int) -> None:
        for _ in range(size, self._size):
            self._shared.inbox.put(None)
        for _ in range(self._size, size):
            self._hire()
        self._size = size
        self._shared.limits.update({type: size * wide for type, wide in self._concurrency.items()})

    def workers(self) -> list[backend.WorkerInfo]:
        infos = [_info(worker, [worker.job] if worker.job else []) for worker in self._workers]
        if self._loop.is_running:
            infos.append(_info(self._loop, [job for job in self._jobs.values() if job.worker is self._loop]))
        return infos

    def outstanding(self) -> int:
        return len(self._jobs)

    def close(self, kill: bool = False) -> None:
        """Waits up to `grace` seconds for the threads. What runs on after that dies with the process."""
        self.recall()
        if kill:
            for job in self._jobs.values():
                job.ask(Stopped)
        self.resize(0)
        self._loop.stop()
        end = monotonic() + self._shared.grace
        threads = [worker.thread for worker in self._workers] + ([self._loop.thread] if self._loop.is_running else [])
        for thread in threads:
            thread.join(max(0.0, end - monotonic()))
        self._release()

    def _is_known_as_async(self, type: str) -> bool:
        return self.handlers.is_loaded(type) and self.handlers.load(type).is_async

    def _ahead(self) -> int:
        return min(MAX_AHEAD, int(self._size * AHEAD / self._mean))

    def _hire(self) -> None:
        worker = Worker(self._shared, self._loop, f"{self.name}-{next(self._worker_numbers)}")
        self._workers.append(worker)
        worker.thread.start()
        self._reports += arrival(worker.name)

    def _take_safely(self, job: InFlight, message: wire.ToPool) -> None:
        """A message that cannot be used fails the call that it is about."""
        try:
            self._take(job, message)
        except Exception as error:
            if job.call.number in self._jobs:
                self._forget(job)
                job.ask(Stopped)
                self._reports.append(backend.unfit(job.task, error))

    def _take(self, job: InFlight, message: wire.ToPool) -> None:
        if job.call.number not in self._jobs or job.worker is None:
            return  # reported already: a late word from a handler that was given up
        if said := report(job.task, job.worker.name, message):
            self._reports.append(said)
        if isinstance(message, wire.Done):
            self._end(job, message.seconds)

    def _end(self, job: InFlight, seconds: float) -> None:
        self._forget(job)
        self._mean = 0.9 * self._mean + 0.1 * max(seconds, 1e-6)
        if job.worker is not None:
            job.worker.done += 1
            job.worker.busy_seconds += seconds

    def _take_back(self, job: InFlight) -> bool:
        if not job.take_back():
            return False
        self._forget(job)
        self._reports.append(backend.Returned(job.task))
        return True

    def _forget(self, job: InFlight) -> None:
        del self._jobs[job.call.number]
        self._counts[job.task.type] -= 1

    def _enforce(self, now: float) -> None:
        for worker in list(self._workers):
            job = worker.job
            if job is not None and job.deadline is not None and job.deadline <= now:
                if job.asked is None:
                    job.ask(TimedOut)
                elif worker.give_up(job):
                    self._replace(worker, job)

    def _replace(self, worker: Worker, job: InFlight) -> None:
        self._take(job, job.obituary())
        self._workers.remove(worker)
        reason = f"its thread does not react: {job.task.id} goes on unheard"
        self._reports.append(backend.WorkerChanged(worker.name, "exited", os.getpid(), reason=reason))
        self._hire()

    def _say_farewell(self) -> None:
        while self._shared.left:
            worker = self._shared.left.popleft()
            if worker in self._workers:  # else it was replaced, and that was said
                self._workers.remove(worker)
                self._reports.append(backend.WorkerChanged(worker.name, "exited", os.getpid(), reason="retired"))


def _info(worker: Worker | Loop, jobs: list[InFlight]) -> backend.WorkerInfo:
    task_id = jobs[0].task.id if jobs else None
    state: backend.WorkerState = "busy" if jobs else "idle"
    return backend.WorkerInfo(worker.name, os.getpid(), state, len(jobs), worker.done, worker.busy_seconds, task_id)

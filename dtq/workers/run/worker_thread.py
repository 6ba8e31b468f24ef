"""The threads of a ThreadPool: workers for sync calls, and one event loop for all async ones.

    inbox --> Worker --> sync:  perform -----------------------+
                    |                                          +--> mail (read by ThreadPool.poll)
                    +--> async: Loop --> perform_async --------+

An exception can be raised in another thread, but nobody can tell where it arrives: next to the handler it would break
the pipeline. So each Job is the context manager around its own handler, and one lock decides: while the job is `armed`
an exception may be sent, and on leaving, one that has not arrived is taken back.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections import defaultdict, deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic, time
from typing import Any, Literal, Self

from dtq.task.model import Task
from dtq.workers import wire
from dtq.workers.run.runner import Context, Handlers, Interrupted, TimedOut, describe, is_async, perform, perform_async


class Shared:
    """What the loop's thread and the workers have in common."""

    def __init__(self, handlers: Handlers, ring: Callable[[], None], grace: float, max_result: int) -> None:
        self.handlers = handlers
        self.ring = ring
        self.grace = grace
        self.max_result = max_result
        self.lock = Lock()
        self.inbox: SimpleQueue[InFlight | None] = SimpleQueue()  # None: one worker may go
        self.mail: deque[tuple[InFlight, wire.ToPool]] = deque()
        self.left: deque[Worker] = deque()  # whose threads have ended
        self.limits: dict[str, int] = {}  # type -> how many of its async calls run at once


class InFlight:
    """One call in the pool. `asked` is the one exception, at most, that was sent after it."""

    def __init__(self, shared: Shared, task: Task, call: wire.Call) -> None:
        self.task = task
        self.call = call
        self.state: Literal["waiting", "begun", "armed", "over"] = "waiting"
        self.worker: Worker | Loop | None = None
        self.context: Context | None = None
        self.asked: type[Interrupted] | None = None
        self.deadline: float | None = None  # on the monotonic clock; once `asked` is set, the end of the grace
        self._shared = shared

    def begin(self, worker: Worker | Loop) -> bool:
        """Whether the call may run; not if it was taken back."""
        with self._shared.lock:
            if self.state != "waiting":
                return False
            self.state, self.worker = "begun", worker
            return True

    def take_back(self) -> bool:
        """Whether the call had not begun, and now never will."""
        with self._shared.lock:
            waiting = self.state == "waiting"
            if waiting:
                self.state = "over"
            return waiting

    def ask(self, kind: type[Interrupted]) -> None:
        """Ends the handler by an exception, unless it has ended or was asked before."""
        with self._shared.lock:
            if self.asked is not None or self.state == "over" or self.worker is None:
                return
            self.asked, self.deadline = kind, monotonic() + self._shared.grace
            if self.context is not None:
                self.context.cancelled = True
            if self.state == "armed":
                self.worker.interrupt(self, kind)

    def send(self, message: wire.ToPool) -> None:
        """Puts it into the mail. The clock starts here, before the loop can know that the call has."""
        if type(message) is wire.Started and not message.loading:
            self.deadline = monotonic() + self.call.timeout
        self._shared.mail.append((self, message))
        self._shared.ring()

    def obituary(self) -> wire.Done:
        """The report of a call that does not end: its own, should one still come, is not read."""
        error = describe((self.asked or TimedOut)(), self.call.timeout)
        context = self.context
        started_at = context.started_at if context is not None else time()
        log = context.printed() if context is not None else ""
        return wire.Done(self.call.number, started_at, max(0.0, time() - started_at), error=error, log=log)

    def __call__(self, context: Context) -> Self:
        self.context = context
        return self

    def __enter__(self) -> None:
        with self._shared.lock:
            if self.asked is not None:
                raise self.asked
            self.state = "armed"

    def __exit__(self, *raised: object) -> None:
        with self._shared.lock:
            self.state = "over"
            if self.asked is not None and self.worker is not None:
                self.worker.spare()


class Worker:
    """One thread, which takes calls from the inbox until it finds a None there, or was given up."""

    def __init__(self, shared: Shared, loop: Loop, name: str) -> None:
        self.name = name
        self.job: InFlight | None = None  # the call that runs here
        self.done = 0
        self.busy_seconds = 0.0
        self.given_up = False
        self.thread = Thread(target=self._run, name=name, daemon=True)
        self._shared = shared
        self._loop = loop

    def give_up(self, job: InFlight) -> bool:
        """Whether the thread still runs this job; then it takes no other."""
        with self._shared.lock:
            self.given_up = self.job is job
            return self.given_up

    def interrupt(self, job: InFlight, kind: type[Interrupted]) -> None:
        """Raises it in the thread as soon as that runs Python code."""
        self._set_exception(ctypes.py_object(kind))

    def spare(self) -> None:
        """Takes back what was to be raised and has not been yet."""
        self._set_exception(None)

    def _set_exception(self, exception: Any) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident or 0), exception)

    def _run(self) -> None:
        while not self.given_up and (job := self._shared.inbox.get()) is not None:
            if job.state == "waiting":
                self._handle(job)
        self._shared.left.append(self)
        self._shared.ring()

    def _handle(self, job: InFlight) -> None:
        shared = self._shared
        if is_async(shared.handlers, job.call, job.send):
            self._loop.submit(job)
        elif job.begin(self):
            self.job = job
            done = perform(shared.handlers, job.call, self.name, job.send, job, shared.max_result)
            with shared.lock:  # either the report is in the mail first, or the thread is given up
                self.job = None
                job.send(done)


class Loop:
    """A thread with an event loop for the async calls: of each type as many at once as its limit says. It starts when
    the first of them comes."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.name = name
        self.done = 0
        self.busy_seconds = 0.0
        self.is_running = False
        self.thread = Thread(target=self._run, name=name, daemon=True)
        self._shared = shared
        self._loop = asyncio.new_event_loop()
        self._waiting: defaultdict[str, deque[InFlight]] = defaultdict(deque)
        self._running: defaultdict[str, dict[InFlight, asyncio.Task[None]]] = defaultdict(dict)
        self._tasks: set[asyncio.Task[None]] = set()  # also those given up: the event loop itself does not hold them

    # --- from other threads --------------------------------------------------------------------------------------

    def submit(self, job: InFlight) -> None:
        with self._shared.lock:
            if not self.is_running:
                self.is_running = True
                self.thread.start()
        self._loop.call_soon_threadsafe(self._queue, job)

    def interrupt(self, job: InFlight, kind: type[Interrupted]) -> None:
        self._loop.call_soon_threadsafe(self._cancel, job)

    def spare(self) -> None:
        """Nothing: a task is cancelled only while it waits in its handler."""

    def stop(self) -> None:
        if self.is_running:
            self._loop.call_soon_threadsafe(self._loop.stop)
        else:
            self._loop.close()

    # --- in its own ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            self._loop.run_until_complete(asyncio.wait(self._tasks))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _queue(self, job: InFlight) -> None:
        self._waiting[job.call.type].append(job)
        self._fill(job.call.type)

    def _fill(self, type: str) -> None:
        waiting, running = self._waiting[type], self._running[type]
        while waiting and len(running) < self._shared.limits[type]:
            job = waiting.popleft()
            if job.begin(self):
                task = running[job] = self._loop.create_task(self._perform(job))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _perform(self, job: InFlight) -> None:
        shared = self._shared
        patience = self._loop.call_later(job.call.timeout + shared.grace, self._give_up, job)
        done = await perform_async(shared.handlers, job.call, self.name, job.send, job, shared.max_result)
        patience.cancel()
        job.send(done)
        self._free(job)

    def _cancel(self, job: InFlight) -> None:
        task = self._running[job.call.type].get(job)
        if task is not None and job.state == "armed":
            task.cancel()
            self._loop.call_later(self._shared.grace, self._give_up, job)

    def _give_up(self, job: InFlight) -> None:
        if job in self._running[job.call.type]:
            job.send(job.obituary())
            self._free(job)

    def _free(self, job: InFlight) -> None:
        self._running[job.call.type].pop(job, None)
        self._fill(job.call.type)

"""The threads of a ThreadPool: workers for sync calls, and one event loop for all async calls.

    inbox --> WorkerThread --> sync:  perform ------------------------+
                    |                                                 +--> messages (read by ThreadPool.poll)
                    +--> async: AsyncThread --> perform_async --------+

Python can raise an exception in another thread, but not say where it arrives: outside of the handler it would break the
pipeline. Therefore each ThreadCall is the context manager around its handler, and one lock guards its state. An
exception may be sent only while the call is "interruptible"; on leaving, one that has not arrived is withdrawn.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections import defaultdict, deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic, sleep, time
from typing import Literal, Self

from dtq.task.model import Task
from dtq.workers import wire
from dtq.workers.run.runner import Context, Handlers, Interrupted, TimedOut, describe, is_async, perform, perform_async


class SharedState:
    """What the loop's thread and the workers share."""

    def __init__(self, handlers: Handlers, wake: Callable[[], None], grace: float, max_result: int) -> None:
        self.handlers = handlers
        self.wake = wake
        self.grace = grace
        self.max_result = max_result
        self.lock = Lock()
        self.inbox: SimpleQueue[ThreadCall | None] = SimpleQueue()  # None: one worker may end
        self.messages: deque[tuple[ThreadCall, wire.ToPool]] = deque()
        self.ended: deque[WorkerThread] = deque()  # workers whose threads have ended
        self.limits: dict[str, int] = {}  # type -> how many of its async calls run at once


class ThreadCall:
    """One call in the pool. It is interrupted once at most, with the exception `interrupted_by`.

    waiting --try_start--> started --__enter__--> interruptible --__exit__--> over
       +---try_withdraw--> over
    """

    def __init__(self, shared: SharedState, task: Task, call: wire.Call) -> None:
        self.task = task
        self.call = call
        self.state: Literal["waiting", "started", "interruptible", "over"] = "waiting"
        self.worker: WorkerThread | AsyncThread | None = None
        self.context: Context | None = None
        self.interrupted_by: type[Interrupted] | None = None
        self.deadline: float | None = None  # by the monotonic clock; after an interrupt, the end of the grace
        self._shared = shared

    def try_start(self, worker: WorkerThread | AsyncThread) -> bool:
        """Start the call. Return False if it was withdrawn."""
        with self._shared.lock:
            if self.state != "waiting":
                return False
            self.state, self.worker = "started", worker
            return True

    def try_withdraw(self) -> bool:
        """Withdraw the call. Return False if it has started."""
        with self._shared.lock:
            is_waiting = self.state == "waiting"
            if is_waiting:
                self.state = "over"
            return is_waiting

    def interrupt(self, kind: type[Interrupted]) -> None:
        """End the handler with an exception, unless it has ended or was interrupted before."""
        with self._shared.lock:
            if self.interrupted_by is not None or self.state == "over" or self.worker is None:
                return
            self.interrupted_by, self.deadline = kind, monotonic() + self._shared.grace
            if self.context is not None:
                self.context.cancelled = True
            if self.state == "interruptible":
                self.worker.interrupt(self, kind)

    def send(self, message: wire.ToPool) -> None:
        """Send a message to the pool. Started sets the deadline first, so that the pool never sees it without one."""
        if type(message) is wire.Started and not message.loading:
            self.deadline = monotonic() + self.call.timeout
        self._shared.messages.append((self, message))
        self._shared.wake()

    def abandoned(self) -> wire.Done:
        """Return the report of a call that does not end. The pool ignores its own report, if one ever comes."""
        error = describe((self.interrupted_by or TimedOut)(), self.call.timeout)
        context = self.context
        started_at = context.started_at if context is not None else time()
        log = context.printed() if context is not None else ""
        return wire.Done(self.call.number, started_at, max(0.0, time() - started_at), error=error, log=log)

    def __call__(self, context: Context) -> Self:
        self.context = context
        return self

    def __enter__(self) -> None:
        with self._shared.lock:
            if self.interrupted_by is not None:
                raise self.interrupted_by
            self.state = "interruptible"

    def __exit__(self, *raised: object) -> None:
        with self._shared.lock:
            self.state = "over"
            if self.interrupted_by is not None and self.worker is not None:
                self.worker.withdraw_interrupt()


class _Withdrawn(BaseException):
    """Takes the place of an exception that is no longer to be raised in a thread."""


class WorkerThread:
    """A thread that runs calls from the inbox until it finds None there, or is abandoned."""

    def __init__(self, shared: SharedState, async_thread: AsyncThread, name: str) -> None:
        self.name = name
        self.current: ThreadCall | None = None
        self.done = 0
        self.busy_seconds = 0.0
        self.is_abandoned = False
        self.thread = Thread(target=self._run, name=name, daemon=True)
        self._shared = shared
        self._async_thread = async_thread

    def try_abandon(self, call: ThreadCall) -> bool:
        """Let the thread take no further call. Return False if it no longer runs this one."""
        with self._shared.lock:
            self.is_abandoned = self.current is call
            return self.is_abandoned

    def interrupt(self, call: ThreadCall, kind: type[Interrupted]) -> None:
        """Raise the exception in the thread as soon as that runs Python code."""
        self._set_exception(kind)

    def withdraw_interrupt(self) -> None:
        """Drop an exception that was to be raised and has not been yet. The thread calls this itself.

        Raise another in its place and catch that. Without any, CPython 3.11 would look for an exception for ever, and
        hang in the next function that a debugger or profiler traces, in whichever thread.
        """
        try:
            self._set_exception(_Withdrawn)
            while True:
                sleep(0)
        except _Withdrawn:
            pass

    def _set_exception(self, kind: type[BaseException]) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident or 0), ctypes.py_object(kind))

    def _run(self) -> None:
        while not self.is_abandoned and (call := self._shared.inbox.get()) is not None:
            if call.state == "waiting":
                self._handle(call)
        self._shared.ended.append(self)
        self._shared.wake()

    def _handle(self, call: ThreadCall) -> None:
        shared = self._shared
        if is_async(shared.handlers, call.call, call.send):
            self._async_thread.submit(call)
        elif call.try_start(self):
            self.current = call
            done = perform(shared.handlers, call.call, self.name, call.send, call, shared.max_result)
            with shared.lock:  # either the report comes first, or the thread is abandoned
                self.current = None
                call.send(done)


class AsyncThread:
    """A thread with an event loop for the async calls. Each type runs as many at once as its limit allows. The thread
    starts with the first async call."""

    def __init__(self, shared: SharedState, name: str) -> None:
        self.name = name
        self.done = 0
        self.busy_seconds = 0.0
        self.is_running = False
        self.thread = Thread(target=self._run, name=name, daemon=True)
        self._shared = shared
        self._loop = asyncio.new_event_loop()
        self._waiting: defaultdict[str, deque[ThreadCall]] = defaultdict(deque)
        self._running: defaultdict[str, dict[ThreadCall, asyncio.Task[None]]] = defaultdict(dict)
        self._tasks: set[asyncio.Task[None]] = set()  # with the abandoned ones: the event loop holds no references

    # --- from other threads --------------------------------------------------------------------------------------

    def submit(self, call: ThreadCall) -> None:
        """Run the call as soon as the limit of its type allows."""
        with self._shared.lock:
            if not self.is_running:
                self.is_running = True
                self.thread.start()
        self._loop.call_soon_threadsafe(self._queue, call)

    def interrupt(self, call: ThreadCall, kind: type[Interrupted]) -> None:
        self._loop.call_soon_threadsafe(self._cancel, call)

    def withdraw_interrupt(self) -> None:
        """Do nothing: a task is cancelled only while its handler awaits."""

    def stop(self) -> None:
        if self.is_running:
            self._loop.call_soon_threadsafe(self._loop.stop)
        else:
            self._loop.close()

    # --- on the event loop ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            self._loop.run_until_complete(asyncio.wait(self._tasks))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _queue(self, call: ThreadCall) -> None:
        self._waiting[call.call.type].append(call)
        self._fill(call.call.type)

    def _fill(self, type: str) -> None:
        waiting, running = self._waiting[type], self._running[type]
        while waiting and len(running) < self._shared.limits[type]:
            call = waiting.popleft()
            if call.try_start(self):
                task = running[call] = self._loop.create_task(self._perform(call))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _perform(self, call: ThreadCall) -> None:
        shared = self._shared
        timer = self._loop.call_later(call.call.timeout + shared.grace, self._abandon, call)
        done = await perform_async(shared.handlers, call.call, self.name, call.send, call, shared.max_result)
        timer.cancel()
        call.send(done)
        self._free(call)

    def _cancel(self, call: ThreadCall) -> None:
        task = self._running[call.call.type].get(call)
        if task is not None and call.state == "interruptible":
            task.cancel()
            self._loop.call_later(self._shared.grace, self._abandon, call)

    def _abandon(self, call: ThreadCall) -> None:
        if call in self._running[call.call.type]:
            call.send(call.abandoned())
            self._free(call)

    def _free(self, call: ThreadCall) -> None:
        self._running[call.call.type].pop(call, None)
        self._fill(call.call.type)

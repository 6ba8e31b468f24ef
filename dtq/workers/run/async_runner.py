"""AsyncRunner: runs the async calls of a worker process, many at once, in a thread with an event loop.

    take --> waiting, by type --(at most `concurrency` of a type)--> running --> Done, sent at once

The thread starts with the first async call. One lock guards all state and is held only briefly: other threads add,
withdraw and stop calls, even while a handler blocks the event loop.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter, defaultdict, deque
from contextlib import AbstractContextManager, nullcontext

from dtq.workers import wire
from dtq.workers.run.context import Context, Send
from dtq.workers.run.loader import Handlers
from dtq.workers.run.offspring import Offspring
from dtq.workers.run.runner import Stopped, perform_async, was_interrupted


class AsyncRunner:
    """Runs async calls. Set `name`, `max_result` and the limit of each type before the first call."""

    def __init__(self, handlers: Handlers, send: Send, offspring: Offspring) -> None:
        self.name = ""
        self.max_result = 0
        self.limits: dict[str, int] = {}
        self._handlers = handlers
        self._send = send
        self._offspring = offspring
        self._waiting: defaultdict[str, deque[wire.Call]] = defaultdict(deque)
        self._running: dict[int, Run] = {}
        self._active: Counter[str] = Counter()  # how many of each type are running
        self._lock = threading.Lock()
        self._empty = threading.Condition(self._lock)
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- from any thread -------------------------------------------------------------------------------------------

    def take(self, call: wire.Call) -> None:
        """Run the call as soon as the limit of its type allows."""
        with self._lock:
            self._waiting[call.type].append(call)
            if self._loop is None:
                self._loop = _start_loop()
            self._loop.call_soon_threadsafe(self._admit, call.type)

    def withdraw(self) -> list[wire.Call]:
        """Remove and return all calls that have not started."""
        with self._lock:
            calls = [call for line in self._waiting.values() for call in line]
            self._waiting.clear()
            return calls

    def stop(self, number: int) -> bool:
        """Stop the call if it runs, or return it to the pool if it waits. Return False if it is not here."""
        with self._lock:
            run = self._running.get(number)
            if run is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(run.stop)
            removed = run is None and self._remove(number)
        if removed:
            self._send(wire.Returned([number]))
        return removed or run is not None

    def drain(self) -> None:
        """Wait until every call has ended."""
        with self._lock:
            self._empty.wait_for(lambda: not self._running and not any(self._waiting.values()))

    def _remove(self, number: int) -> bool:
        for line in self._waiting.values():
            for call in line:
                if call.number == number:
                    line.remove(call)
                    return True
        return False

    # --- on the loop -----------------------------------------------------------------------------------------------

    def _admit(self, type: str) -> None:
        with self._lock:
            line = self._waiting[type]
            while line and self._active[type] < self.limits[type]:
                call = line.popleft()
                self._active[type] += 1
                self._running[call.number] = Run(asyncio.ensure_future(self._perform(call)))

    async def _perform(self, call: wire.Call) -> None:
        run = self._running[call.number]
        self._offspring.begin_parallel()
        done = await perform_async(self._handlers, call, self.name, self._send, run.interruptible, self.max_result)
        self._offspring.end_parallel(done.seconds, was_interrupted(done))
        self._send(done)
        with self._lock:
            del self._running[call.number]
            self._active[call.type] -= 1
            self._empty.notify_all()
        self._admit(call.type)


class Run:
    """A call on the event loop."""

    def __init__(self, task: asyncio.Future[None]) -> None:
        self._task = task
        self._context: Context | None = None
        self._stopped = False

    def interruptible(self, context: Context) -> AbstractContextManager[None]:
        if self._stopped:  # stopped before it began: cancelling the task then would have suppressed its report
            context.cancelled = True
            raise Stopped
        self._context = context
        return nullcontext()

    def stop(self) -> None:
        self._stopped = True
        if self._context is not None:
            self._context.cancelled = True
            self._task.cancel()


def _start_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=_run_loop, args=[loop], name="dtq-async", daemon=True).start()
    return loop


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # it must interrupt the main thread, not this one
    loop.run_forever()

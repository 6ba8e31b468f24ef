"""The process of a worker.

    socket --> reader thread --+--> inbox --> main thread: one sync call after the other --+--> PoolSocket --> socket
                               |                  ^                                        |
                               |                  | raises TimedOut, Stopped               |
                               +--> Stop --> TimeoutSignal                                 |
                               +--> AsyncRunner: a thread with an event loop --------------+

Handlers run in the main thread because Python runs signal handlers there: a timeout can interrupt `time.sleep`, or any
loop of Python code. Another thread reads the requests, so that a running call can be stopped, and waiting calls taken
back, at any time. A call that stays in C code cannot be interrupted: the pool kills the process. The processes that a
call has started end with it (offspring.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from types import FrameType
from typing import Protocol

from dtq.workers import wire
from dtq.workers.run.async_runner import AsyncRunner
from dtq.workers.run.loader import Handlers
from dtq.workers.run.offspring import NO_SPAWN, Offspring, adopt_orphans
from dtq.workers.run.runner import Stopped, TimedOut, is_async, perform, was_interrupted

TEARDOWN_WITHIN = 4.0  # seconds until `teardown()` is interrupted; a little later the pool kills the retiring worker


def main(sock: socket.socket) -> None:
    """Run a worker until it has retired. Call it in the main thread."""
    os.register_at_fork(after_in_child=sock.close)  # a child of a handler must not write to the pool, nor keep it open
    adopt_orphans()
    Worker(sock).run()


class Worker:
    """The two threads and what they share: `run` is the main thread, `_read` the reader."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._name = ""
        self._max_result = 0
        self._offspring = Offspring()
        self._handlers = Handlers(around_load=self._offspring.kept)
        self._inbox: SimpleQueue[wire.Call | None] = SimpleQueue()  # None: retire
        self._timeout_signal = TimeoutSignal(self._offspring.warn)
        self._pool = PoolSocket(sock, self._timeout_signal)
        self._async_runner = AsyncRunner(self._handlers, self._pool.send, self._offspring)

    def run(self) -> None:
        threading.Thread(target=self._read, name="dtq-reader", daemon=True).start()
        while (call := self._inbox.get()) is not None:
            self._timeout_signal.number = call.number
            if is_async(self._handlers, call, self._pool.send):
                self._async_runner.take(call)
                if self._timeout_signal.is_stop_requested():  # it was stopped while its handler was being loaded
                    self._async_runner.stop(call.number)
            else:
                self._perform(call)
            if self._inbox.empty():
                self._pool.flush()
        self._async_runner.drain()
        self._pool.flush()
        self._tear_down()

    def _perform(self, call: wire.Call) -> None:
        """Run the call, and hold its report until the next call has sent Started: the two share a system call."""
        offspring, interruptible = self._offspring, self._timeout_signal.interruptible
        offspring.busy = True
        done = perform(self._handlers, call, self._name, self._pool.send, interruptible, self._max_result)
        offspring.busy = False
        if done.seconds >= NO_SPAWN or offspring.since < inf:
            offspring.end(done.seconds, was_interrupted(done))
        self._pool.hold(done)

    def _tear_down(self) -> None:
        self._timeout_signal.number = 0  # a stop of the last call must not interrupt the teardown
        with self._timeout_signal.interruptible(Teardown()):
            problems = self._handlers.teardown()
        for problem in problems:
            os.write(2, f"{self._name}: {problem}\n".encode())

    # --- in the reader thread --------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Obey the pool until its end of the socket is closed; then end the process."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # it must interrupt the main thread, not this one
        code, buffer = 0, bytearray()
        try:
            while data := self._sock.recv(wire.READ_SIZE):
                buffer += data
                for body in wire.split(buffer):
                    self._obey(wire.to_worker(body))
        except ConnectionResetError:
            pass
        except BaseException:
            code = 1
            traceback.print_exc()
        finally:
            os._exit(code)

    def _obey(self, message: wire.ToWorker) -> None:
        match message:
            case wire.Calls(calls):
                for call in calls:
                    self._accept(call)
            case wire.Stop(number):
                self._stop(number)
            case wire.Recall():
                self._give_back(self._withdraw(lambda call: True))
                self._give_back([call.number for call in self._async_runner.withdraw()])
            case wire.Define(type, source):
                self._handlers.define(type, source)
                self._async_runner.limits[type] = source.concurrency
                for call in self._async_runner.withdraw():  # an async handler may have become sync
                    self._inbox.put(call)
            case wire.Retire():
                self._inbox.put(None)
            case wire.Hello(name, max_result, grace):
                self._offspring.grace = grace
                self._name = self._async_runner.name = name
                self._max_result = self._async_runner.max_result = max_result
                self._pool.send(wire.Ready(os.getpid()))

    def _accept(self, call: wire.Call) -> None:
        """Queue the call. One that is known to be async does not wait for the main thread, which may be busy."""
        if self._handlers.is_loaded(call.type) and self._handlers.load(call.type).is_async:
            self._async_runner.take(call)
        else:
            self._inbox.put(call)

    def _stop(self, number: int) -> None:
        if withdrawn := self._withdraw(lambda call: call.number == number):
            self._give_back(withdrawn)
        elif not self._async_runner.stop(number):
            self._timeout_signal.stop(number)
            self._async_runner.stop(number)  # the main thread may have passed it on at this moment

    def _withdraw(self, matches: Callable[[wire.Call], bool]) -> list[int]:
        """Take the matching calls out of the inbox and return their numbers. The other calls keep their order."""
        waiting: list[wire.Call | None] = []
        with contextlib.suppress(Empty):
            while True:
                waiting.append(self._inbox.get_nowait())
        for call in waiting:
            if call is None or not matches(call):
                self._inbox.put(call)
        return [call.number for call in waiting if call is not None and matches(call)]

    def _give_back(self, numbers: list[int]) -> None:
        if numbers:
            self._pool.send(wire.Returned(numbers))


class PoolSocket:
    """Sends messages to the pool. Messages of several threads do not mix, and an interrupt never cuts one in half."""

    def __init__(self, sock: socket.socket, timeout_signal: TimeoutSignal) -> None:
        self._sock = sock
        self._timeout_signal = timeout_signal
        self._held: list[wire.ToPool] = []
        self._lock = threading.Lock()

    def send(self, message: wire.ToPool) -> None:
        self._timeout_signal.defer()
        try:
            with self._lock:
                held, self._held = self._held, []
                self._sock.sendall(wire.frame([*held, message]))
        except OSError:  # the pool is gone, or this is a fork of the worker: no result of this process is wanted
            os._exit(1)
        finally:
            self._timeout_signal.resume()

    def hold(self, message: wire.ToPool) -> None:
        """Send this together with the next message, or with `flush`. Main thread only, outside of handlers."""
        with self._lock:
            self._held.append(message)

    def flush(self) -> None:
        try:
            with self._lock:
                held, self._held = self._held, []
                if held:
                    self._sock.sendall(wire.frame(held))
        except OSError:
            os._exit(1)


class Interruptible(Protocol):
    """What a TimeoutSignal can interrupt: the handler of a call (its Context), or a Teardown."""

    began: float
    timeout: float
    cancelled: bool


class Teardown:
    """The `teardown()` of a worker that retires."""

    def __init__(self) -> None:
        self.began = monotonic()
        self.timeout = TEARDOWN_WITHIN
        self.cancelled = False


class TimeoutSignal:
    """Raises TimedOut or Stopped in the main thread, inside a handler and nowhere else: `with signal.interruptible(c)`.

    SIGALRM comes from the interval timer, from `stop` in the reader thread, or late, meant for an earlier call. Its
    handler does not ask where it came from, but looks at the state of this moment:

        state        entered by             on SIGALRM
        -----        ----------             ----------
        idle         __exit__, a raise      ignore it: no handler runs, or it was interrupted before
        running      __enter__, resume      stop requested --> raise Stopped          --> idle
                                            time is over   --> raise TimedOut         --> idle
                                            else           --> set the timer for the time that is left
        deferred     defer (in a send)      remember it; `resume` then does what "running" does

    Since an early signal only sets the timer again, short calls share one timer: `__enter__` sets it only if it would
    go off after the timeout of the new call, or not at all. A handler that swallows the exception is not interrupted
    again: the pool kills its worker.
    """

    def __init__(self, warn: Callable[[float], None]) -> None:
        """`warn(began)` is called before an exception is raised in a call that began then."""
        self.number = 0  # of the call in the main thread
        self._warn = warn
        self._main_thread = threading.get_ident()
        self._running: Interruptible | None = None  # None in the state idle
        self._next: Interruptible | None = None
        self._stop_number = -1  # the call to stop
        self._timer_at = 0.0  # when the timer goes off, by the monotonic clock
        self._is_deferred = self._has_missed = False
        signal.signal(signal.SIGALRM, self._on_signal)

    def interruptible(self, context: Interruptible) -> TimeoutSignal:
        self._next = context
        return self

    def __enter__(self) -> None:
        assert self._next is not None
        self._running = context = self._next  # before the timer is read: a signal from here on sets it again
        if not monotonic() < self._timer_at <= context.began + context.timeout:
            self._set_timer(context.timeout)
        if self.is_stop_requested():
            self._interrupt()

    def __exit__(self, *_: object) -> None:
        self._running = None

    def is_stop_requested(self) -> bool:
        """Return whether the call in the main thread is to stop."""
        return self._stop_number == self.number

    def stop(self, number: int) -> None:
        """Stop this call if the main thread runs it. Called by the reader thread."""
        self._stop_number = number
        signal.pthread_kill(self._main_thread, signal.SIGALRM)

    def defer(self) -> None:
        """Raise nothing in the main thread until `resume`."""
        if threading.get_ident() == self._main_thread:
            self._is_deferred = True

    def resume(self) -> None:
        if threading.get_ident() == self._main_thread:
            self._is_deferred = False
            if self._has_missed:
                self._has_missed = False
                self._interrupt()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._interrupt()

    def _interrupt(self) -> None:
        context = self._running
        if context is None:
            return
        if self._is_deferred:
            self._has_missed = True
        elif self.is_stop_requested():
            context.cancelled = True
            self._become_idle(context)
            raise Stopped
        elif (left := context.began + context.timeout - monotonic()) > 0:
            self._set_timer(left)
        else:
            self._become_idle(context)
            raise TimedOut

    def _set_timer(self, seconds: float) -> None:
        self._timer_at = monotonic() + seconds
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _become_idle(self, context: Interruptible) -> None:
        self._running = None
        self._warn(context.began)

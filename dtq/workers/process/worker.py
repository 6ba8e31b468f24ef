"""What runs inside a worker process.

    socket --> reader thread --+--> inbox --> main thread: one sync call after the other --+--> link --> socket
                               |                  ^                                        |
                               |                  | raises TimedOut, Stopped               |
                               +--> Stop ----> alarm                                       |
                               +--> lane (lane.py): a thread with an event loop -----------+

Handlers get the main thread because that is where Python runs signal handlers: a timeout can interrupt `time.sleep`
there, or any loop of Python code. Requests are read by another thread, so that a running call can be stopped, and
waiting ones taken back, at any time. A call which holds the interpreter in C code hears nothing of this: the pool
kills the process. What a call has started ends with it (offspring.py).
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

CHUNK = 1 << 18  # bytes asked for in one read
TEARDOWN_WITHIN = 4.0  # seconds until `teardown()` is interrupted: the pool kills a worker that takes longer to retire


def main(sock: socket.socket) -> None:
    """The life of a worker; returns when it has retired. Call it in the main thread."""
    os.register_at_fork(after_in_child=sock.close)  # a child of a handler must neither speak for us nor hold the line
    adopt_orphans()
    Worker(sock).run()


class Worker:
    """Joins the two threads: `run` is the main one, `_read` the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._name = ""
        self._max_result = 0
        self._offspring = Offspring()
        self._handlers = Handlers(around_load=self._offspring.kept)
        self._inbox: SimpleQueue[wire.Call | None] = SimpleQueue()  # None: retire
        self._alarm = TimeoutSignal(self._offspring.warn)
        self._link = PoolSocket(sock, self._alarm)
        self._lane = AsyncRunner(self._handlers, self._link.send, self._offspring)

    def run(self) -> None:
        threading.Thread(target=self._read, name="dtq-reader", daemon=True).start()
        while (call := self._inbox.get()) is not None:
            self._alarm.number = call.number
            if is_async(self._handlers, call, self._link.send):
                self._lane.take(call)
                if self._alarm.is_due():  # it was stopped while its handler was being loaded
                    self._lane.stop(call.number)
            else:
                self._perform(call)
            if self._inbox.empty():
                self._link.flush()
        self._lane.drain()
        self._link.flush()
        self._tear_down()

    def _perform(self, call: wire.Call) -> None:
        """The report is held back until the next call says Started, if there is one: the two share a system call."""
        offspring = self._offspring
        offspring.busy = True
        done = perform(self._handlers, call, self._name, self._link.send, self._alarm.interruptible, self._max_result)
        offspring.busy = False
        if done.seconds >= NO_SPAWN or offspring.since < inf:
            offspring.end(done.seconds, was_interrupted(done))
        self._link.hold(done)

    def _tear_down(self) -> None:
        self._alarm.number = 0  # the last call may have been stopped
        with self._alarm.interruptible(Farewell()):
            problems = self._handlers.teardown()
        for problem in problems:
            os.write(2, f"{self._name}: {problem}\n".encode())

    # --- in the reader thread --------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Obeys until the pool is gone; then so is the worker."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # it must interrupt the main thread, not this one
        code, buffer = 0, bytearray()
        try:
            while data := self._sock.recv(CHUNK):
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
                self._give_back([call.number for call in self._lane.withdraw()])
            case wire.Define(type, source):
                self._handlers.define(type, source)
                self._lane.limits[type] = source.concurrency
                for call in self._lane.withdraw():  # what was async may now be sync
                    self._inbox.put(call)
            case wire.Retire():
                self._inbox.put(None)
            case wire.Hello(name, max_result, grace):
                self._offspring.grace = grace
                self._name = self._lane.name = name
                self._max_result = self._lane.max_result = max_result
                self._link.send(wire.Ready(os.getpid()))

    def _accept(self, call: wire.Call) -> None:
        """A call that is known to be async need not wait for the main thread, which may be busy."""
        if self._handlers.is_loaded(call.type) and self._handlers.load(call.type).is_async:
            self._lane.take(call)
        else:
            self._inbox.put(call)

    def _stop(self, number: int) -> None:
        if withdrawn := self._withdraw(lambda call: call.number == number):
            self._give_back(withdrawn)
        elif not self._lane.stop(number):
            self._alarm.stop(number)
            self._lane.stop(number)  # in this moment the main thread may have handed it over

    def _withdraw(self, is_meant: Callable[[wire.Call], bool]) -> list[int]:
        """Takes calls out of the inbox, and gives their numbers; all else in it keeps its order."""
        waiting: list[wire.Call | None] = []
        with contextlib.suppress(Empty):
            while True:
                waiting.append(self._inbox.get_nowait())
        for call in waiting:
            if call is None or not is_meant(call):
                self._inbox.put(call)
        return [call.number for call in waiting if call is not None and is_meant(call)]

    def _give_back(self, numbers: list[int]) -> None:
        if numbers:
            self._link.send(wire.Returned(numbers))


class PoolSocket:
    """The way back to the pool. Messages of several threads do not mix, and no Interrupted leaves half of one."""

    def __init__(self, sock: socket.socket, alarm: TimeoutSignal) -> None:
        self._sock = sock
        self._alarm = alarm
        self._held: list[wire.ToPool] = []
        self._lock = threading.Lock()

    def send(self, message: wire.ToPool) -> None:
        self._alarm.defer()
        try:
            with self._lock:
                held, self._held = self._held, []
                self._sock.sendall(wire.frame([*held, message]))
        except OSError:  # the pool is gone, or this is a fork of the worker: whatever runs here, nobody waits for it
            os._exit(1)
        finally:
            self._alarm.resume()

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
    """What an Alarm is armed for: a call's Context, or a Farewell."""

    began: float
    timeout: float
    cancelled: bool


class Farewell:
    """The `teardown()` of a worker that retires."""

    def __init__(self) -> None:
        self.began = monotonic()
        self.timeout = TEARDOWN_WITHIN
        self.cancelled = False


class TimeoutSignal:
    """Raises TimedOut or Stopped in the main thread, inside a handler and nowhere else: `with alarm.armed(context)`.

    One signal serves both, sent by a timer or by the reader thread. Its handler looks what it was for, so that one
    which comes late, or for no reason, does nothing: so the timer is left alone as long as it rings in time, and short
    calls share one. Once it has raised it is disarmed: a handler that swallows the exception is the pool's to kill.
    """

    def __init__(self, warn: Callable[[float], None]) -> None:
        """`warn(began)` is called before an exception is raised in a call that began then."""
        self.number = 0  # of the call in the main thread
        self._warn = warn
        self._main = threading.get_ident()
        self._context: Interruptible | None = None  # while armed
        self._next: Interruptible | None = None
        self._stop = -1  # the number of the call to be stopped
        self._rings_at = 0.0  # when the timer does, by the monotonic clock
        self._postponed = self._missed = False
        signal.signal(signal.SIGALRM, self._ring)

    def interruptible(self, context: Interruptible) -> TimeoutSignal:
        self._next = context
        return self

    def __enter__(self) -> None:
        assert self._next is not None
        self._context = context = self._next  # first: if it rings from here on, it is set anew
        if not monotonic() < self._rings_at <= context.began + context.timeout:
            self._ring_in(context.timeout)
        if self.is_due():
            self._interrupt()

    def __exit__(self, *_: object) -> None:
        self._context = None

    def is_due(self) -> bool:
        """Whether the call in the main thread is to be stopped."""
        return self._stop == self.number

    def stop(self, number: int) -> None:
        """From the reader thread, for the call that the main thread is at: the number that it works on, or has just
        had."""
        self._stop = number
        signal.pthread_kill(self._main, signal.SIGALRM)

    def defer(self) -> None:
        """From here until `resume` nothing is raised in the main thread."""
        if threading.get_ident() == self._main:
            self._postponed = True

    def resume(self) -> None:
        if threading.get_ident() == self._main:
            self._postponed = False
            if self._missed:
                self._missed = False
                self._interrupt()

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        self._interrupt()

    def _interrupt(self) -> None:
        context = self._context
        if context is None:
            return
        if self._postponed:
            self._missed = True
        elif self.is_due():
            context.cancelled = True
            self._disarm(context)
            raise Stopped
        elif (left := context.began + context.timeout - monotonic()) > 0:
            self._ring_in(left)
        else:
            self._disarm(context)
            raise TimedOut

    def _ring_in(self, seconds: float) -> None:
        self._rings_at = monotonic() + seconds
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _disarm(self, context: Interruptible) -> None:
        """Raise nothing more in this call."""
        self._context = None
        self._warn(context.began)

"""What pools inside this process are made of: handlers, a bell that ends `wait`, and the way from message to report."""

from __future__ import annotations

import logging
import os
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from threading import Lock
from typing import Any

from dtq.task.codec import from_json, to_json
from dtq.task.model import Task
from dtq.workers import backend, wire
from dtq.workers.run.runner import Handlers

_log = logging.getLogger(__name__)


class Wakeup:
    """Ends a wait from any thread. Ringing it while it rings costs nothing.

    A ring that finds it ringing may rely on `quiet`, which comes before the reading of what the ring was about.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._ear, self._hammer = socket.socketpair()
        self._ear.setblocking(False)
        self._hammer.setblocking(False)
        self._rings = False
        self._lock = Lock()
        self.watch(self._ear.fileno())

    def watch(self, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def ring(self) -> None:
        if not self._rings:
            with self._lock, suppress(OSError):  # closed: nobody waits any more
                self._hammer.send(b"!")
                self._rings = True  # after the byte: an Interrupted may strike between the two

    def quiet(self) -> None:
        with self._lock, suppress(OSError):
            self._rings = False
            self._ear.recv(64)

    def fileno(self) -> int:
        return self._ear.fileno()

    def wait(self, timeout: float | None) -> None:
        self._selector.select(timeout)

    def close(self) -> None:
        self._selector.close()
        self._ear.close()
        self._hammer.close()


class LocalPool:
    """What both pools share: handlers in this process, the bell, and the reports that wait for `poll`."""

    def __init__(self, name: str, max_result: int) -> None:
        self.name = name
        self.max_result = max_result
        self.handlers = Handlers()
        self._concurrency: dict[str, int] = {}
        self._bell = Wakeup()
        self._numbers = count(1)

    def define(self, type: str, source: wire.Source, function: Callable[..., Any] | None = None) -> None:
        self.handlers.define(type, source, function)
        self._concurrency[type] = source.concurrency

    def wait(self, timeout: float | None) -> None:
        self._bell.wait(timeout)

    def wake(self) -> None:
        self._bell.ring()

    def watch(self, fd: int) -> None:
        self._bell.watch(fd)

    def fileno(self) -> int:
        return self._bell.fileno()

    def call(self, task: Task, parents: bytes = b"") -> wire.Call:
        payload = to_json(task.payload)
        return wire.Call(next(self._numbers), task.id, task.type, payload, task.attempts, task.timeout, parents)

    def _release(self) -> None:
        for problem in self.handlers.teardown():
            _log.warning(problem)
        self._bell.close()


def report(task: Task, worker: str, message: wire.ToPool) -> backend.Report | None:
    """What a message about a call means for its task; while its handler is being loaded it has not started."""
    match message:
        case wire.Started(loading=True):
            return None
        case wire.Started(at=at):
            return backend.Started(task, worker, at)
        case wire.Progress(percent=percent, note=note):
            return backend.Progressed(task, percent, note)
        case wire.Log(text=text):
            return backend.Logged(task, text)
        case wire.Done(started_at=at, seconds=seconds, error=error, log=log):
            result = from_json(message.result) if error is None else None
            return backend.Finished(
                task, worker, at, seconds, result, error, log, message.final, message.delay, message.discarded
            )
    raise TypeError(f"{message!r} is not about a call")


def arrival(worker: str) -> list[backend.Report]:
    pid = os.getpid()
    return [backend.WorkerChanged(worker, "started", pid), backend.WorkerChanged(worker, "ready", pid)]

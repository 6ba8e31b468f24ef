"""Turnstile: writers pass one at a time, process after process, and those who wait together go through together.

    thread A --.                          .-- one transaction --.
    thread B --+--> waiting jobs --> the first to get the lock does them all --> one flush --> A, B, C go on
    thread C --'

A commit costs a disk flush; ten threads that add at the same time pay for one. Between processes a file lock is taken,
for which the kernel lets them stand in a line (SQLite's own way, sleep and try again, lets one starve the others).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

try:
    import fcntl
except ImportError:  # Windows: SQLite's own waiting has to do
    fcntl = None  # type: ignore[assignment]

S = TypeVar("S")  # what a piece of work is done on
T = TypeVar("T")


class Job(Generic[S, T]):
    """A piece of work of one thread; `flush` asks that it be on the disk before the thread goes on."""

    def __init__(self, work: Callable[[S], T], flush: bool) -> None:
        self.work = work
        self.flush = flush
        self.done = False
        self.value: T
        self.error: BaseException | None = None

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value


class Turnstile(Generic[S]):
    """`transaction(flush)` begins one, and commits it at its end; `perform` does one job within it.

    A job that raises must leave no trace. Where the transaction raises, none of its jobs was done, and each raises
    that.
    """

    def __init__(
        self,
        path: str,
        transaction: Callable[[bool], AbstractContextManager[None]],
        perform: Callable[[Job[S, Any]], None],
    ) -> None:
        self._transaction = transaction
        self._perform = perform
        self._waiting: deque[Job[S, Any]] = deque()
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def run(self, work: Callable[[S], T], *, flush: bool) -> T:
        """The value of `work`, committed; with `flush` it is on the disk before this returns."""
        job = Job(work, flush)
        self._waiting.append(job)
        with self._lock:
            if not job.done:
                self._let_through([self._waiting.popleft() for _ in range(len(self._waiting))])
        return job.outcome()

    def _let_through(self, jobs: list[Job[S, Any]]) -> None:
        try:
            with self._among_processes(), self._transaction(any(job.flush for job in jobs)):
                for job in jobs:
                    self._perform(job)
        except BaseException as error:  # an interrupt too: nothing was committed, and everybody has to hear of it
            for job in jobs:
                job.error = job.error or error
        finally:
            for job in jobs:
                job.done = True

    @contextmanager
    def _among_processes(self) -> Iterator[None]:
        if not fcntl:
            yield
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self, let_go: Callable[[], None]) -> None:
        """When nobody is inside: lets go of what works are done on, and of the lock."""
        with self._lock:
            let_go()
            os.close(self._file)

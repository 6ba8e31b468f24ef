"""Committer: the one write connection of a process, and the lock behind which waiting writes share a commit.

    thread A --.                          .-- one transaction --.
    thread B --+--> waiting jobs --> the first to get the lock does them all --> one fsync --> A, B, C go on
    thread C --'

A commit costs a disk flush; ten threads that add at the same time pay for one. Between processes a file lock is taken
first, because SQLite's own way of waiting (sleep and try again) lets one process starve the others.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

try:
    import fcntl
except ImportError:  # Windows: SQLite's own waiting has to do
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
BUSY_TIMEOUT = 10.0  # seconds to wait for a foreign program that has locked the database


class _Job(Generic[T]):
    def __init__(self, work: Callable[[sqlite3.Connection], T], flush: bool) -> None:
        self.work = work
        self.flush = flush
        self.done = False
        self.value: T
        self.error: BaseException | None = None

    def perform(self, connection: sqlite3.Connection) -> None:
        """Does the work within a savepoint, so that a job which fails takes nothing else back."""
        connection.execute("SAVEPOINT job")
        try:
            self.value = self.work(connection)
        except Exception as error:
            self.error = error
            if connection.in_transaction:  # a full disk may have taken all of it back already
                connection.execute("ROLLBACK TO job")
        if connection.in_transaction:
            connection.execute("RELEASE job")

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value


class Committer:
    """Runs pieces of work in transactions on one connection. Raises sqlite3.Error or OSError where that cannot be.

    `forget` is called when something was taken back: what was learned within that transaction is not so.
    """

    def __init__(self, path: str, connection: sqlite3.Connection, forget: Callable[[], None]) -> None:
        self.path = path
        self._forget = forget
        self.connection = connection
        self._waiting: deque[_Job[object]] = deque()
        self._lock = threading.Lock()
        self._lock_file = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._flush = True

    def run(self, work: Callable[[sqlite3.Connection], T], *, flush: bool) -> T:
        """The value of `work`, committed; with `flush` it is on the disk before this returns, and survives a power
        cut."""
        job = _Job(work, flush)
        self._waiting.append(job)  # type: ignore[arg-type]
        with self._lock:
            if not job.done:
                self._perform([self._waiting.popleft() for _ in range(len(self._waiting))])
        return job.outcome()

    def _perform(self, jobs: list[_Job[object]]) -> None:
        try:
            with self._transaction(flush=any(job.flush for job in jobs)) as connection:
                for job in jobs:
                    job.perform(connection)
                    if job.error is not None:
                        self._forget()
        except BaseException as error:  # an interrupt too: nothing was committed, and everybody has to hear of it
            self._forget()
            for job in jobs:
                job.error = job.error or error
        finally:
            for job in jobs:
                job.done = True

    @contextmanager
    def _transaction(self, flush: bool) -> Iterator[sqlite3.Connection]:
        connection = self.connection
        self._lock_processes(fcntl.LOCK_EX if fcntl else 0)
        try:
            if flush != self._flush:
                connection.execute(f"PRAGMA synchronous = {'FULL' if flush else 'NORMAL'}")
                self._flush = flush
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        finally:
            self._lock_processes(fcntl.LOCK_UN if fcntl else 0)

    def _lock_processes(self, operation: int) -> None:
        if fcntl:
            fcntl.flock(self._lock_file, operation)

    def close(self) -> None:
        with self._lock:
            self.connection.close()
            os.close(self._lock_file)

"""Committer: the one write connection of a process to a SQLite file; waiting works share a transaction (Turnstile)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from dtq.stores.turnstile import Job, Turnstile

T = TypeVar("T")
BUSY_TIMEOUT = 10.0  # seconds to wait for a foreign program that has locked the database


class Committer:
    """Runs pieces of work in transactions on one connection. Raises sqlite3.Error or OSError where that cannot be.

    `forget` is called when something was taken back: what was learned within that transaction is not so.
    """

    def __init__(self, path: str, connection: sqlite3.Connection, forget: Callable[[], None]) -> None:
        self.connection = connection
        self._forget = forget
        self._flush = True
        self._turnstile = Turnstile(f"{path}-lock", self._transaction, self._perform)

    def run(self, work: Callable[[sqlite3.Connection], T], *, flush: bool) -> T:
        """The value of `work`, committed; with `flush` it is on the disk before this returns, and survives a power
        cut."""
        return self._turnstile.run(work, flush=flush)

    @contextmanager
    def _transaction(self, flush: bool) -> Iterator[None]:
        connection = self.connection
        try:
            if flush != self._flush:
                connection.execute(f"PRAGMA synchronous = {'FULL' if flush else 'NORMAL'}")
                self._flush = flush
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("COMMIT")
        except BaseException:
            self._forget()
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _perform(self, job: Job[sqlite3.Connection, Any]) -> None:
        """Does the work within a savepoint, so that a job which fails takes nothing else back."""
        connection = self.connection
        connection.execute("SAVEPOINT job")
        try:
            job.value = job.work(connection)
        except Exception as error:
            job.error = error
            self._forget()
            if connection.in_transaction:  # a full disk may have taken all of it back already
                connection.execute("ROLLBACK TO job")
        if connection.in_transaction:
            connection.execute("RELEASE job")

    def close(self) -> None:
        self._turnstile.close(self.connection.close)

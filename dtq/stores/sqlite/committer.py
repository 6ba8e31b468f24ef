"""Committer: the one write connection of a process to a SQLite file; waiting works share a transaction
(GroupCommit)."""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from dtq.stores.shared.group_commit import Batch, GroupCommit, Job

T = TypeVar("T")
BUSY_TIMEOUT = 10.0  # seconds to wait for a foreign program that has locked the database


class Committer:
    """Runs pieces of work in transactions on one connection. Raises sqlite3.Error or OSError where that cannot be.

    `connect` opens a connection. `forget` is called when something was taken back: what was learned within that
    transaction is not so.
    """

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection], forget: Callable[[], None]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = connect()
        self._forget = forget
        self._flush: bool | None = True  # None: not known
        self._is_clean = True  # no transaction is open, and nothing is remembered of one that was taken back
        self._turnstile = GroupCommit(f"{path}-lock", self._carry)

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, which is opened again after a fork."""
        if self._connection is None:
            self._flush, self._is_clean = True, True
            self._connection = self._connect()
        return self._connection

    def run(self, work: Callable[[sqlite3.Connection], T], *, flush: bool) -> T:
        """The value of `work`, committed; with `flush` it is on the disk before this returns, and survives a power
        cut."""
        return self._turnstile.run(work, flush=flush)

    def _carry(self, batch: Batch[sqlite3.Connection]) -> None:
        """Do all jobs in one transaction. An interrupt that comes right behind the commit finds it done."""
        connection = self.connection
        is_committing = False
        try:
            self._begin(batch.flush)
            for job in batch.jobs:
                self._perform(job)
            is_committing = True
            connection.execute("COMMIT")
            batch.is_done = self._is_clean = True
        except sqlite3.Error as error:
            self._take_back()
            batch.fail(error)
        except BaseException as error:
            if is_committing and not connection.in_transaction:
                batch.is_done = True
            self._take_back()
            traceback.clear_frames(error.__traceback__)  # a cursor in one of them would keep the database locked
            raise

    def _begin(self, flush: bool) -> None:
        """Begin a transaction, after taking back what is left of one that was interrupted."""
        if not self._is_clean:
            self._take_back()
        if flush != self._flush:
            self._flush = None
            self.connection.execute(f"PRAGMA synchronous = {'FULL' if flush else 'NORMAL'}")
            self._flush = flush
        self._is_clean = False
        self.connection.execute("BEGIN IMMEDIATE")

    def _take_back(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        self._forget()
        self._is_clean = True

    def _perform(self, job: Job[sqlite3.Connection, Any]) -> None:
        """Does the work within a savepoint, so that a job which fails takes nothing else back."""
        connection = self.connection
        job.error = None
        connection.execute("SAVEPOINT job")
        try:
            job.value = job.work(connection)
        except Exception as error:
            job.error = error
            self._forget()
            if not connection.in_transaction:  # a full disk may have taken all of it back already
                raise
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    # --- forks (see Database)

    def pause(self, seconds: float) -> bool:
        """Close the connection, and keep all threads out until `go_on`. Return False where a thread has been at work
        for so many seconds."""
        if not self._turnstile.hold(seconds):
            return False
        self._disconnect()
        self._connection = None
        return True

    def go_on(self) -> None:
        self._turnstile.let_in()

    def in_child(self) -> sqlite3.Connection | None:
        """Begin anew in a child. Return the connection that it has inherited, if it was not closed before."""
        inherited, self._connection = self._connection, None
        self._turnstile.in_child()
        return inherited

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def close(self) -> None:
        self._turnstile.close(self._disconnect)

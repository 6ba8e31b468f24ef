"""Database: one SQLite file as this process has it open: how it is written, read, watched and closed.

    write(work)  --> write connection: waiting jobs share one transaction --.
                                                                            +--> queue.db, queue.db-wal
    read(query)  --> read connection: never waits for a writer -------------'
    wait         <-- ChangeWatcher: a datagram with each commit (queue.db-nodes/)

A child made by os.fork must not inherit an open connection. SQLite keeps its locks in a table of the process; in the
child that table lists the parent's locks, which the kernel does not pass on. So even a new connection there would lock
nothing, and when the parent closes the file, it removes the write-ahead log under the child: commits are lost
(https://www.sqlite.org/howtocorrupt.html, 2.6). Therefore a fork closes both connections first; parent and child open
them again on the next use.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dtq.errors import StoreError
from dtq.stores.shared.group_commit import Batch, GroupCommit, Job
from dtq.stores.shared.peers import ChangeWatcher, Peers, Recipients
from dtq.stores.sqlite.connection import accept_invalid_text, connect, prepare

T = TypeVar("T")
FORK_TIMEOUT = 10.0  # seconds for which a fork waits for threads that read or write; else the child refuses the file
DAMAGED = (UnicodeDecodeError, msgspec.DecodeError)  # raised for damaged rows, or by SQLite's own messages about them


class Database:
    """The SQLite file at `path`. Its methods raise StoreError, with the path, where the file cannot be opened, read or
    written.

    `flush` False: no commit waits for the disk. `on_rollback` is called after each rollback: whatever the caller
    cached while that work ran is void.
    """

    def __init__(self, path: str, flush: bool, on_rollback: Callable[[], None]) -> None:
        self.path = path
        with self._named_errors("opened"):
            self.path = os.path.realpath(path)  # once: the path may be a link, and this process may chdir
        self._flush = flush
        self._on_rollback = on_rollback
        self._is_closed = False
        self._entrance = threading.Lock()  # every read and write passes it, and a fork holds it
        self._read_lock = threading.Lock()
        self._held: list[threading.Lock] = []  # by a fork
        self._data_version = 0
        self._flushes: bool | None = True  # the write connection is set to FULL; None: not known
        self._is_clean = True  # no transaction is open, and nothing is cached from one that was rolled back
        self._write_connection: sqlite3.Connection | None = None
        self._read_connection: sqlite3.Connection | None = None
        self.watch = ChangeWatcher(Path(f"{self.path}-nodes"), self._has_changed)
        with self._named_errors("opened"):
            self._open()

    def _open(self) -> None:
        self._write_connection = self._connect()
        try:
            self._commits = GroupCommit(f"{self.path}-lock", self._commit)
            self._commits.run(lambda db: prepare(db, self.path), flush=True)
            self._read_connection = self._connect()
        except BaseException:
            self._close_writer()
            raise

    @property
    def writer(self) -> sqlite3.Connection:
        """The write connection. It is opened again on the first use after a fork."""
        if self._write_connection is None:
            self._flushes, self._is_clean = True, True
            self._write_connection = self._connect()
        return self._write_connection

    @property
    def reader(self) -> sqlite3.Connection:
        """The read connection. It is opened again on the first use after a fork."""
        if self._read_connection is None:
            self._data_version = 0
            self._read_connection = self._connect()
        return self._read_connection

    def _connect(self) -> sqlite3.Connection:
        self._require_not_inherited()
        return connect(self.path)

    def _require_not_inherited(self) -> None:
        if self.path in _inherited:
            raise StoreError(
                f"{self.path} cannot be used in this process: it was forked while another thread was using that "
                "database. Fork before the queue is used, or start the process by spawn or exec"
            )

    @contextmanager
    def _named_errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, *DAMAGED) as error:
            raise StoreError(f"{self.path} cannot be {verb}: {error}") from error

    # --- write

    def write(self, work: Callable[[sqlite3.Connection], T], *, flush: bool, wake: Recipients = "all") -> T:
        """Return the value of `work` after its commit. Where it raises, none of it is stored.

        With `flush` the commit is on the disk before this returns. `wake`: which processes a datagram is sent to.
        """
        self._require_not_inherited()
        with self._named_errors("written, and nothing was stored"):
            peers = self.watch.peers  # join them before the commit: nothing may fail after it
            with self._entrance:
                pass
            value = self._commits.run(work, flush=flush and self._flush)
            peers.wake(wake)
            return value

    def _commit(self, batch: Batch[sqlite3.Connection]) -> None:
        """Run all jobs in one transaction. An interrupt right after the commit finds the batch done."""
        db = self.writer
        is_committing = False
        try:
            self._begin(db, batch.flush)
            for job in batch.jobs:
                self._run(db, job)
            is_committing = True
            db.execute("COMMIT")
            batch.is_done = self._is_clean = True
        except sqlite3.Error as error:
            self._roll_back(db)
            batch.fail(error)
        except BaseException as error:
            if is_committing and not db.in_transaction:
                batch.is_done = True
            self._roll_back(db)
            traceback.clear_frames(error.__traceback__)  # a cursor in one of them would keep the database locked
            raise

    def _begin(self, db: sqlite3.Connection, flush: bool) -> None:
        """Begin a transaction, after rolling back one that was interrupted."""
        if not self._is_clean:
            self._roll_back(db)
        if flush != self._flushes:
            self._flushes = None
            db.execute(f"PRAGMA synchronous = {'FULL' if flush else 'NORMAL'}")
            self._flushes = flush
        self._is_clean = False
        db.execute("BEGIN IMMEDIATE")

    def _roll_back(self, db: sqlite3.Connection) -> None:
        if db.in_transaction:
            db.execute("ROLLBACK")
        self._on_rollback()
        self._is_clean = True

    def _run(self, db: sqlite3.Connection, job: Job[sqlite3.Connection, Any]) -> None:
        """Run the job within a savepoint: a job that fails rolls back its own work only."""
        job.error = None
        db.execute("SAVEPOINT job")
        try:
            job.value = job.work(db)
        except Exception as error:
            job.error = error
            self._on_rollback()
            if not db.in_transaction:  # a full disk may have rolled back the whole transaction
                raise
            db.execute("ROLLBACK TO job")
        db.execute("RELEASE job")
        if job.error and accept_invalid_text(db, job.error):
            self._run(db, job)

    # --- read

    def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `query` finds on the read connection; all its statements see the same state of the database.

        This takes a function because an interrupt right before the body of a `with` block, where the context manager
        is written in Python, would leave the lock held.
        """
        with self._entrance:
            pass
        with self._named_errors("read"), self._read_lock:
            try:
                if self.reader.in_transaction:  # an interrupt came right before the COMMIT of the last read
                    self.reader.execute("ROLLBACK")
                self.reader.execute("BEGIN")
                try:
                    return query(self.reader)
                except Exception as error:
                    if not accept_invalid_text(self.reader, error):
                        raise
                    return query(self.reader)
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)  # a cursor in one of them would keep this old state
                raise
            finally:
                if self.reader.in_transaction:
                    self.reader.execute("COMMIT")

    # --- other processes

    def dead_peers(self) -> list[str]:
        with self._named_errors("watched"):
            return self.watch.peers.dead()

    def fileno(self) -> int:
        with self._named_errors("watched"):
            return self.watch.peers.fileno()

    def _has_changed(self) -> bool:
        """Return True if another connection has committed since the last call (SQLite counts the commits)."""
        with self._entrance:
            pass
        with self._read_lock, self._named_errors("read"):
            version: int = self.reader.execute("PRAGMA data_version").fetchone()[0]
        changed, self._data_version = version != self._data_version, version
        return changed

    # --- end

    def close(self, leave: Callable[[Peers], None] = Peers.close) -> None:
        """Close the file. `leave` ends this process's membership among its peers. An interrupted close can be
        repeated."""
        self._is_closed = True
        self.watch.close(leave)
        self._commits.close(self._close_writer)
        with self._read_lock:
            self._close_reader()

    def _close_writer(self) -> None:
        if self._write_connection is not None:
            self._write_connection.close()

    def _close_reader(self) -> None:
        if self._read_connection is not None:
            self._read_connection.close()

    # --- forks

    def before_fork(self) -> None:
        """Close both connections once the threads that use them are done. A thread that comes later waits at the
        entrance: without it, busy threads could take the locks again and again before this one gets them."""
        if self._is_closed:
            return
        self._hold(self._entrance)
        if self._hold(self._commits.lock):
            self._close_writer()
            self._write_connection = None
        if self._hold(self._read_lock):
            self._close_reader()
            self._read_connection = None

    def _hold(self, lock: threading.Lock) -> bool:
        """Take the lock until the fork is over. Return False if it is not free in time."""
        if is_held := lock.acquire(timeout=FORK_TIMEOUT):
            self._held.append(lock)
        return is_held

    def after_fork(self) -> None:
        while self._held:
            self._held.pop().release()

    def in_child(self) -> None:
        """Reset everything. Keep a connection that was not closed before the fork forever: the child must neither use
        nor close it."""
        inherited = [self._write_connection, self._read_connection]
        if not self._is_closed:
            self._write_connection = self._read_connection = None
            if any(inherited):
                _inherited[self.path] = inherited
                _keep_forever(inherited)
        self._held = []
        self._entrance, self._read_lock = threading.Lock(), threading.Lock()
        self._commits.in_child()
        self.watch.in_child()


_inherited: dict[str, object] = {}  # path -> connections of the parent


def _keep_forever(thing: object) -> None:
    """Add a reference to the object that is never dropped, not even at the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))

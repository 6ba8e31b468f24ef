"""Database: one SQLite file as this process has it open: how it is written, read, watched, and let go.

write(work)  --> Committer: one connection, waiting works share a commit --.
                                                                           +--> queue.db, queue.db-wal
read(look)   --> a second connection, kept waiting by nobody --------------'
wait         <-- Watch: datagrams from whoever commits (queue.db-nodes/)

A child made by os.fork must not inherit an open connection. SQLite keeps its locks in a table of the process; in the
child that table lists the parent's locks, which the kernel does not pass on. So even a new connection there would lock
nothing, and when the parent closes the file, it removes the write-ahead log under the child: commits are lost
(https://www.sqlite.org/howtocorrupt.html, 2.6). Therefore the connections are closed before a fork, and opened again
in the parent and in the child when they are needed.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from dtq.errors import StoreError
from dtq.stores.shared.peers import Peers, Wake
from dtq.stores.shared.watch import ChangeWatcher
from dtq.stores.sqlite import schema
from dtq.stores.sqlite.committer import BUSY_TIMEOUT, Committer

T = TypeVar("T")
FORK_PATIENCE = 10.0  # seconds for which a fork waits for threads that read or write; else the child refuses the file
DAMAGED = (UnicodeDecodeError, msgspec.DecodeError)  # what a damaged file holds, in a row or in SQLite's own words


class Database:
    """Raises StoreError, with the path in it, where the file cannot be opened, written or read, or is not one of ours.

    `forget` is called when a piece of work was taken back: what was learned within it is not so. Without `flush`,
    nothing waits for the disk.
    """

    def __init__(self, path: str, flush: bool, forget: Callable[[], None]) -> None:
        self.path = path
        with self._named_errors("opened"):
            self.path = os.path.realpath(path)  # once: the others may use another name, and this process may chdir
        self._flush = flush
        self._is_closed = False
        self._paused: list[Callable[[], None]] = []  # during a fork: what lets the threads in again
        self._read_lock = threading.Lock()
        self._data_version = 0
        self.watch = ChangeWatcher(Path(f"{self.path}-nodes"), self._has_changed)
        with self._named_errors("opened"):
            self.committer = Committer(self.path, self._connect, forget)
            try:
                self.committer.run(self._prepare, flush=True)
                self._reading: sqlite3.Connection | None = self._connect()
            except BaseException:
                self.committer.close()
                raise

    @property
    def _reader(self) -> sqlite3.Connection:
        """The read connection, which is opened again after a fork."""
        if self._reading is None:
            self._data_version = 0
            self._reading = self._connect()
        return self._reading

    def _connect(self) -> sqlite3.Connection:
        self._require_own()
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _require_own(self) -> None:
        if self.path in _inherited:
            raise StoreError(
                f"{self.path} cannot be used in this process: it was forked while another thread was using that "
                "database. Fork before the queue is used, or start the process by spawn or exec"
            )

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Create the tables in an empty file, or upgrade the file of an older dtq. Refuse a file of another program or
        of a newer dtq."""
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if application == schema.APPLICATION_ID:
            self._upgrade(db, version)
        elif application or version or db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise StoreError(f"{self.path} is a database of another program: use another file")
        else:
            _run_all(db, schema.TABLES)

    def _upgrade(self, db: sqlite3.Connection, version: int) -> None:
        """Bring the file from its schema version to ours, one version after the other, within one transaction."""
        if version != schema.VERSION and version not in schema.UPGRADES:
            raise StoreError(
                f"{self.path} is of schema version {version}, this dtq knows version {schema.VERSION}: "
                "upgrade dtq, or use another file"
            )
        for older in range(version, schema.VERSION):
            _run_all(db, schema.UPGRADES[older])

    @contextmanager
    def _named_errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, *DAMAGED) as error:
            raise StoreError(f"{self.path} cannot be {verb}: {error}") from error

    # --- write, read

    def write(self, work: Callable[[sqlite3.Connection], T], *, flush: bool, wake: Wake = "all") -> T:
        """The value of `work`, committed; all of it or, raising, nothing. With `flush` it is on the disk by then."""
        self._require_own()
        with self._named_errors("written, and nothing was stored"):
            peers = self.watch.peers  # made now if need be: after the commit nothing may fail any more
            value = _whatever_the_text(
                lambda: self.committer.connection,  # only the thread that commits may open it again
                lambda: self.committer.run(work, flush=flush and self._flush),
            )
            peers.wake(wake)
            return value

    def read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `look` sees on the read connection; all its statements look at the same moment. (A function, as
        a `with` block written in Python could be left with the lock held, by an interrupt right before its body.)"""
        with self._named_errors("read"), self._read_lock:
            try:
                self._reader.execute("BEGIN")
                return _whatever_the_text(lambda: self._reader, lambda: look(self._reader))
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)  # a cursor in one of them would hold on to this moment
                raise
            finally:
                if self._reader.in_transaction:
                    self._reader.execute("COMMIT")

    # --- others

    def dead_peers(self) -> list[str]:
        with self._named_errors("watched"):
            return self.watch.peers.dead()

    def fileno(self) -> int:
        with self._named_errors("watched"):
            return self.watch.peers.fileno()

    def _has_changed(self) -> bool:
        """By the counter with which SQLite tells of commits."""
        with self._read_lock, self._named_errors("read"):
            version: int = self._reader.execute("PRAGMA data_version").fetchone()[0]
        changed, self._data_version = version != self._data_version, version
        return changed

    # --- end

    def close(self, leave: Callable[[Peers], None] = Peers.close) -> None:
        """Let go of the file. `leave` is what becomes of this process among its peers. An interrupted close can be
        repeated."""
        self._is_closed = True
        self.watch.close(leave)
        self.committer.close()
        with self._read_lock:
            if self._reading is not None:
                self._reading.close()

    # --- forks

    def before_fork(self) -> None:
        if self._is_closed:
            return
        if self.committer.pause(FORK_PATIENCE):
            self._paused.append(self.committer.go_on)
        if self._read_lock.acquire(timeout=FORK_PATIENCE):
            self._paused.append(self._read_lock.release)
            if self._reading is not None:
                self._reading.close()
                self._reading = None

    def after_fork(self) -> None:
        while self._paused:
            self._paused.pop()()

    def in_child(self) -> None:
        """Begin anew. A connection that could not be closed before is kept for ever: it must be neither used nor
        closed."""
        inherited = [self.committer.in_child(), self._reading]
        if not self._is_closed:
            self._reading = None
            if any(inherited):
                _inherited[self.path] = inherited
                _keep_for_ever(inherited)
        self._paused = []
        self._read_lock = threading.Lock()
        self.watch.in_child()


_inherited: dict[str, object] = {}  # path -> connections of the parent


def _keep_for_ever(thing: object) -> None:
    """Give the object a reference that is never dropped, not even at the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _run_all(db: sqlite3.Connection, statements: str) -> None:
    """Run these statements one by one: `executescript` would commit the transaction first."""
    for statement in statements.split(";\n"):
        db.execute(statement)


def _whatever_the_text(of: Callable[[], sqlite3.Connection], run: Callable[[], T]) -> T:
    """Run it; once more, and with all text taken as it comes, where some text in the file is no UTF-8: that must hide
    nothing else. (Slower, so only from then on.)"""
    try:
        return run()
    except sqlite3.OperationalError as error:
        connection = of()
        if connection.text_factory is not str or "decode to UTF-8" not in str(error):
            raise
        connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        return run()

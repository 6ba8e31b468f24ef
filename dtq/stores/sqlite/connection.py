"""Connection: open one SQLite file with our settings, and bring its tables to this version of dtq."""

from __future__ import annotations

import sqlite3
from functools import partial

from dtq.errors import StoreError
from dtq.stores.sqlite import schema

BUSY_TIMEOUT = 10.0  # seconds to wait for another program that has locked the database


def connect(path: str) -> sqlite3.Connection:
    """Open the file at `path`, in WAL mode. The caller begins and ends each transaction. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def prepare(db: sqlite3.Connection, path: str) -> None:
    """Create the tables in an empty file, or upgrade the file of an older dtq.

    Raises StoreError for a file of another program or of a newer dtq.
    """
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application == schema.APPLICATION_ID:
        _upgrade(db, path, version)
    elif application or version or db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise StoreError(f"{path} is a database of another program: use another file")
    else:
        _run_all(db, schema.TABLES)


def _upgrade(db: sqlite3.Connection, path: str, version: int) -> None:
    """Apply each upgrade from the file's schema version to ours, within the caller's transaction."""
    if version != schema.VERSION and version not in schema.UPGRADES:
        raise StoreError(
            f"{path} has schema version {version}, this dtq knows version {schema.VERSION}: "
            "upgrade dtq, or use another file"
        )
    for older in range(version, schema.VERSION):
        _run_all(db, schema.UPGRADES[older])


def _run_all(db: sqlite3.Connection, statements: str) -> None:
    """Run these statements one by one: `executescript` would commit the transaction first."""
    for statement in statements.split(";\n"):
        db.execute(statement)


def accept_invalid_text(db: sqlite3.Connection, error: Exception) -> bool:
    """Make the connection read text that is not valid UTF-8, if such text made a query fail.

    Return True if the caller should repeat the query. Reading such text is slower, so a connection starts strict.
    """
    is_text = isinstance(error, sqlite3.OperationalError) and "decode to UTF-8" in str(error)
    if db.text_factory is not str or not is_text:
        return False
    db.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    return True

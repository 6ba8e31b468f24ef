"""A database of an older dtq is upgraded in place when it is opened, and nothing in it is lost."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from dtq.errors import StoreError
from dtq.stores.sqlite import schema
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import TERMINAL, ErrorInfo, Status
from dtq.task.transitions import cancel, revive, succeed

NOW = 1000.0

# The tables as schema version 1 made them.
TABLES_1 = """
CREATE TABLE lane (
    id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, type TEXT NOT NULL, key TEXT NOT NULL,
    blocked INTEGER NOT NULL DEFAULT 0, pending INTEGER NOT NULL DEFAULT 0, processing INTEGER NOT NULL DEFAULT 0,
    retrying INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    UNIQUE (queue, type, key)
);
CREATE INDEX lane_waiting ON lane (type) WHERE pending + retrying + blocked > 0;

CREATE TABLE task (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, lane INTEGER NOT NULL, key TEXT,
    stage INTEGER, status TEXT NOT NULL, version INTEGER NOT NULL, priority INTEGER NOT NULL,
    run_at REAL NOT NULL, expires REAL, created_at REAL NOT NULL, started_at REAL, finished_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0,
    worker TEXT, lease_until REAL, doom TEXT, progress REAL NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '',
    options TEXT, outcome TEXT, payload TEXT
);
CREATE INDEX task_later ON task (run_at) WHERE stage = 1;
CREATE INDEX task_ready ON task (lane, priority DESC, run_at, seq) WHERE stage = 2;
CREATE INDEX task_doomed ON task (lane) WHERE stage = 3;
CREATE INDEX task_expires ON task (expires) WHERE expires IS NOT NULL AND stage < 3;
CREATE INDEX task_held ON task (worker) WHERE status = 'processing';
CREATE INDEX task_finished ON task (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX task_failed ON task (id) WHERE status = 'failed';
CREATE UNIQUE INDEX task_key ON task (key) WHERE key IS NOT NULL;

CREATE TABLE edge (parent TEXT, child INTEGER, strict INTEGER, PRIMARY KEY (parent, child)) WITHOUT ROWID;
CREATE INDEX edge_child ON edge (child);

CREATE TABLE lane_limit (selector TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE bucket (selector TEXT, key TEXT, next_at REAL NOT NULL, PRIMARY KEY (selector, key)) WITHOUT ROWID;
CREATE TABLE share (key TEXT PRIMARY KEY, mark REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE node (id TEXT PRIMARY KEY, peer TEXT NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;

PRAGMA application_id = 1685352753;
PRAGMA user_version = 1;
"""

ROWS_1 = """
INSERT INTO lane (id, queue, type, key, pending, processing, completed, blocked, cancelled, failed)
    VALUES (1, 'default', 'job', '', 2, 1, 1, 1, 1, 1);
INSERT INTO task (id, lane, key, stage, status, version, priority, run_at, created_at, payload)
    VALUES ('waits', 1, 'k', 2, 'pending', 1, 5, 900, 900, '{"n":1}');
INSERT INTO task (id, lane, stage, status, version, priority, run_at, created_at, started_at, attempts, worker,
    lease_until, options) VALUES ('runs', 1, NULL, 'processing', 4, 0, 900, 900, 990, 2, 'w1', 1030, '{"timeout":7.0}');
INSERT INTO task (id, lane, stage, status, version, priority, run_at, created_at, finished_at, attempts, outcome)
    VALUES ('ended', 1, NULL, 'completed', 3, 0, 900, 900, 950, 1, '{"result":42}');
INSERT INTO task (id, lane, stage, status, version, priority, run_at, created_at, options)
    VALUES ('needs', 1, 1, 'pending', 2, 0, 2000, 900, '{"after":["ended","runs"],"on_parent_failure":"run"}');
INSERT INTO task (id, lane, stage, status, version, priority, run_at, created_at, options)
    VALUES ('blocked', 1, 0, 'blocked', 1, 0, 900, 900, '{"after":["runs","ended"]}');
INSERT INTO task (id, lane, stage, status, version, priority, run_at, created_at, finished_at, options)
    VALUES ('cancelled', 1, NULL, 'cancelled', 2, 0, 900, 900, 940, '{"after":["runs"]}');
INSERT INTO edge (parent, child, strict) SELECT 'runs', seq, 1 FROM task WHERE id IN ('blocked', 'cancelled');
INSERT INTO task (id, lane, stage, status, version, priority, run_at, created_at, finished_at, outcome)
    VALUES ('failed', 1, NULL, 'failed', 3, 0, 900, 900, 2000,
    '{"error":{"type":"ValueError","message":"naïve"},"log":"words"}');
INSERT INTO lane_limit (selector, body) VALUES ('["q",null,null]', '{"queue":"q","paused":true}');
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database as version 1 left it: one task waits, one runs, two have ended, and three name others."""
    path = tmp_path / "queue.db"
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(TABLES_1 + ROWS_1)
    database.close()
    return path


def version_of(path: Path) -> int:
    database = sqlite3.connect(path)
    version = database.execute("PRAGMA user_version").fetchone()[0]
    database.close()
    return version


def test_the_tasks_of_an_older_file_are_kept(old):
    store = SQLiteStore(old)
    waits, runs, ended = store.get(["waits", "runs", "ended"])
    assert (waits.status, waits.key, waits.payload, waits.priority) == ("pending", "k", {"n": 1}, 5)
    assert (runs.status, runs.version, runs.attempts, runs.worker, runs.timeout) == ("processing", 4, 2, "w1", 7.0)
    assert (ended.status, ended.result) == ("completed", 42)
    (failed,) = store.get(["failed"])
    assert (failed.error, failed.log) == (ErrorInfo("ValueError", "naïve"), "words")
    assert [limit.queue for limit in store.stats().limits] == ["q"]
    assert store.update([(succeed(runs, "done", NOW), ())]) == {"runs"}
    assert [task.id for task in store.claim("w2", 5, 30, NOW, {"job"})] == ["waits", "blocked"]
    store.close()
    assert version_of(old) == schema.VERSION


def test_versions_do_not_recur_in_an_upgraded_file(old):
    store = SQLiteStore(old)
    (runs,) = store.get(["runs"])
    store.update([(cancel(runs, NOW), ())])
    store.delete(["runs"])
    store.add([runs])
    assert store.get(["runs"])[0].version == 6
    assert store.update([(succeed(runs, "old", NOW), ())]) == set()
    store.close()


def test_parents_are_kept_for_the_children_of_an_older_file(old):
    store = SQLiteStore(old)
    assert store.purge(NOW, TERMINAL) == 1  # the one that was cancelled
    assert [task.id for task in store.find()] == ["blocked", "ended", "failed", "needs", "runs", "waits"]
    store.delete(["ended"])
    doomed = [task for task in store.claim("w2", 9, 30, NOW, {"job"}) if task.doom]
    assert [(task.id, task.doom) for task in doomed] == [("blocked", "its parent ended is cancelled")]
    store.close()


def test_a_child_of_an_older_file_can_be_revived(old):
    store = SQLiteStore(old)
    assert store.update([(revive(store.get(["cancelled"])[0], NOW), ())]) == {"cancelled"}
    assert store.get(["cancelled"])[0].status == "blocked"
    store.update([(succeed(store.get(["runs"])[0], None, NOW), ())])
    assert [task.status for task in store.get(["cancelled", "blocked"])] == ["pending", "pending"]
    store.close()


def test_an_upgraded_file_has_the_tables_of_a_new_one(old, tmp_path):
    SQLiteStore(old).close()
    SQLiteStore(tmp_path / "new.db").close()
    assert layout(old) == layout(tmp_path / "new.db")


def layout(path: Path) -> dict[str, object]:
    """The columns of each table and the definition of each index."""
    database = sqlite3.connect(path)
    entries = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    tables = {
        name: database.execute(f"PRAGMA table_info({name})").fetchall() for kind, name, _ in entries if kind == "table"
    }
    indexes = {name: sql for kind, name, sql in entries if kind == "index"}
    database.close()
    return {**tables, **indexes}


def test_an_older_file_may_be_opened_by_many_at_once(old):
    stores, errors = [], []

    def open_it():
        try:
            stores.append(SQLiteStore(old))
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = [store.stats().counts[Status.PENDING] for store in stores]
    for store in stores:
        store.close()
    assert (errors, counts) == ([], [2] * 8)


def test_an_upgrade_that_fails_leaves_the_older_file_as_it_was(old, monkeypatch):
    before = layout(old)
    monkeypatch.setitem(schema.UPGRADES, 1, schema.UPGRADES[1] + ";\nSELECT no_such_column FROM task")
    with pytest.raises(StoreError, match="no_such_column"):
        SQLiteStore(old)
    assert (version_of(old), layout(old)) == (1, before)
    monkeypatch.undo()
    SQLiteStore(old).close()
    assert version_of(old) == schema.VERSION

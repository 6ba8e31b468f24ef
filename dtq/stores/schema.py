"""The tables of SQLiteStore, and every statement that it runs.

`stage` says where a task stands in the waiting room, and is what the indexes are for: each of them holds only the tasks
that its question is about, so that what is finished, or waits for something else, costs nothing.

    0 blocked    waits for its parents
    1 later      waits for its time                  task_later: by time
    2 ready      may be claimed                      task_ready: by lane, priority, time, insertion
    3 doomed     to be claimed only to be ended      task_doomed
    NULL         processing, or terminal             task_held: by who has it; task_finished: by time
"""

from __future__ import annotations

from dtq.task import Status

APPLICATION_ID = 0x64747131  # "dtq1"
VERSION = 2
BLOCKED, LATER, READY, DOOMED = range(4)

COUNTERS = tuple(map(str, Status))

# The highest version that any deleted task had: one row.
DELETED = """
CREATE TABLE deleted (version INTEGER NOT NULL);
INSERT INTO deleted (version) VALUES (0);
"""

TABLES = f"""
CREATE TABLE lane (
    id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, type TEXT NOT NULL, key TEXT NOT NULL,
    {", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in COUNTERS)},
    UNIQUE (queue, type, key)
);
CREATE INDEX lane_waiting ON lane (type) WHERE pending + retrying + blocked > 0;

CREATE TABLE task (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, lane INTEGER NOT NULL, key TEXT,
    stage INTEGER, status TEXT NOT NULL, version INTEGER NOT NULL, priority INTEGER NOT NULL,
    run_at REAL NOT NULL, expires REAL, created_at REAL NOT NULL, started_at REAL, finished_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0,
    worker TEXT, lease_until REAL, doom TEXT, progress REAL NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '',
    options TEXT, error TEXT, outcome TEXT, payload TEXT
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
{DELETED}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""

# What makes a file of each older version one of the next.
UPGRADES = {
    1: f"""
{DELETED}
PRAGMA user_version = 2;
""",
}

FIELDS = (
    "seq", "id", "lane", "key", "status", "version", "priority", "run_at", "expires", "created_at", "started_at",
    "finished_at", "attempts", "interruptions", "worker", "lease_until", "doom", "progress", "note", "options",
    "error", "outcome", "payload",
)  # fmt: skip
ROW = ", ".join(FIELDS)
BRIEF_ROW = ROW.replace("outcome, payload", "NULL, NULL")  # they stand last, so SQLite does not read their pages

# --- add
INSERT = """INSERT INTO task
    (id, lane, key, stage, status, version, priority, run_at, expires, created_at, doom, options, payload)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
TOGETHER = 64  # tasks that one statement inserts: a third faster than one by one
INSERT_TOGETHER = INSERT + f", {INSERT.partition('VALUES ')[2]}" * (TOGETHER - 1)
IDS_AMONG = "SELECT id FROM task WHERE id IN (SELECT value FROM json_each(?))"
KEYS_AMONG = "SELECT key, id FROM task WHERE key IN (SELECT value FROM json_each(?)) AND key IS NOT NULL"
STATUS_AMONG = "SELECT id, status FROM task WHERE id IN (SELECT value FROM json_each(?))"
SEQS_AMONG = "SELECT id, seq FROM task WHERE id IN (SELECT value FROM json_each(?))"
BEGINNING = "SELECT version + 1 FROM deleted"
INSERT_EDGE = "INSERT INTO edge (parent, child, strict) VALUES (?, ?, ?)"
INSERT_LANE = "INSERT INTO lane (queue, type, key) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET key = key RETURNING id"
LANES_AMONG = "SELECT id, queue, type, key FROM lane WHERE id IN (SELECT value FROM json_each(?))"
COUNT = f"UPDATE lane SET {', '.join(f'{name} = {name} + ?' for name in COUNTERS)} WHERE id = ?"

# --- claim
MOVE_DUE = f"""UPDATE task SET stage = {READY} WHERE seq IN
    (SELECT seq FROM task WHERE stage = {LATER} AND run_at <= ? ORDER BY run_at LIMIT 1000)"""
DOOM_EXPIRED = f"""UPDATE task SET stage = {DOOMED}, doom = 'expired' WHERE seq IN
    (SELECT seq FROM task WHERE expires IS NOT NULL AND stage < {DOOMED} AND expires <= ? LIMIT 1000)"""
WAITING_LANES = """SELECT id FROM lane WHERE pending + retrying + blocked > 0
    AND type IN (SELECT value FROM json_each(?))"""
DOOMED_OF = f"SELECT seq FROM task WHERE stage = {DOOMED} AND lane IN (SELECT value FROM json_each(?)) LIMIT ?"
HEADS = f"""SELECT -priority, run_at, seq FROM task WHERE stage = {READY} AND lane = ? AND priority >= ?
    ORDER BY priority DESC, run_at, seq LIMIT ?"""
TAKE = f"""UPDATE task SET status = 'processing', stage = NULL, version = version + 1,
    attempts = attempts + (doom IS NULL), worker = ?, started_at = ?, lease_until = ?, progress = 0, note = ''
    WHERE seq IN (SELECT value FROM json_each(?)) RETURNING {ROW}"""
STATUS_OF = "SELECT seq, status FROM task WHERE seq IN (SELECT value FROM json_each(?))"
RUNNING = "SELECT id, processing FROM lane WHERE processing > 0"
LIMITS = "SELECT body FROM lane_limit"
BUCKETS = "SELECT key, next_at FROM bucket WHERE selector = ?"
SET_BUCKET = "INSERT OR REPLACE INTO bucket (selector, key, next_at) VALUES (?, ?, ?)"
SHARE = "SELECT key, mark FROM share"

# --- update
STANDING = "SELECT id, version, seq, lane, status, key FROM task WHERE id IN (SELECT value FROM json_each(?))"
REPLACE = """UPDATE task SET version = version + 1, stage = ?, status = ?, priority = ?, expires = ?, run_at = ?,
    started_at = ?, finished_at = ?, attempts = ?, interruptions = ?, worker = ?, lease_until = ?, doom = ?,
    progress = ?, note = ?, error = ?, outcome = ? WHERE seq = ?"""
ANY_EDGE = "SELECT 1 FROM edge LIMIT 1"
EDGES_OF = "DELETE FROM edge WHERE parent = ? RETURNING child, strict"
IS_BLOCKED = f"SELECT lane, EXISTS (SELECT 1 FROM edge WHERE child = seq) FROM task WHERE seq = ? AND stage = {BLOCKED}"
UNBLOCK = f"UPDATE task SET stage = {LATER}, status = 'pending', version = version + 1 WHERE seq = ?"
PLACE = "UPDATE task SET stage = ?, status = ?, doom = ? WHERE id = ?"
LET_KEY_GO = "UPDATE task SET key = NULL WHERE seq = ?"
DOOM = f"UPDATE task SET stage = {DOOMED}, doom = ?, version = version + 1 WHERE seq = ?"

# --- leases
HELD = "SELECT id, version, worker FROM task WHERE status = 'processing' AND id IN (SELECT value FROM json_each(?))"
RENEW = "UPDATE task SET lease_until = ?, progress = ?, note = ? WHERE id = ?"
SET_NODE = "INSERT OR REPLACE INTO node (id, peer, body) VALUES (?, ?, ?)"
HAS_NODE = "SELECT 1 FROM node WHERE id = ? AND peer = ?"
HAS_PEER = "SELECT 1 FROM node WHERE peer = ?"
HOLDS = "SELECT 1 FROM task WHERE status = 'processing' AND worker = ?"
NODES = "SELECT id, peer, body FROM node"
DROP_NODE = """DELETE FROM node WHERE id = ?
    AND NOT EXISTS (SELECT 1 FROM task WHERE status = 'processing' AND worker = node.id)"""
OVERDUE = """SELECT seq FROM task WHERE status = 'processing'
    AND (lease_until <= ? OR worker IN (SELECT value FROM json_each(?))) LIMIT ?"""
TAKE_OVER = f"""UPDATE task SET version = version + 1, worker = ?, lease_until = ?
    WHERE seq IN (SELECT value FROM json_each(?)) RETURNING {ROW}"""

# --- look, remove
GET = f"SELECT {ROW} FROM task WHERE id IN (SELECT value FROM json_each(?))"
GET_BRIEF = f"SELECT {BRIEF_ROW} FROM task WHERE id IN (SELECT value FROM json_each(?))"
COUNTS = f"SELECT queue, type, {', '.join(COUNTERS)} FROM lane"
PENDING_LANES = "SELECT id FROM lane WHERE pending + retrying > 0"
FIRST_LATER = f"SELECT min(run_at) FROM task WHERE stage = {LATER}"
FIRST_EXPIRY = f"SELECT min(expires) FROM task WHERE expires IS NOT NULL AND stage < {DOOMED} AND expires > ?"
OLDEST_BELOW = f"""SELECT priority, run_at FROM task WHERE stage = {READY} AND lane = ? AND priority < ?
    ORDER BY priority DESC, run_at LIMIT 1"""
DELETE = """DELETE FROM task WHERE id IN (SELECT value FROM json_each(?)) AND status != 'processing'
    RETURNING seq, id, lane, status, version"""
RAISE_DELETED = "UPDATE deleted SET version = max(version, ?)"
FINISHED_BEFORE = """SELECT id FROM task WHERE finished_at IS NOT NULL AND finished_at < ?
    AND status IN (SELECT value FROM json_each(?)) ORDER BY finished_at LIMIT 1000"""
DROP_EDGES_TO = "DELETE FROM edge WHERE child = ?"


def find_query(
    columns: str, status: str | None, queue: str | None, type: str | None, finished_after: float | None, after: str
) -> tuple[str, list[str | float]]:
    """Return the statement that reads these columns of tasks, page by page, and the values that it binds before the
    limit."""
    where, index = ["id > ?"], ""
    values: list[str | float] = [after]
    if status is not None:  # written out, so that SQLite can use the index of that status
        where.append(f"status = '{Status(status)}'")
    for column, value in (("queue", queue), ("type", type)):
        if value is not None:
            where.append(f"lane IN (SELECT id FROM lane WHERE {column} = ?)")
            values.append(value)
    if finished_after is not None:
        where.append("finished_at > ?")
        values.append(finished_after)
        if status != Status.FAILED:  # else SQLite looks at every task, in the order of their ids
            index = " INDEXED BY task_finished"
    return f"SELECT {columns} FROM task{index} WHERE {' AND '.join(where)} ORDER BY id LIMIT ?", values

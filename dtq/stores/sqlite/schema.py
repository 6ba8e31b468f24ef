"""Schema: the tables of SQLiteStore, and every statement that it runs as it stands here (queries.py builds the others).

`stage` says what a waiting task waits for. Each index holds only the tasks of one stage, so finished tasks, and tasks
that wait for something else, do not slow a query down:

    0 blocked    waits for its parents
    1 later      waits for its time                  task_later: by time
    2 ready      may be claimed                      task_ready: by lane, priority, time, insertion
    3 doomed     a claim takes it only to end it     task_doomed
    NULL         processing, or terminal             task_held: by worker; task_finished: by time

A row of `lane` represents all tasks of one queue, type and limit key, and is removed with the last of them. It repeats
what a claim needs to know of its first ready task, so that the index of each kind (queue and type, with a limit key or
without) has the lanes in the order in which they are served:

    lane_open      until = 0    by kind: priority, mark of the key, due time, insertion      a claim reads from here
    lane_closed    until > 0    by the time at which it may be open again (infinity: an event opens it, not the time)

The counters of the statistics are in `kind`: reading them takes equally long for any number of limit keys. A kind has
one lane without a limit key, which a claim reads together with the kind. So that lane needs no index, and a claim of
one task writes fewer pages: each page that a transaction changes is written whole, which costs more than a statement.
"""

from __future__ import annotations

from dtq.task.model import Status

APPLICATION_ID = 0x64747131  # "dtq1"
VERSION = 2
BLOCKED, LATER, READY, DOOMED = range(4)

COUNTERS = tuple(map(str, Status))

# `kept` comes before columns that may be large: SQLite has to read it for the index whenever a task changes.
TASK = """
CREATE TABLE task (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, lane INTEGER NOT NULL, key TEXT,
    stage INTEGER, status TEXT NOT NULL, version INTEGER NOT NULL, priority INTEGER NOT NULL,
    run_at REAL NOT NULL, expires REAL, created_at REAL NOT NULL, started_at REAL, finished_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0,
    worker TEXT, lease_until REAL, doom TEXT, progress REAL NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '',
    kept INTEGER NOT NULL DEFAULT 0, options TEXT, error TEXT, outcome TEXT, payload TEXT
);"""
# `task_finished`: first what the clean-up may remove, then (kept = 1) what it found that an unfinished child needs.
TASK_INDEXES = """
CREATE INDEX task_later ON task (run_at) WHERE stage = 1;
CREATE INDEX task_ready ON task (lane, priority DESC, run_at, seq) WHERE stage = 2;
CREATE INDEX task_doomed ON task (lane) WHERE stage = 3;
CREATE INDEX task_expires ON task (expires) WHERE expires IS NOT NULL AND stage < 3;
CREATE INDEX task_held ON task (worker) WHERE status = 'processing';
CREATE INDEX task_finished ON task (kept, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX task_failed ON task (id) WHERE status = 'failed';
CREATE UNIQUE INDEX task_key ON task (key) WHERE key IS NOT NULL;
"""
# The highest version that any deleted task had: one row.
DELETED = """
CREATE TABLE deleted (version INTEGER NOT NULL);
INSERT INTO deleted (version) VALUES (0);
"""

# `first`, `run_at` and `seq` are the -priority, due time and number of the first ready task (NULL: none is ready);
# `lowest` is the -priority of the last one; `doomed` is 1 if a task is doomed; `tasks` counts all of them.
# `waiting` is 1 while a task of the kind is pending, retrying or blocked.
LANES = f"""
CREATE TABLE kind (
    id INTEGER PRIMARY KEY, queue TEXT NOT NULL, type TEXT NOT NULL,
    {", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in COUNTERS)},
    waiting INTEGER NOT NULL DEFAULT 0,
    UNIQUE (queue, type)
);
CREATE INDEX kind_waiting ON kind (type) WHERE waiting = 1;
CREATE TABLE lane (
    id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, type TEXT NOT NULL, key TEXT NOT NULL,
    kind INTEGER NOT NULL, keyed INTEGER NOT NULL,
    tasks INTEGER NOT NULL DEFAULT 0, processing INTEGER NOT NULL DEFAULT 0,
    first INTEGER, run_at REAL, seq INTEGER, lowest INTEGER, doomed INTEGER NOT NULL DEFAULT 0,
    mark REAL NOT NULL DEFAULT 0, until REAL NOT NULL DEFAULT 0,
    UNIQUE (queue, type, key)
);
CREATE INDEX lane_open ON lane (kind, first, mark, run_at, seq)
    WHERE keyed = 1 AND first IS NOT NULL AND until = 0;
CREATE INDEX lane_closed ON lane (until) WHERE until > 0;
CREATE INDEX lane_marked ON lane (mark) WHERE mark > 0;
CREATE INDEX lane_oldest ON lane (run_at) WHERE keyed = 1 AND first IS NOT NULL;
CREATE INDEX lane_mixed ON lane (id) WHERE lowest > first;
CREATE INDEX lane_doomed ON lane (kind) WHERE doomed > 0;
CREATE INDEX lane_key ON lane (key);
CREATE INDEX bucket_full ON bucket (selector, next_at);
CREATE INDEX share_mark ON share (mark);
"""

TABLES = f"""
{TASK}
{TASK_INDEXES}
CREATE TABLE edge (
    parent TEXT, child INTEGER, strict INTEGER, waits INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (parent, child)
) WITHOUT ROWID;
CREATE INDEX edge_child ON edge (child);

CREATE TABLE lane_limit (selector TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE bucket (selector TEXT, key TEXT, next_at REAL NOT NULL, PRIMARY KEY (selector, key)) WITHOUT ROWID;
CREATE TABLE share (key TEXT PRIMARY KEY, mark REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE node (id TEXT PRIMARY KEY, peer TEXT NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
{LANES}{DELETED}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""

LOWEST = f"SELECT -min(priority) FROM task WHERE stage = {READY} AND lane = ?1"
_FIRST = f"FROM task WHERE stage = {READY} AND lane = ?1 ORDER BY priority DESC, run_at, seq LIMIT 1"
FIRST = f"SELECT -priority, run_at, seq, ({LOWEST}) {_FIRST}"
FIRST_SEQ = f"SELECT seq {_FIRST}"
ANY_DOOMED = f"SELECT EXISTS (SELECT 1 FROM task WHERE stage = {DOOMED} AND lane = ?1)"

_COLUMNS_1 = """seq, id, lane, key, stage, status, version, priority, run_at, expires, created_at, started_at,
    finished_at, attempts, interruptions, worker, lease_until, doom, progress, note, options, outcome, payload"""
_ENDED = "('completed', 'failed', 'cancelled')"

# The statements that upgrade a file from each older version to the next.
UPGRADES = {
    1: f"""
ALTER TABLE task RENAME TO task_1;
{TASK}
INSERT INTO task ({_COLUMNS_1}, error)
    SELECT {_COLUMNS_1}, CASE WHEN json_valid(outcome) THEN json_extract(outcome, '$.error') END FROM task_1;
DROP TABLE task_1;
{TASK_INDEXES}
ALTER TABLE edge ADD COLUMN waits INTEGER NOT NULL DEFAULT 1;
DELETE FROM edge WHERE child IN (SELECT seq FROM task WHERE status IN {_ENDED});
INSERT OR IGNORE INTO edge (parent, child, strict, waits)
    SELECT parent.value, seq, json_extract(options, '$.on_parent_failure') IS NULL, 0
    FROM task, json_each(CASE WHEN json_valid(options) THEN options END, '$.after') AS parent
    WHERE status NOT IN {_ENDED};
DROP INDEX lane_waiting;
ALTER TABLE lane RENAME TO lane_1;
{LANES}{DELETED}
INSERT INTO kind (queue, type, {", ".join(COUNTERS)}, waiting)
    SELECT queue, type, {", ".join(f"sum({name})" for name in COUNTERS)}, sum(pending + retrying + blocked) > 0
    FROM lane_1 GROUP BY queue, type;
INSERT INTO lane (id, queue, type, key, kind, keyed, tasks, processing)
    SELECT lane_1.id, queue, type, key, kind.id, key != '', {" + ".join(f"lane_1.{name}" for name in COUNTERS)},
    lane_1.processing FROM lane_1 JOIN kind USING (queue, type)
    WHERE {" + ".join(f"lane_1.{name}" for name in COUNTERS)} > 0;
DROP TABLE lane_1;
UPDATE lane SET mark = coalesce((SELECT mark FROM share WHERE share.key = lane.key), 0),
    (first, run_at, seq, lowest) = ({FIRST.replace("?1", "lane.id")}), doomed = ({ANY_DOOMED.replace("?1", "lane.id")});
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
    VALUES (?, ?, ?, ?, ?, (SELECT version + 1 FROM deleted), ?, ?, ?, ?, ?, ?, ?)"""
TOGETHER = 64  # tasks that one statement inserts: a third faster than one by one
INSERT_TOGETHER = INSERT + f", {INSERT.partition('VALUES ')[2]}" * (TOGETHER - 1)
IDS_AMONG = "SELECT id FROM task WHERE id IN (SELECT value FROM json_each(?))"
KEYS_AMONG = "SELECT key, id FROM task WHERE key IN (SELECT value FROM json_each(?)) AND key IS NOT NULL"
STATUS_AMONG = "SELECT id, status FROM task WHERE id IN (SELECT value FROM json_each(?))"
SEQS_AMONG = "SELECT id, seq FROM task WHERE id IN (SELECT value FROM json_each(?))"
INSERT_EDGE = "INSERT INTO edge (parent, child, strict, waits) VALUES (?, ?, ?, ?)"
LANE = "SELECT id, first, run_at, lowest FROM lane WHERE queue = ? AND type = ? AND key = ?"
INSERT_KIND = "INSERT INTO kind (queue, type) VALUES (?, ?) ON CONFLICT DO NOTHING"
INSERT_LANE = """INSERT INTO lane (queue, type, key, kind, keyed, mark)
    SELECT ?1, ?2, ?3, id, ?3 != '', coalesce((SELECT mark FROM share WHERE key = ?3), 0)
    FROM kind WHERE queue = ?1 AND type = ?2 RETURNING id"""
LANES_AMONG = "SELECT id, queue, type, key FROM lane WHERE id IN (SELECT value FROM json_each(?))"
# Of a lane: its counters, how many tasks of its kind wait, and whether any lane waits for a task to end.
_OF_LANE = """tasks, lane.processing, lane.key, kind, pending + retrying + blocked,
    EXISTS (SELECT 1 FROM lane WHERE until > 0 AND until = 9e999)"""
_LANE_AND_KIND = "FROM lane CROSS JOIN kind ON kind.id = lane.kind"
ROW_OF_LANE = f"SELECT {_OF_LANE} {_LANE_AND_KIND} WHERE lane.id = ?"
# The same; then the columns of the row that describe the waiting tasks; then their actual values.
ROW_AND_FIRST = f"""SELECT {_OF_LANE}, first, lane.run_at, lane.seq, lowest, doomed,
    -priority, task.run_at, task.seq, ({LOWEST}), ({ANY_DOOMED})
    {_LANE_AND_KIND} LEFT JOIN task ON task.seq = ({FIRST_SEQ}) WHERE lane.id = ?1"""
COUNT = "UPDATE lane SET tasks = ?, processing = ? WHERE id = ?"
COUNT_AND_PLACE = """UPDATE lane SET tasks = ?, processing = ?, first = ?, run_at = ?, seq = ?, lowest = ?, doomed = ?
    WHERE id = ?"""
SET_WAITING = "UPDATE kind SET waiting = ? WHERE id = ?"
DROP_LANE = "DELETE FROM lane WHERE id = ?"
FREE = "UPDATE lane SET until = 0 WHERE key = ? AND until = ?"

# --- claim
ANY_MOVES = f"""SELECT EXISTS (SELECT 1 FROM task WHERE stage = {LATER} AND run_at <= ?1)
    + EXISTS (SELECT 1 FROM task WHERE expires IS NOT NULL AND stage < {DOOMED} AND expires <= ?1)"""
MOVE_DUE = f"""UPDATE task SET stage = {READY} WHERE seq IN
    (SELECT seq FROM task WHERE stage = {LATER} AND run_at <= ? ORDER BY run_at LIMIT 1000)
    RETURNING lane"""
DOOM_EXPIRED = f"""UPDATE task SET stage = {DOOMED}, doom = 'expired' WHERE seq IN
    (SELECT seq FROM task WHERE expires IS NOT NULL AND stage < {DOOMED} AND expires <= ? LIMIT 1000)
    RETURNING lane"""
OPEN_AGAIN = """UPDATE lane SET until = 0 WHERE id IN
    (SELECT id FROM lane WHERE until > 0 AND until <= ? ORDER BY until LIMIT ?)"""
LEVEL = """UPDATE lane SET mark = 0 WHERE id IN (SELECT id FROM lane
    WHERE mark > 0 AND mark < ? ORDER BY mark DESC LIMIT ?)"""
# What a claim needs first: kinds with waiting tasks; the mark of the key served last; whether lanes may open
# again, or have an old mark; and, of each kind, whether it has doomed tasks and open lanes with a key; and its lane
# without a key.
_SHARE_NOW = "coalesce((SELECT mark FROM share WHERE key = char(0)), 0)"
WAITING_KINDS = f"""SELECT kind.id, kind.queue, kind.type, {_SHARE_NOW},
    EXISTS (SELECT 1 FROM lane WHERE until > 0 AND until <= ?1)
    OR EXISTS (SELECT 1 FROM lane WHERE mark > 0 AND mark < {_SHARE_NOW}),
    EXISTS (SELECT 1 FROM lane WHERE kind = kind.id AND doomed > 0),
    EXISTS (SELECT 1 FROM lane WHERE kind = kind.id AND keyed = 1 AND first IS NOT NULL AND until = 0),
    until, first, mark, run_at, seq, plain.id, plain.key
    FROM kind LEFT JOIN lane AS plain ON plain.queue = kind.queue AND plain.type = kind.type AND plain.key = ''
    WHERE waiting = 1 AND kind.type IN (SELECT value FROM json_each(?2))"""
DOOMED_OF = f"""SELECT task.seq FROM lane CROSS JOIN task ON task.lane = lane.id AND task.stage = {DOOMED}
    WHERE lane.doomed > 0 AND lane.kind = ? LIMIT ?"""
_OPEN = "FROM lane WHERE kind = ? AND keyed = 1 AND first IS NOT NULL AND until = 0"
BEST_LANES = f"SELECT first, mark, run_at, seq, id, key {_OPEN} ORDER BY first, mark, run_at, seq LIMIT ?"
NEXT_MARK = f"SELECT first, mark {_OPEN} AND first = ? AND mark > ? ORDER BY mark LIMIT 1"
NEXT_PRIORITY = f"SELECT first, mark {_OPEN} AND first > ? ORDER BY first, mark LIMIT 1"
OF_TIER = f"""SELECT first, mark, run_at, seq, id, key {_OPEN} AND first = ? AND mark = ? AND (run_at, seq) > (?, ?)
    ORDER BY run_at, seq LIMIT ?"""
HEADS = f"""SELECT -priority, run_at, seq FROM task WHERE stage = {READY} AND lane = ? AND priority >= ?
    ORDER BY priority DESC, run_at, seq LIMIT ? OFFSET ?"""
TAKE = f"""UPDATE task SET status = 'processing', stage = NULL, version = version + 1,
    attempts = attempts + (doom IS NULL), worker = ?, started_at = ?, lease_until = ?, progress = 0, note = ''
    WHERE seq IN (SELECT value FROM json_each(?)) RETURNING {ROW}"""
STATUS_OF = "SELECT seq, status FROM task WHERE seq IN (SELECT value FROM json_each(?))"
RUNNING = "SELECT total(processing) FROM kind WHERE ?1 IN (queue, '') AND ?2 IN (type, '')"
RUNNING_OF_KEY = "SELECT total(processing) FROM lane WHERE key = ?3 AND ?1 IN (queue, '') AND ?2 IN (type, '')"
LIMITS = "SELECT body FROM lane_limit"
BUCKET = "SELECT next_at FROM bucket WHERE selector = ? AND key = ?"
SET_BUCKET = "INSERT OR REPLACE INTO bucket (selector, key, next_at) VALUES (?, ?, ?)"
DROP_FULL = """DELETE FROM bucket WHERE selector = ?1 AND key IN
    (SELECT key FROM bucket WHERE selector = ?1 AND next_at <= ?2 LIMIT ?3)"""
FIRST_FULL = "SELECT min(next_at) FROM bucket WHERE selector = ? AND next_at > ?"
SET_SHARE = "INSERT OR REPLACE INTO share (key, mark) VALUES (?, ?)"
SET_MARK = "UPDATE lane SET mark = ? WHERE key = ?"
DROP_SHARES = "DELETE FROM share WHERE key IN (SELECT key FROM share WHERE mark <= ?1 AND key != ?2 LIMIT ?3)"
LANES_OF_KEY = "SELECT id, queue, type FROM lane WHERE key = ? AND first IS NOT NULL"
CLOSE = "UPDATE lane SET until = ? WHERE id = ?"
REOPEN = """UPDATE lane SET until = 1 WHERE until > 0
    AND ?1 IN (queue, '') AND ?2 IN (type, '') AND (key = ?3 OR ?3 = '*')"""

# --- update
STANDING = "SELECT id, version, seq, lane, status, key, doom FROM task WHERE id IN (SELECT value FROM json_each(?))"
REPLACE = """UPDATE task SET version = version + 1, stage = ?, status = ?, priority = ?, expires = ?, run_at = ?,
    started_at = ?, finished_at = ?, attempts = ?, interruptions = ?, worker = ?, lease_until = ?, doom = ?,
    progress = ?, note = ?, error = ?, outcome = ? WHERE seq = ?"""
ANY_EDGE = "SELECT 1 FROM edge LIMIT 1"
EDGES_OF = "UPDATE edge SET waits = 0 WHERE parent = ? AND waits RETURNING child, strict"
IS_BLOCKED = f"""SELECT lane, EXISTS (SELECT 1 FROM edge WHERE child = seq AND waits) FROM task
    WHERE seq = ? AND stage = {BLOCKED}"""
UNBLOCK = f"UPDATE task SET stage = {LATER}, status = 'pending', version = version + 1 WHERE seq = ?"
PLACE = "UPDATE task SET stage = ?, status = ?, doom = ? WHERE id = ?"
LET_KEY_GO = "UPDATE task SET key = NULL WHERE seq = ?"
DOOM = f"""UPDATE task SET stage = {DOOMED}, doom = ?, version = version + 1 WHERE seq = ? AND stage < {DOOMED}
    RETURNING lane"""

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
COUNTS = f"SELECT queue, type, {', '.join(COUNTERS)} FROM kind"
OLDEST_WITH_KEY = "SELECT min(run_at) FROM lane WHERE keyed = 1 AND first IS NOT NULL"
OLDEST_WITHOUT_KEY = "SELECT min(run_at) FROM lane WHERE key = ''"
MIXED_LANES = "SELECT id, -first FROM lane WHERE lowest > first"
NEXT_OPENING = "SELECT min(until) FROM lane WHERE until > 0"
FIRST_LATER = f"SELECT min(run_at) FROM task WHERE stage = {LATER}"
FIRST_EXPIRY = f"SELECT min(expires) FROM task WHERE expires IS NOT NULL AND stage < {DOOMED} AND expires > ?"
OLDEST_BELOW = f"""SELECT priority, run_at FROM task WHERE stage = {READY} AND lane = ? AND priority < ?
    ORDER BY priority DESC, run_at LIMIT 1"""
DELETE = """DELETE FROM task WHERE id IN (SELECT value FROM json_each(?)) AND status != 'processing'
    RETURNING seq, id, lane, status, version"""
RAISE_DELETED = "UPDATE deleted SET version = max(version, ?)"
FINISHED_BEFORE = """SELECT id, EXISTS (SELECT 1 FROM edge WHERE parent = id) FROM task
    WHERE kept = 0 AND finished_at IS NOT NULL AND finished_at < ?
    AND status IN (SELECT value FROM json_each(?)) ORDER BY finished_at LIMIT ?"""
KEEP = "UPDATE task SET kept = 1 WHERE id IN (SELECT value FROM json_each(?))"
UNKEEP = """UPDATE task SET kept = 0 WHERE kept = 1 AND id IN (SELECT value FROM json_each(?))
    AND NOT EXISTS (SELECT 1 FROM edge WHERE parent = id)"""
ALL_EDGES_OF = "UPDATE edge SET waits = 0 WHERE parent = ? RETURNING child, strict"
DOOM_RUNNING = "UPDATE task SET doom = ? WHERE seq = ? AND status = 'processing' AND doom IS NULL"
DROP_EDGES_TO = "DELETE FROM edge WHERE child IN (SELECT value FROM json_each(?)) RETURNING parent"

"""SQLiteStore: the default store. One database file, any number of threads and processes on one machine.

    SQLiteStore       the protocol of dtq.stores, one transaction for each method     (this file)
      Database        how the file is written, read and watched
      adding          new tasks
      Choice          the tasks that a claim takes
      Lanes           lanes, their counters and limits
      dependencies    parents and children
      leases          heartbeat and reap
      removal         delete and purge
      rows            convert between tasks and rows
      schema          the tables and statements; queries.py has those that depend on arguments

`add` and `update` return when their commit is on the disk (WAL, synchronous=FULL). `claim` and `heartbeat` do not wait
for the disk: if a power cut loses one, the task is only claimed again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from dtq.errors import StoreError
from dtq.stores.protocol import ClaimRequest, Exchanged, Node, Outcome, Stats, sum_counts
from dtq.stores.shared.decoding import decode_or_skip
from dtq.stores.shared.peers import LostNodes, Peers
from dtq.stores.sqlite import leases, schema
from dtq.stores.sqlite.adding import add_tasks
from dtq.stores.sqlite.choice import Choice
from dtq.stores.sqlite.database import Database
from dtq.stores.sqlite.dependencies import block_again, drop_edges_to, unblock_children
from dtq.stores.sqlite.lanes import Lanes, StatusChanges, change_limit, oldest, openings, read_limits
from dtq.stores.sqlite.queries import find_query
from dtq.stores.sqlite.removal import TASKS_PER_PURGE, delete_tasks, purge_some
from dtq.stores.sqlite.rows import about, json_list, state_row, task_of
from dtq.sync.forks import Forkable
from dtq.task.model import TERMINAL, WAITING, Status, Task
from dtq.task.transitions import brief_of

ROWS_PER_READ = 100  # of brief tasks: each row may hold the traceback of an error
Row = tuple[Any, ...]
_node = msgspec.json.Decoder(Node).decode


class SQLiteStore(Forkable):
    """Keeps tasks in the SQLite database at `path`, which is created if it is missing.

    Args:
        path: The file. Its log, lock and nodes are beside it: `path-wal`, `path-lock`, `path-nodes`.
        durability: "full" waits for the disk before `add` and `update` return. "relaxed" does not: faster, but a power
            cut may lose the last seconds. A killed process loses nothing either way.

    Raises:
        StoreError: The file is not a database of dtq, or is one of a newer dtq.
    """

    def __init__(self, path: str | Path, durability: Literal["full", "relaxed"] = "full") -> None:
        if durability not in ("full", "relaxed"):
            raise StoreError(f"durability is {durability!r}; allowed: 'full', 'relaxed'")
        self.durability = durability
        self._lanes = Lanes()
        self._published: dict[str, Node] = {}
        self._closed = False
        self.database = Database(str(path), durability == "full", self._lanes.forget)
        self.follow_forks()

    def _tasks(self, db: sqlite3.Connection, rows: list[Row]) -> list[Task]:
        self._lanes.learn(db, {row[2] for row in rows})
        return [task_of(row, self._lanes.names) for row in rows]

    # --- add

    def add(self, tasks: Sequence[Task]) -> list[str]:
        return self.database.write(lambda db: add_tasks(db, self._lanes, tasks), flush=True)

    # --- claim

    def claim(
        self, worker: str, n: int, lease: float, now: float, types: Collection[str], queues: Collection[str] = (),
        min_priority: int | None = None,
    ) -> list[Task]:  # fmt: skip
        request = ClaimRequest(worker, n, lease, now, types, queues, min_priority)
        return self.database.write(lambda db: self._claim(db, request), flush=False, wake=None)

    def _claim(self, db: sqlite3.Connection, request: ClaimRequest) -> list[Task]:
        worker, n, lease, now, types, queues, min_priority = request
        self._move_due(db, now)
        choice = Choice(db, n, now, types, queues)
        seqs = choice.doomed()
        seqs += choice.pick(n - len(seqs), inf if min_priority is None else -min_priority)
        return self._take(db, seqs, (worker, now, now + lease))

    def _move_due(self, db: sqlite3.Connection, now: float) -> None:
        if not db.execute(schema.ANY_MOVES, (now,)).fetchone()[0]:
            return
        changes = StatusChanges()
        for query in (schema.MOVE_DUE, schema.DOOM_EXPIRED):
            for (lane,) in db.execute(query, (now,)).fetchall():
                changes.touch(lane)
        changes.write(db)

    def _take(self, db: sqlite3.Connection, seqs: list[int], claim: tuple[str, float, float]) -> list[Task]:
        if not seqs:
            return []
        changes = StatusChanges()
        before = dict(about(db, schema.STATUS_OF, seqs).fetchall())
        rows = {row[0]: row for row in about(db, schema.TAKE, seqs, *claim).fetchall()}
        for seq, row in rows.items():
            changes.move(row[2], before[seq], Status.PROCESSING)
        changes.write(db)
        return self._tasks(db, [rows[seq] for seq in seqs])

    # --- update

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        return self.database.write(lambda db: self._update(db, outcomes), flush=True, wake="others")

    def exchange(self, outcomes: Sequence[Outcome], claim: ClaimRequest) -> Exchanged:
        return self.database.write(
            lambda db: (self._update(db, outcomes), self._claim(db, claim)), flush=True, wake="others"
        )

    def _update(self, db: sqlite3.Connection, outcomes: Sequence[Outcome]) -> set[str]:
        standing = {row[0]: row[1:] for row in about(db, schema.STANDING, [task.id for task, _ in outcomes])}
        accepted: dict[str, Task] = {}
        successors: list[Task] = []
        revived: list[str] = []
        freed: list[int] = []  # the children among the tasks that end
        rows, changes = [], StatusChanges()
        for task, planted in outcomes:
            version, seq, lane, status, key, doom = standing.get(task.id, (None, 0, 0, "", None, None))
            if version == task.version and task.id not in accepted:
                if doom and not task.doom and status == Status.PROCESSING and task.status in WAITING:
                    task = replace(task, doom=doom)  # its parent was deleted while it ran
                accepted[task.id] = task
                successors += planted
                rows.append(state_row(task, seq))
                if task.after and task.is_terminal:
                    freed.append(seq)
                changes.move(lane, status, task.status)
                if status in TERMINAL and task.after and not task.is_terminal:
                    revived.append(task.id)
                if planted and key is not None:
                    self._hand_over_key(db, seq, key, planted)
        db.executemany(schema.REPLACE, rows)
        if freed:
            drop_edges_to(db, freed)
        if revived:
            self._block_again(db, revived, changes)
        if successors:
            add_tasks(db, self._lanes, successors)
        if db.execute(schema.ANY_EDGE).fetchone():
            unblock_children(db, [(task.id, task.status) for task in accepted.values() if task.is_terminal], changes)
        changes.write(db)
        return set(accepted)

    def _hand_over_key(self, db: sqlite3.Connection, seq: int, key: str, successors: Sequence[Task]) -> None:
        heirs = {task.id for task in successors if task.key == key}
        taken = {id for (id,) in db.execute(schema.IDS_AMONG, (json_list(heirs),))} if heirs else heirs
        if heirs - taken:
            db.execute(schema.LET_KEY_GO, (seq,))

    def _block_again(self, db: sqlite3.Connection, ids: list[str], changes: StatusChanges) -> None:
        rows = db.execute(schema.GET, (json_list(ids),)).fetchall()
        for row, task in zip(rows, block_again(db, self._tasks(db, rows)), strict=True):
            changes.move(row[2], row[4], task.status)

    # --- leases

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        peers = self.database.watch.peers
        peers.ensure_file()
        if not held and lease and self._is_published(node):
            return set()
        lost = self.database.write(
            lambda db: leases.extend(db, peers.name, node, held, lease, now), flush=False, wake=None
        )
        self._published[node.id] = node
        if not lease:
            del self._published[node.id]
        return lost

    def _is_published(self, node: Node) -> bool:
        """Return True if the store has this node with the same facts, except its time."""
        known = self._published.get(node.id)
        if known is None or replace(node, seen_at=0) != replace(known, seen_at=0):
            return False
        peer = self.database.watch.peers.name
        return self.database.read(lambda db: db.execute(schema.HAS_NODE, (node.id, peer)).fetchone() is not None)

    def reap(self, worker: str, n: int, lease: float, now: float) -> list[Task]:
        dead = self.database.dead_peers()
        nodes, missing = self._fates(dead, now, lease)

        def look(db: sqlite3.Connection) -> tuple[list[str], bool]:
            return leases.nodes_without_tasks(db, missing), leases.is_any_overdue(db, now)

        forgotten, is_overdue = self.database.read(look)
        if not nodes and not forgotten and not is_overdue:
            self._forget(dead)
            return []

        def work(db: sqlite3.Connection) -> list[Task]:
            rows = leases.take_over(db, worker, n, lease, now, nodes)
            db.executemany(schema.DROP_NODE, [(node,) for node in (*nodes, *forgotten)])
            return self._tasks(db, rows)

        return self.database.write(work, flush=False, wake=None)

    def _fates(self, dead: list[str], now: float, lease: float) -> LostNodes:
        nodes = self.database.read(lambda db: db.execute(schema.NODES).fetchall())
        peer_of = {id: peer for id, peer, _ in nodes}
        return self.database.watch.peers.lost_nodes(peer_of, dead, now, lease)

    def _forget(self, dead: list[str]) -> None:
        for name in dead:
            self.database.watch.peers.forget(name)

    # --- look

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        ids = list(ids)
        tasks = self._read(brief, schema.GET_BRIEF if brief else schema.GET, (json_list(ids),))
        found = {task.id: task for task in tasks}
        return [found[id] for id in ids if id in found]

    def find(
        self, *, status: str | None = None, queue: str | None = None, type: str | None = None,
        finished_after: float | None = None, after: str = "", limit: int = 100, brief: bool = False,
    ) -> list[Task]:  # fmt: skip
        columns = schema.BRIEF_ROW if brief else schema.ROW
        query, values = find_query(columns, status, queue, type, finished_after, after)
        return self._read(brief, query, (*values, limit))

    def _read(self, brief: bool, query: str, values: tuple[Any, ...]) -> list[Task]:
        def look(db: sqlite3.Connection) -> list[Task]:
            rows = db.execute(query, values)
            if not brief:
                return self._tasks(db, rows.fetchall())
            tasks: list[Task] = []
            while some := rows.fetchmany(ROWS_PER_READ):
                tasks += map(brief_of, self._tasks(db, some))
            return tasks

        return self.database.read(look)

    def stats(self) -> Stats:
        return self.database.read(_stats)

    def next_due(self, now: float) -> float | None:
        return self.database.read(lambda db: self._next_due(db, now))

    def _next_due(self, db: sqlite3.Connection, now: float) -> float | None:
        times = [db.execute(schema.FIRST_LATER).fetchone()[0], db.execute(schema.FIRST_EXPIRY, (now,)).fetchone()[0]]
        times += openings(db, now)
        return min((time for time in times if time is not None), default=None)

    # --- lanes, removal, waking

    def set_lane(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, **changes: Any
    ) -> None:
        self.database.write(lambda db: change_limit(db, (queue, type, key), changes), flush=True)

    def delete(self, ids: Iterable[str]) -> int:
        ids = list(ids)  # the work may run twice
        return self.database.write(lambda db: delete_tasks(db, ids), flush=True)

    def purge(self, before: float, statuses: Collection[str]) -> int:
        wanted = json_list(set(statuses) & TERMINAL)
        while True:
            removed, looked_at = self.database.write(lambda db: purge_some(db, before, wanted), flush=True, wake=None)
            if removed or looked_at < TASKS_PER_PURGE:
                return removed

    def fileno(self) -> int:
        return self.database.fileno()

    def wait(self, timeout: float) -> bool:
        return self.database.watch.wait(timeout)

    def close(self) -> None:
        if not self._closed:
            for node in list(self._published.values()):
                with suppress(StoreError):  # a full disk, for example: other processes will see that its lock is free
                    self.heartbeat(node, [], 0, node.seen_at)
            leave = Peers.close if self._is_gone() else Peers.abandon
            self.database.close(leave)
            self._closed = True

    def _is_gone(self) -> bool:
        """Return True if no node of this process is left in the store. A node that still holds tasks, or could not be
        removed, stays: the unlocked file of this process then shows that it is dead."""
        with suppress(StoreError):
            return self.database.read(
                lambda db: db.execute(schema.HAS_PEER, (self.database.watch.name,)).fetchone() is None
            )
        return False

    # --- forks: the nodes belong to the parent; a child opens the file again on its next use

    def before_fork(self) -> None:
        self.database.before_fork()

    def after_fork(self) -> None:
        self.database.after_fork()

    def in_child(self) -> None:
        self._published = {}
        self.database.in_child()

    def abandon(self) -> None:
        """Close everything as the end of a killed process would, for tests of crashes."""
        self.database.close(Peers.abandon)
        self._closed = True


def _stats(db: sqlite3.Connection) -> Stats:
    lanes = db.execute(schema.COUNTS).fetchall()
    rows = ((q, t, status, n) for q, t, *counts in lanes for status, n in zip(schema.COUNTERS, counts, strict=True))
    nodes = decode_or_skip(_node, (body for _, _, body in db.execute(schema.NODES)), "a node")
    return Stats(*sum_counts(rows), oldest(db), nodes, read_limits(db))

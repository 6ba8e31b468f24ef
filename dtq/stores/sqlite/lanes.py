"""Lanes: the lanes of a SQLite database, with their numbers, counters and limits.

A lane is (queue, type, limit key); its row is removed with its last task. Numbers are never reused, so each process may
cache which lane a number stands for. The number of a lane is looked up within the transaction that adds to it, because
another process may have removed the row and inserted a new one.

    a task changes --> StatusChanges --write--> lane: tasks, processing, first ready task
                                                kind: tasks by status
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from math import inf
from typing import Any

import msgspec

from dtq.policy.limits import EACH, Lane, Limit
from dtq.policy.picking import Gate
from dtq.stores.shared.decoding import decode_or_skip
from dtq.stores.sqlite import schema
from dtq.stores.sqlite.queries import count_kind
from dtq.stores.sqlite.rows import json_list
from dtq.task.codec import to_json
from dtq.task.model import WAITING, Task

_limit = msgspec.json.Decoder(Limit).decode
Changes = defaultdict[str, int]  # status -> change in the number of tasks
MAX_CACHED = 10_000  # lanes
Found = tuple[int, int | None, float, int]  # of a lane: its number, and `first`, `run_at` and `lowest`


class StatusChanges:
    """Counts the tasks of each lane that change their status, and updates the counters once per transaction.

    `_touched` holds the lanes whose first, last or doomed task may have changed.
    """

    def __init__(self) -> None:
        self._changes: defaultdict[int, Changes] = defaultdict(partial(defaultdict, int))
        self._touched: set[int] = set()

    def add(self, lane: int, status: str) -> None:
        """Count a new task for which `is_between` is True: the first and last task of its lane stay the same."""
        self._changes[lane][status] += 1

    def enter(self, lane: int, status: str) -> None:
        self._change(lane, status, 1)

    def leave(self, lane: int, status: str) -> None:
        self._change(lane, status, -1)

    def _change(self, lane: int, status: str, by: int) -> None:
        self._changes[lane][status] += by
        if status in WAITING:
            self._touched.add(lane)

    def move(self, lane: int, old: str, new: str) -> None:
        self.leave(lane, old)
        self.enter(lane, new)

    def touch(self, lane: int) -> None:
        """Note that a task of this lane became ready or doomed while its status stayed the same."""
        self._touched.add(lane)
        self._changes[lane]  # counts nothing, but makes `write` update the lane

    def write(self, db: sqlite3.Connection) -> None:
        kinds: defaultdict[tuple[int, int], Changes] = defaultdict(partial(defaultdict, int))
        for lane, changes in self._changes.items():
            of_kind = kinds[_count(db, lane, changes, lane in self._touched)]
            for status, by in changes.items():
                of_kind[status] += by
        for (kind, waiting), changes in kinds.items():
            if moved := {name: by for name, by in changes.items() if by}:
                db.execute(count_kind(tuple(moved)), (*moved.values(), kind))
            waits = waiting + sum(changes[status] for status in WAITING) > 0
            if waits != (waiting > 0):
                db.execute(schema.SET_WAITING, (waits, kind))
        self._changes.clear()
        self._touched.clear()


def _count(db: sqlite3.Connection, lane: int, changes: Changes, is_touched: bool) -> tuple[int, int]:
    """Update the counters and, if `is_touched`, the first ready task in the row of the lane.

    Return its kind, and how many tasks of that kind waited before.
    """
    query = schema.ROW_AND_FIRST if is_touched else schema.ROW_OF_LANE
    tasks, processing, key, kind, waiting, is_awaited, *first = db.execute(query, (lane,)).fetchone()
    started = changes["processing"]
    counts = (tasks + sum(changes.values()), processing + started)
    if is_awaited and started < 0:
        db.execute(schema.FREE, (key, inf))
    if not counts[0]:
        db.execute(schema.DROP_LANE, (lane,))
    elif first[:5] == first[5:]:
        db.execute(schema.COUNT, (*counts, lane))
    else:
        db.execute(schema.COUNT_AND_PLACE, (*counts, *first[5:], lane))
    return kind, waiting


def is_between(task: Task, found: Found) -> bool:
    """Return True if a new task is neither before the first ready task of its lane, nor behind the last, nor doomed."""
    _, first, run_at, lowest = found
    return (
        first is not None
        and (first, run_at) <= (-task.priority, task.run_at)
        and -task.priority <= lowest
        and not task.doom
    )


class Lanes:
    """A cache of lanes: `names` maps their numbers to lanes."""

    def __init__(self) -> None:
        self.names: dict[int, Lane] = {}

    def find(self, db: sqlite3.Connection, lane: Lane) -> Found:
        """Return the number of this lane and the places of its ready tasks. Insert the lane if it is new."""
        found: Found | None = db.execute(schema.LANE, lane).fetchone()
        if found is None:
            db.execute(schema.INSERT_KIND, lane[:2])
            found = (*db.execute(schema.INSERT_LANE, lane).fetchone(), None, 0.0, 0)
        self.names[found[0]] = lane
        return found

    def forget(self) -> None:
        self.names = {}

    def learn(self, db: sqlite3.Connection, numbers: Iterable[int]) -> None:
        """Read the lanes with these numbers that are not cached yet."""
        if missing := {number for number in numbers if number not in self.names}:  # `-` would look at all names
            if len(self.names) > MAX_CACHED:
                missing = set(numbers)
                self.forget()
            for number, *lane in db.execute(schema.LANES_AMONG, (json_list(missing),)).fetchall():
                self.names[number] = (lane[0], lane[1], lane[2])


def read_gates(db: sqlite3.Connection) -> list[Gate]:
    return [Gate(limit, partial(_running, db, limit), partial(_full_at, db, limit)) for limit in read_limits(db)]


def _running(db: sqlite3.Connection, limit: Limit, bucket: str) -> int:
    where = (limit.queue or "", limit.type or "")
    if limit.key is None:
        return int(db.execute(schema.RUNNING, where).fetchone()[0])
    key = bucket if limit.key == EACH else limit.key
    return int(db.execute(schema.RUNNING_OF_KEY, (*where, key)).fetchone()[0])


def _full_at(db: sqlite3.Connection, limit: Limit, bucket: str) -> float:
    row = db.execute(schema.BUCKET, (selector_of(limit), bucket)).fetchone()
    return row[0] if row else 0.0


def read_limits(db: sqlite3.Connection) -> list[Limit]:
    bodies = [body for (body,) in db.execute(schema.LIMITS)]
    return decode_or_skip(_limit, bodies, "a limit") if bodies else []


def change_limit(
    db: sqlite3.Connection, selector: tuple[str | None, str | None, str | None], changes: dict[str, Any]
) -> None:
    """Change every setting that is not None. Remove a limit without settings. A new rate starts with full buckets."""
    known = next((known for known in read_limits(db) if known.selector == selector), Limit(*selector))
    limit = known.with_changes(changes)
    if limit.rate != known.rate or limit.is_void:
        db.execute("DELETE FROM bucket WHERE selector = ?", (selector_of(limit),))
    db.execute("DELETE FROM lane_limit WHERE selector = ?", (selector_of(limit),))
    if not limit.is_void:
        db.execute(
            "INSERT INTO lane_limit (selector, body) VALUES (?, ?)", (selector_of(limit), to_json(limit).decode())
        )
    if limit.key is not None:  # each of the next claims checks for some lanes whether they are still closed
        db.execute(schema.REOPEN, (limit.queue or "", limit.type or "", limit.key))


def selector_of(limit: Limit) -> str:
    return to_json(limit.selector).decode()


def oldest(db: sqlite3.Connection) -> float | None:
    """Return the earliest due time of all waiting tasks: of the first task of each lane, from an index, and of tasks
    behind one of a higher priority in the same lane."""
    times = [
        db.execute(query).fetchone()[0]
        for query in (schema.FIRST_LATER, schema.OLDEST_WITH_KEY, schema.OLDEST_WITHOUT_KEY)
    ]
    for lane, below in db.execute(schema.MIXED_LANES).fetchall():
        while row := db.execute(schema.OLDEST_BELOW, (lane, below)).fetchone():
            below = row[0]
            times.append(row[1])
    return min((time for time in times if time is not None), default=None)


def openings(db: sqlite3.Connection, now: float) -> list[float]:
    """Return the times at which rates let more tasks start; a time in the past if claims still have lanes to open."""
    times = []
    for limit in read_limits(db):
        full_at = db.execute(schema.FIRST_FULL, (selector_of(limit), now + limit.ahead)).fetchone()[0]
        if limit.rate and full_at is not None and full_at - limit.ahead > now:
            times.append(full_at - limit.ahead)
    closed_until = db.execute(schema.NEXT_OPENING).fetchone()[0]
    return [*times, closed_until] if closed_until is not None and closed_until <= now else times

"""The lanes of a SQLite database: their numbers, their counters, their limits, and whose turn it is.

A lane is (queue, type, limit key). There are few of them, they never change, and each process knows them by heart;
what the tables say of them (how many tasks of each status, how far a rate is used up) is read within the transaction
that needs it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from dtq.codec import to_json
from dtq.limits import Gate, Head, Lane, Limit, Share, pick
from dtq.stores import schema
from dtq.stores.readable import readable
from dtq.stores.rows import json_list

_limit = msgspec.json.Decoder(Limit).decode
_NOW = "\0"  # in the table of shares, what is no key: the mark of the one served last


class Moves:
    """How many tasks of each lane have moved from status to status; written to the counters once a transaction."""

    def __init__(self) -> None:
        self._changes: Counter[tuple[int, str]] = Counter()

    def enter(self, lane: int, status: str) -> None:
        self._changes[lane, status] += 1

    def leave(self, lane: int, status: str) -> None:
        self._changes[lane, status] -= 1

    def move(self, lane: int, old: str, new: str) -> None:
        self.leave(lane, old)
        self.enter(lane, new)

    def write(self, db: sqlite3.Connection) -> None:
        for lane in {lane for lane, _ in self._changes}:
            db.execute(schema.COUNT, (*(self._changes[lane, name] for name in schema.COUNTERS), lane))


class Lanes:
    """`names` maps numbers to lanes."""

    def __init__(self) -> None:
        self.names: dict[int, Lane] = {}
        self._numbers: dict[Lane, int] = {}

    def number(self, db: sqlite3.Connection, lane: Lane) -> int:
        """The number of this lane, which is made where it is new."""
        if lane not in self._numbers:
            self._know(db.execute(schema.INSERT_LANE, lane).fetchone()[0], lane)
        return self._numbers[lane]

    def forget(self) -> None:
        self.names, self._numbers = {}, {}

    def _know(self, number: int, lane: Lane) -> None:
        self.names[number] = lane
        self._numbers[lane] = number

    def learn(self, db: sqlite3.Connection, numbers: Iterable[int]) -> None:
        """Reads those of these lanes that are not known yet."""
        if missing := set(numbers) - self.names.keys():
            for number, queue, type, key in db.execute(schema.LANES_AMONG, (json_list(missing),)).fetchall():
                self._know(number, (queue, type, key))

    def waiting(self, db: sqlite3.Connection, types: Collection[str], queues: Collection[str]) -> list[int]:
        """The lanes of these types, and of these queues if any are named, in which something waits."""
        numbers = [number for (number,) in db.execute(schema.WAITING_LANES, (json_list(types),))]
        self.learn(db, numbers)
        return [number for number in numbers if not queues or self.names[number][0] in queues]

    def pick(
        self, db: sqlite3.Connection, numbers: list[int], n: int, now: float, min_priority: int | None
    ) -> list[int]:
        """The sequence numbers of the up to n tasks of these lanes that go next."""
        lowest = -1000 if min_priority is None else min_priority
        heads: dict[Lane, Iterator[Head]] = {
            self.names[number]: db.execute(schema.HEADS, (number, lowest, n)) for number in numbers
        }
        gates = self.gates(db)
        is_shared = len({lane[2] for lane in heads}) > 1
        share = _share(db) if is_shared else Share({})
        picked = pick(heads, n, now, gates, share)
        if picked:
            _keep_gates(db, gates, now)
        if picked and is_shared:
            db.execute("DELETE FROM share")
            db.executemany("INSERT INTO share (key, mark) VALUES (?, ?)", [*share.ahead().items(), (_NOW, share.now)])
        return [head[2] for _, head in picked]

    def gates(self, db: sqlite3.Connection) -> list[Gate]:
        limits = read_limits(db)
        if not limits:
            return []
        rows = db.execute(schema.RUNNING).fetchall()
        self.learn(db, [number for number, _ in rows])
        running = {self.names[number]: n for number, n in rows}
        return [
            Gate(limit, running, dict(db.execute(schema.BUCKETS, (_selector(limit),)).fetchall())) for limit in limits
        ]


def read_limits(db: sqlite3.Connection) -> list[Limit]:
    return readable(_limit, (body for (body,) in db.execute(schema.LIMITS)), "a limit")


def change_limit(
    db: sqlite3.Connection, selector: tuple[str | None, str | None, str | None], changes: dict[str, Any]
) -> None:
    """Changes what is not None; a limit that limits nothing any more goes. A new rate starts with a clean slate."""
    known = next((known for known in read_limits(db) if known.selector == selector), Limit(*selector))
    limit = known.with_changes(changes)
    if limit.rate != known.rate:
        db.execute("DELETE FROM bucket WHERE selector = ?", (_selector(limit),))
    db.execute("DELETE FROM lane_limit WHERE selector = ?", (_selector(limit),))
    if not limit.is_void:
        db.execute("INSERT INTO lane_limit (selector, body) VALUES (?, ?)", (_selector(limit), to_json(limit).decode()))


def oldest(db: sqlite3.Connection) -> float | None:
    """The earliest due time of all that waits: of each lane and priority only the first entry of the index is read."""
    times = [db.execute(schema.FIRST_LATER).fetchone()[0]]
    for (lane,) in db.execute(schema.PENDING_LANES).fetchall():
        below = 1001
        while row := db.execute(schema.OLDEST_BELOW, (lane, below)).fetchone():
            below = row[0]
            times.append(row[1])
    return min((time for time in times if time is not None), default=None)


def _share(db: sqlite3.Connection) -> Share:
    marks = dict(db.execute(schema.SHARE).fetchall())
    return Share(marks, marks.pop(_NOW, 0.0))


def _keep_gates(db: sqlite3.Connection, gates: list[Gate], now: float) -> None:
    for gate in gates:
        selector = _selector(gate.limit)
        db.execute("DELETE FROM bucket WHERE selector = ?", (selector,))
        db.executemany(schema.SET_BUCKET, [(selector, bucket, at) for bucket, at in gate.owed(now).items()])


def _selector(limit: Limit) -> str:
    return to_json(limit.selector).decode()

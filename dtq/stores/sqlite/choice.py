"""Choice: choose the waiting tasks that a claim takes from a SQLite database.

It reads the lanes of each kind (queue and type, with a limit key or without) in the order of an index:

    BEST_LANES    a few more lanes than the claim wants tasks; enough if the kind has no more lanes than that
    OF_TIER       else tier after tier: (priority 5, mark 7), (priority 5, mark 8), (priority 1, mark 0), ...

A tier holds the lanes of one priority whose keys have the same mark. Marks up to `now` count as `now`, so their tiers
are merged by due time and insertion; tiers with a mark ahead follow. LEVEL sets old marks to 0, some in each claim, so
there are few tiers. See dtq.policy.picking for the rule.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from heapq import merge
from math import inf

from dtq.policy.limits import Kind, Lane
from dtq.policy.picking import Entry, Gate, Head, Picked, Share, closed_until, pick
from dtq.stores.sqlite import schema
from dtq.stores.sqlite.lanes import read_gates, selector_of
from dtq.stores.sqlite.rows import about

Row = tuple[int, float, float, int, int, str]  # first, mark, run_at, seq, id, key
ROWS_PER_CLAIM = 64  # lanes, buckets and marks that a claim moves or drops, and two more for each task asked for
NOW = "\0"  # in place of a key, in the table of shares: the mark of the key served last


class Choice:
    """The choice of one claim, within its transaction."""

    def __init__(
        self, db: sqlite3.Connection, n: int, now: float, types: Collection[str], queues: Collection[str]
    ) -> None:
        self.db = db
        self.n = n
        self.now = now
        self.step = ROWS_PER_CLAIM + 2 * n
        self.numbers: dict[Lane, int] = {}  # the lanes that were read
        rows = about(db, schema.WAITING_KINDS, [*types], now).fetchall()
        self.share = Share(rows[0][3] if rows else 0.0)
        self.has_moves = any(row[4] for row in rows)  # some lanes must be opened, or merged into the first tier
        self.kinds = [row for row in rows if not queues or row[1] in queues]

    def doomed(self) -> list[int]:
        """Return the sequence numbers of up to n doomed tasks."""
        seqs: list[int] = []
        for kind, _, _, _, _, has_doomed, *_ in self.kinds:
            if has_doomed:
                seqs += [seq for (seq,) in self.db.execute(schema.DOOMED_OF, (kind, self.n - len(seqs)))]
        return seqs

    def pick(self, n: int, lowest: float) -> list[int]:
        """Return the sequence numbers of up to n ready tasks, best first, down to the -priority `lowest`."""
        if n <= 0 or not self.kinds:
            return []
        if self.has_moves:
            self.db.execute(schema.OPEN_AGAIN, (self.now, self.step))
            self.db.execute(schema.LEVEL, (self.share.now, self.step))
        gates, now = read_gates(self.db), self.share.now
        lanes: dict[Kind, Iterator[Entry]] = {}
        for kind, queue, type, _, _, _, with_key, until, *plain in self.kinds:
            if plain[0] is not None and plain[0] <= lowest and until <= self.now:
                lanes[queue, type, ""] = self._entries((queue, type), iter([plain]), now)
            if with_key or self.has_moves:
                lanes[queue, type, "*"] = self._entries((queue, type), self._rows(kind, lowest, now), now)
        picked = pick(lanes, n, self.now, gates, self.share, lambda lane: self._behind(lane, -lowest))
        self._keep(picked, gates)
        return [head[2] for _, head in picked.heads]

    # --- lanes of a kind, best first

    def _entries(self, kind: tuple[str, str], rows: Iterator[Row], now: float) -> Iterator[Entry]:
        for first, mark, run_at, seq, number, key in rows:
            lane = (*kind, key)
            self.numbers[lane] = number
            if mark > self.share.now:
                self.share.ahead[key] = None
            yield first, max(mark, now), (first, run_at, seq), lane

    def _rows(self, kind: int, lowest: float, now: float) -> Iterator[Row]:
        """Read a few lanes. If these are all, sort them here, else read tier by tier."""
        some = self.n + 8
        few: list[Row] = self.db.execute(schema.BEST_LANES, (kind, some)).fetchall()
        few.sort(key=lambda row: (row[0], max(row[1], now), row[2], row[3]))
        for row in few if len(few) < some else self._by_tier(kind, now):
            if row[0] > lowest:
                return
            yield row

    def _by_tier(self, kind: int, now: float) -> Iterator[Row]:
        tier = self._next_tier(kind, (-inf, 0.0))
        while tier:
            priority = tier[0]
            together: list[Iterator[Row]] = []
            while tier and tier[0] == priority and (tier[1] <= now or not together):
                together.append(self._of_tier(kind, tier))
                is_ahead, tier = tier[1] > now, self._next_tier(kind, tier)
                if is_ahead:
                    break
            yield from merge(*together, key=lambda row: row[2:4])

    def _next_tier(self, kind: int, tier: tuple[float, float]) -> tuple[float, float] | None:
        row: tuple[float, float] | None = self.db.execute(schema.NEXT_MARK, (kind, *tier)).fetchone()
        return row or self.db.execute(schema.NEXT_PRIORITY, (kind, tier[0])).fetchone()

    def _of_tier(self, kind: int, tier: tuple[float, float]) -> Iterator[Row]:
        some, at = self.n + 1, (-inf, 0)
        while rows := self.db.execute(schema.OF_TIER, (kind, *tier, *at, some)).fetchall():
            yield from rows
            if len(rows) < some:
                return
            at, some = rows[-1][2:4], 4 * some

    def _behind(self, lane: Lane, lowest: float) -> Iterator[Head]:
        """Yield the ready tasks of a lane after its first: a few at first, more with each further read."""
        number, at = self.numbers[lane], 1
        some = max(4, self.n // len(self.numbers))
        while heads := self.db.execute(schema.HEADS, (number, lowest, some, at)).fetchall():
            yield from heads
            if len(heads) < some:
                return
            at, some = at + len(heads), min(4 * some, 512)

    # --- store the result

    def _keep(self, picked: Picked, gates: list[Gate]) -> None:
        closed = [(until, self.numbers[lane]) for lane, until in picked.closed.items()]
        if any(gate.limit.key is not None for gate in gates):
            closed += self._used_up({lane[2] for lane, _ in picked.heads}, gates)
        for until, number in closed:
            self.db.execute(schema.CLOSE, (until, number))
        if picked.served:
            self._keep_share(picked.served)
        for gate in gates:
            if gate.used:
                selector = selector_of(gate.limit)
                self.db.executemany(schema.SET_BUCKET, [(selector, bucket, at) for bucket, at in gate.used.items()])
                self.db.execute(schema.DROP_FULL, (selector, self.now, self.step))

    def _used_up(self, keys: set[str], gates: list[Gate]) -> Iterator[tuple[float, int]]:
        """Yield the lanes of served keys that limits close now, as (closed until, number of the lane)."""
        for key in keys:
            for number, queue, type in self.db.execute(schema.LANES_OF_KEY, (key,)).fetchall():
                if (until := closed_until((queue, type, key), gates)) > self.now:
                    yield until, number

    def _keep_share(self, served: dict[str, float]) -> None:
        now = self.share.now
        marks = [(key, mark if mark > now else 0.0) for key, mark in served.items()]
        self.db.executemany(schema.SET_SHARE, [(NOW, now), *marks])
        self.db.executemany(schema.SET_MARK, [(mark, key) for key, mark in marks])
        self.db.execute(schema.DROP_SHARES, (now, NOW, self.step))

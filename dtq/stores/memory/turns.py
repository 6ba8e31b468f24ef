"""Turns: which lane of an Index is served next: limits, shares, counters, and the order of the lanes.

    a task changes --> counters, ReadyQueue.touched --_place_lanes--> LaneOrder
    claim          --> wake, level --> LaneOrder --lanes, best first--> picking.pick --> marks, buckets, closed lanes

Unused keys cost nothing: a full bucket is dropped, a mark is kept only while it is ahead, and a lane without a ready
task has no place.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from math import inf
from typing import Any

from dtq.policy.limits import EACH, Kind, Lane, Limit, Selector
from dtq.policy.picking import Gate, Picked, Share, closed_until, pick
from dtq.stores.memory.lane_order import LaneOrder
from dtq.stores.memory.ready import ReadyQueue
from dtq.task.model import PROCESSING, Task

LANES_PER_CLAIM = 64  # lanes that a claim opens or merges into one tier, plus two for each task asked for


class Turns:
    """The part of Index that orders and limits lanes."""

    def __init__(self) -> None:
        self._limits: dict[Selector, Limit] = {}
        self._next_at: dict[Selector, OrderedDict[str, float]] = defaultdict(OrderedDict)  # least recently used first
        self._share = Share()
        self._begin_to_count()

    def _begin_to_count(self) -> None:
        """Clear everything that is derived from the tasks."""
        self._order = LaneOrder()
        self._counts: Counter[tuple[str, str, str]] = Counter()  # by queue, type and status
        self._running: Counter[Lane] = Counter()

    def _count(self, task: Task, by: int) -> None:
        self._counts[task.queue, task.type, task.status] += by
        if task.status == PROCESSING:
            lane = task.lane
            self._running[lane] += by
            if by < 0:
                self._order.free(lane[2])
            if not self._running[lane]:
                del self._running[lane]

    def _open_lanes(self, now: float, n: int) -> None:
        """Before a claim of n tasks, move a bounded number of lanes to their present places."""
        self._order.wake(now, LANES_PER_CLAIM + 2 * n)
        self._order.level(self._share.now, LANES_PER_CLAIM + 2 * n)

    def _choose(self, queue: ReadyQueue, kinds: Iterable[Kind], n: int, now: float, min_priority: int | None) -> Picked:
        lowest = inf if min_priority is None else -min_priority
        streams = {kind: self._order.stream(kind, self._share.now, lowest) for kind in kinds}
        gates = self._gates()
        picked = pick(streams, n, now, gates, self._share, partial(queue.behind, lowest=lowest))
        self._mark(picked.served, self._share.now)
        for gate in gates:
            self._use(gate.limit.selector, gate.used, now)
        for lane, until in picked.closed.items():
            self._order.put(lane, self._order.places[lane].head, until=until)
        for key in {lane[2] for lane, _ in picked.heads} if gates else ():
            self._close_full(key, gates, now)
        return picked

    def _close_full(self, key: str, gates: list[Gate], now: float) -> None:
        """Close those lanes of a served key whose limits are reached."""
        for lane in self._order.lanes_of(key):
            if (until := closed_until(lane, gates)) > now:
                self._order.put(lane, self._order.places[lane].head, until=until)

    def _mark(self, served: Mapping[str, float], now: float) -> None:
        """Update the marks of these keys, which were served up to the mark `now`."""
        for key in served:
            for lane in self._order.lanes_of(key):
                self._order.put(lane, self._order.places[lane].head, mark=self._mark_of(key))

    def _mark_of(self, key: str) -> float:
        """Return the mark of a key that is ahead, else 0."""
        return self._share.mark(key) if key in self._share.ahead else 0.0

    def _use(self, selector: Selector, used: Mapping[str, float], now: float) -> None:
        """Store the times at which these buckets of a limit are full again. Drop some that are full."""
        buckets = self._next_at[selector]
        for bucket, at in used.items():
            buckets[bucket] = at
            buckets.move_to_end(bucket)
        for _ in range(LANES_PER_CLAIM):
            if not buckets or next(iter(buckets.values())) > now:
                break
            buckets.popitem(last=False)

    def _gates(self) -> list[Gate]:
        return [
            Gate(limit, partial(self._count_running, limit), partial(self._full_at, limit))
            for limit in self._limits.values()
        ]

    def _full_at(self, limit: Limit, bucket: str) -> float:
        return self._next_at[limit.selector].get(bucket, 0.0)

    def _count_running(self, limit: Limit, bucket: str) -> int:
        key = bucket if limit.key == EACH else limit.key
        kinds = [
            (queue, type)
            for queue, type, status in self._counts
            if status == PROCESSING and limit.queue in (None, queue) and limit.type in (None, type)
        ]
        if key is None:
            return sum(self._counts[*kind, PROCESSING] for kind in kinds)
        return sum(self._running[*kind, key] for kind in kinds if (*kind, key) in self._running)

    def _place_lanes(self, queue: ReadyQueue) -> None:
        """Update the order of the lanes that have changed."""
        while queue.touched:
            lane, _ = queue.touched.popitem()
            head = queue.first(lane)
            if head is None or lane in self._order.places:
                self._order.put(lane, head)
            else:
                until = closed_until(lane, self._gates()) if self._limits else 0.0
                self._order.put(lane, head, self._mark_of(lane[2]), until)

    def _openings(self, now: float) -> list[float]:
        """Return the times at which rates let more tasks start."""
        times = [gate.opens_at("") for gate in self._gates() if gate.limit.key is None]
        opening = self._order.next_opening()
        return [at for at in times if at > now] + ([opening] if opening < inf else [])

    def set_lane(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, **changes: Any
    ) -> None:
        self._set_limit(self._limit((queue, type, key)).with_changes(changes))

    def _limit(self, selector: Selector) -> Limit:
        return self._limits.get(selector) or Limit(*selector)

    def _set_limit(self, limit: Limit) -> None:
        if limit.rate != self._limit(limit.selector).rate:  # debts to the old rate are dropped
            self._next_at.pop(limit.selector, None)
        self._limits[limit.selector] = limit
        if limit.is_void:
            del self._limits[limit.selector]
            self._next_at.pop(limit.selector, None)
        if limit.key is not None:  # lanes that the limit has closed
            for lane in [lane for lane, place in self._order.places.items() if place.until and limit.covers(lane)]:
                self._order.reopen(lane)

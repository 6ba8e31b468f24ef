"""LaneOrder: the lanes of an Index that have ready tasks, in the order in which a claim serves them.

                 kind (queue, type, with a limit key or without)
                   |
                   v
    open lanes     tier (priority 5, mark 0)   heap of lanes by their first task     a claim reads as many lanes
                   tier (priority 5, mark 8)   heap                                  as it serves, from the top
                   tier (priority 1, mark 0)   heap
                      ^          |
           wake       |          | close: a limit of the lane is reached
                      |          v
    closed lanes   by the time at which they may open; infinity: the end of a task or a new limit opens them

- A lane has the priority of its first task. Within a priority, the lanes whose key has no mark ahead of the
  share's `now` are served first, by due time and insertion. A lane that is served gets the mark `now + 1`. When `now`
  grows, that whole tier counts as `now` without a change; `level` merges old tiers into one, some lanes at a time.
- A heap is never searched: an entry whose lane has another place by now is stale, and is dropped when it comes up.
- A lane among the open ones may be closed (a claim finds out and closes it), but never the other way round.
- A lane without a ready task is not here.

All of this follows from tasks, limits and marks, and can be built again at any time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace, merge
from math import inf
from typing import NamedTuple, TypeVar

from dtq.policy.limits import Kind, Lane, kind_of
from dtq.policy.picking import Entry, Head

LONG_PAST = 1.0  # a time: the next claim opens the lane
MAX_STALE = 64  # entries of a tier, beyond one for each lane, before its heap is rebuilt
T = TypeVar("T")
HeapEntry = tuple[float, int, Lane]  # run_at and insertion number of the first task, and its lane


def in_order(heap: list[T]) -> Iterator[T]:
    """Yield the entries of a heap, smallest first, without changing it."""
    ahead = [(heap[0], 0)] if heap else []
    while ahead:
        entry, at = ahead[0]
        yield entry
        below = 2 * at + 1
        if below < len(heap):
            heapreplace(ahead, (heap[below], below))
        else:
            heappop(ahead)
        if below + 1 < len(heap):
            heappush(ahead, (heap[below + 1], below + 1))


class Place(NamedTuple):
    """The place of a lane: in a tier of its kind, or closed if `until` is more than 0."""

    head: Head
    mark: float = 0.0
    until: float = 0.0


class Tier:
    """The open lanes of one kind, priority and mark."""

    def __init__(self) -> None:
        self.lanes: set[Lane] = set()
        self.heap: list[HeapEntry] = []


class LaneOrder:
    """Keeps the place of each lane that has a task ready."""

    def __init__(self) -> None:
        self.places: dict[Lane, Place] = {}
        self._of_key: dict[str, dict[Lane, None]] = {}
        self._tiers: dict[Kind, dict[tuple[int, float], Tier]] = {}
        self._order: dict[Kind, list[tuple[int, float]]] = {}  # the names of the tiers, best first
        self._closed: list[tuple[float, Lane]] = []  # a heap
        self._marked: dict[float, dict[Lane, None]] = {}  # open lanes by mark

    def lanes_of(self, key: str) -> list[Lane]:
        return list(self._of_key.get(key, ()))

    # --- a lane changes its place

    def put(self, lane: Lane, head: Head | None, mark: float | None = None, until: float | None = None) -> None:
        """Set the first task of the lane (None: it has none). None keeps the mark or `until`."""
        old = self.places.get(lane)
        new = None
        if head is not None:
            known = old or Place(head)
            new = Place(head, known.mark if mark is None else mark, known.until if until is None else until)
        if new == old:
            return
        if old is not None:
            self._take_out(lane, old)
        if new is not None:
            self._put_in(lane, new)

    def _take_out(self, lane: Lane, place: Place) -> None:
        del self.places[lane]
        of_key = self._of_key[lane[2]]
        del of_key[lane]
        if not of_key:
            del self._of_key[lane[2]]
        if place.until:
            return
        kind, name = kind_of(lane), (place.head[0], place.mark)
        tier = self._tiers[kind][name]
        tier.lanes.discard(lane)
        self._drop(kind, name, tier)
        if place.mark:
            marked = self._marked.get(place.mark, {})
            marked.pop(lane, None)
            if not marked:
                self._marked.pop(place.mark, None)

    def _drop(self, kind: Kind, name: tuple[int, float], tier: Tier) -> None:
        """Drop the tier if it is empty; rebuild its heap if most of it is stale."""
        if not tier.lanes:
            del self._tiers[kind][name]
            order = self._order[kind]
            del order[bisect_left(order, name)]
            if not order:
                del self._tiers[kind], self._order[kind]
        elif len(tier.heap) > 2 * len(tier.lanes) + MAX_STALE:
            tier.heap = [(*self.places[lane].head[1:], lane) for lane in tier.lanes]
            heapify(tier.heap)

    def _put_in(self, lane: Lane, place: Place) -> None:
        self.places[lane] = place
        self._of_key.setdefault(lane[2], {})[lane] = None
        if place.until:
            self._close(place.until, lane)
            return
        kind, name = kind_of(lane), (place.head[0], place.mark)
        tiers = self._tiers.setdefault(kind, {})
        if name not in tiers:
            tiers[name] = Tier()
            insort(self._order.setdefault(kind, []), name)
        tiers[name].lanes.add(lane)
        heappush(tiers[name].heap, (*place.head[1:], lane))
        if place.mark:
            self._marked.setdefault(place.mark, {})[lane] = None

    def _close(self, until: float, lane: Lane) -> None:
        if until < inf:
            heappush(self._closed, (until, lane))
        if len(self._closed) > 2 * len(self.places) + MAX_STALE:
            self._closed = [(place.until, lane) for lane, place in self.places.items() if 0 < place.until < inf]
            heapify(self._closed)

    # --- in bounded steps

    def wake(self, now: float, limit: int) -> None:
        """Open up to `limit` lanes whose time has come."""
        while self._closed and self._closed[0][0] <= now and limit > 0:
            until, lane = heappop(self._closed)
            place = self.places.get(lane)
            if place and place.until == until:
                self.put(lane, place.head, until=0.0)
                limit -= 1

    def level(self, now: float, limit: int) -> None:
        """Move up to `limit` lanes with an old mark to the first tier, newest mark first."""
        while limit > 0 and (mark := self._newest_before(now)):
            lane, _ = self._marked[mark].popitem()
            self.put(lane, self.places[lane].head, mark=0.0)
            limit -= 1

    def _newest_before(self, now: float) -> float:
        return max((mark for mark in self._marked if mark < now), default=0.0)

    def reopen(self, lane: Lane) -> None:
        """Make the next claims check whether this lane is still closed, a bounded number of lanes each."""
        if (place := self.places[lane]).until:
            self.put(lane, place.head, until=LONG_PAST)

    def free(self, key: str) -> None:
        """Open the lanes of this key that were full, as one of its tasks has ended."""
        for lane in self.lanes_of(key):
            if (place := self.places[lane]).until == inf:
                self.put(lane, place.head, until=0.0)

    # --- look

    def kinds(self) -> list[Kind]:
        return list(self._order)

    def stream(self, kind: Kind, now: float, lowest: float) -> Iterator[Entry]:
        """Yield the open lanes of this kind, best first, down to this -priority. `now` is the mark of the share."""
        names, at = self._order.get(kind, []), 0
        while at < len(names) and names[at][0] <= lowest:
            priority = names[at][0]
            fresh: list[Iterator[HeapEntry]] = []
            while at < len(names) and names[at][0] == priority:
                if names[at][1] > now and fresh:
                    break
                fresh.append(self._in_order(kind, names[at]))
                at += 1
                if names[at - 1][1] > now:
                    break
            mark = max(now, names[at - 1][1])
            for run_at, number, lane in fresh[0] if len(fresh) == 1 else merge(*fresh):
                yield priority, mark, (priority, run_at, number), lane

    def _in_order(self, kind: Kind, name: tuple[int, float]) -> Iterator[HeapEntry]:
        heap, last = self._tiers[kind][name].heap, None
        while not self._is_current(heap[0], name):
            heappop(heap)
        for entry in in_order(heap):
            if entry != last and self._is_current(entry, name):
                yield (last := entry)

    def _is_current(self, entry: HeapEntry, name: tuple[int, float]) -> bool:
        place = self.places.get(entry[2])
        return place is not None and not place.until and (place.head, place.mark) == ((name[0], *entry[:2]), name[1])

    def next_opening(self) -> float:
        """Return when the next closed lane may open; infinity if none will by itself."""
        while self._closed:
            until, lane = self._closed[0]
            place = self.places.get(lane)
            if place and place.until == until:
                return until
            heappop(self._closed)
        return inf

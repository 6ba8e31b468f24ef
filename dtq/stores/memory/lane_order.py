"""LaneOrder: the lanes of an Index in which something may be claimed, in the order in which they would be served.

                 kind (queue, type, with a limit key or without)
                   |
                   v
    open lanes     shelf (priority 5, mark 0)   heap of lanes by their first task     a claim reads from here:
                   shelf (priority 5, mark 8)   heap                                  as many lanes as it serves
                   shelf (priority 1, mark 0)   heap
                      ^          |
           wake       |          | close: its own limit is reached
                      |          v
    closed lanes   by the time at which they may open; infinity where only the end of a task, or a new limit, opens them

- A lane stands under the priority of its first task. Within a priority, the lanes whose key has no mark ahead of the
  share's `now` are served first, by due time and insertion. A lane that is served gets the mark `now + 1`. When `now`
  grows, that whole shelf counts as `now` without a change; `level` merges old shelves into one, some lanes at a time.
- A heap is never searched: an entry that is not where its lane stands now is stale, and is dropped when it comes up.
- A closed lane may be among the open ones (a claim finds out and closes it), never the other way round.
- A lane without a task that is ready does not exist here.

Everything here follows from tasks, limits and marks, and may be thrown away and built anew.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace, merge
from math import inf
from typing import NamedTuple, TypeVar

from dtq.policy.limits import Entry, Head, Kind, Lane, kind_of

AT_ONCE = 1.0  # a time long past: the next claim is to look
SLACK = 64  # stale entries of a shelf, beyond one for each lane, after which it is made anew
T = TypeVar("T")
Spot = tuple[float, int, Lane]  # run_at and insertion number of the first task, and its lane


def in_order(heap: list[T]) -> Iterator[T]:
    """Yield the entries of a heap, smallest first, and leave it as it is: none is smaller than the one above it."""
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
    """Where a lane stands: on a shelf of its kind, or, if `until` is more than 0, closed."""

    head: Head
    mark: float = 0.0
    until: float = 0.0


class TaskFiles:
    """Open lanes of one kind, priority and mark."""

    def __init__(self) -> None:
        self.lanes: set[Lane] = set()
        self.heap: list[Spot] = []


class LaneOrder:
    """Keeps the place of each lane that has a task ready."""

    def __init__(self) -> None:
        self.places: dict[Lane, Place] = {}
        self._of_key: dict[str, dict[Lane, None]] = {}
        self._shelves: dict[Kind, dict[tuple[int, float], TaskFiles]] = {}
        self._order: dict[Kind, list[tuple[int, float]]] = {}  # the names of the shelves, best first
        self._closed: list[tuple[float, Lane]] = []  # a heap
        self._marked: dict[float, dict[Lane, None]] = {}  # open lanes by mark

    def lanes_of(self, key: str) -> list[Lane]:
        return list(self._of_key.get(key, ()))

    # --- a lane changes its place

    def put(self, lane: Lane, head: Head | None, mark: float | None = None, until: float | None = None) -> None:
        """The first task of the lane is this one now (None: it has none); mark and `until` stay where they are None."""
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
        shelf = self._shelves[kind][name]
        shelf.lanes.discard(lane)
        self._drop(kind, name, shelf)
        if place.mark:
            marked = self._marked.get(place.mark, {})
            marked.pop(lane, None)
            if not marked:
                self._marked.pop(place.mark, None)

    def _drop(self, kind: Kind, name: tuple[int, float], shelf: TaskFiles) -> None:
        """Drop the shelf if it is empty; make its heap anew if most of it is stale."""
        if not shelf.lanes:
            del self._shelves[kind][name]
            order = self._order[kind]
            del order[bisect_left(order, name)]
            if not order:
                del self._shelves[kind], self._order[kind]
        elif len(shelf.heap) > 2 * len(shelf.lanes) + SLACK:
            shelf.heap = [(*self.places[lane].head[1:], lane) for lane in shelf.lanes]
            heapify(shelf.heap)

    def _put_in(self, lane: Lane, place: Place) -> None:
        self.places[lane] = place
        self._of_key.setdefault(lane[2], {})[lane] = None
        if place.until:
            self._close(place.until, lane)
            return
        kind, name = kind_of(lane), (place.head[0], place.mark)
        shelves = self._shelves.setdefault(kind, {})
        if name not in shelves:
            shelves[name] = TaskFiles()
            insort(self._order.setdefault(kind, []), name)
        shelves[name].lanes.add(lane)
        heappush(shelves[name].heap, (*place.head[1:], lane))
        if place.mark:
            self._marked.setdefault(place.mark, {})[lane] = None

    def _close(self, until: float, lane: Lane) -> None:
        if until < inf:
            heappush(self._closed, (until, lane))
        if len(self._closed) > 2 * len(self.places) + SLACK:
            self._closed = [(place.until, lane) for lane, place in self.places.items() if 0 < place.until < inf]
            heapify(self._closed)

    # --- in bounded steps

    def wake(self, now: float, most: int) -> None:
        """Let up to `most` lanes in again that may be open now."""
        while self._closed and self._closed[0][0] <= now and most > 0:
            until, lane = heappop(self._closed)
            place = self.places.get(lane)
            if place and place.until == until:
                self.put(lane, place.head, until=0.0)
                most -= 1

    def level(self, now: float, most: int) -> None:
        """Move up to `most` lanes whose mark is an old one to the first shelf, the newest of them first."""
        while most > 0 and (mark := self._newest_before(now)):
            lane, _ = self._marked[mark].popitem()
            self.put(lane, self.places[lane].head, mark=0.0)
            most -= 1

    def _newest_before(self, now: float) -> float:
        return max((mark for mark in self._marked if mark < now), default=0.0)

    def reopen(self, lane: Lane) -> None:
        """Let the next claims find out whether this lane is closed still, a bounded number of lanes each."""
        if (place := self.places[lane]).until:
            self.put(lane, place.head, until=AT_ONCE)

    def free(self, key: str) -> None:
        """A task under this key has ended: let in again what was full."""
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
            fresh: list[Iterator[Spot]] = []
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

    def _in_order(self, kind: Kind, name: tuple[int, float]) -> Iterator[Spot]:
        heap, last = self._shelves[kind][name].heap, None
        while not self._stands(heap[0], name):
            heappop(heap)
        for spot in in_order(heap):
            if spot != last and self._stands(spot, name):
                yield (last := spot)

    def _stands(self, spot: Spot, name: tuple[int, float]) -> bool:
        place = self.places.get(spot[2])
        return place is not None and not place.until and (place.head, place.mark) == ((name[0], *spot[:2]), name[1])

    def next_opening(self) -> float:
        """Return when the next closed lane may open; infinity if none will by itself."""
        while self._closed:
            until, lane = self._closed[0]
            place = self.places.get(lane)
            if place and place.until == until:
                return until
            heappop(self._closed)
        return inf

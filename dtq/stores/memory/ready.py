"""ReadyQueue: the tasks of an Index that wait, in heaps of entries with the number of a task.

    enter --> later, by time -----move_due---> ready, a heap for each lane --first, behind--> the next tasks
          --> (already due when added) ------>
          --> expiring, by time --expired----> doomed, by queue and type ------doomed-------> tasks to be ended

A heap is never searched: an entry whose task has changed since is stale, and is dropped when it comes up. `touched`
holds the lanes whose first task may have changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from heapq import heappop, heappush
from itertools import islice

from dtq.policy.limits import Lane
from dtq.policy.picking import Head
from dtq.stores.memory.lane_order import in_order
from dtq.task.model import WAITING, Status, Task

Entry = tuple[float, int]  # a time, and the number of a task
DUE = (Status.PENDING, Status.RETRYING)


class ReadyQueue:
    """Holds the waiting tasks. `task_of` returns the stored task of a number, or None."""

    def __init__(self, task_of: Callable[[int], Task | None]) -> None:
        self._task_of = task_of
        self._later: list[Entry] = []
        self._ready: dict[Lane, list[Head]] = defaultdict(list)
        self._oldest: list[Entry] = []  # of the ready ones, by due time
        self._expiring: list[Entry] = []
        self._doomed: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)  # id -> number
        self.touched: dict[Lane, None] = {}

    def enter(self, task: Task, number: int) -> None:
        if task.doom:
            self._doomed[task.queue, task.type][task.id] = number
        elif task.status in DUE and task.run_at <= task.created_at:  # now: the clock may be set back before a claim
            self._be_ready(task, number)
        elif task.status in DUE:
            heappush(self._later, (task.run_at, number))
        if task.expires is not None:
            heappush(self._expiring, (task.expires, number))

    def leave(self, task: Task) -> None:
        """Stop offering the task. Its entries stay in the heaps, stale."""
        if task.doom:
            self._doomed[task.queue, task.type].pop(task.id, None)
        self.touched[task.lane] = None

    def move_due(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            run_at, number = heappop(self._later)
            if task := self._due(run_at, number):
                self._be_ready(task, number)
        self._drop_stale(self._oldest)

    def _be_ready(self, task: Task, number: int) -> None:
        heappush(self._ready[task.lane], (-task.priority, task.run_at, number))
        self.touched[task.lane] = None
        heappush(self._oldest, (task.run_at, number))

    def expired(self, now: float) -> Iterator[Task]:
        """Remove and yield the waiting tasks that have expired."""
        while self._expiring and self._expiring[0][0] <= now:
            expires, number = heappop(self._expiring)
            task = self._task_of(number)
            if task and task.status in WAITING and task.expires == expires and not task.doom:
                yield task

    def doomed(self, types: Collection[str], queues: Collection[str], n: int) -> list[Task]:
        """Return up to n doomed tasks of these types and queues (any queue if `queues` is empty)."""
        of_kinds = [found for (queue, type), found in self._doomed.items() if type in types]
        if queues:
            of_kinds = [found for (queue, type), found in self._doomed.items() if type in types and queue in queues]
        numbers = (number for found in of_kinds for number in found.values())
        return [task for task in map(self._task_of, islice(numbers, n)) if task]

    def lanes(self) -> list[Lane]:
        return list(self._ready)

    def first(self, lane: Lane) -> Head | None:
        """Return the best ready task of this lane. Drop a lane that has none."""
        ready = self._ready.get(lane, [])
        while ready and not self._is_ready(ready[0]):
            heappop(ready)
        if not ready:
            self._ready.pop(lane, None)
            return None
        return ready[0]

    def behind(self, lane: Lane, lowest: float) -> Iterator[Head]:
        """Yield the ready tasks of this lane that come after its first, best first, down to this -priority."""
        last = None
        for head in in_order(self._ready[lane]):
            if head[0] > lowest:
                return
            if last is None:
                last = head
            elif head != last and self._is_ready(head):
                yield (last := head)

    def _is_ready(self, head: Head) -> bool:
        task = self._due(head[1], head[2])
        return task is not None and task.priority == -head[0]

    def oldest(self) -> float | None:
        """Return the earliest due time of all pending and retrying tasks."""
        self._drop_stale(self._oldest)
        return min((time for time in (self._first(self._oldest), self.next_due()) if time is not None), default=None)

    def next_due(self) -> float | None:
        """Return the time at which the next scheduled task becomes due."""
        self._drop_stale(self._later)
        return self._first(self._later)

    def next_expiry(self) -> float | None:
        return self._first(self._expiring)

    def _first(self, heap: list[Entry]) -> float | None:
        return heap[0][0] if heap else None

    def _drop_stale(self, heap: list[Entry]) -> None:
        while heap and not self._due(*heap[0]):
            heappop(heap)

    def _due(self, run_at: float, number: int) -> Task | None:
        """Return the task of an entry, or None if the entry is stale."""
        task = self._task_of(number)
        return task if task and task.status in DUE and not task.doom and task.run_at == run_at else None

"""Which worker gets which call: the pool's offers to the loop, and its choice.

    wants:  for each step of the pace --> the room that open workers have
    place:  tasks --> one by one to the worker with the least load; of equals, to the one that waits longest

Load is counted in windows: a call of a type with a window of 64 weighs 1/64, a slow one weighs 1, and that is full.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import count

from dtq.task.codec import to_json
from dtq.task.model import Task
from dtq.workers import wire
from dtq.workers.backend import Report, Returned, unfit
from dtq.workers.process.prefetch import Prefetch, TypeProfile
from dtq.workers.process.process import InFlight, WorkerProcess

Heap = list[tuple[float, int, WorkerProcess]]  # load, turn: the least comes first
NONE: Mapping[str, bytes] = {}  # of the tasks had parents


class Dispatcher:
    """Knows all members and the pace of all types; sends nothing."""

    def __init__(self, members: Mapping[int, WorkerProcess], pace: Prefetch) -> None:
        self._members = members
        self._pace = pace
        self._numbers = count(1)
        self._turns = count(1)

    def capacity(self, now: float) -> Iterator[tuple[int, frozenset[str]]]:
        """How many calls of which types there is room for, step by step; what was placed in between counts."""
        for window, parallel, types in self._pace.steps():
            candidates = [member for member in self._members.values() if member.is_open_for(types, parallel, now)]
            if room := sum(member.room(window, parallel) for member in candidates):
                yield int(room), types

    def place(
        self, tasks: Sequence[Task], now: float, parents: Mapping[str, bytes] = NONE
    ) -> tuple[dict[WorkerProcess, list[wire.Call]], list[Report]]:
        """The new calls of each member, in the order of the tasks; and reports of tasks without a worker, and of tasks
        that cannot be written as a call."""
        heaps: dict[str, Heap] = {}  # parallel types have one each, as not every worker may be open for them
        placed: dict[WorkerProcess, list[wire.Call]] = {}
        others: list[Report] = []
        for task in tasks:
            gait = self._pace.gait(task.type)
            side = task.type if gait.parallel else ""
            if side not in heaps:
                heaps[side] = self._takers(task.type, gait.parallel, now)
            if not heaps[side]:
                others.append(Returned(task))
                continue
            try:
                payload = to_json(task.payload)
            except Exception as error:
                others.append(unfit(task, error))
                continue
            handed = parents.get(task.id, b"") if parents else b""
            member, number = self._assign(task, gait, heaps[side], now)
            call = wire.Call(number, task.id, task.type, payload, task.attempts, task.timeout, handed)
            placed.setdefault(member, []).append(call)
        return placed, others

    def _takers(self, type: str, parallel: bool, now: float) -> Heap:
        """Who may get such calls; where nobody should, whoever lives."""
        alive = [m for m in self._members.values() if not m.is_leaving]
        candidates = (
            [m for m in alive if m.is_open_for({type}, parallel, now)] or [m for m in alive if m.ready] or alive
        )
        for member in candidates:
            member.turn = member.turn or next(self._turns)
        heap = [(member.loads[parallel], member.turn, member) for member in candidates]
        heapify(heap)
        return heap

    def _assign(self, task: Task, gait: TypeProfile, heap: Heap, now: float) -> tuple[WorkerProcess, int]:
        member = heap[0][2]
        number = next(self._numbers)
        member.turn = next(self._turns)
        member.take(number, InFlight(task, gait, gait.weight), now)
        if member.allowance < 1 and len(heap) > 1:
            heappop(heap)
        else:
            heapreplace(heap, (member.loads[gait.parallel], member.turn, member))
        return member, number

"""Dispatcher: offers room to the loop, and chooses the worker for each call.

    capacity:  for each step of the prefetch --> the room of the workers that accept calls
    place:     tasks --> one by one to the worker with the least load; of equals, to the one that waits longest

A call of a type with a prefetch of 64 adds 1/64 to the load of its worker, a slow call adds 1. At 1 a worker is full.
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
NO_PARENTS: Mapping[str, bytes] = {}


class Dispatcher:
    """Reads the workers of the supervisor and the prefetch of all types. Sends nothing."""

    def __init__(self, workers: Mapping[int, WorkerProcess], prefetch: Prefetch) -> None:
        self._workers = workers
        self._prefetch = prefetch
        self._numbers = count(1)
        self._turns = count(1)

    def capacity(self, now: float) -> Iterator[tuple[int, frozenset[str]]]:
        """Yield for each step how many calls of which types there is room for, after all that was placed so far."""
        for prefetch, parallel, types in self._prefetch.steps():
            candidates = [worker for worker in self._workers.values() if worker.is_open_for(types, parallel, now)]
            if room := sum(worker.room(prefetch, parallel) for worker in candidates):
                yield int(room), types

    def place(
        self, tasks: Sequence[Task], now: float, parents: Mapping[str, bytes] = NO_PARENTS
    ) -> tuple[dict[WorkerProcess, list[wire.Call]], list[Report]]:
        """Return the new calls of each worker, in the order of the tasks, and the reports of tasks that no worker can
        take, or that cannot be written as a call."""
        heaps: dict[str, Heap] = {}  # one for each parallel type, because not every worker may accept that type
        placed: dict[WorkerProcess, list[wire.Call]] = {}
        unplaced: list[Report] = []
        for task in tasks:
            profile = self._prefetch.profile(task.type)
            key = task.type if profile.parallel else ""
            if key not in heaps:
                heaps[key] = self._candidates(task.type, profile.parallel, now)
            if not heaps[key]:
                unplaced.append(Returned(task))
                continue
            try:
                payload = to_json(task.raw_payload)
            except Exception as error:
                unplaced.append(unfit(task, error))
                continue
            results = parents.get(task.id, b"") if parents else b""
            worker, number = self._assign(task, profile, heaps[key], now)
            call = wire.Call(number, task.id, task.type, payload, task.attempts, task.timeout, results)
            placed.setdefault(worker, []).append(call)
        return placed, unplaced

    def _candidates(self, type: str, parallel: bool, now: float) -> Heap:
        """Return the workers that accept such calls, or else all that are ready, or else all that are alive."""
        alive = [w for w in self._workers.values() if not w.is_leaving]
        candidates = (
            [w for w in alive if w.is_open_for({type}, parallel, now)] or [w for w in alive if w.is_ready] or alive
        )
        for worker in candidates:
            worker.turn = worker.turn or next(self._turns)
        heap = [(worker.loads[parallel], worker.turn, worker) for worker in candidates]
        heapify(heap)
        return heap

    def _assign(self, task: Task, profile: TypeProfile, heap: Heap, now: float) -> tuple[WorkerProcess, int]:
        worker = heap[0][2]
        number = next(self._numbers)
        worker.turn = next(self._turns)
        worker.take(number, InFlight(task, profile, profile.weight), now)
        if worker.allowance < 1 and len(heap) > 1:
            heappop(heap)
        else:
            heapreplace(heap, (worker.loads[profile.parallel], worker.turn, worker))
        return worker, number

"""Index: the rules of a store, in a handful of dictionaries and heaps, for one thread.

MemoryStore adds a lock for several threads; FileStore writes its changes to files. Index is the executable
specification: read it to learn the rules. A store that differs is wrong (a hypothesis state machine compares them).

    _tasks         every task, by id
    ReadyQueue     which tasks may be claimed, and when                       ready.py
    Turns          limits, shares and counters: which lane is served next     turns.py
    Dependencies   which tasks wait for which                                 dependencies.py
    _keys, _nodes  the ids that hold a key; the nodes
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from copy import copy
from heapq import nsmallest
from itertools import islice

from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.policy.limits import Kind
from dtq.stores.memory.dependencies import Dependencies
from dtq.stores.memory.ready import ReadyQueue
from dtq.stores.memory.turns import Turns
from dtq.stores.protocol import Node, Outcome, Stats, sum_counts
from dtq.task.model import PROCESSING, STATE, WAITING, Task, state_of
from dtq.task.transitions import brief_of

TASKS_PER_PURGE = 1000


class Index(Dependencies, Turns):
    """The methods of dtq.stores.protocol.Store, except those that wait or close."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks: dict[str, Task] = {}
        self._seq: dict[str, int] = {}  # order of insertion
        self._number = 0  # of the newest task
        self._deleted = 0  # the highest version that any deleted task had
        self._nodes: dict[str, Node] = {}
        self._derive()

    def _derive(self) -> None:
        """Build everything that follows from the tasks, their numbers and the parents they wait for."""
        self._id = {number: task_id for task_id, number in self._seq.items()}
        self._keys: dict[str, str] = {}
        self._forget_children()
        self._ready_queue = self._new_queue()
        self._processing: dict[str, None] = {}
        self._begin_to_count()
        for _, task_id in sorted(self._id.items()):
            task = self._tasks[task_id]
            if task.key is not None:
                self._keys[task.key] = task_id
            if task.after:
                self._link_parents(task)
            self._count(task, 1)
            self._enter(task)
        self._place_lanes(self._ready_queue)

    def _new_queue(self) -> ReadyQueue:
        return ReadyQueue(lambda number: self._tasks.get(self._id.get(number, "")))

    # --- add

    def add(self, tasks: Sequence[Task]) -> list[str]:
        self._require_parents(tasks)
        ids = self._add(tasks)
        self._place_lanes(self._ready_queue)
        return ids

    def _add(self, tasks: Sequence[Task]) -> list[str]:
        ids = [self._reserve_id(task) for task in tasks]
        stands_for = dict(zip((task.id for task in tasks), ids, strict=True))
        for task, task_id in zip(tasks, ids, strict=True):
            if task.id == task_id and task_id not in self._tasks:
                self._put(self._as_new(task, stands_for, self._deleted + 1))
        return ids

    def _require_parents(self, tasks: Sequence[Task], ceded: Collection[str | None] = ()) -> None:
        if not any(task.after for task in tasks):
            return
        parents = {parent for task in self._without_taken(tasks, ceded) for parent in task.after}
        if unknown := parents - {task.id for task in tasks} - self._tasks.keys():
            raise InvalidTask(
                f"after is {min(unknown)!r}; allowed: the id of a task that is stored, or added by the same call"
            )

    def _without_taken(self, tasks: Sequence[Task], ceded: Collection[str | None]) -> list[Task]:
        """Return the tasks that will be stored: their id and key are free, also among themselves. The present holders
        of the `ceded` keys are about to give them up."""
        free, ids, keys = [], set[str](), set[str | None]()
        for task in tasks:
            if (
                task.id not in self._tasks
                and task.id not in ids
                and (task.key not in self._keys or task.key in ceded)
                and task.key not in keys
            ):
                free.append(task)
                ids.add(task.id)
                keys.update([task.key] if task.key else [])
        return free

    def _reserve_id(self, task: Task) -> str:
        """Return the id that stands for the task: its own, or the id of the task that already has its id or key."""
        if task.id in self._seq:
            return task.id
        if task.key is not None and task.key in self._keys:
            return self._keys[task.key]
        self._number += 1
        self._register(task, self._number)
        return task.id

    def _register(self, task: Task, number: int) -> None:
        self._seq[task.id] = number
        self._id[number] = task.id
        if task.key is not None:
            self._keys[task.key] = task.id

    # --- one task changes

    def _put(self, task: Task) -> None:
        """Store the task, and update the counters, its parents and the ready queue."""
        old = self._tasks.get(task.id)
        if old is not None:
            self._count(old, -1)
            self._leave(old)
        self._count(task, 1)
        self._set(task)
        if task.after:
            self._link_parents(task)
        self._enter(task)

    def _enter(self, task: Task) -> None:
        if task.status in WAITING:
            self._ready_queue.enter(task, self._seq[task.id])
        elif task.status == PROCESSING:
            self._processing[task.id] = None

    def _leave(self, task: Task) -> None:
        if task.status in WAITING:
            self._ready_queue.leave(task)
        elif task.status == PROCESSING:
            self._processing.pop(task.id, None)

    def _set(self, task: Task) -> None:
        self._tasks[task.id] = task

    # --- claim

    def claim(
        self, worker: str, n: int, lease: float, now: float, types: Collection[str], queues: Collection[str] = (),
        min_priority: int | None = None,
    ) -> list[Task]:  # fmt: skip
        self._ready_queue.move_due(now)
        self._doom_expired(now)
        doomed = self._ready_queue.doomed(types, queues, n)
        self._place_lanes(self._ready_queue)
        self._open_lanes(now, n)
        kinds = [kind for kind in self._order.kinds() if kind[1] in types and (not queues or kind[0] in queues)]
        ready = self._pick(kinds, n - len(doomed), now, min_priority)
        taken = [self._take(task, worker, lease, now) for task in doomed + ready]
        self._place_lanes(self._ready_queue)
        return taken

    def _doom_expired(self, now: float) -> None:
        for task in self._ready_queue.expired(now):
            self._put(replace(task, doom="expired"))

    def _pick(self, kinds: Iterable[Kind], n: int, now: float, min_priority: int | None) -> list[Task]:
        picked = self._choose(self._ready_queue, kinds, n, now, min_priority)
        return [self._tasks[self._id[head[2]]] for _, head in picked.heads]

    def _take(self, task: Task, worker: str, lease: float, now: float) -> Task:
        taken = replace(
            task, status=PROCESSING, version=task.version + 1, attempts=task.attempts + (not task.doom),
            worker=worker, started_at=now, lease_until=now + lease, progress=0.0, note="",
        )  # fmt: skip
        self._put(taken)
        return taken

    # --- update

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        accepted = self._current(outcomes)
        planted = [task for _, successors in accepted.values() for task in successors]
        ceding = [id for id, (_, successors) in accepted.items() if self._cedes_key(id, successors)]
        self._require_parents(planted, {self._tasks[id].key for id in ceding})
        revived = [task.id for task, _ in accepted.values() if self._advance(task)]
        for task_id in revived:
            self._block_again(self._tasks[task_id])
        for task_id in ceding:
            self._give_up_key(self._tasks[task_id])
        self._add(planted)
        for task_id in accepted:
            if task_id in self._children:
                self._unblock_children(self._tasks[task_id])
        self._place_lanes(self._ready_queue)
        return set(accepted)

    def _current(self, outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
        """Return by id the outcomes that match the stored version; the first, if two match."""
        current: dict[str, Outcome] = {}
        for outcome in outcomes:
            stored = self._tasks.get(outcome[0].id)
            if stored is not None and stored.version == outcome[0].version:
                current.setdefault(stored.id, outcome)
        return current

    def _advance(self, task: Task) -> bool:
        """Apply the outcome. Return True if a terminal task waits again."""
        stored = self._tasks[task.id]
        state = dict(zip(STATE, state_of(task), strict=True))
        if stored.status == PROCESSING and task.status in WAITING:
            state["doom"] = task.doom or stored.doom  # its parent may have been deleted while it ran
        self._put(replace(stored, version=stored.version + 1, **state))
        return stored.is_terminal and task.status in WAITING

    def _cedes_key(self, task_id: str, successors: Iterable[Task]) -> bool:
        """Return True if a new task among these successors takes over the key of the task that adds them."""
        key = self._tasks[task_id].key
        return key is not None and any(s.key == key and s.id not in self._tasks for s in successors)

    def _give_up_key(self, task: Task) -> None:
        del self._keys[task.key]  # type: ignore[arg-type]
        self._set(replace(task, key=None))

    # --- leases

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        self._nodes[node.id] = replace(node, seen_at=now)
        if not lease:
            del self._nodes[node.id]
        return {task.id for task in held if not self._renew(task, lease, now)}

    def _renew(self, task: Task, lease: float, now: float) -> bool:
        stored = self._tasks.get(task.id)
        if stored is None or stored.status != PROCESSING:
            return False
        if (stored.version, stored.worker) != (task.version, task.worker):
            return False
        self._set(replace(stored, lease_until=now + lease, progress=task.progress, note=task.note))
        return True

    def reap(self, worker: str, n: int, lease: float, now: float, dead: Collection[str] = ()) -> list[Task]:
        """Take over expired tasks, and those of the `dead` nodes without waiting for their leases to end."""
        held = map(self._tasks.__getitem__, self._processing)
        lost = (task for task in held if (task.lease_until or 0) <= now or task.worker in dead)
        return [self._take_over(task, worker, lease, now) for task in list(islice(lost, n))]

    def _take_over(self, task: Task, worker: str, lease: float, now: float) -> Task:
        taken = replace(task, version=task.version + 1, worker=worker, lease_until=now + lease)
        self._put(taken)
        return taken

    # --- look

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        return self._shown(self._stored(ids), brief)

    def find(
        self, *, status: str | None = None, queue: str | None = None, type: str | None = None,
        finished_after: float | None = None, after: str = "", limit: int = 100, brief: bool = False,
    ) -> list[Task]:  # fmt: skip
        def wanted(task: Task) -> bool:
            return (
                task.id > after
                and status in (None, task.status)
                and queue in (None, task.queue)
                and type in (None, task.type)
                and (finished_after is None or (task.finished_at or 0) > finished_after)
            )

        return self._shown(nsmallest(limit, filter(wanted, self._tasks.values()), key=lambda task: task.id), brief)

    def _shown(self, found: Iterable[Task], brief: bool) -> list[Task]:
        return list(map(brief_of if brief else copy, found))

    def stats(self) -> Stats:
        rows = ((queue, type, str(status), n) for (queue, type, status), n in self._counts.items())
        return Stats(
            *sum_counts(rows), self._ready_queue.oldest(), list(self._nodes.values()), list(self._limits.values())
        )

    def next_due(self, now: float) -> float | None:
        expiry = self._ready_queue.next_expiry()
        times = [self._ready_queue.next_due(), expiry if expiry and expiry > now else None]
        times += self._openings(now)
        return min((time for time in times if time is not None), default=None)

    # --- removal

    def delete(self, ids: Iterable[str]) -> int:
        return self._remove(ids)

    def _remove(self, ids: Iterable[str]) -> int:
        gone = [task for task in self._stored(dict.fromkeys(ids)) if task.status != PROCESSING]
        self._deleted = max([self._deleted, *(task.version for task in gone)])
        for task in gone:
            self._delete(self._tasks[task.id])  # look it up again: it may be a child of one deleted before
        self._place_lanes(self._ready_queue)
        return len(gone)

    def _delete(self, task: Task) -> None:
        self._detach_children(task)
        self._forget(task)

    def _forget(self, task: Task) -> None:
        self._unlink_parents(task)
        self._count(task, -1)
        self._leave(task)
        del self._tasks[task.id], self._id[self._seq.pop(task.id)]
        if task.key is not None and self._keys.get(task.key) == task.id:
            del self._keys[task.key]

    def purge(self, before: float, statuses: Collection[str]) -> int:
        old = (
            t.id
            for t in self._tasks.values()
            if t.status in statuses and t.is_terminal and (t.finished_at or 0) < before and not self._children.get(t.id)
        )
        return self._remove(list(islice(old, TASKS_PER_PURGE)))

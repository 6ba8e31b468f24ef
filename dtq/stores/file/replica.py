"""Replica: an Index that notes what changes in it, and that is brought up to date by what another one has noted.

one process:  add, claim, update ... --> Replica --note--> Change --> journal
the others:   Replica <--apply-- Change <-- journal

A change says how things are afterwards, not what was done: applied twice, or upon a state that knows of it already,
it gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from msgspec.structs import asdict, fields, replace

from dtq.policy.limits import IN_LINE, Limit, Selector, Share
from dtq.stores.memory.index import Index
from dtq.stores.protocol import Node
from dtq.task.model import STATE, WAITING, Status, Task


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task, all of it: with its number in the order of insertion, and the parents that it still waits for."""

    number: int
    task: Task
    waits_for: tuple[str, ...] = ()


_of_task = {field.name: field for field in fields(Task)}
Moved: Any = msgspec.defstruct(
    "Moved",
    [("id", str), ("version", int), *((name, _of_task[name].type, _of_task[name].default) for name in STATE)],
    frozen=True,
    omit_defaults=True,
)
Moved.__doc__ = "A task that was known already: only what a transition may have changed."
_state = attrgetter("id", "version", *STATE)


class Change(msgspec.Struct, omit_defaults=True):
    """What one commit has changed. Times are UTC seconds."""

    gone: list[str] = []
    put: list[Entry] = []
    moved: list[Moved] = []
    limits: list[Limit] = []
    owed: list[tuple[Selector, dict[str, float]]] = []  # of limits: when their buckets are full again
    marks: dict[str, float] = {}  # of limit keys: how much each was served
    served: float = 0.0  # the mark of the one served last
    nodes: list[tuple[str, Node]] = []  # each behind the peer through which it speaks
    left: list[str] = []  # nodes
    deleted: int = 0  # where tasks are gone: the highest version that any deleted task had


NOTHING = Change()
SWEEP = 1000  # entries in the waiting room, beyond what the tasks may need, after which it is made anew


class Replica(Index):
    """`peer` is the process's own; `dirty` tells for each journal which tasks have changed in it."""

    def __init__(self, peer: str = "") -> None:
        super().__init__()
        self.peer = peer
        self.peer_of: dict[str, str] = {}  # of each node
        self.dirty: dict[int, set[str]] = {}
        self._entered = 0  # into the waiting room, since it was made
        self._begin_to_note()

    # --- note

    def _begin_to_note(self) -> None:
        self._touched: dict[str, None] = {}  # tasks that are to be written down, in this order
        self._freed: set[str] = set()  # tasks that wait for fewer parents, which is not: it follows from the parents
        self._rewritten: set[str] = set()  # tasks of which more has changed than their state: they are written whole
        self._changed = Change()
        self._known = self._number  # tasks up to this number were written down before
        self._used: dict[Selector, dict[str, float]] = {}  # buckets from which a task has started

    def _set(self, task: Task) -> None:
        self._touched[task.id] = None
        super()._set(task)

    def _put(self, task: Task) -> None:
        self._entered += task.status in WAITING
        super()._put(task)

    def _forget(self, task: Task) -> None:
        self._touched[task.id] = None
        super()._forget(task)

    def _settle_children(self, parent: Task) -> None:
        self._freed |= self._children.get(parent.id, set())
        super()._settle_children(parent)

    def _orphan_children(self, parent: Task) -> None:
        self._freed |= self._children.get(parent.id, set())
        super()._orphan_children(parent)

    def _place_anew(self, task: Task) -> None:
        self._rewritten.add(task.id)
        super()._place_anew(task)

    def _give_up_key(self, task: Task) -> None:
        self._rewritten.add(task.id)
        super()._give_up_key(task)

    def _mark(self, served: Mapping[str, float], now: float) -> None:
        if served:
            self._changed.marks, self._changed.served = {**self._changed.marks, **served}, now
        super()._mark(served, now)

    def _use(self, selector: Selector, used: Mapping[str, float], now: float) -> None:
        if used:
            self._used.setdefault(selector, {}).update(used)
        super()._use(selector, used, now)

    def _set_limit(self, limit: Limit) -> None:
        self._changed.limits.append(limit)
        super()._set_limit(limit)

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        lost = super().heartbeat(node, held, lease, now)
        self.peer_of[node.id] = self.peer
        if not lease and self.holds(node.id):  # it stays until its tasks were taken over
            self._nodes[node.id] = replace(node, seen_at=now)
        self._changed.nodes.append((self.peer, self._nodes.get(node.id, node)))
        if node.id not in self._nodes:
            self.leave(node.id)
        return lost

    def leave(self, node: str) -> None:
        self._nodes.pop(node, None)
        self.peer_of.pop(node, None)
        self._changed.left.append(node)

    def take(self, journal: int) -> Change | None:
        """What has changed since the last time, if anything has; it goes into this journal."""
        change = self._changed
        for task_id in self._touched:
            if task_id not in self._tasks:
                change.gone.append(task_id)
            elif self._seq[task_id] > self._known or task_id in self._rewritten:
                change.put.append(self._entry(task_id))
            else:
                change.moved.append(Moved(*_state(self._tasks[task_id])))
        change.deleted = self._deleted if change.gone else 0
        change.owed += self._used.items()
        self._settle(journal)
        return change if change != NOTHING else None

    def _settle(self, journal: int) -> None:
        self.dirty.setdefault(journal, set()).update(self._touched, self._freed)
        self._begin_to_note()
        if self._entered > SWEEP + 2 * len(self._tasks):
            self._sweep()

    def _sweep(self) -> None:
        """A process that does not claim leaves what has gone stale in its heaps: they are made anew."""
        self._room, self._entered = self._new_room(), 0
        for task_id, number in self._seq.items():
            if self._tasks[task_id].status in WAITING:
                self._room.enter(self._tasks[task_id], number)

    # --- apply

    def apply(self, change: Change, journal: int) -> None:
        """The change that another process has written into this journal, or this one before it was started."""
        for task_id in change.gone:
            if task_id in self._tasks:
                self._free_children(task_id)
                self._forget(self._tasks[task_id])
        self._deleted = max(self._deleted, change.deleted)
        for entry in change.put:
            self._restore(entry)
        for moved in change.moved:
            self._move(moved)
        self._apply_policy(change)
        for peer, node in change.nodes:
            self._nodes[node.id], self.peer_of[node.id] = node, peer
        for name in change.left:
            self.leave(name)
        self._settle(journal)

    def _restore(self, entry: Entry) -> None:
        task = entry.task
        if (old := self._tasks.get(task.id)) is not None:
            is_another = self._seq[task.id] != entry.number  # which had the same id
            if is_another or task.is_terminal:
                self._free_children(task.id)
            self._forget(old)
        taken = self._id.get(entry.number, task.id) != task.id  # one of two files was changed by hand, or damaged
        number = self._number + 1 if taken else entry.number
        self._register(task, number)
        self._number = max(self._number, number)
        self._parents[task.id] = set(entry.waits_for)
        self._put(task)

    def _move(self, moved: Any) -> None:
        if (old := self._tasks.get(moved.id)) is not None:  # else its file was damaged
            self._put(replace(old, **asdict(moved)))
            if self._tasks[moved.id].is_terminal:
                self._free_children(moved.id)

    def _free_children(self, parent_id: str) -> None:
        """What becomes of the children stands in the change itself; here they only cease to wait for this one."""
        for child_id in self._children.get(parent_id, ()):
            self._freed.add(child_id)
            self._parents[child_id].discard(parent_id)

    def settle_orphans(self) -> None:
        """Nobody is to wait for what will never come: for a parent that has ended, or whose file was damaged (which is
        as if it had been deleted)."""
        for parent_id in list(self._children):
            parent = self._tasks.get(parent_id) or Task(type="lost", id=parent_id, status=Status.CANCELLED)
            if parent.is_terminal:
                self._settle_children(parent)
        for task in [task for task in self._tasks.values() if task.status == Status.BLOCKED and not task.doom]:
            if not self._parents.get(task.id):
                self._put(replace(task, status=Status.PENDING, version=task.version + 1))

    def _apply_policy(self, change: Change) -> None:
        for limit in change.limits:
            self._set_limit(limit)
        for selector, buckets in change.owed:
            super()._use(selector, buckets, self._latest_full(selector, buckets))
        if change.marks or change.served:
            known = self._share.ahead if change.served == self._share.now else ()
            ahead = [key for key, mark in change.marks.items() if mark > change.served]
            self._share = Share(change.served, (*known, *ahead))
            super()._mark(change.marks, change.served)

    def _latest_full(self, selector: Selector, buckets: Mapping[str, float]) -> float:
        """Return a time that had passed when tasks started from these buckets: what was full by then may be forgotten.

        A bucket is never used up further than `burst` starts, each of which counts from IN_LINE seconds ahead at most.
        """
        limit = self._limits.get(selector)
        if limit is None or not limit.rate or not buckets:
            return 0.0
        return max(buckets.values()) - (limit.burst + 1) / limit.rate - IN_LINE

    # --- give

    def entries(self, ids: Iterable[str]) -> list[Entry]:
        """The tasks of these ids that are there."""
        return [self._entry(task_id) for task_id in ids if task_id in self._tasks]

    def _entry(self, task_id: str) -> Entry:
        return Entry(self._seq[task_id], self._tasks[task_id], tuple(sorted(self._parents.get(task_id, ()))))

    def all_but_tasks(self) -> Change:
        """Limits, shares, nodes and the highest deleted version, as one change from nothing."""
        nodes = [(self.peer_of[node.id], node) for node in self._nodes.values()]
        return Change(
            limits=list(self._limits.values()), owed=[(name, dict(at)) for name, at in self._next_at.items() if at],
            marks={key: self._share.mark(key) for key in self._share.ahead}, served=self._share.now, nodes=nodes,
            deleted=self._deleted,
        )  # fmt: skip

    def has_late(self, now: float) -> bool:
        return any((self._tasks[task_id].lease_until or 0) <= now for task_id in self._processing)

    def holds(self, node: str) -> bool:
        return any(self._tasks[task_id].worker == node for task_id in self._processing)

"""Replica: all tasks in memory, as an Index that records what changes in it and applies what others recorded.

this process      add, claim, update ... --> Replica --drain--> Change --> journal
other processes                              Replica <--apply-- Change <-- journal
task files                                   Replica --evict, whole--      (payload, result ... of large ended tasks)

An ended task with more than LARGE bytes is evicted once its file holds it: memory keeps what `brief_of` returns, and
the file has the rest. Its version shows whether the file still holds the same state. Before it changes, it is read back
into memory. It is then written to the journal as a whole, since other processes may have evicted it too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from dtq.policy.limits import Limit, Selector
from dtq.policy.picking import MAX_CLAIM_WAIT, Share
from dtq.stores.file.changes import NOTHING, Change, Entry, moved_of
from dtq.stores.file.journal import Diverged
from dtq.stores.memory.index import Index
from dtq.stores.protocol import Node
from dtq.task.model import TERMINAL, WAITING, Status, Task
from dtq.task.transitions import brief_of

STALE_ENTRIES = 1000  # entries of the ready queue, beyond twice the number of tasks, after which it is rebuilt
LARGE = 4096  # bytes of JSON in what `brief_of` leaves out; evicting less is not worth the read
EVICTED_AT_ONCE = 100  # tasks: more would keep other threads waiting
_to_json = msgspec.json.Encoder().encode
_bulk = attrgetter("raw_payload", "raw_result", "error", "history", "log")


class Recording:
    """What has changed in a replica since the last `drain`."""

    def __init__(self, last_number: int) -> None:
        self.last_number = last_number  # tasks up to this insertion number were written before
        self.touched: dict[str, None] = {}  # ids of tasks to write, in this order
        self.rewritten: set[str] = set()  # tasks to write whole: more than their state has changed
        self.freed: set[str] = set()  # tasks that wait for fewer parents: not written, as it follows from the parents
        self.used: dict[Selector, dict[str, float]] = {}  # limit -> buckets from which a task has started
        self.change = Change()  # everything that is not about a task


class Replica(Index):
    """An Index that takes part in a journal.

    `peer` names this process among those that have the store open; `peer_of` maps each node to the peer that it runs
    in. `dirty` has, for each journal, the ids of tasks that changed in it. `read_file` returns the task that the file
    of an id holds, or None.
    """

    def __init__(self, read_file: Callable[[str], Task | None]) -> None:
        super().__init__()
        self.peer = ""
        self.peer_of: dict[str, str] = {}
        self.dirty: dict[int, set[str]] = {}
        self._read_file = read_file
        self._evicted: set[str] = set()
        self._entered = 0  # tasks that entered the ready queue since it was built
        self._recording = Recording(self._number)

    # --- record: each method of Index that changes something also enters the change in the recording

    def _set(self, task: Task) -> None:
        self._recording.touched[task.id] = None
        super()._set(task)

    def _put(self, task: Task) -> None:
        self._entered += task.status in WAITING
        super()._put(task)

    def _forget(self, task: Task) -> None:
        self._recording.touched[task.id] = None
        self._evicted.discard(task.id)
        super()._forget(task)

    def _unblock_children(self, parent: Task) -> None:
        self._recording.freed |= self._children.get(parent.id, set())
        super()._unblock_children(parent)

    def _detach_children(self, parent: Task) -> None:
        self._recording.freed |= self._children.get(parent.id, set())
        super()._detach_children(parent)

    def _advance(self, task: Task) -> bool:
        stored = self._tasks[task.id]
        if stored.is_terminal:
            self._tasks[task.id] = self._whole(stored)
            self._evicted.discard(task.id)
            self._recording.rewritten.add(task.id)
        return super()._advance(task)

    def _give_up_key(self, task: Task) -> None:
        self._recording.rewritten.add(task.id)
        super()._give_up_key(task)

    def _mark(self, served: Mapping[str, float], now: float) -> None:
        if served:
            change = self._recording.change
            change.marks, change.served = {**change.marks, **served}, now
        super()._mark(served, now)

    def _use(self, selector: Selector, used: Mapping[str, float], now: float) -> None:
        if used:
            self._recording.used.setdefault(selector, {}).update(used)
        super()._use(selector, used, now)

    def _set_limit(self, limit: Limit) -> None:
        self._recording.change.limits.append(limit)
        super()._set_limit(limit)

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        lost = super().heartbeat(node, held, lease, now)
        self.peer_of[node.id] = self.peer
        if not lease and self.holds(node.id):  # the node stays listed until its tasks are taken over
            self._nodes[node.id] = replace(node, seen_at=now)
        self._recording.change.nodes.append((self.peer, self._nodes.get(node.id, node)))
        if node.id not in self._nodes:
            self.leave(node.id)
        return lost

    def leave(self, node: str) -> None:
        """Remove a node."""
        self._nodes.pop(node, None)
        self.peer_of.pop(node, None)
        self._recording.change.left.append(node)

    # --- drain: turn the recording into one Change

    def drain(self, journal: int) -> Change | None:
        """Return what has changed since the last time, to be written to this journal; None if nothing has."""
        recording = self._recording
        change = recording.change
        for task_id in recording.touched:
            self._record_task(task_id, recording, change)
        change.deleted = self._deleted if change.gone else 0
        change.owed += recording.used.items()
        self._finish_recording(journal)
        return change if change != NOTHING else None

    def _record_task(self, task_id: str, recording: Recording, change: Change) -> None:
        """Enter a touched task as gone, as a whole, or as moved only."""
        if task_id not in self._tasks:
            change.gone.append(task_id)
        elif self._seq[task_id] > recording.last_number or task_id in recording.rewritten:
            change.put.append(self._entry(task_id))
        else:
            change.moved.append(moved_of(self._tasks[task_id]))

    def _finish_recording(self, journal: int) -> None:
        """Note which tasks changed in this journal, and begin a new recording."""
        self.dirty.setdefault(journal, set()).update(self._recording.touched, self._recording.freed)
        self._recording = Recording(self._number)
        if self._entered > STALE_ENTRIES + 2 * len(self._tasks):
            self._rebuild_ready_queue()

    def _rebuild_ready_queue(self) -> None:
        """Drop stale entries, which only `claim` would remove: a process that never claims would keep them all."""
        self._ready_queue, self._entered = self._new_queue(), 0
        for task_id, number in self._seq.items():
            if self._tasks[task_id].status in WAITING:
                self._ready_queue.enter(self._tasks[task_id], number)

    # --- apply: a Change that was read from a journal

    def apply(self, change: Change, journal: int) -> None:
        """Apply what another process, or an earlier one, has written to this journal."""
        self._apply_tasks(change)
        self._apply_policy(change)
        for peer, node in change.nodes:
            self._nodes[node.id], self.peer_of[node.id] = node, peer
        for node_id in change.left:
            self.leave(node_id)
        self._finish_recording(journal)

    def _apply_tasks(self, change: Change) -> None:
        for task_id in change.gone:
            if task_id in self._tasks:
                self._free_children(task_id)
                self._forget(self._tasks[task_id])
        self._deleted = max(self._deleted, change.deleted)
        for entry in change.put:
            self._restore(entry)
        for moved in change.moved:
            self._move(moved)

    def _restore(self, entry: Entry) -> None:
        task = entry.task
        if (old := self._tasks.get(task.id)) is not None:
            self._replace_entry(old, entry)
        number = self._free_number(entry)
        self._register(task, number)
        self._number = max(self._number, number)
        self._parents[task.id] = set(entry.waits_for)
        self._put(task)

    def _replace_entry(self, old: Task, entry: Entry) -> None:
        is_another_task = self._seq[old.id] != entry.number  # one with the same id, added after this one was deleted
        if is_another_task or entry.task.is_terminal:
            self._free_children(old.id)
        self._forget(old)

    def _free_number(self, entry: Entry) -> int:
        """Return the entry's number, or the next free one if another task has it: a file was edited or damaged."""
        is_taken = self._id.get(entry.number, entry.task.id) != entry.task.id
        return self._number + 1 if is_taken else entry.number

    def _move(self, moved: Any) -> None:
        if (old := self._tasks.get(moved.id)) is not None:  # otherwise its file was damaged
            self._put(replace(old, **asdict(moved)))
            if self._tasks[moved.id].is_terminal:
                self._free_children(moved.id)

    def _free_children(self, parent_id: str) -> None:
        """Make the children stop waiting for this parent. The change itself holds their new states."""
        for child_id in self._children.get(parent_id, ()):
            self._recording.freed.add(child_id)
            self._parents[child_id].discard(parent_id)

    def unblock_orphans(self) -> None:
        """Unblock or doom the tasks that wait for a parent that will never end: it has ended already, or its file was
        damaged, which counts as a deletion."""
        for parent_id in list(self._children):
            parent = self._tasks.get(parent_id) or Task(type="lost", id=parent_id, status=Status.CANCELLED)
            if parent.is_terminal:
                self._unblock_children(parent)
        for task in [task for task in self._tasks.values() if task.status == Status.BLOCKED and not task.doom]:
            if not self._parents.get(task.id):
                self._put(replace(task, status=Status.PENDING, version=task.version + 1))

    def _apply_policy(self, change: Change) -> None:
        for limit in change.limits:
            self._set_limit(limit)
        for selector, buckets in change.owed:
            super()._use(selector, buckets, self._latest_full(selector, buckets))
        if change.marks or change.served:
            self._apply_marks(change)

    def _apply_marks(self, change: Change) -> None:
        known = self._share.ahead if change.served == self._share.now else ()
        ahead = [key for key, mark in change.marks.items() if mark > change.served]
        self._share = Share(change.served, (*known, *ahead))
        super()._mark(change.marks, change.served)

    def _latest_full(self, selector: Selector, buckets: Mapping[str, float]) -> float:
        """Return a time that had passed when tasks started from these buckets: what was full by then may be forgotten.

        A bucket is never used up further than `burst` starts, each of which counts from MAX_CLAIM_WAIT seconds ahead at
        most.
        """
        limit = self._limits.get(selector)
        if limit is None or not limit.rate or not buckets:
            return 0.0
        return max(buckets.values()) - (limit.burst + 1) / limit.rate - MAX_CLAIM_WAIT

    # --- evict: keep the large fields of an ended task only in its file

    def restore(self, entries: Iterable[Entry], changing: Collection[str]) -> None:
        """Begin with the tasks in these files. Evict those that are not `changing` in a journal, one by one."""
        for entry in entries:
            self._restore(entry)
            self._evict({entry.task.id}.difference(changing))

    def settle(self, journal: int) -> None:
        """Evict some of the tasks whose last change was in this journal, which is gone: their files hold the present
        state. Forget the journal once all of them are evicted."""
        ids = self.dirty[journal]
        some = {ids.pop() for _ in range(min(len(ids), EVICTED_AT_ONCE))}
        self._evict(some.difference(*(later for number, later in self.dirty.items() if number != journal)))
        if not ids:
            del self.dirty[journal]

    def _evict(self, ids: Iterable[str]) -> None:
        for task in self._stored(ids):
            if task.status in TERMINAL and len(_to_json(_bulk(task))) > LARGE:
                self._evicted.add(task.id)
                self._tasks[task.id] = brief_of(task)

    def _whole(self, task: Task) -> Task:
        """Return the task, from its file if it was evicted. Raise Diverged if the file holds another state."""
        if task.id not in self._evicted:
            return task
        found = self._read_file(task.id)
        if found is None or (found.id, found.version) != (task.id, task.version):
            raise Diverged(f"the file of task {task.id} does not hold its version {task.version}")
        return found

    def _shown(self, found: Iterable[Task], brief: bool) -> list[Task]:
        return super()._shown(found if brief or not self._evicted else map(self._whole, found), brief)

    # --- read

    def entries(self, ids: Iterable[str]) -> list[Entry]:
        """Return the entries of those ids that are stored."""
        return [self._entry(task_id) for task_id in ids if task_id in self._tasks]

    def _entry(self, task_id: str) -> Entry:
        task = self._whole(self._tasks[task_id])
        return Entry(self._seq[task_id], task, tuple(sorted(self._parents.get(task_id, ()))))

    def all_but_tasks(self) -> Change:
        """Return limits, shares, nodes and the highest deleted version, as one change from an empty store."""
        nodes = [(self.peer_of[node.id], node) for node in self._nodes.values()]
        return Change(
            limits=list(self._limits.values()), owed=[(name, dict(at)) for name, at in self._next_at.items() if at],
            marks={key: self._share.mark(key) for key in self._share.ahead}, served=self._share.now, nodes=nodes,
            deleted=self._deleted,
        )  # fmt: skip

    def has_expired_lease(self, now: float) -> bool:
        """Return whether a processing task has a lease that ended by `now` (UTC seconds)."""
        return any((self._tasks[task_id].lease_until or 0) <= now for task_id in self._processing)

    def holds(self, node: str) -> bool:
        """Return whether this node has a processing task."""
        return any(self._tasks[task_id].worker == node for task_id in self._processing)

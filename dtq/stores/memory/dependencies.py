"""Dependencies: parents and children in an Index.

_parents    of a blocked task: the parents that have not ended yet
_children   of any task: the unfinished tasks that name it in `after`
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from dtq.stores.protocol import doom_from, parents_of
from dtq.task.model import PROCESSING, Status, Task


class Dependencies:
    """The part of Index that blocks, unblocks and dooms children."""

    _tasks: dict[str, Task]
    _seq: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self._parents: dict[str, set[str]] = {}
        self._forget_children()

    def _forget_children(self) -> None:
        self._children: dict[str, set[str]] = defaultdict(set)

    def _stored(self, ids: Iterable[str]) -> list[Task]:
        return [self._tasks[task_id] for task_id in ids if task_id in self._tasks]

    def _put(self, task: Task) -> None:
        raise NotImplementedError

    def _set(self, task: Task) -> None:
        raise NotImplementedError

    def _as_new(self, task: Task, stands_for: Mapping[str, str], version: int) -> Task:
        """Return a new task with its version, its parents (see `parents_of`) and its first status."""
        if not task.after:
            return replace(task, status=Status.PENDING, version=version)
        return self._with_first_status(replace(task, after=parents_of(task, stands_for), version=version))

    def _with_first_status(self, task: Task) -> Task:
        """Return the task blocked by its unfinished parents, doomed by one that failed, or else pending."""
        ended = [parent for parent in self._stored(task.after) if parent.is_terminal]
        self._parents[task.id] = set(task.after) - {parent.id for parent in ended}
        for parent in ended:
            if doom := doom_from(parent.id, parent.status, task.on_parent_failure == "fail"):
                return replace(task, status=Status.BLOCKED, doom=doom)
        return replace(task, status=Status.BLOCKED if self._parents[task.id] else Status.PENDING)

    def _block_again(self, task: Task) -> None:
        """Block or doom a task that waits again, by those of its parents that still exist."""
        existing = tuple(parent for parent in task.after if parent in self._tasks)
        self._put(replace(self._with_first_status(replace(task, after=existing)), after=task.after))

    def _link_parents(self, task: Task) -> None:
        """Note with each of its parents that this task needs it, until the task has ended."""
        if task.is_terminal:
            self._unlink_parents(task)
        else:
            for parent_id in task.after:
                self._children[parent_id].add(task.id)

    def _unlink_parents(self, task: Task) -> None:
        self._parents.pop(task.id, None)
        for parent_id in task.after:
            if children := self._children.get(parent_id):
                children.discard(task.id)
                if not children:
                    del self._children[parent_id]

    def _children_of(self, parent: Task) -> list[Task]:
        """Return the unfinished tasks that name this one, oldest first."""
        return [self._tasks[id] for id in sorted(self._children.get(parent.id, ()), key=self._seq.__getitem__)]

    def _unblock_children(self, parent: Task) -> None:
        """If the parent has ended, unblock or doom the children that wait for it."""
        if not parent.is_terminal:
            return
        for child in self._children_of(parent):
            if parent.id in self._parents[child.id]:
                self._parents[child.id].discard(parent.id)
                if child.status == Status.BLOCKED and not child.doom:
                    self._unblock_child(child, doom_from(parent.id, parent.status, child.on_parent_failure == "fail"))

    def _unblock_child(self, child: Task, doom: str | None) -> None:
        if doom:
            self._put(replace(child, doom=doom, version=child.version + 1))
        elif child.status == Status.BLOCKED and not self._parents[child.id]:
            self._put(replace(child, status=Status.PENDING, version=child.version + 1))

    def _detach_children(self, parent: Task) -> None:
        """Treat waiting children of a deleted parent as if it was cancelled. A running child keeps its version, and is
        doomed when it waits again."""
        for child in self._children_of(parent):
            self._parents[child.id].discard(parent.id)
            doom = doom_from(parent.id, Status.CANCELLED, child.on_parent_failure == "fail")
            if child.doom:
                continue
            if child.status != PROCESSING:
                self._unblock_child(child, doom)
            elif doom:
                self._set(replace(child, doom=doom))

"""Dependencies: parents and children in a SQLite database: one edge from each parent to a task, until that task ends.

An edge `waits` until its parent has ended. A task becomes pending when none of its edges waits any more. If a parent
did not complete, a child with a `strict` edge is doomed (`on_parent_failure` is "fail"). The clean-up keeps every task
that still has an edge to a child.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.stores.protocol import doom_from, parents_of
from dtq.stores.sqlite import schema
from dtq.stores.sqlite.lanes import StatusChanges
from dtq.stores.sqlite.rows import json_list, stage_of
from dtq.task.model import TERMINAL, Status, Task


def require_parents(db: sqlite3.Connection, tasks: Sequence[Task], given: set[str]) -> None:
    """Raise InvalidTask if a parent of these tasks is neither stored nor among the ids `given` by the same call."""
    parents = {parent for task in tasks for parent in task.after} - given
    known = {row[0] for row in db.execute(schema.IDS_AMONG, (json_list(parents),))}
    if unknown := parents - known:
        raise InvalidTask(
            f"after is {min(unknown)!r}; allowed: the id of a task that is stored, or added by the same call"
        )


def with_first_status(db: sqlite3.Connection, tasks: list[Task], stands_for: dict[str, str]) -> list[Task]:
    """Return the new tasks, each blocked by its unfinished parents, doomed by one that failed, or else pending.

    `stands_for` maps the ids of the same call to the ids that stand for them (see `parents_of`).
    """
    tasks = [replace(task, after=parents_of(task, stands_for)) for task in tasks]
    parents = {parent for task in tasks for parent in task.after}
    standing: dict[str, str] = dict.fromkeys((task.id for task in tasks), Status.PENDING)
    standing.update(db.execute(schema.STATUS_AMONG, (json_list(parents),)))
    return [_with_first_status(task, standing) for task in tasks]


def _with_first_status(task: Task, standing: dict[str, str]) -> Task:
    ended = [(parent, standing[parent]) for parent in task.after if standing[parent] in TERMINAL]
    for parent, status in ended:
        if doom := doom_from(parent, status, task.on_parent_failure == "fail"):
            return replace(task, status=Status.BLOCKED, doom=doom)
    return replace(task, status=Status.PENDING if len(ended) == len(task.after) else Status.BLOCKED)


def block_again(db: sqlite3.Connection, tasks: list[Task]) -> list[Task]:
    """Block or doom terminal tasks that wait again, by those of their parents that still exist. Return them."""
    parents = json_list({parent for task in tasks for parent in task.after})
    standing: dict[str, str] = dict(db.execute(schema.STATUS_AMONG, (parents,)))
    placed = [
        _with_first_status(replace(task, after=tuple(p for p in task.after if p in standing)), standing)
        for task in tasks
    ]
    db.executemany(schema.PLACE, [(stage_of(task), task.status, task.doom, task.id) for task in placed])
    insert_edges(db, placed)
    return placed


def insert_edges(db: sqlite3.Connection, tasks: list[Task]) -> None:
    """Insert an edge from each parent to each of these tasks, which are stored and unfinished."""
    children = [task for task in tasks if task.after]
    seqs = dict(db.execute(schema.SEQS_AMONG, (json_list(task.id for task in children),)))
    parents = json_list({parent for task in children if task.status == Status.BLOCKED for parent in task.after})
    unfinished = {id for id, status in db.execute(schema.STATUS_AMONG, (parents,)) if status not in TERMINAL}
    edges = {
        (parent, seqs[task.id], task.on_parent_failure == "fail", parent in unfinished)
        for task in children
        for parent in task.after
    }
    db.executemany(schema.INSERT_EDGE, edges)


def drop_edges_to(db: sqlite3.Connection, seqs: Iterable[int]) -> None:
    """Remove the edges to tasks that have ended or are deleted. The clean-up may then remove their parents."""
    if parents := {parent for (parent,) in db.execute(schema.DROP_EDGES_TO, (json_list(seqs),))}:
        db.execute(schema.UNKEEP, (json_list(parents),))


def unblock_children(db: sqlite3.Connection, ended: Iterable[tuple[str, str]], changes: StatusChanges) -> None:
    """Unblock or doom the children of these tasks (id, status), which have ended."""
    for parent, status in ended:
        for child, strict in db.execute(schema.EDGES_OF, (parent,)).fetchall():
            _unblock_child(db, child, doom_from(parent, status, strict), changes)


def _unblock_child(db: sqlite3.Connection, seq: int, doom: str | None, changes: StatusChanges) -> None:
    blocked = db.execute(schema.IS_BLOCKED, (seq,)).fetchone()
    if blocked and doom:
        _doom(db, seq, doom, changes)
    elif blocked and not blocked[1]:
        db.execute(schema.UNBLOCK, (seq,))
        changes.move(blocked[0], Status.BLOCKED, Status.PENDING)


def detach_children(db: sqlite3.Connection, parents: Iterable[str], changes: StatusChanges) -> None:
    """Treat waiting children of deleted tasks as if these were cancelled. A running child keeps its version, and is
    doomed when it waits again."""
    if not db.execute(schema.ANY_EDGE).fetchone():
        return
    for parent in parents:
        for child, strict in db.execute(schema.ALL_EDGES_OF, (parent,)).fetchall():
            if doom := doom_from(parent, Status.CANCELLED, strict):
                _doom(db, child, doom, changes)
                db.execute(schema.DOOM_RUNNING, (doom, child))
            else:
                _unblock_child(db, child, None, changes)


def _doom(db: sqlite3.Connection, seq: int, doom: str, changes: StatusChanges) -> None:
    """Doom the task if it waits."""
    for (lane,) in db.execute(schema.DOOM, (doom, seq)).fetchall():
        changes.touch(lane)

"""Which task needs which in a SQLite database: one edge from each parent that a task names, until the task has ended.

An edge `waits` until its parent has ended. A task whose last edge ceases to wait becomes pending; one whose parent did
not complete is doomed, unless it said that it would run all the same (the edge is not `strict` then). The clean-up
keeps a task from which an edge goes out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.stores.protocol import doom_from, parents_of
from dtq.stores.sqlite import schema
from dtq.stores.sqlite.lanes import Moves
from dtq.stores.sqlite.rows import json_list, stage_of
from dtq.task.model import TERMINAL, Status, Task


def require_parents(db: sqlite3.Connection, tasks: Sequence[Task], given: set[str]) -> None:
    """Raises InvalidTask where a parent of these tasks is neither stored nor among the ids `given` by the same call."""
    parents = {parent for task in tasks for parent in task.after} - given
    known = {row[0] for row in db.execute(schema.IDS_AMONG, (json_list(parents),))}
    if unknown := parents - known:
        raise InvalidTask(
            f"after is {min(unknown)!r}; allowed: the id of a task that is stored, or added by the same call"
        )


def place(db: sqlite3.Connection, tasks: list[Task], stands_for: dict[str, str]) -> list[Task]:
    """The tasks as they begin: blocked by unfinished parents, or doomed by those that failed. A parent of the same call
    whose key was taken is waited for in the task that `stands_for` it."""
    tasks = [replace(task, after=parents_of(task, stands_for)) for task in tasks]
    parents = {parent for task in tasks for parent in task.after}
    standing: dict[str, str] = dict.fromkeys((task.id for task in tasks), Status.PENDING)
    standing.update(db.execute(schema.STATUS_AMONG, (json_list(parents),)))
    return [_begun(task, standing) for task in tasks]


def _begun(task: Task, standing: dict[str, str]) -> Task:
    ended = [(parent, standing[parent]) for parent in task.after if standing[parent] in TERMINAL]
    for parent, status in ended:
        if doom := doom_from(parent, status, task.on_parent_failure == "fail"):
            return replace(task, status=Status.BLOCKED, doom=doom)
    return replace(task, status=Status.PENDING if len(ended) == len(task.after) else Status.BLOCKED)


def place_anew(db: sqlite3.Connection, tasks: list[Task]) -> list[Task]:
    """These tasks have come back from their end: they are blocked or doomed by those of their parents that are still
    there. Gives them as they stand now."""
    parents = json_list({parent for task in tasks for parent in task.after})
    standing: dict[str, str] = dict(db.execute(schema.STATUS_AMONG, (parents,)))
    placed = [_begun(replace(task, after=tuple(p for p in task.after if p in standing)), standing) for task in tasks]
    db.executemany(schema.PLACE, [(stage_of(task), task.status, task.doom, task.id) for task in placed])
    insert_edges(db, placed)
    return placed


def insert_edges(db: sqlite3.Connection, tasks: list[Task]) -> None:
    """Insert an edge from each parent to each of these tasks, which are stored and have not ended."""
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
    """These tasks have ended, or are gone: the clean-up may have a parent that no other one needs."""
    if parents := {parent for (parent,) in db.execute(schema.DROP_EDGES_TO, (json_list(seqs),))}:
        db.execute(schema.UNKEEP, (json_list(parents),))


def settle(db: sqlite3.Connection, ended: Iterable[tuple[str, str]], moves: Moves) -> None:
    """These tasks (id, status) have come to their end: their children are unblocked or doomed."""
    if not db.execute(schema.ANY_EDGE).fetchone():
        return
    for parent, status in ended:
        for child, strict in db.execute(schema.EDGES_OF, (parent,)).fetchall():
            _settle_child(db, child, doom_from(parent, status, strict), moves)


def _settle_child(db: sqlite3.Connection, seq: int, doom: str | None, moves: Moves) -> None:
    blocked = db.execute(schema.IS_BLOCKED, (seq,)).fetchone()
    if blocked and doom:
        _doom(db, seq, doom, moves)
    elif blocked and not blocked[1]:
        db.execute(schema.UNBLOCK, (seq,))
        moves.move(blocked[0], Status.BLOCKED, Status.PENDING)


def orphan(db: sqlite3.Connection, parents: Iterable[str], moves: Moves) -> None:
    """These tasks are deleted: a child that waits for anything is as if they had been cancelled. One that runs goes on,
    in its version, but will not run again."""
    if not db.execute(schema.ANY_EDGE).fetchone():
        return
    for parent in parents:
        for child, strict in db.execute(schema.ALL_EDGES_OF, (parent,)).fetchall():
            if doom := doom_from(parent, Status.CANCELLED, strict):
                _doom(db, child, doom, moves)
                db.execute(schema.DOOM_RUNNING, (doom, child))
            else:
                _settle_child(db, child, None, moves)


def _doom(db: sqlite3.Connection, seq: int, doom: str, moves: Moves) -> None:
    """Doom the task if it waits."""
    for (lane,) in db.execute(schema.DOOM, (doom, seq)).fetchall():
        moves.touch(lane)

"""Who waits for whom in a SQLite database: one edge for each unfinished parent of a blocked task.

An edge goes when its parent has ended. A task whose last edge goes becomes pending; one whose parent did not complete
is doomed, unless it said that it would run all the same (the edge is not `strict` then).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.stores import doom_by, schema, stand_ins
from dtq.stores.lanes import Moves
from dtq.stores.rows import json_list, stage_of
from dtq.task import TERMINAL, Status, Task


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
    tasks = [replace(task, after=stand_ins(task, stands_for)) for task in tasks]
    parents = {parent for task in tasks for parent in task.after}
    standing: dict[str, str] = dict.fromkeys((task.id for task in tasks), Status.PENDING)
    standing.update(db.execute(schema.STATUS_AMONG, (json_list(parents),)))
    return [_begun(task, standing) for task in tasks]


def _begun(task: Task, standing: dict[str, str]) -> Task:
    ended = [(parent, standing[parent]) for parent in task.after if standing[parent] in TERMINAL]
    for parent, status in ended:
        if doom := doom_by(parent, status, task.on_parent_failure == "fail"):
            return replace(task, status=Status.BLOCKED, doom=doom)
    return replace(task, status=Status.PENDING if len(ended) == len(task.after) else Status.BLOCKED)


def place_anew(db: sqlite3.Connection, tasks: list[Task]) -> list[Task]:
    """These tasks have come back from their end: they are blocked or doomed by those of their parents that are still
    there. Gives them as they stand now."""
    parents = json_list({parent for task in tasks for parent in task.after})
    standing: dict[str, str] = dict(db.execute(schema.STATUS_AMONG, (parents,)))
    placed = [_begun(replace(task, after=tuple(p for p in task.after if p in standing)), standing) for task in tasks]
    db.executemany(schema.PLACE, [(stage_of(task), task.status, task.doom, task.id) for task in placed])
    seqs = db.execute(schema.SEQS_AMONG, (json_list(task.id for task in placed),)).fetchall()
    db.executemany(schema.DROP_EDGES_TO, [(seq,) for _, seq in seqs])
    insert_edges(db, placed)
    return placed


def insert_edges(db: sqlite3.Connection, tasks: list[Task]) -> None:
    """An edge from each unfinished parent to each of these tasks, which are stored."""
    blocked = [task for task in tasks if task.status == Status.BLOCKED and not task.doom]
    seqs = dict(db.execute(schema.SEQS_AMONG, (json_list(task.id for task in blocked),)))
    parents = json_list({parent for task in blocked for parent in task.after})
    unfinished = {id for id, status in db.execute(schema.STATUS_AMONG, (parents,)) if status not in TERMINAL}
    edges = {
        (parent, seqs[task.id], task.on_parent_failure == "fail")
        for task in blocked
        for parent in task.after
        if parent in unfinished
    }
    db.executemany(schema.INSERT_EDGE, edges)


def settle(db: sqlite3.Connection, ended: Iterable[tuple[str, str]], moves: Moves) -> None:
    """These tasks (id, status) have come to their end: their children are unblocked or doomed."""
    if not db.execute(schema.ANY_EDGE).fetchone():
        return
    for parent, status in ended:
        for child, strict in db.execute(schema.EDGES_OF, (parent,)).fetchall():
            _settle_child(db, child, doom_by(parent, status, strict), moves)


def _settle_child(db: sqlite3.Connection, seq: int, doom: str | None, moves: Moves) -> None:
    blocked = db.execute(schema.IS_BLOCKED, (seq,)).fetchone()
    if blocked and doom:
        db.execute(schema.DOOM, (doom, seq))
        moves.touch(blocked[0])
    elif blocked and not blocked[1]:
        db.execute(schema.UNBLOCK, (seq,))
        moves.move(blocked[0], Status.BLOCKED, Status.PENDING)

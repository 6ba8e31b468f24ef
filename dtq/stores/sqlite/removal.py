"""Removal: delete tasks from a SQLite database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from dtq.stores.sqlite import schema
from dtq.stores.sqlite.dependencies import detach_children, drop_edges_to
from dtq.stores.sqlite.lanes import StatusChanges
from dtq.stores.sqlite.rows import json_list

TASKS_PER_PURGE = 1000


def delete_tasks(db: sqlite3.Connection, ids: Iterable[str]) -> int:
    """Delete these tasks unless they are running, and doom or unblock their children. Return how many were deleted."""
    order = {id: at for at, id in enumerate(dict.fromkeys(ids))}  # the error of a child names the first deleted parent
    changes = StatusChanges()
    gone = sorted(_remove(db, list(order), changes), key=order.__getitem__)
    detach_children(db, gone, changes)
    changes.write(db)
    return len(gone)


def _remove(db: sqlite3.Connection, ids: list[str], changes: StatusChanges) -> list[str]:
    """Delete those of these tasks that are not running. Return their ids."""
    rows = db.execute(schema.DELETE, (json_list(ids),)).fetchall()
    for _, _, lane, status, _ in rows:
        changes.leave(lane, status)
    if rows:
        db.execute(schema.RAISE_DELETED, (max(row[4] for row in rows),))
        drop_edges_to(db, [row[0] for row in rows])
    return [row[1] for row in rows]


def purge_some(db: sqlite3.Connection, before: float, statuses: str) -> tuple[int, int]:
    """Examine up to TASKS_PER_PURGE tasks of these statuses (a JSON list) that finished before this time.

    Return how many were deleted, and how many were examined. A task that an unfinished child needs is marked instead,
    and is not found again until its children have ended.
    """
    found = db.execute(schema.FINISHED_BEFORE, (before, statuses, TASKS_PER_PURGE)).fetchall()
    if needed := [id for id, is_needed in found if is_needed]:
        db.execute(schema.KEEP, (json_list(needed),))
    changes = StatusChanges()
    gone = _remove(db, [id for id, is_needed in found if not is_needed], changes)
    changes.write(db)
    return len(gone), len(found)

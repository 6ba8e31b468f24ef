"""Adding: insert new tasks into a SQLite database."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

from dtq.policy.limits import Lane
from dtq.stores.sqlite import schema
from dtq.stores.sqlite.dependencies import insert_edges, require_parents, with_first_status
from dtq.stores.sqlite.lanes import Found, Lanes, StatusChanges, is_between
from dtq.stores.sqlite.rows import about, json_list, new_row
from dtq.task.model import Task

Row = tuple[Any, ...]


def add_tasks(db: sqlite3.Connection, lanes: Lanes, tasks: Sequence[Task]) -> list[str]:
    """Insert the new ones among these tasks. Return for each its id, or that of the task that has its key."""
    ids, new = _without_taken(db, tasks)
    if any(task.after for task in new):
        require_parents(db, new, {task.id for task in tasks})
        new = with_first_status(db, new, dict(zip((task.id for task in tasks), ids, strict=True)))
    changes = StatusChanges()
    rows: list[Row] = []
    places: dict[Lane, Found] = {}
    for task in new:
        lane = places.get(task.lane) or places.setdefault(task.lane, lanes.find(db, task.lane))
        rows.append(new_row(task, lane[0]))
        (changes.add if is_between(task, lane) else changes.enter)(lane[0], task.status)
    _insert(db, rows)
    if any(task.after for task in new):
        insert_edges(db, new)
    changes.write(db)
    return ids


def _without_taken(db: sqlite3.Connection, tasks: Sequence[Task]) -> tuple[list[str], list[Task]]:
    """Return for each task its id, or that of the task that has its key; and the tasks whose id and key are free."""
    found = about(db, schema.IDS_AMONG, [task.id for task in tasks])
    taken = {row[0] for row in found}
    keys = [task.key for task in tasks if task.key is not None]
    holders = dict(db.execute(schema.KEYS_AMONG, (json_list(keys),))) if keys else {}
    ids, new = [], []
    for task in tasks:
        holder = task.id if task.id in taken else holders.get(task.key)
        if holder is None:
            new.append(task)
            taken.add(task.id)
            if task.key is not None:
                holders[task.key] = task.id
        ids.append(holder or task.id)
    return ids, new


def _insert(db: sqlite3.Connection, rows: list[Row]) -> None:
    whole = len(rows) // schema.TOGETHER * schema.TOGETHER
    for at in range(0, whole, schema.TOGETHER):
        db.execute(schema.INSERT_TOGETHER, list(chain.from_iterable(rows[at : at + schema.TOGETHER])))
    db.executemany(schema.INSERT, rows[whole:])

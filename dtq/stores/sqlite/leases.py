"""Leases: what a heartbeat extends, and what a reap takes over from nodes that stopped."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from dtq.stores.protocol import Node
from dtq.stores.sqlite import schema
from dtq.stores.sqlite.rows import json_list
from dtq.task.codec import to_json
from dtq.task.model import Task


def extend(db: sqlite3.Connection, peer: str, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
    """Publish the node of this peer, or remove it if the lease is 0 s, and extend the leases of the tasks that it
    holds. Return the ids of those that it has lost."""
    db.execute(schema.SET_NODE, (node.id, peer, to_json(replace(node, seen_at=now)).decode()))
    if not lease:
        db.execute(schema.DROP_NODE, (node.id,))
    rows = db.execute(schema.HELD, (json_list(task.id for task in held),))
    mine = {id: (version, worker) for id, version, worker in rows}
    kept = [task for task in held if mine.get(task.id) == (task.version, task.worker)]
    db.executemany(schema.RENEW, [(now + lease, task.progress, task.note, task.id) for task in kept])
    return {task.id for task in held} - {task.id for task in kept}


def nodes_without_tasks(db: sqlite3.Connection, nodes: Iterable[str]) -> list[str]:
    """Return those of the nodes that hold no task."""
    return [node for node in nodes if not db.execute(schema.HOLDS, (node,)).fetchone()]


def is_any_overdue(db: sqlite3.Connection, now: float) -> bool:
    """Return whether the lease of any task has ended."""
    return db.execute(schema.OVERDUE, (now, "[]", 1)).fetchone() is not None


def take_over(
    db: sqlite3.Connection, worker: str, n: int, lease: float, now: float, dead: Iterable[str]
) -> list[tuple[Any, ...]]:
    """Assign to this worker up to n tasks whose lease has ended or which a dead node held. Return their rows."""
    overdue = [seq for (seq,) in db.execute(schema.OVERDUE, (now, json_list(dead), n))]
    return db.execute(schema.TAKE_OVER, (worker, now + lease, json_list(overdue))).fetchall()

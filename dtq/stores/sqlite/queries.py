"""Statements whose text depends on their arguments. All others are in schema.py."""

from __future__ import annotations

import re
from functools import cache

from dtq.task.model import Status


@cache
def count_kind(names: tuple[str, ...]) -> str:
    """Return the statement that changes these counters of a kind."""
    return f"UPDATE kind SET {', '.join(f'{name} = {name} + ?' for name in names)} WHERE id = ?"


@cache
def of_one(query: str) -> str:
    """Return this statement about a list of values for a single value."""
    return re.sub(r"\(SELECT value FROM json_each\((\?\d?)\)\)", r"(\1)", query)


def find_query(
    columns: str, status: str | None, queue: str | None, type: str | None, finished_after: float | None, after: str
) -> tuple[str, list[str | float]]:
    """Return the statement that reads these columns of tasks, page by page, and the values that it binds before the
    limit."""
    where, index = ["id > ?"], ""
    values: list[str | float] = [after]
    if status is not None:  # written out, so that SQLite can use the index of that status
        where.append(f"status = '{Status(status)}'")
    for column, value in (("queue", queue), ("type", type)):
        if value is not None:
            where.append(f"lane IN (SELECT id FROM lane WHERE {column} = ?)")
            values.append(value)
    if finished_after is not None:
        where.append("kept IN (0, 1) AND finished_at > ?")
        values.append(finished_after)
        if status != Status.FAILED:  # else SQLite looks at every task, in the order of their ids
            index = " INDEXED BY task_finished"
    return f"SELECT {columns} FROM task{index} WHERE {' AND '.join(where)} ORDER BY id LIMIT ?", values

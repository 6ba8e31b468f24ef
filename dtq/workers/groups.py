"""The groups of workers of a queue, and the tasks that each group accepts.

TaskQueue(pool_size=4)                                          one group, for everything
TaskQueue(pools={"urgent": Pool(1, min_priority=5),             one worker reserved for urgent tasks,
                 "rest": Pool(3)})                              and three for all tasks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from dtq.errors import DTQError
from dtq.workers import backend
from dtq.workers.process.pool import WorkerPool

Executor = Literal["process", "thread", "inline"] | backend.WorkerBackend
EXECUTORS = ("process", "thread", "inline")
MAX_WORKERS = 1000


class Pool(Struct, frozen=True):
    """The specification of a group of workers.

    Args:
        size: how many workers.
        queues: the queues whose tasks they run; empty: all queues.
        min_priority: the lowest priority of their tasks; None: any priority.
    """

    size: int = 4
    queues: tuple[str, ...] = ()
    min_priority: int | None = None


class WorkerGroup(Struct, frozen=True):
    """A running pool of workers, with its name and specification."""

    spec: Pool
    pool: backend.WorkerBackend
    name: str = ""


def check(pools: Mapping[str, Pool], executor: Executor) -> None:
    """Raise DTQError if a pool or the executor is invalid, with the allowed values."""
    for name, spec in pools.items():
        if not isinstance(spec, Pool) or type(spec.size) is not int or not 0 <= spec.size <= MAX_WORKERS:
            raise DTQError(f"pool {name!r} is {spec!r}; allowed: a Pool of 0 to {MAX_WORKERS:,} workers")
    if isinstance(executor, str) and executor not in EXECUTORS:
        names = ", ".join(map(repr, EXECUTORS))
        raise DTQError(f"executor is {executor!r}; allowed: {names}, or a WorkerBackend of your own")


def check_size(size: object) -> None:
    """Raise DTQError if a pool cannot have this many workers."""
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_WORKERS:
        raise DTQError(f"the size of a pool is {size!r}; allowed: a whole number from 0 to {MAX_WORKERS:,}")


def named(groups: Sequence[WorkerGroup], pool: object) -> WorkerGroup:
    """Return the group with this name, or at this position. Raise DTQError if there is none."""
    for position, group in enumerate(groups):
        if pool == group.name or (type(pool) is int and pool == position):
            return group
    names = ", ".join(repr(group.name) for group in groups)
    raise DTQError(f"there is no pool {pool!r}; allowed: {names}, or a position from 0 to {len(groups) - 1}")


def make_executors(
    pools: Mapping[str, Pool], executor: Executor, max_tasks: int | None, max_result: int
) -> list[WorkerGroup]:
    """Return a group for each pool, not started yet."""
    return [
        WorkerGroup(spec, _make(executor, name, spec.size, max_tasks, max_result), name) for name, spec in pools.items()
    ]


def _make(executor: Executor, name: str, size: int, max_tasks: int | None, max_result: int) -> backend.WorkerBackend:
    if executor == "process":
        return WorkerPool(size, name=name, max_tasks_per_worker=max_tasks, max_result=max_result)
    if not isinstance(executor, str):
        return executor
    from dtq.workers.inline import InlinePool  # loaded on demand: these need asyncio, and all code of a worker
    from dtq.workers.threads import ThreadPool

    return (
        ThreadPool(size, name=name, max_result=max_result)
        if executor == "thread"
        else InlinePool(name=name, max_result=max_result)
    )
